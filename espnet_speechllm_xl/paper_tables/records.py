"""Records of the trainings of the paper's tables, which outlast their directories: one JSON file a training.

A record holds all that ``TABLES.md`` shows of a training: its latency and size, its learning curve, the errors of every
utterance of its decoded sets, and where and when it was made.  Records can be committed.  So rows that were trained on
other days or machines stand in one table and are compared utterance by utterance.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, EncoderConfig
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import decoded_sets, markdown, metrics, significance
from espnet_speechllm_xl.evaluation.letter_case import compared, ignoring
from espnet_speechllm_xl.evaluation.significance import Counted
from espnet_speechllm_xl.evaluation.train_log import Epochs, read_train_log, stopped_early
from espnet_speechllm_xl.experiment import count_parameters, read_config
from espnet_speechllm_xl.files import atomic_write, copy_file
from espnet_speechllm_xl.paper_tables.plan import Plan
from espnet_speechllm_xl.paper_tables.trainings import Progress, Trainings
from espnet_speechllm_xl.settings import from_dict


@dataclass(frozen=True)
class RecordedSet:
    """Errors and speed of a decoded set."""

    references: str  # digest of the reference texts
    counts: dict[str, dict[str, Counted]]  # {"words" or "characters": {utterance: (errors, symbols, speaker)}}
    missing: int  # utterances without hypothesis, all of whose symbols count as deletions
    info: dict[str, Any]  # decode.json
    without_case: bool = False  # whether it was compared without regard to case, as its model writes small letters

    def rate(self, unit: str = "words") -> float:
        """Return the error rate in percent."""
        rows = self.counts[unit].values()
        return metrics.percent(sum(row[0] for row in rows), sum(row[1] for row in rows))


@dataclass(frozen=True)
class Record:
    """One training and its decodings."""

    made: dict[str, str] = field(default_factory=dict)  # markdown.environment() of its last change
    config: dict[str, Any] = field(default_factory=dict)  # the parts of config.yaml that make the latency
    max_epoch: int | None = None
    parameters: int | None = None
    stopped_early: bool = False  # by --patience, before max_epoch
    epochs: Epochs = field(default_factory=dict)
    decoded: dict[str, RecordedSet] = field(default_factory=dict)  # by "<search>/<set>"


class Records:
    """The records of a plan's trainings, in a directory; a training in ``exp/`` comes before its record.

    Args:
        plan: of the corpus.
        directory: of the records.

    Attributes:
        trainings: those in ``exp/``.
        problems: messages about files that could not be read.
        replaced: paths of records that were of other trainings.
    """

    def __init__(self, plan: Plan, directory: str | Path) -> None:
        self.plan, self.trainings, self.directory = plan, Trainings(plan), Path(directory)
        self.problems: list[str] = []
        self.replaced: list[Path] = []
        self._kept: dict[tuple[str, int], Record] = {}
        self._delays: dict[str, tuple[dict[str, Any], Path | None]] = {}
        self._parts: dict[str, dict[str, list[str]]] = {}

    def path(self, system: str, seed: int) -> Path:
        """Return the file of a training's record."""
        return self.directory / f"{self.plan.tag(system, seed)}.json"

    def seeds(self, system: str) -> list[int]:
        """Return the seeds that have a training or a record, in order."""
        names = [path.stem for path in self.directory.glob("*.json")]
        return self.trainings.seeds_in(system, [*names, *self.trainings.names()])

    def get(self, system: str, seed: int) -> Record:
        """Return the record as it was last written, or an empty one."""
        key = system, seed
        if key not in self._kept:
            try:
                self._kept[key] = read_record(self.path(*key))
            except UserError as error:
                self.problems.append(str(error))
                self._kept[key] = Record()
        return self._kept[key]

    def progress(self, system: str, seed: int = 1, search: str | None = None) -> Progress:
        """Return how far a training is, by ``exp/``, or by its record where there is nothing else.

        Args:
            system: name of the system.
            seed: of the training.
            search: whose decodings count; None: all.

        Raises:
            UserError: its config.yaml cannot be read.
        """
        if self.trainings.directory(system, seed).is_dir():
            return self.trainings.progress(system, seed, search)
        record, wanted = self.get(system, seed), self.plan.decodings(system, search)
        decoded = sum("/".join(pair) in record.decoded for pair in wanted)
        epochs = self.trainings.max_epoch(system, record.max_epoch) if record.epochs else record.max_epoch
        return Progress(len(record.epochs), epochs, decoded, len(wanted), record.stopped_early)

    def update(self, system: str, seed: int) -> None:
        """Write the record of a training that is in ``exp/``.

        Parts that are not in ``exp/`` are kept from the record before, unless that is of another training of the same
        name.  Decodings are not kept when the training went on since.
        """
        directory, old = self.trainings.directory(system, seed), self.get(system, seed)
        if not directory.is_dir():
            return
        epochs = read_train_log(directory)
        described: dict[str, Any] = {}
        try:
            config = read_config(directory)
            if config:
                described = _described(config, directory)
        except UserError as error:
            self.problems.append(f"{directory.name}: {error}")
        another = _is_another(old, described, epochs)
        if another and old.decoded and not self.trainings.progress(system, seed).done:
            self.problems.append(
                f"{self.path(system, seed)} is kept: {directory} is another training, and not done: go on with it "
                "(--row), or remove it"
            )
            return
        if another and old.decoded:
            self.replaced.append(self.path(system, seed))
        record = Record() if another else old
        decoded = {} if len(epochs) > len(record.epochs) else dict(record.decoded)
        for search, dataset in self.plan.decodings(system):
            found = self._decoded(system, seed, search, dataset)
            if found is not None:
                decoded[f"{search}/{dataset}"] = found
        record = replace(record, **described, decoded=decoded, epochs=epochs or record.epochs)
        # Compared as text, in which a nan of the log is equal to itself.
        if _as_json(record) != _as_json(old) and (record.epochs or decoded):
            self._kept[system, seed] = record = replace(record, made=markdown.environment())
            write_record(self.path(system, seed), record)

    def _decoded(self, system: str, seed: int, search: str, dataset: str) -> RecordedSet | None:
        """Score a decoded set in ``exp/``, if it was decoded anew; None where there is none."""
        directory = self.trainings.decoded(system, search, dataset, seed)
        if directory is None:
            return None
        try:
            tables = decoded_sets.read_decoded(directory, self.plan.dump)
            before, digest = self.get(system, seed).decoded.get(f"{search}/{dataset}"), _digest(tables.references)
            units = self.plan.corpus.units
            found = (tables.info, digest, units, tables.small_letters)
            if before and (before.info, before.references, [*before.counts], before.without_case) == found:
                return before
            return _scored(units, tables, digest, f"{directory}: hypotheses")
        except (UserError, OSError) as error:
            self.problems.append(str(error))
            return None

    def delays(self, aligned: str) -> tuple[dict[str, Any], Path | None]:
        """Return the contents of delay.json and the histogram of the alignment in ``exp/<aligned>``, or its record."""
        if aligned not in self._delays:
            self._delays[aligned] = self._read_delays(aligned)
        return self._delays[aligned]

    def _read_delays(self, aligned: str) -> tuple[dict[str, Any], Path | None]:
        figures, histogram = (self.directory / f"{aligned}_{name}" for name in ("delay.json", "delay.png"))
        made = self.plan.exp / aligned / "aligned" / self.plan.corpus.test / "report"
        for source, kept in ((made / "delay.json", figures), (made / "delay.png", histogram)):
            if source.is_file():
                copy_file(source, kept)
        try:
            found = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
        except ValueError:
            self.problems.append(f"{figures} is not readable as JSON: run the align stage again")
            found = {}
        return found, histogram if histogram.is_file() else None

    def parts(self, dataset: str) -> dict[str, list[str]]:
        """Return ``{recording of a joined set: [its utterances]}`` by the dump or its record; empty without both."""
        if dataset not in self._parts:
            made, kept = self.plan.dump / "raw" / dataset / "utt2parts", self.directory / f"{dataset}_utt2parts"
            if made.is_file():
                copy_file(made, kept)
            table = read_table(kept) if kept.is_file() else {}
            self._parts[dataset] = {name: names.split() for name, names in table.items()}
        return self._parts[dataset]


