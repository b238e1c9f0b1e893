"""What stays of the trainings of the paper's tables when their directories are gone: one JSON file a training.

A record holds what ``TABLES.md`` shows of a training: its latency and size, its learning curve, the errors of every
utterance of the sets it decoded, and where and when that was made.  Records can be committed, so that rows which were
trained on other days or machines stand in one table and are compared utterance by utterance.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, EncoderConfig
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import decoded_sets, markdown, metrics, significance
from espnet_speechllm_xl.evaluation.train_log import read_train_log, stopped_early
from espnet_speechllm_xl.experiment import count_parameters, read_config
from espnet_speechllm_xl.files import atomic_write, copy_file
from espnet_speechllm_xl.paper_tables.plan import State
from espnet_speechllm_xl.settings import from_dict


@dataclass(frozen=True)
class DecodedSet:
    """A decoded set: what it counted, and how fast it was."""

    references: str  # digest of the reference texts
    counts: dict  # {"words" or "characters": {utterance: [errors, symbols of the reference, speaker]}}
    missing: int  # utterances without hypothesis, all of whose symbols count as deletions
    info: dict  # decode.json

    def rate(self, unit="words"):
        """Error rate in percent."""
        rows = self.counts[unit].values()
        return metrics.percent(sum(row[0] for row in rows), sum(row[1] for row in rows))


@dataclass(frozen=True)
class Record:
    """One training and its decodings."""

    made: dict = field(default_factory=dict)  # report.environment(), when it was last added to
    config: dict = field(default_factory=dict)  # the parts of config.yaml that say what a system waits for
    max_epoch: int | None = None
    parameters: int | None = None
    stopped_early: bool = False  # by --patience, before max_epoch
    epochs: dict = field(default_factory=dict)  # read_train_log
    decoded: dict = field(default_factory=dict)  # {"<search>/<set>": DecodedSet}


class Records:
    """The records of a plan's trainings, in a directory; a training in ``exp/`` comes before its record.

    Args:
        plan: :class:`~espnet_speechllm_xl.paper_tables.plan.Plan`.
        directory: of the records.

    ``problems`` are messages about what could not be read.
    """

    def __init__(self, plan, directory):
        self.plan, self.directory = plan, Path(directory)
        self.problems = []
        self.replaced = []  # paths of records of other trainings
        self._kept, self._delays, self._parts = {}, {}, {}

    def path(self, system, seed):
        """File of a training's record."""
        return self.directory / f"{self.plan.model(system, seed).name}.json"

    def seeds(self, system):
        """The seeds of which there is a training or a record, in order."""
        names = [path.stem for path in self.directory.glob("*.json")]
        return self.plan.seeds_in(system, [*names, *self.plan.trainings()])

    def get(self, system, seed):
        """The :class:`Record` as it was last written, or an empty one."""
        key = system, seed
        if key not in self._kept:
            try:
                self._kept[key] = read_record(self.path(*key))
            except UserError as error:
                self.problems.append(str(error))
                self._kept[key] = Record()
        return self._kept[key]

    def state(self, system, seed=1, search=None):
        """How far a training is (:meth:`Plan.state`): of ``exp/``, or of its record where that is all there is.

        Raises UserError when its config.yaml cannot be read.
        """
        if self.plan.model(system, seed).is_dir():
            return self.plan.state(system, seed, search)
        record, wanted = self.get(system, seed), self.plan.decodings(system, search)
        decoded = sum("/".join(pair) in record.decoded for pair in wanted)
        epochs = self.plan.max_epoch(system, record.max_epoch) if record.epochs else record.max_epoch
        return State(len(record.epochs), epochs, decoded, len(wanted), record.stopped_early)

    def update(self, system, seed):
        """Write the record of a training that is in ``exp/``.

        What is not there is kept from the record before, unless that is of another training of the same name; its
        decodings are not kept when the training went on since.
        """
        directory, old = self.plan.model(system, seed), self.get(system, seed)
        if not directory.is_dir():
            return
        epochs, described = read_train_log(directory), {}
        try:
            config = read_config(directory)
            if config:
                described = _described(config, directory)
        except UserError as error:
            self.problems.append(f"{directory.name}: {error}")
        another = _is_another(old, described, epochs)
        if another and old.decoded and not self.plan.state(system, seed).done:
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
        # as text, in which a nan of the log is equal to itself
        if _as_json(record) != _as_json(old) and (record.epochs or decoded):
            self._kept[system, seed] = record = replace(record, made=markdown.environment())
            write_record(self.path(system, seed), record)

    def _decoded(self, system, seed, search, dataset):
        """The :class:`DecodedSet` in ``exp/``, scored anew only when it was decoded anew; None where there is none."""
        directory = self.plan.decoded(system, search, dataset, seed)
        if directory is None:
            return None
        try:
            *tables, info = decoded_sets.read_decoded(directory, self.plan.dump)
            before, digest = self.get(system, seed).decoded.get(f"{search}/{dataset}"), _digest(tables[0])
            units = self.plan.corpus.units
            if before and (before.info, before.references, [*before.counts]) == (info, digest, units):
                return before
            return _scored(units, *tables, info, digest, f"{directory}: hypotheses")
        except (UserError, OSError) as error:
            self.problems.append(str(error))
            return None

    def delays(self, aligned):
        """``(contents of delay.json, histogram or None)`` of the alignment in ``exp/<aligned>``, or of its record."""
        if aligned not in self._delays:
            self._delays[aligned] = self._read_delays(aligned)
        return self._delays[aligned]

    def _read_delays(self, aligned):
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

    def parts(self, dataset):
        """``{recording of a joined set: [utterances that it holds]}``, of the dump or its record; empty without."""
        if dataset not in self._parts:
            made, kept = self.plan.dump / "raw" / dataset / "utt2parts", self.directory / f"{dataset}_utt2parts"
            if made.is_file():
                copy_file(made, kept)
            table = read_table(kept) if kept.is_file() else {}
            self._parts[dataset] = {name: names.split() for name, names in table.items()}
        return self._parts[dataset]


