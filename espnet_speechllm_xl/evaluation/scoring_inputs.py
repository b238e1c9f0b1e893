"""Read references and hypotheses of any toolkit, bring them to the same utterances, leave out parts not to be scored.

The name of a file tells its kind: ``ref.trn``, ``test.ctm.filt``; a file of any other name is Kaldi's.

    Kaldi   utterance words ...                                       a directory holds it as ``text``
    trn     words ... (speaker-utterance)                             sclite's, ESPnet's, our score directories'
    stm     recording channel speaker start end [<label>] words ...   times in seconds
    ctm     recording channel start duration word [confidence]        of recordings, or of utterances

In trn and STM references ``{ a / b }`` is a choice, as sclite has it: the alternative nearest to the hypothesis counts.
Braces without a choice belong to the words in them, as in sclite: ``{ laughs }`` is ``{laughs}``.
Utterances of an STM, and words in a recording of a CTM, have places in time but no names; ``segments`` has both.
"""

import bisect
import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from espnet_speechllm_xl.corpus.ctm import SILENCES, Word, folded, nist_lines, read_ctm_channels
from espnet_speechllm_xl.corpus.kaldi import normalise_text, parse_segment, read_table, read_text
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation.metrics import some_names

NIST = ("trn", "stm", "ctm")
NOT_SCORED = "ignore_time_segment_in_scoring"  # an STM's mark, in any case
SAME_TIME = 0.02  # seconds by which a place may differ in two files that round it
# Words in brackets: <noise>, [laughter], (speaker coughs), {breath}; sclite's { a / b } are alternatives.
TAG = re.compile(r"(?<!\S)(?:<[^<>\s](?:[^<>]*[^<>\s])?>|\[[^][]+\]|\([^()]+\)|\{[^{}/]+\})(?!\S)")
ALTERNATIVES = re.compile(r"\{.*/.*\}", re.S)

