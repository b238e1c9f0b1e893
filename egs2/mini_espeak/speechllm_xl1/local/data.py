"""Make the mini_espeak corpus: Kaldi data directories with reference word times.

    python3 local/data.py --out data --size small --seed 1 [--written | --names]

``OUT/{train,dev,test,repeats}`` get wav.scp, text, utt2spk, spk2utt and ref.ctm (``utt 1 start duration word``,
seconds); the audio lies in ``OUT/local/audio``.  With ``--written`` text and ref.ctm have the words as people write
them (``Dr. Miller``, ``7:25``), and ``text_spoken`` has what is said; the audio is the same.  With ``--names``, train,
dev and test have as much again of sentences with made-up names behind their own, and none of one set is in another.
Then dev and test get prompts for ``decode --prompts`` (``prompts_right_20``: the names of the utterance and 20 others;
``prompts_wrong_20``: 20 others) and the list ``names`` for ``compare --words``.  The result depends on these options
alone, not on ``--nj``.  A set that is complete is left as it is.
"""

import argparse
import collections
import json
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import names
import sentences
import synthesise
import written

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.audio import write_flac
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_write
from espnet_speechllm_xl.sets.batch_jobs import not_done
from espnet_speechllm_xl.workers import over_processes, usable_cores

# Per set: fewest seconds (as estimated from the text) and fewest words.  "repeats" has the test set's voices and
# sentences that say words several times on end.
SIZES = {
    "tiny": {"train": (140, 0), "dev": (25, 0), "test": (28, 0), "repeats": (0, 8)},
    "small": {"train": (3600, 0), "dev": (240, 0), "test": (0, 1100), "repeats": (0, 300)},
    "large": {"train": (18000, 0), "dev": (720, 0), "test": (0, 10400), "repeats": (0, 1000)},
}
SPLITS = {"train": "train", "dev": "dev", "test": "test", "repeats": "test"}  # whose sentences and voices a set has
REPEATS_IN_TRAINING = 0.1  # as many seconds of such sentences, as a share of the others
MOST_VOICES = {"tiny": 2}  # so that speakers have several utterances
SLOWEST, FASTEST = 140, 190
FORMAT = 2
NAMES = "names"  # file: the names of a set
PROMPTED = ("dev", "test")


@dataclass(frozen=True)
class Plan:
    """What one utterance is made from."""

    name: str
    index: int
    utterance: str
    voice: synthesise.Voice
    words_per_minute: int
    pitch: int
    sentences: tuple
    seed: int
    path: str


def estimate_seconds(sentence, words_per_minute):
    """Rough duration of a sentence: a least-squares fit to espeak-ng at 160 words a minute."""
    return (0.041 * len(sentence) + 0.071 * len(sentence.split()) + 0.19) * 160 / words_per_minute


def plan_set(name, size, seed, folder, variant="plain"):
    """The utterances of one set, in order; ``folder`` is the place of its audio."""
    min_seconds, min_words = SIZES[size][name]
    split, rng = SPLITS[name], random.Random(f"plan {name} {seed}")
    plans, deck, seconds, words = [], [], 0.0, 0
    grammar = names.grammar(split) if variant == "names" else sentences.GRAMMAR

    def add(generator):
        """Plan one more utterance; returns its seconds and words."""
        if not deck:
            deck.extend(synthesise.voices(split)[: MOST_VOICES.get(size)])
            rng.shuffle(deck)
        voice = deck.pop()
        rate = rng.randint(SLOWEST, FASTEST)
        texts, length = _texts(generator, 2 + 12.5 * rng.betavariate(1.0, 1.6), rate)
        pitch = voice.pitch + rng.randint(-4, 4)
        utterance = f"{voice.speaker}-{name}{len(plans):05d}"
        path = f"{folder}/{voice.speaker}/{utterance}.flac"
        plans.append(Plan(name, len(plans), utterance, voice, rate, pitch, texts, seed, path))
        return max(length, synthesise.MIN_SECONDS), sum(len(text.split()) for text in texts)

    def fill(start, least_seconds, least_words=0):
        nonlocal seconds, words
        generator = sentences.Generator(split, seed, start, grammar)
        while seconds < least_seconds or words < least_words:
            more_seconds, more_words = add(generator)
            seconds, words = seconds + more_seconds, words + more_words

    fill("repeats" if name == "repeats" else "sentence", min_seconds, min_words)
    if name == "train":
        fill("repeats", seconds + REPEATS_IN_TRAINING * min_seconds)
    if variant == "names" and name in sentences.SETS:
        fill("named", seconds + min_seconds, words + min_words)
    return plans


