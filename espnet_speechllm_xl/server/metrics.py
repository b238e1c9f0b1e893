"""Metrics for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from espnet_speechllm_xl.decoding.engine import Engine

NAMESPACE = "speechllm_xl"
LATENCIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)  # seconds, upper ends of the buckets


class Metrics:
    """Counters of one server and its engine."""

    def __init__(self, engine: Engine) -> None:
        registry = self.registry = CollectorRegistry()
        self.streams = Gauge("streams", "Live streams being decoded", namespace=NAMESPACE, registry=registry)
        self.ended = Counter(
            "streams_ended",
            "Live streams ended, refused ones too, by reason",
            ["reason"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self.files = Counter(
            "files",
            "Requests to transcribe a file, by HTTP status",
            ["status"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self.audio = Counter("audio_seconds", "Audio decoded", ["source"], namespace=NAMESPACE, registry=registry)
        self.latency = Histogram(
            "latency_seconds",
            "From the arrival of the audio that completes a chunk to sending its result",
            buckets=LATENCIES,
            namespace=NAMESPACE,
            registry=registry,
        )
        registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the engine's counts; the engine's own thread updates them."""
        for name, text in (("calls", "Model calls"), ("requests", "Requests answered by model calls")):
            family = CounterMetricFamily(f"{NAMESPACE}_engine_{name}", f"{text}, by kind", labels=["kind"])
            for kind, count in sorted(getattr(self._engine, name).items()):
                family.add_metric([kind], count)
            yield family
        busy = CounterMetricFamily("speechllm_xl_engine_busy_seconds", "Time that the engine has computed")
        busy.add_metric([], self._engine.seconds)
        yield busy