def read_record(path):
    """The :class:`Record` in a file, an empty one where there is no file; raises UserError for a damaged one."""
    if not Path(path).is_file():
        return Record()
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values["epochs"] = {int(epoch): parts for epoch, parts in values["epochs"].items()}
        values["decoded"] = {name: DecodedSet(**one) for name, one in values["decoded"].items()}
        return Record(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no record of a training ({error}): remove it, or restore it") from error


def write_record(path, record):
    """Write a :class:`Record` as JSON, an utterance a line."""
    text = _as_json(record)
    lines = text.replace("],", "],\n")
    try:
        json.loads(lines)
    except ValueError:  # an id that holds "],"
        lines = text
    with atomic_write(path) as stream:
        stream.write(lines + "\n")


def _as_json(record):
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


def _is_another(old, described, epochs):
    """Whether a training differs from the recorded one: in its configuration, or in its first epoch's figures."""
    if "config" in described and old.config and described["config"] != old.config:
        return True
    first = min(epochs.keys() & old.epochs.keys(), default=None)
    return first is not None and json.dumps(epochs[first]) != json.dumps(old.epochs[first])


def _digest(references):
    lines = "\n".join(f"{name} {references[name]}" for name in sorted(references))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _scored(units, references, hypotheses, speakers, info, digest, what):
    """The :class:`DecodedSet` of tables by utterance; ``what`` names the hypotheses in errors."""
    counts, missing = {}, []
    for unit in units:
        counts[unit], scored = significance.counted(references, hypotheses, speakers, unit, what)
        missing = scored.missing
    return DecodedSet(digest, counts, len(missing), info)


def _described(config, directory):
    """The fields of a record that ``config.yaml`` and the weights tell; raises UserError."""
    parts = {name: config[name] for name in ("encoder", "encoder_conf", "chunking_conf") if name in config}
    timing(parts)
    found = {"config": parts, "max_epoch": config.get("max_epoch"), "stopped_early": stopped_early(directory)}
    count = count_parameters(directory)
    return found if count is None else {**found, "parameters": count}


@dataclass(frozen=True)
class Timing:
    """What a system waits for, in seconds; infinite: all audio; None: the system has no such thing."""

    segment: float
    look_ahead: float
    chunk: float | None
    context: float | None
    latency: float


def timing(config):
    """:class:`Timing` of a ``config.yaml`` (dict), ours or stock ESPnet's."""
    conf = config.get("encoder_conf") or {}
    if config.get("encoder") == "emformer":
        encoder = from_dict(EncoderConfig, conf, "encoder_conf")
    elif str(config.get("encoder")).startswith("contextual_block_"):
        # ESPnet's count frames behind their subsampling to 25 Hz; defaults of its ContextualBlock encoders.
        size, hop, ahead = (conf.get(name, default) for name, default in
                            (("block_size", 40), ("hop_size", 16), ("look_ahead", 16)))  # fmt: skip
        seconds = timeline.FRAME_SECONDS
        # Nothing comes out before the whole first block is in, which reaches further back than the later ones' hop.
        return Timing(hop * seconds, ahead * seconds, None, None, size * seconds)
    else:
        encoder = EncoderConfig(segment=None, left_context=0, right_context=0)
    segment, ahead = timeline.chunk_seconds(encoder.segment), encoder.right_context * timeline.FRAME_SECONDS
    if "chunking_conf" not in config:
        # Without chunks a system waits for the encoder alone.
        waiting = ChunkingConfig(chunk=encoder.segment)
        return Timing(segment, ahead, None, None, timeline.latency_seconds(encoder, waiting))
    chunking = from_dict(ChunkingConfig, config["chunking_conf"], "chunking_conf")
    chunk, context = timeline.chunk_seconds(chunking.chunk), timeline.context_seconds(chunking)
    return Timing(segment, ahead, chunk, context, timeline.latency_seconds(encoder, chunking))