def read_record(path: str | Path) -> Record:
    """Read a record, an empty one where there is no file; raise UserError for a damaged one."""
    if not Path(path).is_file():
        return Record()
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values["epochs"] = {int(epoch): parts for epoch, parts in values["epochs"].items()}
        values["decoded"] = {name: RecordedSet(**one) for name, one in values["decoded"].items()}
        return Record(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no record of a training ({error}): remove it, or restore it") from error


def write_record(path: str | Path, record: Record) -> None:
    """Write a record as JSON, an utterance a line."""
    text = _as_json(record)
    lines = text.replace("],", "],\n")
    try:
        json.loads(lines)
    except ValueError:  # an id that holds "],"
        lines = text
    with atomic_write(path) as stream:
        stream.write(lines + "\n")


def _as_json(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


def _is_another(old: Record, described: Mapping[str, Any], epochs: Epochs) -> bool:
    """Tell whether a training differs from the recorded one in its configuration or in the figures of its first epoch.

    Args:
        old: the record.
        described: fields of a record by the training's directory.
        epochs: by the training's log.
    """
    if "config" in described and old.config and described["config"] != old.config:
        return True
    first = min(epochs.keys() & old.epochs.keys(), default=None)
    return first is not None and json.dumps(epochs[first]) != json.dumps(old.epochs[first])


def _digest(references: Mapping[str, str]) -> str:
    lines = "\n".join(f"{name} {references[name]}" for name in sorted(references))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _scored(units: Sequence[str], tables: decoded_sets.ScoringTables, digest: str, what: str) -> RecordedSet:
    """Count the errors of a decoded set.

    Args:
        units: of the errors: words, characters.
        tables: references and hypotheses.
        digest: of the references.
        what: name of the hypotheses in the message of an error.
    """
    counts: dict[str, dict[str, Counted]] = {}
    missing: list[str] = []
    ignored, advice = ignoring(tables.small_letters), "make texts of one case of them, and decode again"
    references, hypotheses = compared(tables.references, tables.hypotheses, ignored, what, advice)
    for unit in units:
        counts[unit], scored = significance.counted(references, hypotheses, tables.speakers, unit, what)
        missing = scored.missing
    return RecordedSet(digest, counts, len(missing), tables.info, tables.small_letters)


def _described(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return the fields of a record by ``config.yaml`` and the weights; raise UserError."""
    parts = {name: config[name] for name in ("encoder", "encoder_conf", "chunking_conf") if name in config}
    timing(parts)
    found = {"config": parts, "max_epoch": config.get("max_epoch"), "stopped_early": stopped_early(directory)}
    count = count_parameters(directory)
    return found if count is None else {**found, "parameters": count}


@dataclass(frozen=True)
class Timing:
    """Latency of a system and its parts, in seconds; infinite: all audio; None: the system has no such part."""

    segment: float
    look_ahead: float
    chunk: float | None
    context: float | None
    latency: float


def timing(config: Mapping[str, Any]) -> Timing:
    """Return the latency of a ``config.yaml``, ours or stock ESPnet's."""
    conf = config.get("encoder_conf") or {}
    if config.get("encoder") == "emformer":
        encoder = from_dict(EncoderConfig, conf, "encoder_conf")
    elif {"segment", "right_context"} <= set(conf):  # another encoder of ours (config.EncoderTiming)
        encoder = EncoderConfig(segment=conf["segment"], right_context=conf["right_context"])
    elif str(config.get("encoder")).startswith("contextual_block_"):
        # ESPnet's count frames behind their subsampling to 25 Hz; defaults of its ContextualBlock encoders.
        size, hop, ahead = (conf.get(name, default) for name, default in
                            (("block_size", 40), ("hop_size", 16), ("look_ahead", 16)))  # fmt: skip
        seconds = timeline.FRAME_SECONDS
        # The first output comes after the whole first block, which is longer than the hop of the later ones.
        return Timing(hop * seconds, ahead * seconds, None, None, size * seconds)
    else:
        encoder = EncoderConfig(segment=None, left_context=0, right_context=0)
    has_chunks = "chunking_conf" in config
    # Without chunks a system waits for the encoder alone.
    chunking = ChunkingConfig(chunk=encoder.segment)
    if has_chunks:
        chunking = from_dict(ChunkingConfig, config["chunking_conf"], "chunking_conf")
    segment, ahead = (timeline.chunk_seconds(size) for size in (encoder.segment, chunking.right_context(encoder)))
    chunk, context = timeline.chunk_seconds(chunking.chunk), timeline.context_seconds(chunking)
    latency = timeline.latency_seconds(encoder, chunking)
    return Timing(segment, ahead, chunk if has_chunks else None, context if has_chunks else None, latency)