NO_CHOICE = re.compile(r"(?<!\S)\{[^{}/]*\}(?!\S)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ignored:
    """Parts of texts that are not scored: ``tags`` (words in brackets), ``case``."""

    tags: bool = False
    case: bool = False

    def left_of(self, text: str) -> str:
        """Return ``text`` without these parts, as it is compared."""
        if self.tags:
            text = " ".join(TAG.sub(" ", text).split())
        return folded(text) if self.case else text

    def left_of_all(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return ``{utterance: text}`` without these parts."""
        return {utterance: self.left_of(text) for utterance, text in texts.items()}

    def __str__(self) -> str:
        """Return ``, without tags and case``, for a title; nothing where all is scored."""
        names = [name for name in ("tags", "case") if getattr(self, name)]
        return f", without {' and '.join(names)}" if names else ""


NOTHING_IGNORED = Ignored()


class RecordingSpan(NamedTuple):
    """A part of a recording, in seconds; ``channel`` is None where the recording has one."""

    recording: str
    channel: str | None
    start: float
    end: float

    def is_at(self, other: "RecordingSpan") -> bool:
        """Tell whether both are the same part, but for rounding; an infinite end (of the recording) equals any end."""
        same_channel = self.channel == other.channel or None in (self.channel, other.channel)
        same_end = abs(self.end - other.end) <= SAME_TIME or math.inf in (self.end, other.end)
        same_start = abs(self.start - other.start) <= SAME_TIME
        return self.recording == other.recording and same_channel and same_start and same_end


@dataclass(frozen=True)
class Reference:
    """The reference side of a set.

    Attributes:
        path: of the file or directory.
        texts: ``{utterance: text}``.
        speakers: ``{utterance: speaker}``.
        spans: ``{utterance: RecordingSpan}``; empty where they are not known.
        aliases: ``{other name: utterance}``, as trn files have them.
        not_scored: utterances that an STM marks so; they have a span only.
    """

    path: str
    texts: dict[str, str]
    speakers: dict[str, str]
    spans: dict[str, RecordingSpan] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    not_scored: frozenset[str] = frozenset()

    @property
    def has_alternatives(self) -> bool:
        """Tell whether the texts have choices, ``{ a / b }``, as sclite reads them in trn and STM files."""
        marked = kind_of(self.path) in ("trn", "stm")
        return marked and any(ALTERNATIVES.search(text) for text in self.texts.values())

    def against(self, hypotheses: dict[str, str], ignored: Ignored = NOTHING_IGNORED) -> dict[str, str]:
        """Return the texts to score hypotheses with; of alternatives the ones with the fewest word errors.

        Args:
            hypotheses: ``{utterance: text}``.
            ignored: parts of the texts that are not scored.
        """
        texts = ignored.left_of_all(self.texts)
        if not self.has_alternatives:
            return texts
        return {name: nearest(text, ignored.left_of(hypotheses.get(name, ""))) for name, text in texts.items()}


def kind_of(path: str | Path) -> str:
    """Return ``trn``, ``stm`` or ``ctm``, or ``kaldi`` for a file of another name and a directory."""
    if Path(path).is_dir():
        return "kaldi"
    return next((part for part in reversed(Path(path).name.lower().split(".")) if part in NIST), "kaldi")


# Alternatives: { a / b c / @ }, where @ is no word.  An alternative may hold alternatives.

Item = str | list[list]  # a word, or a choice: alternatives, each a list of items
Chosen = tuple[Any, str] | None  # the words chosen so far: (all before the last, the last)
Cell = tuple[int, Chosen]  # of the edit distance: errors, and the words that cost them


def nearest(text: str, hypothesis: str) -> str:
    """Return ``text`` with the alternatives that are the fewest word errors from ``hypothesis``."""
    items, hypothesis_words = _parts(text), hypothesis.split()
    if all(isinstance(item, str) for item in items):
        return text
    cells: list[Cell] = [(cost, None) for cost in range(len(hypothesis_words) + 1)]
    _, words = _read_on(cells, items, hypothesis_words)[-1]
    chosen = []
    while words:
        words, word = words
        chosen.append(word)
    return " ".join(reversed(chosen))


def _parts(text: str) -> list[Item]:
    """Parse a text to words and choices.

    Braces without a choice belong to a word (``{laughs}``); so do all braces of a text where they do not match.
    """
    groups: list[list[list[Item]]] = [[[]]]
    for symbol in re.findall(r"[{}]|[^\s{}]+", text):
        if symbol == "{":
            groups.append([[]])
        elif symbol == "}" and len(groups) > 1:
            group = groups.pop()
            groups[-1][-1] += [group] if len(group) > 1 else _in_braces(group[0])
        elif len(groups) == 1:
            groups[0][0].append(symbol)
        else:
            first, *others = [list[Item]([word] if word not in ("", "@") else []) for word in symbol.split("/")]
            groups[-1][-1] += first
            groups[-1] += others
    return groups[0][0] if len(groups) == 1 else [*text.split()]


def _in_braces(items: list[Item]) -> list[Item]:
    words = [item for item in items if isinstance(item, str)]
    return [*f"{{{' '.join(words)}}}".split()] if len(words) == len(items) and any(words) else items


def _with_braces_joined(text: str) -> str:
    """Return a text of a trn or STM file, reference or hypothesis, with its braces at the words in them."""
    return NO_CHOICE.sub(lambda match: " ".join(map(str, _parts(match[0]))), text)


def _read_on(cells: list[Cell], items: list[Item], hypothesis: list[str]) -> list[Cell]:
    """Continue a row of the edit distance by items of the reference.

    Args:
        cells: errors up to each word of the hypothesis, each with the words of the reference that cost them.
        items: of the reference.
        hypothesis: its words.
    """
    for item in items:
        if isinstance(item, str):
            cells = _next_row(cells, item, hypothesis)
        else:
            ends = [_read_on(cells, choice, hypothesis) for choice in item]
            cells = [min(each, key=itemgetter(0)) for each in zip(*ends, strict=True)]
    return cells


def _next_row(cells: list[Cell], word: str, hypothesis: list[str]) -> list[Cell]:
    row: list[Cell] = [(cells[0][0] + 1, (cells[0][1], word))]
    for place, other in enumerate(hypothesis):
        (diagonal, before), (above, read) = cells[place : place + 2]
        left, words = row[-1]
        ways: tuple[Cell, ...] = (
            (diagonal + (other != word), (before, word)), (above + 1, (read, word)), (left + 1, words),
        )  # fmt: skip
        row.append(min(ways, key=itemgetter(0)))
    return row


# trn

_MISREAD = re.compile(r"[(){};*\\]|^@$|%(?=[0-9A-F]{2})")
_WRITTEN = re.compile("%(28|29|7B|7D|3B|2A|5C|40|25)")


def trn_line(words: Iterable[str], speaker: str, utterance: str) -> str:
    r"""Return a line of a trn file, with its end.

    Letters that sclite reads as markup, or cuts off, are written as in URLs (``(`` is ``%28``): ``( ) { } ; * \``, and
    a lone ``@``.

    Args:
        words: of the utterance.
        speaker: of the utterance.
        utterance: its id.
    """
    escaped = [_MISREAD.sub(lambda match: f"%{ord(match[0]):02X}", word) for word in (*words, f"{speaker}-{utterance}")]
    return f"{' '.join(escaped[:-1])}\t({escaped[-1]})\n"


def _unescaped(text: str) -> str:
    return _WRITTEN.sub(lambda match: chr(int(match[1], 16)), text)


def read_trn(path: str | Path) -> dict[str, str]:
    """Read ``{speaker-utterance: text}`` of a trn file; raise UserError naming a line without an id of its own."""
    texts = {}
    for where, line in nist_lines(path):
        match = re.fullmatch(r"(.*?)\s*\(([^()\s]+)\)\s*", line, re.S)
        if match is None:
            raise UserError(f"{where}: a line of a trn file ends with (speaker-utterance): mend it, or rename the file")
        # Escaped letters are no markup: a word `{` stays a word.
        text, name = map(_unescaped, (_with_braces_joined(match[1]), match[2]))
        if name in texts:
            raise UserError(f"{where}: '{name}' comes a second time: remove one of the two lines")
        texts[name] = normalise_text(text)
    return texts


def speaker_of(name: str) -> str:
    """Return the speaker in a trn file's ``speaker-utterance``.

    Kaldi's utterances begin with their speaker, who then stands there twice (``s-1-s-1-a``: ``s-1``); else the speaker
    is all before the first hyphen.
    """
    match = re.fullmatch(r"(.+)-\1(?:[-_.].*)?", name)
    return match[1] if match else name.partition("-")[0]


def _without_speaker(name: str) -> str:
    return name[len(speaker_of(name)) + 1 :]


# STM


class Turn(NamedTuple):
    """A line of an STM file; ``text`` is None where it is not to be scored."""

    span: RecordingSpan
    speaker: str
    text: str | None


def read_stm(path: str | Path) -> list[Turn]:
    """Read the lines of an STM file; raise UserError naming a line of another kind."""
    turns = []
    for where, line in nist_lines(path):
        fields = line.split(None, 5)
        try:
            recording, channel, speaker, start, end = fields[:5]
            span = RecordingSpan(recording, _channel(channel), float(start), float(end))
            if not 0 <= span.start < span.end < math.inf:
                raise ValueError
        except ValueError:
            raise UserError(
                f"{where}: a line of an STM file is `recording channel speaker start end [<label>] words`, with "
                "0 <= start < end: mend the line"
            ) from None
        text = re.sub(r"^<[^<>\s]*>(?=\s|$)", "", fields[5] if len(fields) > 5 else "").strip()
        text = _with_braces_joined(text)
        turns.append(Turn(span, speaker, None if text.casefold() == NOT_SCORED else normalise_text(text)))
    return turns


def _channel(name: str) -> str:
    return {"a": "1", "b": "2"}.get(name.casefold(), name)


def read_segments(path: str | Path, utterances: Iterable[str] = ()) -> dict[str, RecordingSpan]:
    """Read Kaldi's ``segments``, by utterance; raise UserError, also when one of ``utterances`` is lacking."""
    spans = {}
    for utterance, value in read_table(path).items():
        try:
            recording, start, end, channel = parse_segment(value)
        except ValueError:
            raise UserError(f"{path}: '{utterance} {value}' is no segment of a recording: mend the line") from None
        name = None if channel is None else str(channel + 1)  # CTM and STM count from 1
        spans[utterance] = RecordingSpan(recording, name, start, math.inf if end is None else end)
    absent = sorted(set(utterances) - spans.keys())
    if absent:
        raise UserError(f"{path} lacks {some_names(absent)} ({len(absent)} in all): give the segments of the set")
    return spans


def _named_turns(turns: list[Turn], spans: dict[str, RecordingSpan], path: str | Path) -> dict[str, Turn]:
    """Name each turn as the segment at its place, else after its place; raise UserError for two at one place."""
    segments: dict[str, list[tuple[str, RecordingSpan]]] = {}  # by recording
    named: dict[str, Turn] = {}
    for utterance, span in spans.items():
        segments.setdefault(span.recording, []).append((utterance, span))
    for turn in turns:
        place = turn.span
        found = [name for name, span in segments.get(place.recording, ()) if span.is_at(place)]
        name = found[0] if found else f"{place.recording}-{place.channel}-{place.start:.2f}-{place.end:.2f}"
        if name in named:
            raise UserError(f"{path}: two lines are at {name}: remove one, or mend its times")
        named[name] = turn
    return named


# CTM

Channels = dict[tuple[str, str], list[Word]]  # words by (recording, channel)


def _texts_of_words(words: dict[str, list[Word]], known: set[str], path: str | Path) -> dict[str, str]:
    """Join words to texts, without silences; a warning names these.

    Args:
        words: ``{utterance: words}``.
        known: folded words of the reference, which are no silences.
        path: of the words' file.
    """
    silent = {folded(name) for name in SILENCES} - known
    passed_over = Counter(word.text for each in words.values() for word in each if folded(word.text) in silent)
    if passed_over:
        shown = ", ".join(f"{name} {count}" for name, count in sorted(passed_over.items()))
        log.warning(f"{path}: entries that are no words are passed over: {shown}")
    spoken = {name: [word.text for word in each if folded(word.text) not in silent] for name, each in words.items()}
    return {name: normalise_text(" ".join(each)) for name, each in spoken.items()}


def _words_by_utterance(channels: Channels, reference: Reference, path: str | Path) -> dict[str, list[Word]]:
    """Find for each word of a recording the utterance in whose time it lies, as sclite does.

    A word belongs to the first utterance that ends after the word's middle, else to the last one.  So words between
    utterances count as inserted.

    Args:
        channels: words by (recording, channel).
        reference: has the spans of the utterances.
        path: of the words' file.

    Raises:
        UserError: a recording or channel is not in the reference.
    """
    places: dict[str, list[tuple[float, float, str]]] = {}
    found: dict[str, list[Word]] = {}
    num_channels = Counter(recording for recording, _ in channels)
    for name, span in reference.spans.items():
        places.setdefault(span.recording, []).append((span.end, span.start, name))
    absent = sorted(num_channels.keys() - places.keys())
    if absent:
        raise UserError(
            f"{path}: {some_names(absent)} not in {reference.path} ({len(absent)} in all): give a CTM of the same "
            "recordings, or --segments FILE, which says where in them utterances lie"
        )
    for (recording, channel), words in channels.items():
        here = sorted(places[recording])
        if num_channels[recording] > 1 or len({reference.spans[name].channel for *_, name in here}) > 1:
            here = [place for place in here if reference.spans[place[2]].channel == _channel(channel)]
        if not here:
            raise UserError(f"{path}: channel {channel} of {recording} is not in {reference.path}: leave it out")
        for word in words:
            index = bisect.bisect_right(here, ((word.start + word.end) / 2, math.inf))
            found.setdefault(here[min(index, len(here) - 1)][2], []).append(word)
    return found


def _read_ctm(path: str | Path, reference: Reference) -> dict[str, str]:
    """Read a CTM of recordings or utterances as ``{utterance: text}``, named as in the reference."""
    channels = read_ctm_channels(path)
    names = _names({name for name, _ in channels}, reference, is_trn=False)
    words: dict[str, list[Word]] = {}
    if reference.spans and not any(name in reference.texts for name in names.values()):
        words = _words_by_utterance(channels, reference, path)
    else:
        for (name, _), each in channels.items():
            words.setdefault(names[name], []).extend(each)
        words = {name: sorted(each, key=lambda word: word.start) for name, each in words.items()}
    known = {folded(word) for text in reference.texts.values() for word in text.split()}
    return _texts_of_words(words, known, path)


def by_recording(utterances: dict[str, list[Word]], spans: dict[str, RecordingSpan]) -> Channels:
    """Move the words of utterances, all of which have ``spans``, to the time of their recordings, in order."""
    found: Channels = {}
    for name, words in utterances.items():
        span = spans[name]
        moved = [replace(word, start=span.start + word.start, end=span.start + word.end) for word in words]
        found.setdefault((span.recording, span.channel or "1"), []).extend(moved)
    return {key: sorted(words, key=lambda word: (word.start, word.end)) for key, words in found.items()}


# Both sides


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise UserError(f"{path} does not exist: give a Kaldi text, a directory with one, or a .trn, .stm or .ctm file")
    return Path(path)


_LINES = {
    "trn": r".*\([^()\s]+\)",
    "stm": r"(\S+\s+){3}[\d.]+\s+[\d.]+(\s.*)?",
    "ctm": r"(\S+\s+){2}[\d.]+\s+[\d.]+\s+\S+(\s+([\d.]+|NA|-)(\s+\S+){0,2})?",
}


def _kaldi_texts(path: Path) -> dict[str, str]:
    try:
        return read_text(path / "text" if path.is_dir() else path)
    except UserError as error:
        raise UserError(f"{error}{_other_kind(path)}") from None


def _other_kind(path: Path) -> str:
    """Advise to rename a file that is Kaldi's by its name and of another kind by its lines; '' for other files."""
    if kind_of(path) != "kaldi" or path.is_dir():
        return ""
    with contextlib.suppress(UserError, OSError):
        lines = [line.strip() for _, line in nist_lines(path)]
        kinds = [kind for kind, form in _LINES.items() if all(re.fullmatch(form, line) for line in lines)]
        return f"; if it is {kinds[0]}, let its name end with .{kinds[0]}" if lines and kinds else ""
    return ""


def read_reference(
    path: str | Path, utt2spk: str | Path | None = None, segments: str | Path | None = None
) -> Reference:
    """Read the :class:`Reference` in a file or directory.

    Args:
        path: of the file or directory.
        utt2spk: Kaldi's table of speakers, in place of the ones that a trn or STM file names; None: the directory's.
        segments: Kaldi's table of the utterances' places in recordings; None: the directory's.

    Raises:
        UserError: a file is missing or damaged, or names no speakers and ``utt2spk`` is not given.
    """
    path = _existing(path)
    if path.is_dir():
        utt2spk = utt2spk or path / "utt2spk"
        segments = segments or (path / "segments" if (path / "segments").exists() else None)
    spans = read_segments(segments) if segments else {}
    speakers = read_table(utt2spk, empty_values=True) if utt2spk else {}
    reference = _REFERENCES[kind_of(path)](path, spans, speakers)
    if reference.texts and not reference.speakers:
        raise UserError(f"{path} says no speakers: give --utt2spk FILE, or a directory that holds text and utt2spk")
    return reference


def _kaldi_reference(path: Path, spans: dict[str, RecordingSpan], speakers: dict[str, str]) -> Reference:
    return Reference(str(path), _kaldi_texts(path), speakers, spans)


def _trn_reference(path: Path, spans: dict[str, RecordingSpan], speakers: dict[str, str]) -> Reference:
    found = read_trn(path)
    names = {name: _name_in_table(name, speakers) for name in found}
    _refuse_twice(names, path)
    texts = {names[name]: text for name, text in found.items()}
    short = _unique({names[name]: _without_speaker(name) for name in found})
    said = {names[name]: speaker_of(name) for name in found}
    return Reference(str(path), texts, speakers or said, spans, {**short, **names})


def _stm_reference(path: Path, spans: dict[str, RecordingSpan], speakers: dict[str, str]) -> Reference:
    turns = _named_turns(read_stm(path), spans, path)
    texts = {name: turn.text for name, turn in turns.items() if turn.text is not None}
    said = {name: turn.speaker for name, turn in turns.items()}
    places = {name: turn.span for name, turn in turns.items()}
    return Reference(str(path), texts, speakers or said, places, not_scored=frozenset(turns.keys() - texts.keys()))


def _ctm_reference(path: Path, spans: dict[str, RecordingSpan], speakers: dict[str, str]) -> Reference:
    silent = dict.fromkeys(spans, "")
    texts = _read_ctm(path, Reference("--segments", silent, {}, spans))
    return Reference(str(path), {**silent, **texts}, speakers, spans)


_REFERENCES = {"kaldi": _kaldi_reference, "trn": _trn_reference, "stm": _stm_reference, "ctm": _ctm_reference}


def _name_in_table(name: str, speakers: dict[str, str]) -> str:
    """Return the utterance of ``utt2spk`` that a trn file's id means; the id itself where there is none."""
    if name in speakers:
        return name
    cuts = [match.start() for match in re.finditer("-", name)]
    return next((name[cut + 1 :] for cut in cuts if speakers.get(name[cut + 1 :]) == name[:cut]), name)


def _refuse_twice(names: dict[str, str], path: Path) -> None:
    twice = sorted(name for name, count in Counter(names.values()).items() if count > 1)
    if twice:
        raise UserError(f"{path}: several texts for {some_names(twice)}: give one for each utterance")


def _unique(aliases: dict[str, str]) -> dict[str, str]:
    """Return ``{alias: name}`` of ``{name: alias}``, without aliases that several names have."""
    counts = Counter(aliases.values())
    return {alias: name for name, alias in aliases.items() if alias and counts[alias] == 1}


def _names(ids: Iterable[str], reference: Reference, is_trn: bool) -> dict[str, str]:
    """Return ``{id: utterance}`` for a file of hypotheses; an id of no utterance stays as it is.

    Args:
        ids: in the file.
        reference: has the utterances.
        is_trn: the ids come from a trn file, ``speaker-utterance``.
    """
    spoken = {f"{reference.speakers.get(name)}-{name}": name for name in reference.texts} if is_trn else {}
    known = {**spoken, **reference.aliases, **{name: name for name in reference.texts}}

    def name_of(one: str) -> str:
        tried = (one, _without_speaker(one)) if is_trn else (one,)
        return next((known[each] for each in tried if each in known), one)

    return {one: name_of(one) for one in ids}


def read_hypotheses(path: str | Path, reference: Reference) -> dict[str, str]:
    """Read ``{utterance: text}`` from a file or directory, its utterances named as in ``reference``.

    Raises:
        UserError: a file is missing, damaged, or of another set than the reference.
    """
    path, kind = _existing(path), kind_of(path)
    if kind == "ctm":
        return _of_the_set(_read_ctm(path, reference), reference, path)
    if kind == "stm":
        turns = {name: turn.text for name, turn in _named_turns(read_stm(path), reference.spans, path).items()}
        return _of_the_set({name: text for name, text in turns.items() if text is not None}, reference, path)
    texts = read_trn(path) if kind == "trn" else _kaldi_texts(path)
    names = _names(texts, reference, is_trn=kind == "trn")
    _refuse_twice(names, path)
    return _of_the_set({names[one]: text for one, text in texts.items()}, reference, path)


def _of_the_set(texts: dict[str, str], reference: Reference, path: Path) -> dict[str, str]:
    """Return texts without the ones that are not scored; raise UserError when none is of the reference.

    Args:
        texts: ``{utterance: text}``, named as in the reference.
        reference: of the set.
        path: of the texts' file.
    """
    kept = {name: text for name, text in texts.items() if name not in reference.not_scored}
    if kept and reference.texts and not kept.keys() & reference.texts.keys():
        by_place = {kind_of(path), kind_of(reference.path)} & {"stm", "ctm"}
        advice = ", or give --segments FILE, which says where in recordings utterances lie" if by_place else ""
        raise UserError(
            f"{path}: its ids ({some_names(sorted(kept), 2)}) are none of {reference.path}'s "
            f"({some_names(sorted(reference.texts), 2)}): give hypotheses of the same set{advice}{_other_kind(path)}"
        )
    return kept
