"""Training data: preprocessing, concatenation of utterances, batches by sequence length.

ESPnet reads the files (``--train_data_path_and_name_and_type``): ``speech`` (sound), ``text`` (text), ``alignment``
(text: the end frame of every character, alignment.py) and ``spk`` (text: utt2spk, for concatenation).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader, Dataset

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import AugmentConfig, ConcatConfig, TextPromptConfig
from espnet_speechllm_xl.corpus.audio import with_gain
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.alignment import parse_char_ends, token_ends, whole_word_ends, within_audio
from espnet_speechllm_xl.model.ctc_spelling import Spelling
from espnet_speechllm_xl.model.sequence import PAD_TOKEN, refuse_late_end, sequence_length
from espnet_speechllm_xl.tokenization import Tokenizer, normalise, word_spans
from espnet_speechllm_xl.training.prompts import PromptMaker

MOST_LETTERS = 100  # longest word; a longer one is a text without spaces
STRETCH = 400  # samples whose level may be that of the background noise
# Share by which lengths are changed at random before examples are sorted into batches.  It mixes the batches from epoch
# to epoch, and is about the share of padding that this costs.
JITTER = 0.02

# speech (n,) float32, text (U,) int64 token ids, ends (U,) int64 frames, ctc_text (K,) int64 token ids of CTC
Arrays = dict[str, np.ndarray]
TEXTS = ("text", "ctc_text")

log = logging.getLogger(__name__)


class DataError(UserError):
    """Training data that does not fit together; the message names the utterance."""


class RawUtterance(TypedDict, total=False):
    """One utterance as ESPnet reads it; ``alignment`` and ``spk`` may lack."""

    speech: np.ndarray  # (n,)
    text: str
    alignment: str  # end frame of every character
    spk: str


class UtteranceDataset(Protocol):
    """ESPnet's dataset, as far as this module uses it."""

    def __getitem__(self, utterance: str) -> tuple[str, Arrays]:
        """Return the id of an utterance and its preprocessed arrays."""
        ...


