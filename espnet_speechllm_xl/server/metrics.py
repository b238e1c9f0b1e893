"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

LATENCIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)


class Metrics:
    """Counters of one server, and of its engine."""

    def __init__(self, engine):
        self.registry = CollectorRegistry()
        options = {"namespace": "speechllm_xl", "registry": self.registry}
        self.streams = Gauge("streams", "Live streams being decoded", **options)
        self.ended = Counter("streams_ended", "Live streams ended, refused ones too, by reason", ["reason"], **options)
        self.files = Counter("files", "Requests to transcribe a file, by HTTP status", ["status"], **options)
        self.audio = Counter("audio_seconds", "Audio decoded", ["source"], **options)
        self.latency = Histogram(
            "latency_seconds",
            "From the arrival of the audio that completes a chunk to sending its result",
            buckets=LATENCIES,
            **options,
        )
        self.registry.register(_EngineCollector(engine))

    def text(self):
        """All of them in Prometheus's text form, bytes."""
        return generate_latest(self.registry)


class _EngineCollector:
    def __init__(self, engine):
        self._engine = engine

    def collect(self):
        """The engine counts in its own thread; here the counts are only read."""
        for name, text in (("calls", "Model calls"), ("requests", "Requests answered by model calls")):
            family = CounterMetricFamily(f"speechllm_xl_engine_{name}", f"{text}, by kind", labels=["kind"])
            for kind, count in sorted(getattr(self._engine, name).items()):
                family.add_metric([kind], count)
            yield family
        busy = CounterMetricFamily("speechllm_xl_engine_busy_seconds", "Time that the engine has computed")
        busy.add_metric([], self._engine.seconds)
        yield busy
