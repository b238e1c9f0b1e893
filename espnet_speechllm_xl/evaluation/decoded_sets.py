"""The directory of a decoded set, ``exp/<tag>/decode_<search>/<set>/``: the only writer and reader of its files.

    text            hypotheses (Kaldi), the best of each utterance
    token           their tokens
    token_int       their token ids
    score           their scores
    nbest.jsonl     all hypotheses of an utterance a line, where a search gives several
    words.ctm       times of the words in the utterance, where the model gives them
    recordings.ctm  the same in the time of the recordings, where ``--segments`` names them
    prompts         text that the decoder read before utterances, where ``decode`` was given any
    failed          utterances without hypothesis, each with its reason
    decode.json     speed, counts and settings

``decode.json`` is written last: a set that has it was decoded to its end.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet_speechllm_xl.corpus.ctm import Word, read_ctm, write_ctm
from espnet_speechllm_xl.corpus.kaldi import read_table, read_text, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import metrics
from espnet_speechllm_xl.evaluation.scoring_inputs import RecordingSpan, by_recording
from espnet_speechllm_xl.experiment import own_tokenizer
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.tokenization import load_tokenizer

if TYPE_CHECKING:
    from espnet_speechllm_xl.evaluation.written_marks import MarkRow

TEXT, TOKENS, TOKEN_IDS, SCORES, NBEST = "text", "token", "token_int", "score", "nbest.jsonl"
WORDS, RECORDINGS, PROMPTS, FAILED, INFO = "words.ctm", "recordings.ctm", "prompts", "failed", "decode.json"
WRITTEN = (TEXT, TOKENS, TOKEN_IDS, SCORES, NBEST, FAILED, INFO, WORDS, RECORDINGS, PROMPTS)

SMALL_LETTERS = "small_letters"  # in decode.json of a model that writes no others: true

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Decoded:
    """One decoded and scored set.

    Attributes:
        model: name of the training's directory.
        decode: name of the directory of the search.
        dataset: name of the set.
        scores: as :func:`~espnet_speechllm_xl.evaluation.score_directories.score_set` returns.
        info: contents of ``decode.json``.
        marks: punctuation and capitals, where the references are written with them.
        in_small_letters: whether its model writes small letters only; texts are then compared without regard to case.
    """

    model: str
    decode: str
    dataset: str
    scores: dict[str, metrics.ScoredSet]
    info: dict[str, Any]
    marks: "list[MarkRow]" = dataclasses.field(default_factory=list)
    in_small_letters: bool = False

    @property
    def name(self) -> str:
        """Return the row's name in tables."""
        return f"{self.decode}/{self.dataset}"


class ScoringTables(NamedTuple):
    """All that a decoded set is scored with; tables by utterance."""

    references: dict[str, str]
    hypotheses: dict[str, str]
    speakers: dict[str, str]
    info: dict[str, Any]  # contents of decode.json
    small_letters: bool = False  # whether the model writes no others


class UnfinishedError(UserError):
    """A set has no hypotheses yet."""


class NoTextError(UserError):
    """A set has no transcripts to score its hypotheses with."""


# Where decoded sets lie


def set_directory(model: Path, search: str, dataset: str) -> Path:
    """Return the directory of a decoded set.

    Args:
        model: directory of the training.
        search: that decoded it.
        dataset: name of the set.
    """
    return model / f"decode_{search}" / dataset


def training_directory(directory: Path) -> Path:
    """Return the directory of the training that a set was decoded with."""
    return directory.parent.parent


