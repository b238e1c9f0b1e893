"""A decoded set on disk: ESPnet's layout, written and read."""

import dataclasses
import json
import logging
import re
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import read_table, read_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.files import atomic_write

log = logging.getLogger(__name__)


def real_time_factor(info):
    """Decoding time / duration of the audio, from the contents of ``decode.json``; None where they lack it."""
    audio, seconds = info.get("audio_seconds"), info.get("seconds")
    return None if audio is None or seconds is None else metrics.real_time_factor(seconds, audio)


@dataclasses.dataclass
class Decoded:
    """One decoded and scored set: ``scores`` as :func:`score_set` returns, ``info`` from ``decode.json``."""

    model: str
    decode: str
    dataset: str
    scores: dict
    info: dict

    @property
    def name(self):
        """The row's name in tables."""
        return f"{self.decode}/{self.dataset}"


class UnfinishedError(UserError):
    """A set has no hypotheses yet."""


class NoTextError(UserError):
    """A set has no transcripts to score its hypotheses with."""


def natural_order(text):
    """Sorting key that puts ``2x`` before ``10x``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _reference_dir(dump, dataset):
    dump = Path(dump)
    for path in (dump / "raw" / dataset, dump / dataset):
        if (path / "text").is_file() or (path / "wav.scp").is_file():
            return path
    return None


def decoded_sets(exp, dump):
    """The directories ``<exp>/<model>/decode_*/<set>/`` to score, in natural order.

    A directory counts when it holds ``text`` or bears the name of a set in ``dump``.
    """
    found = [path for path in Path(exp).glob("*/decode_*/*/") if path.is_dir()]
    found = [path for path in found if (path / "text").exists() or _reference_dir(dump, path.name)]
    return sorted(found, key=lambda path: natural_order(path.as_posix()))


def read_info(path):
    """The contents of a ``decode.json``, {} with a warning where there is none; raises UserError."""
    if not path.exists():
        log.warning(f"{path}: not there, so no RTF: run the decode stage again to have it")
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}): run the decode stage again") from error
    if not isinstance(info, dict):
        raise UserError(f"{path}: holds no JSON object: run the decode stage again")
    return info


def read_decoded(directory, dump):
    """What ``<exp>/<model>/decode_*/<set>`` is scored with.

    Returns (references, hypotheses, speakers, info): tables by utterance, the first and the third of the set in
    ``dump``, and the contents of ``decode.json``.  Raises UserError (UnfinishedError without hypotheses, NoTextError
    without references) or OSError.
    """
    directory = Path(directory)
    if not (directory / "text").is_file():
        raise UnfinishedError(f"{directory}: no text file: the set is being decoded, or run the decode stage again")
    source = _reference_dir(dump, directory.name)
    if source is None:
        raise UserError(f"{directory}: {dump}/raw/{directory.name}/text is not there: run the format stage")
    if not (source / "text").is_file():
        raise NoTextError(f"{directory}: decoded, but {source} has no text to score it with")
    info, references = read_info(directory / "decode.json"), read_text(source / "text")
    counted = info["utterances"] + info.get("failed", 0) if "utterances" in info else len(references)
    if counted != len(references):
        raise UserError(
            f"{directory}: {counted} utterances were decoded, {source} has {len(references)}: "
            "the data was made anew since; run the decode stage again, or remove the directory"
        )
    return references, read_text(directory / "text"), read_table(source / "utt2spk"), info


WRITTEN = ("text", "token", "token_int", "score", "nbest.jsonl", "failed", "decode.json", "words.ctm", "recordings.ctm")


def write_texts(out, good):
    """``text``, ``token``, ``token_int`` and ``score`` of the best, ``words.ctm`` where the model gives word times, and
    ``nbest.jsonl`` where an utterance has more."""
    from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
    from espnet_speechllm_xl.corpus.kaldi import write_table

    best = {utterance: item["nbest"][0] for utterance, item in good.items()}
    columns = {
        "text": lambda one: one["text"],
        "token": lambda one: " ".join(one["tokens"]),
        "token_int": lambda one: " ".join(map(str, one["token_ids"])),
        "score": lambda one: str(one["score"]),
    }
    (out / "nbest.jsonl").unlink(missing_ok=True)
    for name, value in columns.items():
        write_table(out / name, {utterance: value(one) for utterance, one in best.items()})
    timed = {utterance: [Word(*word) for word in item["words"]] for utterance, item in good.items() if "words" in item}
    if timed:
        write_ctm(out / "words.ctm", timed)
    if any(len(item["nbest"]) > 1 for item in good.values()):
        with atomic_write(out / "nbest.jsonl") as stream:
            for utterance, item in good.items():
                stream.write(json.dumps({"utterance": utterance, "nbest": item["nbest"]}) + "\n")


def write_recordings(out: Path, spans: dict | None) -> None:
    """``recordings.ctm``: the words of ``words.ctm`` in the time of their recordings."""
    from espnet_speechllm_xl.corpus.ctm import read_ctm, write_ctm
    from espnet_speechllm_xl.evaluation.scoring_inputs import by_recording

    if spans is None:
        return
    if not (out / "words.ctm").is_file():
        print(f"{out}: no recordings.ctm, because the model gives no word times (there is no words.ctm)")
        return
    write_ctm(out / "recordings.ctm", by_recording(read_ctm(out / "words.ctm"), spans))
