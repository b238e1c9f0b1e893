"""What the model is fed: preprocessing, concatenation of training utterances, batches by sequence length.

ESPnet reads the files (``--train_data_path_and_name_and_type``): ``speech`` (sound), ``text`` (text), ``alignment``
(text: the end frame of every character, alignment.py) and ``spk`` (text: utt2spk, for concatenation).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import AugmentConfig
from espnet_speechllm_xl.corpus.audio import with_gain
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.model.alignment import parse_char_ends, token_ends, whole_word_ends, within_audio
from espnet_speechllm_xl.model.sequence import PAD_TOKEN, refuse_late_end, sequence_length
from espnet_speechllm_xl.tokenization import normalise, word_spans

MOST_LETTERS = 100  # of a word; what has more is a text that no spaces part


class DataError(UserError):
    """Training data that does not fit together; the message names the utterance."""


class Preprocessor:
    """One utterance as ESPnet read it -> arrays; picklable for loader workers.

    Args:
        tokenizer: see tokenization.py.
        sample_rate: Hz, to tell frames from samples.
        whole_words: all tokens of a word take its end (``chunking_conf`` ``unit: word``).
    """

    def __init__(self, tokenizer, sample_rate, whole_words=False):
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.whole_words = whole_words

    def __call__(self, utterance, data):
        """``{"speech", "text", "alignment"?, "spk"?}`` -> ``{"speech", "text", "ends"?}``."""
        speech = np.asarray(data["speech"], dtype=np.float32)
        if speech.ndim != 1:
            raise DataError(f"{utterance}: audio of shape {speech.shape}; the format stage makes it mono, run it again")
        text = normalise(data["text"])
        tokens, char_ends_of_tokens = self.tokenizer.encode(text)
        arrays = {"speech": speech, "text": np.asarray(tokens, dtype=np.int64)}
        if "alignment" in data:
            ends = token_ends(parse_char_ends(utterance, data["alignment"], text), char_ends_of_tokens)
            if self.whole_words:
                ends = self._whole_words(utterance, ends, tokens)
            frames = int(timeline.frames(len(speech), self.sample_rate))
            ends = within_audio(ends, frames)
            refuse_late_end(utterance, max(ends, default=-1), frames, DataError)
            arrays["ends"] = np.asarray(ends, dtype=np.int64)
        return arrays

    def _whole_words(self, utterance, ends, tokens):
        longest = max((word for word, *_ in word_spans(self.tokenizer, tokens)), key=len, default="")
        if len(longest) > MOST_LETTERS:
            raise DataError(
                f"{utterance}: '{longest[:20]}...' has {len(longest)} letters without a space: with chunking_conf "
                "unit=word all of it would go into one chunk; part the words by spaces, or set unit=token"
            )
        return whole_word_ends(ends, tokens, self.tokenizer)


def collate(examples):
    """``[(utterance, arrays), ...]`` -> ``(utterances, padded tensors and their *_lengths)``."""
    utterances = [utterance for utterance, _ in examples]
    batch = {}
    for name in examples[0][1]:
        arrays = [torch.as_tensor(arrays[name]) for _, arrays in examples]
        padding = 0.0 if name == "speech" else PAD_TOKEN
        batch[name] = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True, padding_value=padding)
        batch[f"{name}_lengths"] = torch.tensor([len(array) for array in arrays])
    return utterances, batch


@dataclass(frozen=True)
class Example:
    """One training example: an utterance, or several joined, with pauses before and between them."""

    utterances: tuple  # of utterance ids
    offsets: tuple  # start of each in encoder frames, from the start of the example
    gain_db: float = 0.0  # by which its level is changed
    kept: int | None = None  # frames that are kept after the last token's, -1: not all of its own; None: all


class JoinedDataset(torch.utils.data.Dataset):
    """Loads an :class:`Example`, joining its utterances with quiet noise in the gaps; then its end and its level.

    Gaps are whole encoder frames, so alignments move by whole frames and stay exact.
    """

    def __init__(self, dataset, sample_rate):
        self.dataset = dataset
        self.sample_rate = sample_rate
        self.frame_samples = timeline.STACK * timeline.hop_samples(sample_rate)

    def __getitem__(self, example):
        name, arrays = self._joined(example)
        speech = arrays["speech"]
        if example.kept is not None and len(arrays.get("ends", ())):
            frames = max(1, int(arrays["ends"][-1]) + 1 + example.kept)
            speech = speech[: timeline.samples_for_frames(frames, self.sample_rate)]
            arrays = {**arrays, "ends": np.minimum(arrays["ends"], frames - 1)}
        if example.gain_db:
            speech = with_gain(speech, example.gain_db)
        return name, {**arrays, "speech": speech}

    def _joined(self, example):
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
        joined = {"speech": speech, "text": np.concatenate([arrays["text"] for _, arrays in parts])}
        if "ends" in parts[0][1]:
            shifted = [arrays["ends"] + offset for (_, arrays), offset in zip(parts, example.offsets, strict=True)]
            joined["ends"] = np.concatenate(shifted)
        return "+".join(example.utterances), joined


def _quiet_level(speech, piece=400):
    """RMS of the quietest of 20 stretches spread over the utterance: its background noise."""
    starts = np.linspace(0, max(0, len(speech) - piece), 20).astype(int)
    return min(float(np.sqrt(np.mean(speech[start : start + piece] ** 2))) for start in starts)


class BatchFactory(AbsIterFactory):
    """Batches of similar total sequence length (frames + tokens), made anew for each epoch.

    An epoch depends on the seed and its number only, so a resumed training sees the same batches.

    Args:
        dataset: ESPnet's, by utterance id.
        samples, tokens: dicts, utterance -> count.
        speakers: dict, utterance -> speaker; utterances of one are joined first (see ConcatConfig). None: all alike.
        concat: :class:`~espnet_speechllm_xl.config.ConcatConfig`, or None for no concatenation.
        augment: :class:`~espnet_speechllm_xl.config.AugmentConfig`.
        batch_bins: most decoder inputs in a batch, padding included.
        tail: frames of silence that the model hears behind each example.
        rank, world_size: this process and the number of processes (DDP); each takes its share of every batch.
    """

    def __init__(
        self,
        dataset,
        samples,
        tokens,
        speakers,
        concat,
        batch_bins,
        sample_rate,
        seed,
        train,
        workers,
        rank=0,
        world_size=1,
        augment=None,
        tail=0,
    ):
        self.dataset = JoinedDataset(dataset, sample_rate)
        self.frames = {utterance: int(timeline.frames(count, sample_rate)) for utterance, count in samples.items()}
        # One encoder frame more than its complete ones: where the next utterance may start.
        per_frame = self.dataset.frame_samples
        self.span = {utterance: -(-count // per_frame) for utterance, count in samples.items()}
        self.tokens = tokens
        self.speakers = speakers
        self.concat = concat if concat is not None and max(concat.max_seconds, concat.max_lead_seconds) > 0 else None
        self.augment = augment or AugmentConfig()
        self.tail = tail
        self.batch_bins, self.seed, self.train = batch_bins, seed, train
        self.workers, self.rank, self.world_size = workers, rank, world_size
        for what, table in (("text_shape", tokens), ("utt2spk", speakers)):
            lacking = sorted(samples.keys() - table.keys()) if table is not None else []
            if lacking:
                raise DataError(f"{what} lacks {len(lacking)} utterances, first '{lacking[0]}': remake the statistics")
        longest = max(self.frames, key=self._length)
        if self._length(longest) > batch_bins:
            name, advice = ("batch_bins", "or lower --max-wav-duration in the format stage")
            if not train:
                name, advice = ("valid_batch_bins", "or leave it out of the validation set")
            raise DataError(
                f"{name} {batch_bins} is less than the {self._length(longest)} frames and tokens of {longest}: "
                f"raise {name}, {advice}"
            )

    def _length(self, utterance):
        return self._inputs(self.frames[utterance], self.tokens[utterance])

    def _inputs(self, frames: int, tokens: int) -> int:
        """Decoder inputs of an example of so many frames of audio and tokens."""
        return sequence_length(frames + self.tail, tokens)

    def build_iter(self, epoch, shuffle=None):
        """The loader of one epoch: yields ``(utterance ids, batch)``."""
        batches = self.batches(epoch)
        return DataLoader(
            self.dataset,
            batch_sampler=[batch[self.rank :: self.world_size] for batch in batches],
            collate_fn=collate,
            num_workers=self.workers,
        )

    def batches(self, epoch):
        """Lists of :class:`Example` for one epoch; every utterance is in it exactly once."""
        rng = np.random.default_rng([self.seed, epoch])
        examples = self._examples(rng)
        if self.train:
            examples = self._augmented(examples, np.random.default_rng([self.seed, epoch, 1]))
        # A little noise on the length mixes the batches from epoch to epoch.
        jitter = rng.uniform(0.9, 1.1, len(examples)) if self.train else np.ones(len(examples))
        keyed = sorted(zip(examples, jitter, strict=True), key=lambda pair: self._total(pair[0]) * pair[1])
        batches = _fill([example for example, _ in keyed], self._total, self.batch_bins, self.world_size)
        if len(batches[0]) < self.world_size:
            raise DataError(
                f"{len(batches[0])} examples for {self.world_size} processes, which take one each at least: "
                "use fewer processes, or more utterances"
            )
        # Short examples first in the first epoch (SortaGrad, Amodei et al. 2016): CTC finds its feet sooner.
        if self.train and epoch > 1:
            rng.shuffle(batches)
        return batches

    def _augmented(self, examples, rng):
        """The examples with a gain and an end of their own."""
        gains = rng.uniform(self.augment.min_gain_db, self.augment.max_gain_db, len(examples))
        cuts = rng.random(len(examples)) < self.augment.cut_probability
        kept = rng.integers(-1, self.augment.cut_frames + 1, len(examples))
        return [
            replace(example, gain_db=float(gain), kept=int(frames) if cut else None)
            for example, gain, cut, frames in zip(examples, gains, cuts, kept, strict=True)
        ]

    def _total(self, example):
        last = example.utterances[-1]
        frames = example.offsets[-1] + self.frames[last]
        return self._inputs(frames, sum(self.tokens[utterance] for utterance in example.utterances))

    def _examples(self, rng):
        utterances = sorted(self.frames)
        if not self.train or self.concat is None:
            return [Example((utterance,), (0,)) for utterance in utterances]
        examples, queue = [], self._joining_order(utterances, rng)
        while queue:
            limit = 0.0
            if rng.random() < self.concat.probability:
                limit = rng.uniform(0, self.concat.max_seconds)
            examples.append(self._take(queue, timeline.gap_frames(limit), rng))
        return examples

    def _take(self, queue, limit, rng):
        """Pop utterances off ``queue`` until the example would pass ``limit`` frames or the batch size."""
        taken, tokens = [queue.pop()], 0
        lead = timeline.gap_frames(rng.uniform(0, self.concat.max_lead_seconds))
        offsets = [min(lead, self.batch_bins - self._length(taken[0]))]
        while queue:
            tokens += self.tokens[taken[-1]]
            gap = timeline.gap_frames(rng.uniform(0, self.concat.max_gap_seconds))
            offset = offsets[-1] + self.span[taken[-1]] + gap
            end = offset + self.frames[queue[-1]]
            if end > limit or self._inputs(end, tokens + self.tokens[queue[-1]]) > self.batch_bins:
                break
            taken.append(queue.pop())
            offsets.append(offset)
        return Example(tuple(taken), tuple(offsets))

    def _joining_order(self, utterances, rng):
        """All utterances in random order, those of a speaker together; a share of them without regard to speakers."""
        anyones = rng.random(len(utterances)) < self.concat.across_speakers
        groups = {}
        for utterance, anyone in zip(utterances, anyones, strict=True):
            speaker = "" if anyone or self.speakers is None else self.speakers[utterance]
            groups.setdefault(speaker, []).append(utterance)
        order = []
        for speaker in rng.permutation(sorted(groups)):
            order.extend(str(utterance) for utterance in rng.permutation(groups[str(speaker)]))
        return order


def _fill(examples, length, bins, least):
    """Cut a list sorted by length into batches of at most ``bins`` inputs, padding counted, ``least`` members."""
    batches, batch, longest = [], [], 0
    for example in examples:
        longest = max(longest, length(example))  # the jitter puts some a little out of order
        if len(batch) >= least and longest * (len(batch) + 1) > bins:
            batches.append(batch)
            batch, longest = [], length(example)
        batch.append(example)
    if batches and len(batch) < least:
        batches[-1].extend(batch)
    elif batch:
        batches.append(batch)
    return batches