def natural_order(text: str) -> list[int | str]:
    """Return a sorting key that puts ``2x`` before ``10x``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _reference_dir(dump: str | Path, dataset: str) -> Path | None:
    dump = Path(dump)
    for path in (dump / "raw" / dataset, dump / dataset):
        if (path / "text").is_file() or (path / "wav.scp").is_file():
            return path
    return None


def decoded_sets(exp: str | Path, dump: str | Path) -> list[Path]:
    """List the directories of sets below ``exp`` that are to be scored, in natural order.

    A directory counts when it holds hypotheses or bears the name of a set in ``dump``.
    """
    found = [path for path in Path(exp).glob("*/decode_*/*/") if path.is_dir()]
    found = [path for path in found if (path / TEXT).exists() or _reference_dir(dump, path.name)]
    return sorted(found, key=lambda path: natural_order(path.as_posix()))


# Writing


def remove_files(out: Path) -> None:
    """Remove all that an earlier decoding wrote, so that nobody scores hypotheses of other weights."""
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)


def write_texts(out: Path, good: Mapping[str, dict[str, Any]]) -> None:
    """Write the hypotheses, their tokens and scores, and word times where the model gives them.

    Args:
        out: directory of the set.
        good: ``{utterance: result}``; a result holds ``nbest`` (list of dicts with ``text``, ``score``, ``tokens`` and
            ``token_ids``, the best first) and may hold ``words`` (text, start, end, confidence; seconds).
    """
    best = {utterance: item["nbest"][0] for utterance, item in good.items()}
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        TEXT: lambda one: one["text"],
        TOKENS: lambda one: " ".join(one["tokens"]),
        TOKEN_IDS: lambda one: " ".join(map(str, one["token_ids"])),
        SCORES: lambda one: str(one["score"]),
    }
    (out / NBEST).unlink(missing_ok=True)
    for name, value in columns.items():
        write_table(out / name, {utterance: value(one) for utterance, one in best.items()})
    timed = {utterance: [Word(*word) for word in item["words"]] for utterance, item in good.items() if "words" in item}
    if timed:
        write_ctm(out / WORDS, timed)
    if any(len(item["nbest"]) > 1 for item in good.values()):
        with atomic_write(out / NBEST) as stream:
            for utterance, item in good.items():
                stream.write(json.dumps({"utterance": utterance, "nbest": item["nbest"]}) + "\n")


def write_recordings(out: Path, spans: dict[str, RecordingSpan] | None) -> None:
    """Write the words of all utterances in the time of their recordings; ``spans`` None: write nothing."""
    if spans is None:
        return
    if not (out / WORDS).is_file():
        print(f"{out}: no {RECORDINGS}, because the model gives no word times (there is no {WORDS})")
        return
    write_ctm(out / RECORDINGS, by_recording(read_ctm(out / WORDS), spans))


def write_prompts(out: Path, prompts: dict[str, str]) -> None:
    """Write ``{utterance: prompt}`` of the utterances that had one; no file where none had."""
    if prompts:
        write_table(out / PROMPTS, prompts)


def write_failures(out: Path, failed: dict[str, str]) -> None:
    """Write ``{utterance: reason}`` of the utterances that have no hypothesis."""
    write_table(out / FAILED, failed)


def write_info(out: Path, info: dict[str, Any]) -> None:
    """Write ``decode.json``, the last file of a decoding."""
    with atomic_write(out / INFO) as stream:
        json.dump(info, stream, indent=2)


# Reading


def finished_ns(directory: Path) -> int | None:
    """Return when a decoding ended, in nanoseconds as files have them; None before its end."""
    info = directory / INFO
    if not info.is_file() or not (directory / TEXT).is_file():
        return None
    return info.stat().st_mtime_ns


def is_decoded(directory: Path) -> bool:
    """Tell whether a directory is that of a decoded set."""
    return (directory / INFO).is_file() or directory.parent.name.startswith("decode_")


def writes_small_letters(directory: Path) -> bool:
    """Tell whether the model that decoded a set writes small letters only.

    Where ``decode.json`` does not say it, as of older decodings, the tokenizer of the training above it may.
    """
    if (directory / INFO).is_file() and read_info(directory).get(SMALL_LETTERS):
        return True
    path = own_tokenizer(training_directory(directory))
    return path is not None and load_tokenizer(path).lower_case


def read_hypotheses(directory: Path) -> dict[str, str]:
    """Read ``{utterance: text}``; raise FileNotFoundError before they are written."""
    return read_text(directory / TEXT)


def read_tokens(directory: Path) -> dict[str, str] | None:
    """Read ``{utterance: tokens}``, with spaces between them; None where the tokens were not written."""
    path = directory / TOKENS
    return read_table(path, empty_values=True) if path.is_file() else None


def read_info(directory: Path) -> dict[str, Any]:
    """Read ``decode.json``, {} with a warning where there is none; raise UserError for a damaged one."""
    path = directory / INFO
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


def real_time_factor(info: Mapping[str, Any]) -> float | None:
    """Return decoding time / duration of the audio by the contents of ``decode.json``; None where they lack it."""
    audio, seconds = info.get("audio_seconds"), info.get("seconds")
    return None if audio is None or seconds is None else metrics.real_time_factor(seconds, audio)


def read_decoded(directory: str | Path, dump: str | Path) -> ScoringTables:
    """Read all that a decoded set is scored with; references and speakers come from the set of its name in ``dump``.

    Raises:
        UnfinishedError: there are no hypotheses.
        NoTextError: there are no references.
        UserError: a file is damaged, or the data was made anew since.
        OSError: a file cannot be read.
    """
    directory = Path(directory)
    if not (directory / TEXT).is_file():
        raise UnfinishedError(f"{directory}: no text file: the set is being decoded, or run the decode stage again")
    source = _reference_dir(dump, directory.name)
    if source is None:
        raise UserError(f"{directory}: {dump}/raw/{directory.name}/text is not there: run the format stage")
    if not (source / "text").is_file():
        raise NoTextError(f"{directory}: decoded, but {source} has no text to score it with")
    info, references = read_info(directory), read_text(source / "text")
    counted = info["utterances"] + info.get("failed", 0) if "utterances" in info else len(references)
    if counted != len(references):
        raise UserError(
            f"{directory}: {counted} utterances were decoded, {source} has {len(references)}: "
            "the data was made anew since; run the decode stage again, or remove the directory"
        )
    speakers, small = read_table(source / "utt2spk"), writes_small_letters(directory)
    return ScoringTables(references, read_hypotheses(directory), speakers, info, small)