class Preprocessor:
    """Turns one utterance, as ESPnet read it, into arrays; picklable for loader workers.

    Args:
        tokenizer: see tokenization.py.
        sample_rate: Hz of the audio; it relates samples to frames.
        whole_words: give every token of a word the end of the word (``chunking_conf`` ``unit: word``).
        spelling: writes the text for a CTC head that has tokens of its own; None: there is none.
    """

    def __init__(
        self, tokenizer: Tokenizer, sample_rate: int, whole_words: bool = False, spelling: Spelling | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.whole_words = whole_words
        self.spelling = spelling

    def __call__(self, utterance: str, data: RawUtterance) -> Arrays:
        """Turn ``{"speech", "text", "alignment"?, "spk"?}`` into ``{"speech", "text", "ctc_text"?, "ends"?}``.

        Raises:
            DataError: the audio has several channels, or the alignment does not fit the audio.
            AlignmentError: the alignment does not fit the text.
        """
        speech = np.asarray(data["speech"], dtype=np.float32)
        if speech.ndim != 1:
            raise DataError(f"{utterance}: audio of shape {speech.shape}; the format stage makes it mono, run it again")
        text = normalise(data["text"])
        tokens, char_ends_of_tokens = self.tokenizer.encode(text)
        arrays: Arrays = {"speech": speech, "text": np.asarray(tokens, dtype=np.int64)}
        if self.spelling is not None:
            arrays["ctc_text"] = np.asarray(self.spelling.spell(tokens), dtype=np.int64)
        if "alignment" in data:
            ends = token_ends(parse_char_ends(utterance, data["alignment"], text), char_ends_of_tokens)
            if self.whole_words:
                ends = self._whole_words(utterance, ends, tokens)
            num_frames = int(timeline.frames(len(speech), self.sample_rate))
            ends = within_audio(ends, num_frames)
            refuse_late_end(utterance, max(ends, default=-1), num_frames, DataError)
            arrays["ends"] = np.asarray(ends, dtype=np.int64)
        return arrays

    def _whole_words(self, utterance: str, ends: list[int], tokens: list[int]) -> list[int]:
        """Give every token of a word the end of the word; raise DataError for a text without spaces."""
        longest = max((word for word, *_ in word_spans(self.tokenizer, tokens)), key=len, default="")
        if len(longest) > MOST_LETTERS:
            raise DataError(
                f"{utterance}: '{longest[:20]}...' has {len(longest)} letters without a space: with chunking_conf "
                "unit=word all of it would go into one chunk; part the words by spaces, or set unit=token"
            )
        return whole_word_ends(ends, tokens, self.tokenizer)


def collate(examples: Sequence[tuple[str, Arrays]]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Pad ``[(utterance, arrays), ...]`` to ``(utterances, batch)``.

    The batch has a tensor (B, longest) of each array, padded with 0 (``speech``) or :data:`PAD_TOKEN`, and its lengths
    (B,) as ``<name>_lengths``.
    """
    utterances = [utterance for utterance, _ in examples]
    batch: dict[str, torch.Tensor] = {}
    for name in examples[0][1]:
        arrays = [torch.as_tensor(arrays[name]) for _, arrays in examples]
        padding = 0.0 if name == "speech" else PAD_TOKEN
        batch[name] = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True, padding_value=padding)
        batch[f"{name}_lengths"] = torch.tensor([len(array) for array in arrays])
    return utterances, batch


@dataclass(frozen=True)
class Example:
    """One training example: an utterance, or several joined, with pauses before and between them."""

    utterances: tuple[str, ...]  # utterance ids
    offsets: tuple[int, ...]  # frames, start of each utterance from the start of the example
    gain_db: float = 0.0  # change of the level
    kept: int | None = None  # frames kept after the last token ends; -1 cuts its last frame; None keeps all audio
    prompt_seed: int | None = None  # of the words of its prompt; None: it has none
    prompt_room: int = 0  # tokens that its prompt may have


class JoinedDataset(Dataset):
    """Loads an :class:`Example`: joins its utterances with quiet noise in the gaps, cuts its end, sets its level.

    Gaps are whole encoder frames, so alignments move by whole frames and stay exact.

    Args:
        dataset: the single utterances.
        sample_rate: Hz of their audio.
        prompts: makes ``prompt``, one more array (P,) int64 of token ids; None: examples have none.
    """

    def __init__(self, dataset: UtteranceDataset, sample_rate: int, prompts: PromptMaker | None = None) -> None:
        self.dataset, self.prompts = dataset, prompts
        self.sample_rate = sample_rate
        self.frame_samples = timeline.STACK * timeline.hop_samples(sample_rate)

    def __getitem__(self, example: Example) -> tuple[str, Arrays]:
        name, arrays = self._joined(example)
        speech = arrays["speech"]
        if example.kept is not None and len(arrays.get("ends", ())):
            frames = max(1, int(arrays["ends"][-1]) + 1 + example.kept)
            speech = speech[: timeline.samples_for_frames(frames, self.sample_rate)]
            arrays = {**arrays, "ends": np.minimum(arrays["ends"], frames - 1)}
        if example.gain_db:
            speech = with_gain(speech, example.gain_db)
        if self.prompts is not None:
            prompt = self.prompts.draw(example.prompt_seed, arrays["text"].tolist(), example.prompt_room)
            arrays = {**arrays, "prompt": prompt}
        return name, {**arrays, "speech": speech}

    def _joined(self, example: Example) -> tuple[str, Arrays]:
        parts = [self.dataset[utterance] for utterance in example.utterances]
        if example.offsets == (0,):
            return parts[0]
        starts = [offset * self.frame_samples for offset in example.offsets]
        speech = np.zeros(starts[-1] + len(parts[-1][1]["speech"]), dtype=np.float32)
        rng = np.random.default_rng(starts)
        position = 0
        for start, (_, arrays) in zip(starts, parts, strict=True):
            speech[position:start] = rng.normal(0, _quiet_level(arrays["speech"]), start - position)
            position = start + len(arrays["speech"])
            speech[start:position] = arrays["speech"]
        joined = {"speech": speech}
        for name in TEXTS:
            if name in parts[0][1]:
                joined[name] = np.concatenate([arrays[name] for _, arrays in parts])
        if "ends" in parts[0][1]:
            shifted = [arrays["ends"] + offset for (_, arrays), offset in zip(parts, example.offsets, strict=True)]
            joined["ends"] = np.concatenate(shifted)
        return "+".join(example.utterances), joined


def _quiet_level(speech: np.ndarray) -> float:
    """Estimate the background noise: the RMS of the quietest of 20 stretches spread over ``speech`` (n,)."""
    starts = np.linspace(0, max(0, len(speech) - STRETCH), 20).astype(int)
    return min(float(np.sqrt(np.mean(speech[start : start + STRETCH] ** 2))) for start in starts)


class Padding:
    """Counts the padding of batches.

    Args:
        sample_rate: Hz of the audio.
        tail: frames of silence that the model appends to each example.
        count_inputs: returns the decoder inputs of so many frames and tokens.
    """

    def __init__(
        self, sample_rate: int, tail: int, count_inputs: Callable[[int, int], int] = sequence_length
    ) -> None:
        self._sample_rate, self._tail, self._count_inputs = sample_rate, tail, count_inputs
        self._real, self._padded = [0, 0], [0, 0]

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a batch of :func:`collate`."""
        frames = (timeline.frames(batch["speech_lengths"], self._sample_rate) + self._tail).tolist()
        inputs = list(map(self._count_inputs, frames, batch["text_lengths"].tolist()))
        for index, counts in enumerate((frames, inputs)):
            self._real[index] += sum(counts)
            self._padded[index] += max(counts) * len(counts)

    @property
    def shares(self) -> tuple[float, float]:
        """Return which shares of the encoder's frames and of the decoder's inputs are padding."""
        frames, inputs = (
            1 - real / padded if padded else 0.0 for real, padded in zip(self._real, self._padded, strict=True)
        )
        return frames, inputs


class BatchFactory(AbsIterFactory):
    """Batches of similar length, made anew for each epoch.

    An epoch depends on the seed and its number only, so a resumed training sees the same batches.

    Args:
        dataset: ESPnet's dataset.
        samples: utterance -> number of samples.
        tokens: utterance -> number of tokens.
        speakers: utterance -> speaker; utterances of one speaker are joined first (see ConcatConfig). None: speakers
            do not matter.
        concat: how utterances are joined; None: not at all.
        batch_bins: most decoder inputs in a batch, padding included.
        sample_rate: Hz of the audio.
        seed: of the random numbers.
        train: True joins, augments and shuffles; False keeps every utterance as it is.
        workers: number of loader processes.
        rank: number of this process (DDP).
        world_size: number of processes (DDP); each takes its share of every batch.
        augment: changes of level and end; None: the defaults.
        tail: frames of silence that the model appends to each example.
        count_inputs: returns the decoder inputs of so many frames and tokens.
        prompts: makes the prompts of training examples, which ``batch_bins`` does not count; None: there are none.

    Raises:
        DataError: an utterance has no token count or no speaker, or does not fit in a batch; or no example has room for
            a prompt.
    """

    def __init__(
        self,
        dataset: UtteranceDataset,
        samples: Mapping[str, int],
        tokens: Mapping[str, int],
        speakers: Mapping[str, str] | None,
        concat: ConcatConfig | None,
        batch_bins: int,
        sample_rate: int,
        seed: int,
        train: bool,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        augment: AugmentConfig | None = None,
        tail: int = 0,
        count_inputs: Callable[[int, int], int] = sequence_length,
        prompts: PromptMaker | None = None,
    ) -> None:
        self.prompts = prompts if train else None
        self.dataset = JoinedDataset(dataset, sample_rate, self.prompts)
        self.frames = {utterance: int(timeline.frames(count, sample_rate)) for utterance, count in samples.items()}
        # One encoder frame more than its complete ones: where the next utterance may start.
        per_frame = self.dataset.frame_samples
        self.span = {utterance: -(-count // per_frame) for utterance, count in samples.items()}
        self.tokens = tokens
        self.speakers = speakers
        self.concat = concat if concat is not None and max(concat.max_seconds, concat.max_lead_seconds) > 0 else None
        self.augment = augment or AugmentConfig()
        self.sample_rate, self.tail, self._count_inputs = sample_rate, tail, count_inputs
        self.batch_bins, self.seed, self.train = batch_bins, seed, train
        self.workers, self.rank, self.world_size = workers, rank, world_size
        for file, table in (("text_shape", tokens), ("utt2spk", speakers)):
            lacking = sorted(samples.keys() - table.keys()) if table is not None else []
            if lacking:
                raise DataError(f"{file} lacks {len(lacking)} utterances, first '{lacking[0]}': remake the statistics")
        longest = max(self.frames, key=self._length)
        if self._length(longest) > batch_bins:
            name, advice = ("batch_bins", "or lower --max-wav-duration in the format stage")
            if not train:
                name, advice = ("valid_batch_bins", "or leave it out of the validation set")
            raise DataError(
                f"{name} {batch_bins} is less than the {self._length(longest)} inputs, frames and tokens, of "
                f"{longest}: raise {name}, {advice}"
            )
        if self.prompts is not None:
            self._count_rooms(self.prompts)

    def _count_rooms(self, prompts: PromptMaker) -> None:
        """Say how many examples of the first epoch are too long for any prompt; raise DataError if all are."""
        inputs = [self._size(example)[1] for example in self._examples(self._numbers(1))]
        distance, without = prompts.config.distance, sum(count >= prompts.config.distance for count in inputs)
        if not without:
            return
        said = f"text_prompt_conf distance {distance}: {without} of {len(inputs)} training examples of the first epoch"
        enough = f"set distance to {max(inputs) + prompts.full_length()}, where there is room for one in each"
        if without == len(inputs):
            raise DataError(f"{said} have no room for a prompt: {enough}")
        log.warning(f"{said} have no prompt, as they have {distance} to {max(inputs)} decoder inputs; else {enough}")

    def _numbers(self, epoch: int) -> np.random.Generator:
        """Return the random numbers by which the examples of an epoch are made."""
        return np.random.default_rng([self.seed, epoch])

    def _length(self, utterance: str) -> int:
        return self._inputs(self.frames[utterance], self.tokens[utterance])

    def _inputs(self, num_frames: int, num_tokens: int) -> int:
        """Count the decoder inputs of an example."""
        return self._count_inputs(num_frames + self.tail, num_tokens)

    def new_padding(self) -> Padding:
        """Return a counter of the padding in the batches."""
        return Padding(self.sample_rate, self.tail, self._count_inputs)

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> DataLoader:
        """Return the loader of one epoch, which yields ``(utterance ids, batch)``; ``shuffle`` changes nothing."""
        batches = self.batches(epoch)
        return DataLoader(
            self.dataset,
            batch_sampler=[batch[self.rank :: self.world_size] for batch in batches],
            collate_fn=collate,
            num_workers=self.workers,
        )

    def batches(self, epoch: int) -> list[list[Example]]:
        """Draw the batches of one epoch; every utterance is in one of them, once.

        Raises:
            DataError: there are fewer examples than processes.
        """
        rng = self._numbers(epoch)
        examples = self._examples(rng)
        if self.train:
            examples = self._augmented(examples, np.random.default_rng([self.seed, epoch, 1]))
        if self.prompts is not None:
            examples = self._prompted(examples, self.prompts.config, np.random.default_rng([self.seed, epoch, 2]))
        frames, inputs = (np.array(counts, dtype=np.int64) for counts in zip(*map(self._size, examples), strict=True))
        # The encoder pads frames, the decoder its inputs, frames and tokens: each has its say in what is of one length.
        lengths = (frames + inputs) / 2
        if self.train:
            lengths *= rng.uniform(1 - JITTER, 1 + JITTER, len(examples))
        order = np.argsort(lengths, kind="stable").tolist()
        batches = _fill([(examples[index], int(inputs[index])) for index in order], self.batch_bins, self.world_size)
        if len(batches[0]) < self.world_size:
            raise DataError(
                f"{len(batches[0])} examples for {self.world_size} processes, which take one each at least: "
                "use fewer processes, or more utterances"
            )
        # Short examples first in the first epoch (SortaGrad, Amodei et al. 2016): CTC finds its feet sooner.
        if self.train and epoch > 1:
            rng.shuffle(batches)
        return batches

    def _augmented(self, examples: list[Example], rng: np.random.Generator) -> list[Example]:
        """Draw a gain and an end for each example."""
        gains = rng.uniform(self.augment.min_gain_db, self.augment.max_gain_db, len(examples))
        cuts = rng.random(len(examples)) < self.augment.cut_probability
        kept = rng.integers(-1, self.augment.cut_frames + 1, len(examples))
        return [
            replace(example, gain_db=float(gain), kept=int(frames) if cut else None)
            for example, gain, cut, frames in zip(examples, gains, cuts, kept, strict=True)
        ]

    def _prompted(self, examples: list[Example], config: TextPromptConfig, rng: np.random.Generator) -> list[Example]:
        """Give a share of the examples a prompt, those that are too long for one left out."""
        chosen = rng.random(len(examples)) < config.probability
        seeds = rng.integers(1 << 32, size=len(examples))
        rooms = [config.distance - self._size(example)[1] for example in examples]
        return [
            replace(example, prompt_seed=int(seed), prompt_room=room) if drawn and room > 0 else example
            for example, drawn, seed, room in zip(examples, chosen, seeds, rooms, strict=True)
        ]

    def _size(self, example: Example) -> tuple[int, int]:
        """Count the frames that the encoder gives for an example, and the decoder inputs."""
        num_frames = example.offsets[-1] + self.frames[example.utterances[-1]]
        num_tokens = sum(self.tokens[utterance] for utterance in example.utterances)
        return num_frames + self.tail, self._inputs(num_frames, num_tokens)

    def _examples(self, rng: np.random.Generator) -> list[Example]:
        """Return all utterances as examples, some of them joined in training."""
        utterances = sorted(self.frames)
        if not self.train or self.concat is None:
            return [Example((utterance,), (0,)) for utterance in utterances]
        examples, queue = [], self._joining_order(utterances, self.concat.across_speakers, rng)
        while queue:
            limit = 0.0
            if rng.random() < self.concat.probability:
                limit = rng.uniform(0, self.concat.max_seconds)
            examples.append(self._join_next(queue, timeline.gap_frames(limit), self.concat, rng))
        return examples

    def _join_next(self, queue: list[str], limit: int, concat: ConcatConfig, rng: np.random.Generator) -> Example:
        """Pop utterances off ``queue`` until the example would pass ``limit`` frames or the batch size."""
        taken, num_tokens = [queue.pop()], 0
        lead = timeline.gap_frames(rng.uniform(0, concat.max_lead_seconds))
        offsets = [min(lead, self.batch_bins - self._length(taken[0]))]
        while queue:
            num_tokens += self.tokens[taken[-1]]
            gap = timeline.gap_frames(rng.uniform(0, concat.max_gap_seconds))
            offset = offsets[-1] + self.span[taken[-1]] + gap
            end = offset + self.frames[queue[-1]]
            if end > limit or self._inputs(end, num_tokens + self.tokens[queue[-1]]) > self.batch_bins:
                break
            taken.append(queue.pop())
            offsets.append(offset)
        return Example(tuple(taken), tuple(offsets))

    def _joining_order(self, utterances: list[str], across_speakers: float, rng: np.random.Generator) -> list[str]:
        """Shuffle the utterances speaker by speaker; a share ``across_speakers`` of them ignores the speakers."""
        ignore_speaker = rng.random(len(utterances)) < across_speakers
        groups: dict[str, list[str]] = {}
        for utterance, ignored in zip(utterances, ignore_speaker, strict=True):
            speaker = "" if ignored or self.speakers is None else self.speakers[utterance]
            groups.setdefault(speaker, []).append(utterance)
        order: list[str] = []
        for speaker in rng.permutation(sorted(groups)):
            order.extend(str(utterance) for utterance in rng.permutation(groups[str(speaker)]))
        return order


def _fill(examples: Iterable[tuple[Example, int]], bins: int, min_examples: int) -> list[list[Example]]:
    """Cut a list of examples and their decoder inputs, about sorted, into batches.

    A batch has at most ``bins`` inputs, padding included.  It has ``min_examples`` at least, even if they have more.
    """
    batches: list[list[Example]] = []
    batch: list[Example] = []
    longest = 0
    for example, length in examples:
        longest = max(longest, length)
        if len(batch) >= min_examples and longest * (len(batch) + 1) > bins:
            batches.append(batch)
            batch, longest = [], length
        batch.append(example)
    if batches and len(batch) < min_examples:
        batches[-1].extend(batch)
    elif batch:
        batches.append(batch)
    return batches