def _texts(generator, target, rate):
    """Sentences for an utterance of about ``target`` seconds, and their seconds with the pauses between them."""
    texts, length = [], 0.5
    while not texts or length < target - 1.5:
        texts.append(generator.sentence())
        length += estimate_seconds(texts[-1], rate) + 0.5
    return tuple(texts), length - 0.5


def make_utterance(plan):
    """Write the audio of one utterance; returns its id, number of samples and words with times in seconds."""
    seed = synthesise.seed_of(plan.seed, plan.name, plan.index)
    audio, words = synthesise.utterance(plan.sentences, plan.voice, plan.words_per_minute, plan.pitch, seed)
    write_flac(plan.path, audio, synthesise.SAMPLE_RATE)
    return plan.utterance, len(audio), words


def _make_worker(_settings):
    return lambda batch: [make_utterance(plan) for plan in batch]


def _results(plans, jobs):
    if jobs == 1:
        yield from map(make_utterance, plans)
        return
    batches = [plans[start : start + 4] for start in range(0, len(plans), 4)]
    for _, made in over_processes(batches, _make_worker, None, jobs, not_done):
        yield from made


class Progress:
    """One line that is rewritten on a terminal, and four lines elsewhere."""

    def __init__(self, name, total):
        self._name, self._total, self._begin, self._shown = name, total, time.monotonic(), 0

    def show(self, done):
        """Say that ``done`` of all are done."""
        terminal = sys.stderr.isatty()
        step = max(1, self._total // (100 if terminal else 4))
        if done != self._total and done - self._shown < step:
            return
        self._shown = done
        left = (time.monotonic() - self._begin) / done * (self._total - done)
        line = f"{self._name}: {done}/{self._total} utterances, {left:.0f} s left"
        end = "\r" if terminal and done != self._total else "\n"
        print(line.ljust(60) if terminal else line, end=end, file=sys.stderr, flush=True)


def write_set(folder, made, plans, variant="plain"):
    """Write the Kaldi files of one set, sorted by utterance in the C locale; returns the number of different words."""
    by_id = {plan.utterance: plan for plan in plans}
    made = sorted(made)
    speakers = collections.defaultdict(list)
    vocabulary = set()
    if variant == "written":
        spoken = {utterance: " ".join(word for word, _, _ in words) for utterance, _, words in made}
        write_table(folder / "text_spoken", spoken)
        made = [(name, count, written.with_times(by_id[name].sentences, words)) for name, count, words in made]
    else:
        (folder / "text_spoken").unlink(missing_ok=True)
    with (
        atomic_write(folder / "wav.scp") as scp,
        atomic_write(folder / "text") as text,
        atomic_write(folder / "utt2spk") as utt2spk,
        atomic_write(folder / "ref.ctm") as ctm,
    ):
        for utterance, _, words in made:
            speaker = by_id[utterance].voice.speaker
            speakers[speaker].append(utterance)
            vocabulary.update(word for word, _, _ in words)
            scp.write(f"{utterance} {by_id[utterance].path}\n")
            text.write(f"{utterance} {' '.join(word for word, _, _ in words)}\n")
            utt2spk.write(f"{utterance} {speaker}\n")
            for word, start, end in words:
                # Milliseconds as integers, so that start + duration is the rounded end.
                first, last = round(start * 1000), round(end * 1000)
                ctm.write(f"{utterance} 1 {first / 1000:.3f} {(last - first) / 1000:.3f} {word}\n")
    with atomic_write(folder / "spk2utt") as spk2utt:
        for speaker in sorted(speakers):
            spk2utt.write(f"{speaker} {' '.join(speakers[speaker])}\n")
    return len(vocabulary)


def write_prompts(folder, name, seed):
    """Write prompts for a set, and the list of the names that they may hold."""
    for file, lines in names.prompts(read_table(folder / "text"), name, seed).items():
        write_table(folder / file, lines)
    with atomic_write(folder / NAMES) as stream:
        stream.writelines(f"{each}\n" for each in sorted(names.of_sets()[name]))


def is_complete(folder, marker, wanted, plans):
    """Whether a set made with the same options is there in whole."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    # As the markers were before there were several variants.
    found.setdefault("variant", "written" if found.pop("written", False) else "plain")
    more = {"written": ["text_spoken"], "names": [NAMES, *names.PROMPTS] if wanted["set"] in PROMPTED else []}
    files = ["wav.scp", "text", "utt2spk", "spk2utt", "ref.ctm", *more.get(wanted["variant"], [])]
    paths = [*(folder / file for file in files), *(Path(plan.path) for plan in plans)]
    whole = all(path.is_file() and path.stat().st_size for path in paths)
    return found if whole and all(found.get(key) == value for key, value in wanted.items()) else None


def make_set(out, name, size, seed, jobs, variant="plain"):
    """Make one set unless it is complete; returns its figures (a dict)."""
    folder, marker, audio = out / name, out / "local" / f"{name}.json", out / "local" / "audio" / name
    wanted = {"format": FORMAT, "set": name, "size": size, "seed": seed, "variant": variant}
    plans = plan_set(name, size, seed, audio, variant)
    found = is_complete(folder, marker, wanted, plans)
    if found:
        return {**found, "skipped": True}
    marker.unlink(missing_ok=True)
    shutil.rmtree(audio, ignore_errors=True)
    progress, made = Progress(name, len(plans)), []
    for result in _results(plans, jobs):
        made.append(result)
        progress.show(len(made))
    different = write_set(folder, made, plans, variant)
    for file in (NAMES, *names.PROMPTS):
        (folder / file).unlink(missing_ok=True)
    if variant == "names" and name in PROMPTED:
        write_prompts(folder, name, seed)
    figures = {
        **wanted,
        "utterances": len(made),
        "seconds": round(sum(samples for _, samples, _ in made) / synthesise.SAMPLE_RATE, 3),
        "words": sum(len(words) for _, _, words in made),
        "different_words": different,
        "speakers": len({plan.voice.speaker for plan in plans}),
    }
    with atomic_write(marker) as stream:
        json.dump(figures, stream, indent=2)
        stream.write("\n")
    return figures


def describe(folder, figures):
    """One line about a set."""
    text = "{utterances} utterances, {hours:.2f} h, {words} words ({different_words} different), {speakers} speakers"
    note = " (was complete)" if figures.get("skipped") else ""
    return f"{folder}: {text.format(hours=figures['seconds'] / 3600, **figures)}{note}"


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _natural(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def main(arguments=None):
    """Make all sets; exit status 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description="make the mini_espeak corpus")
    parser.add_argument("--out", type=Path, default=Path("data"), help="data directory (default: data)")
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="100 s, 1 h or 5 h of training speech")
    parser.add_argument("--seed", type=_natural, default=1, help="default: 1; settings were chosen on dev of seed 0")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--written", action="store_const", dest="variant", const="written", default="plain",
                       help="text with capitals, punctuation and numbers")  # fmt: skip
    kinds.add_argument("--names", action="store_const", dest="variant", const="names",
                       help="more sentences, with made-up names, and prompts of names for dev and test")  # fmt: skip
    parser.add_argument("--nj", type=_positive, default=min(usable_cores(), 16), help="processes")
    options = parser.parse_args(arguments)
    return guard.run(lambda: _make(options), "mini_espeak data", bad_input=1)


def _make(options):
    try:
        for name in SPLITS:
            made = make_set(options.out, name, options.size, options.seed, options.nj, options.variant)
            print(describe(options.out / name, made))
    except (ImportError, RuntimeError) as error:  # no espeak-ng
        raise UserError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
