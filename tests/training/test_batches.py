"""Training data: preprocessing, collation, batches, and utterances joined for training."""

import random

import numpy as np
import pytest
import torch
import training
from slow import slow_sequence

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import AugmentConfig, ConcatConfig
from espnet_speechllm_xl.model.alignment import AlignmentError
from espnet_speechllm_xl.tokenization import load_tokenizer
from espnet_speechllm_xl.training.batches import (
    PAD_TOKEN,
    BatchFactory,
    DataError,
    Example,
    JoinedDataset,
    Padding,
    Preprocessor,
    collate,
)

RATE, FRAME = training.RATE, training.FRAME


def test_preprocessor(toy_data):
    tokenizer = load_tokenizer(toy_data.tokenizer)
    data = {"speech": np.zeros(9000, np.float64), "text": " ab  c ", "spk": "s1", "alignment": "2 5 7 11"}
    arrays = Preprocessor(tokenizer, RATE)("u1", data)
    assert set(arrays) == {"speech", "text", "ends"}  # spk is for joining only
    assert arrays["speech"].dtype == np.float32 and arrays["text"].dtype == arrays["ends"].dtype == np.int64
    assert [tokenizer.pieces[token] for token in arrays["text"]] == ["▁", "a", "b", "▁", "c"]
    assert arrays["ends"].tolist() == [2, 2, 5, 7, 11]  # the mark of the first word ends with its letter
    assert set(Preprocessor(tokenizer, RATE)("u1", {"speech": data["speech"], "text": "ab"})) == {"speech", "text"}
    whole = Preprocessor(tokenizer, RATE, whole_words=True)("u1", data)
    assert whole["ends"].tolist() == [5, 5, 5, 11, 11]  # all of "▁ab", all of "▁c"


def test_whole_words_of_a_text_that_nothing_parts_are_refused(toy_data):
    """A sentence without spaces in a script that has spaces would be one word and go into one chunk."""
    data = {"speech": np.zeros(200 * FRAME, np.float32), "text": "ab" * 51, "alignment": " ".join(map(str, range(102)))}
    tokenizer = load_tokenizer(toy_data.tokenizer)
    with pytest.raises(DataError, match="u1: 'abababababababababab...' has 102 letters without a space: .* unit=token"):
        Preprocessor(tokenizer, RATE, whole_words=True)("u1", data)
    assert len(set(Preprocessor(tokenizer, RATE)("u1", data)["ends"].tolist())) == 102


@pytest.mark.parametrize(
    "text, alignment, error, message",
    [
        ("abc", "2 5 7 11", AlignmentError, "u1: 4 aligned characters for a transcript of 3: .* run the align stage"),
        ("abcd", "2 5 x 11", AlignmentError, "u1: alignment is not a list of frames"),
        ("abcd", "-", AlignmentError, "u1: 0 aligned characters for a transcript of 4"),
    ],
)
def test_alignment_of_other_text(toy_data, text, alignment, error, message):
    preprocess = Preprocessor(load_tokenizer(toy_data.tokenizer), RATE)
    with pytest.raises(error, match=message):
        preprocess("u1", {"speech": np.zeros(9000, np.float32), "text": text, "alignment": alignment})


@pytest.mark.parametrize("last, kept", [(12, 12), (13, 12), (24, 12), (25, None)])
def test_ends_a_little_after_the_audio_are_moved_to_its_last_frame(toy_data, last, kept):
    """Word times of other tools may end half a second late; a later end belongs to other audio."""
    data = {"speech": np.zeros(240 + 13 * FRAME, np.float32), "text": "ab", "alignment": f"3 {last}"}
    preprocess = Preprocessor(load_tokenizer(toy_data.tokenizer), RATE)
    if kept is not None:
        assert preprocess("u1", data)["ends"].tolist() == [3, 3, kept]
        return
    with pytest.raises(DataError, match="u1: a token ends at frame 25 but the audio has 13 frames: the alignment"):
        preprocess("u1", data)


def test_stereo_is_refused(toy_data):
    with pytest.raises(DataError, match=r"u1: audio of shape \(9000, 2\); the format stage makes it mono"):
        Preprocessor(load_tokenizer(toy_data.tokenizer), RATE)("u1", {"speech": np.zeros((9000, 2)), "text": "a"})


def test_collate():
    first = {"speech": np.array([0.5, -0.5, 0.25], np.float32), "text": np.array([3]), "ends": np.array([7])}
    second = {"speech": np.array([1.0], np.float32), "text": np.array([1, 2]), "ends": np.array([0, 4])}
    names, batch = collate([("u1", first), ("u2", second)])
    assert names == ["u1", "u2"]
    assert batch["speech"].tolist() == [[0.5, -0.5, 0.25], [1.0, 0.0, 0.0]]
    assert batch["text"].tolist() == [[3, PAD_TOKEN], [1, 2]]
    assert batch["ends"].tolist() == [[7, PAD_TOKEN], [0, 4]]
    assert [batch[f"{name}_lengths"].tolist() for name in ("speech", "text", "ends")] == [[3, 1], [1, 2], [1, 2]]


def corpus(count=60, speakers=5, seed=0, longest=80000):
    """Draw sample counts, token counts and speakers of utterances of ragged lengths."""
    rng = random.Random(seed)
    names = [f"u{index:02d}" for index in range(count)]
    samples = {name: rng.randint(6000, longest) for name in names}
    tokens = {name: rng.randint(1, 30) for name in names}
    return samples, tokens, {name: f"s{rng.randrange(speakers)}" for name in names}


def factory(samples, tokens, speakers, concat=None, bins=600, train=True, seed=1, **process):
    return BatchFactory({}, samples, tokens, speakers, concat, bins, RATE, seed, train, 0, **process)


CONCAT = ConcatConfig(max_seconds=12.0, probability=0.8, max_gap_seconds=0.5)


def size(example, samples, tokens):
    """Count the decoder inputs of an example from the samples of the joined audio."""
    length = example.offsets[-1] * FRAME + samples[example.utterances[-1]]
    return timeline.frames(length, RATE) + sum(tokens[name] for name in example.utterances)


@pytest.mark.parametrize("concat", [None, CONCAT], ids=["single", "joined"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "valid"])
@pytest.mark.parametrize("bins", [170, 600, 100000])
def test_an_epoch_is_every_utterance_once_in_batches_that_fit(concat, train, bins):
    samples, tokens, speakers = corpus()
    batches = factory(samples, tokens, speakers, concat, bins, train)
    for epoch in (1, 2, 3):
        found = batches.batches(epoch)
        names = [name for batch in found for example in batch for name in example.utterances]
        assert sorted(names) == sorted(samples)
        assert all(batch for batch in found)
        for batch in found:
            assert max(size(example, samples, tokens) for example in batch) * len(batch) <= bins
        joined = max(len(example.utterances) for batch in found for example in batch)
        assert (joined > 1) == (train and concat is not None)


def test_epochs_differ_and_repeat_themselves():
    arguments = corpus()
    first, second = (factory(*arguments, CONCAT) for _ in range(2))
    assert first.batches(1) == second.batches(1)
    assert first.batches(2) == second.batches(2) != first.batches(1)
    assert factory(*arguments, CONCAT, seed=2).batches(1) != first.batches(1)
    examples = [{example.utterances for batch in first.batches(epoch) for example in batch} for epoch in (1, 2)]
    assert examples[0] != examples[1]
    valid = factory(*arguments, CONCAT, train=False)
    assert valid.batches(1) == valid.batches(2)


def ordinary(count=3000, seed=0):
    """Draw utterances as LibriSpeech has them: half of 12 to 16 s, the others of all lengths from 1 to 35 s."""
    rng = np.random.default_rng(seed)
    seconds = np.where(
        rng.random(count) < 0.5, rng.normal(14.2, 1.2, count), rng.lognormal(np.log(9.5), 0.55, count)
    ).clip(1, 35)
    names = [f"u{index:04d}" for index in range(count)]
    tokens = (3.5 * seconds * rng.normal(1, 0.12, count)).clip(1)
    return (
        {name: int(RATE * value) for name, value in zip(names, seconds, strict=True)},
        {name: int(value) for name, value in zip(names, tokens, strict=True)},
        {name: f"s{index // 100}" for index, name in enumerate(names)},
    )


def shares(batches, samples, tokens):
    """Compute which shares of frames and decoder inputs are padding, from the samples of the joined audio."""
    real, padded = [0, 0], [0, 0]
    for batch in batches:
        lengths = [example.offsets[-1] * FRAME + samples[example.utterances[-1]] for example in batch]
        frames = [timeline.frames(length, RATE) for length in lengths]
        for index, counts in enumerate((frames, [size(example, samples, tokens) for example in batch])):
            real[index] += sum(counts)
            padded[index] += max(counts) * len(counts)
    return [1 - one / other for one, other in zip(real, padded, strict=True)]


@pytest.mark.parametrize("concat", [None, ConcatConfig(max_seconds=30.0, probability=0.5)], ids=["single", "joined"])
@pytest.mark.parametrize("bins", [1300, 8000])
def test_less_than_a_twentieth_is_padding(concat, bins):
    samples, tokens, speakers = ordinary()
    batches = factory(samples, tokens, speakers, concat, bins)
    for epoch in (1, 2):
        assert max(shares(batches.batches(epoch), samples, tokens)) < 0.045


def test_an_utterance_meets_others_in_each_epoch():
    """Batches are no function of length alone: most pairs of a batch are parted in the next epoch."""
    samples, tokens, speakers = ordinary()
    batches = factory(samples, tokens, speakers, None, 8000)
    pairs = [
        {(one.utterances, other.utterances) for batch in batches.batches(epoch) for one in batch for other in batch}
        for epoch in (2, 3)
    ]
    common = len(pairs[0] & pairs[1]) - len(samples)  # each with itself
    assert common < 0.4 * (len(pairs[0]) - len(samples))


def test_padding_is_counted_as_the_model_has_it():
    padding = Padding(RATE, tail=6)
    assert padding.shares == (0.0, 0.0)
    samples = [timeline.samples_for_frames(count, RATE) for count in (94, 44, 14)]
    padding.add({"speech_lengths": torch.tensor(samples), "text_lengths": torch.tensor([20, 0, 10])})
    # 100 + 50 + 20 of 300 frames; 120 + 50 + 30 of 360 inputs.
    assert padding.shares == pytest.approx((1 - 170 / 300, 1 - 200 / 360))
    padding.add({"speech_lengths": torch.tensor(samples[:1]), "text_lengths": torch.tensor([20])})
    assert padding.shares == pytest.approx((1 - 270 / 400, 1 - 320 / 480))


def test_inputs_are_counted_as_the_projection_makes_them():
    """Of the chunk sizes that training draws, the one with the most inputs counts: 6 frames, of which 4 make one."""
    task = training.task_of("speechllm_xl")
    options = ["--projection_conf", "reduction=4"]
    for field in ("chunk=24", "train_chunks=[6,8]"):
        options += ["--chunking_conf", field]
    count = task.input_counter(task.get_parser().parse_args([*options, "--output_dir", "unused"]))
    assert [count(frames, 5) for frames in (0, 1, 6, 12, 24, 29)] == [5, 6, 7, 9, 13, 15]
    for other in ("ctc", "ctc_prompt_lm"):
        plain = training.task_of(other)
        counted = plain.input_counter(plain.get_parser().parse_args(["--output_dir", "unused"]))
        assert counted(24, 5) == 29
    samples, tokens, speakers = corpus()
    reduced = factory(samples, tokens, speakers, CONCAT, bins=300, count_inputs=count)
    plain = factory(samples, tokens, speakers, CONCAT, bins=300)
    assert len(reduced.batches(2)) < 0.7 * len(plain.batches(2))
    for batch in reduced.batches(2):
        inputs = [
            count(
                timeline.frames(one.offsets[-1] * FRAME + samples[one.utterances[-1]], RATE),
                sum(tokens[name] for name in one.utterances),
            )
            for one in batch
        ]
        assert max(inputs) * len(inputs) <= 300
    padding = reduced.new_padding()
    lengths = torch.tensor([timeline.samples_for_frames(frames, RATE) for frames in (24, 12)])
    padding.add({"speech_lengths": lengths, "text_lengths": torch.tensor([5, 5])})
    assert padding.shares == pytest.approx((1 - 36 / 48, 1 - 22 / 26))


@pytest.mark.parametrize("bins", [300, 100000])
def test_joined_examples(bins):
    samples, tokens, speakers = corpus(count=80, speakers=4, longest=40000)
    batches = factory(samples, tokens, speakers, CONCAT, bins)
    mixed = several = longest = 0
    gaps = set()
    for epoch in range(1, 6):
        for example in (example for batch in batches.batches(epoch) for example in batch):
            if len(example.utterances) == 1:
                assert example.offsets == (0,)
                continue
            several += 1
            mixed += len({speakers[name] for name in example.utterances}) > 1
            spans = zip(example.utterances, example.offsets, example.offsets[1:], strict=False)
            for name, start, following in spans:
                pause = (following - start) * FRAME - samples[name]
                assert 0 <= pause < 0.5 * RATE + 2 * FRAME  # they never overlap
                gaps.add(pause // FRAME)
            seconds = (example.offsets[-1] * FRAME + samples[example.utterances[-1]]) / RATE
            assert seconds <= CONCAT.max_seconds + 2 * FRAME / RATE
            longest = max(longest, seconds)
            assert size(example, samples, tokens) <= bins
    assert several > 50
    assert len(gaps) > 8
    # A speaker's last utterances may be joined with the next speaker's first: at most speakers - 1 times an epoch.
    assert mixed <= 5 * 3
    assert longest > (10 if bins > 300 else 5)


def test_share_of_joined_examples():
    samples, tokens, speakers = corpus(count=400, speakers=1, longest=12000)
    for probability in (0.0, 0.5, 1.0):
        concat = ConcatConfig(max_seconds=30.0, probability=probability)
        examples = sum(factory(samples, tokens, speakers, concat, 9999).batches(1), [])
        share = sum(len(example.utterances) > 1 for example in examples) / len(examples)
        assert share == 0 if probability == 0 else abs(share - probability) < 0.2
    off = ConcatConfig(max_seconds=0.0, probability=1.0)
    examples = sum(factory(samples, tokens, speakers, off, 9999).batches(1), [])
    assert len(examples) == 400


@pytest.mark.parametrize("share, expected", [(0.0, 0.0), (0.5, 0.375), (1.0, 0.75)])
def test_share_joined_across_speakers(share, expected):
    """Of four speakers' utterances in random order, three in four stand before one of another speaker."""
    samples, tokens, speakers = corpus(count=600, speakers=4, longest=12000)
    concat = ConcatConfig(max_seconds=30.0, probability=1.0, across_speakers=share)
    pairs = [
        speakers[first] != speakers[second]
        for example in sum(factory(samples, tokens, speakers, concat, 9999).batches(1), [])
        for first, second in zip(example.utterances, example.utterances[1:], strict=False)
    ]
    assert len(pairs) > 400
    assert abs(sum(pairs) / len(pairs) - expected) < 0.08


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("bins", [170, 600])
def test_processes_share_every_batch(world, bins):
    samples, tokens, speakers = corpus()
    factories = [factory(samples, tokens, speakers, CONCAT, bins, rank=rank, world_size=world) for rank in range(world)]
    for epoch in (1, 2):
        loaders = [each.build_iter(epoch).batch_sampler for each in factories]
        assert len({len(loader) for loader in loaders}) == 1
        for whole, *shares in zip(factories[0].batches(epoch), *loaders, strict=True):
            assert all(shares)
            taken = [example.utterances for share in shares for example in share]
            assert sorted(taken) == sorted(example.utterances for example in whole)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_does_not_fit_is_said():
    samples, tokens, speakers = corpus()
    longest = max(samples, key=lambda name: timeline.frames(samples[name], RATE) + tokens[name])
    count = timeline.frames(samples[longest], RATE) + tokens[longest]
    factory(samples, tokens, speakers, bins=count)
    with pytest.raises(DataError, match=f"batch_bins {count - 1} is less than the {count} inputs, .* of {longest}"):
        factory(samples, tokens, speakers, bins=count - 1)
    with pytest.raises(DataError, match="2 examples for 3 processes, .* use fewer processes"):
        two = [{name: table[name] for name in ("u00", "u01")} for table in (samples, tokens, speakers)]
        factory(*two, rank=0, world_size=3).batches(1)
    with pytest.raises(DataError, match="text_shape lacks 1 utterances, first 'u07'"):
        factory(samples, {name: count for name, count in tokens.items() if name != "u07"}, speakers)


class Planted:
    """A dataset of constant utterances, each at its own level, with a mark where each token's last frame begins."""

    def __init__(self, count, seed=3):
        rng = random.Random(seed)
        self.items = {}
        for index in range(count):
            samples = rng.randint(9000, 20000)
            ends = sorted(rng.sample(range(timeline.frames(samples, RATE)), 4))
            speech = np.full(samples, (index + 1) / 100, np.float32)
            speech[[end * FRAME for end in ends]] = -(index + 1) / 100
            text = np.arange(4) + 10 * index
            self.items[f"u{index}"] = {"speech": speech, "text": text, "ends": np.array(ends)}

    def __getitem__(self, name):
        return name, self.items[name]


def test_shifted_ends_point_at_the_same_audio():
    planted = Planted(6)
    samples = {name: len(item["speech"]) for name, item in planted.items.items()}
    concat = ConcatConfig(max_seconds=9.0, probability=1.0, max_gap_seconds=0.2, max_lead_seconds=0.5)
    batches = BatchFactory(planted, samples, dict.fromkeys(samples, 4), None, concat, 2000, RATE, 5, True, 0)
    joined = 0
    for epoch in range(1, 16):
        for names, batch in batches.build_iter(epoch):
            for row, name in enumerate(names):
                parts = name.split("+")
                joined += len(parts) > 1
                count = int(batch["text_lengths"][row])
                assert count == int(batch["ends_lengths"][row]) == 4 * len(parts)
                tokens, ends = batch["text"][row, :count].tolist(), batch["ends"][row, :count].tolist()
                assert tokens == [token for part in parts for token in planted.items[part]["text"]]
                assert ends == sorted(ends)
                for token, end in zip(tokens, ends, strict=True):
                    level = -(token // 10 + 1) / 100
                    assert batch["speech"][row, end * FRAME].item() == pytest.approx(level)
                assert max(ends) < timeline.frames(int(batch["speech_lengths"][row]), RATE)
    assert joined > 10


@pytest.mark.parametrize("bins", [170, 600])
@pytest.mark.parametrize("max_seconds", [0.0, 12.0])
def test_pauses_before_the_first_utterance(bins, max_seconds):
    """Pauses have any length up to the largest, also without joining, and the batches still fit."""
    samples, tokens, speakers = corpus()
    concat = ConcatConfig(max_seconds=max_seconds, max_lead_seconds=1.28)
    found = [batch for epoch in (1, 2, 3) for batch in factory(samples, tokens, speakers, concat, bins).batches(epoch)]
    leads = [example.offsets[0] for batch in found for example in batch]
    assert min(leads) <= 2 and 30 <= max(leads) <= 32
    assert len(set(leads)) > 20
    for batch in found:
        assert max(size(example, samples, tokens) for example in batch) * len(batch) <= bins
    valid = factory(samples, tokens, speakers, concat, bins, train=False).batches(1)
    assert {example.offsets for batch in valid for example in batch} == {(0,)}


def test_gaps_hold_quiet_noise_and_nothing_else_changes():
    planted = Planted(3)
    for item in planted.items.values():
        item["speech"][2000:6000] = 0.001  # the quiet part
    dataset = JoinedDataset(planted, RATE)
    first, second = planted.items["u0"]["speech"], planted.items["u2"]["speech"]
    offset = len(first) // FRAME + 12
    name, arrays = dataset[Example(("u0", "u2"), (0, offset))]
    speech = arrays["speech"]
    assert name == "u0+u2" and speech.dtype == np.float32
    assert np.array_equal(speech[: len(first)], first)
    assert np.array_equal(speech[offset * FRAME :], second)
    gap = speech[len(first) : offset * FRAME]
    assert len(gap) > 5000 and 0.0009 < gap.std() < 0.0011 and len(set(gap.tolist())) > 1000
    assert np.array_equal(dataset[Example(("u0", "u2"), (0, offset))][1]["speech"], speech)
    _, led = dataset[Example(("u2",), (3,))]
    assert np.array_equal(led["speech"][3 * FRAME :], second) and 0.0009 < led["speech"][: 3 * FRAME].std() < 0.0011
    assert np.array_equal(led["ends"], planted.items["u2"]["ends"] + 3)
    alone_name, alone = dataset[Example(("u2",), (0,))]
    assert alone_name == "u2" and alone["speech"] is second


AUGMENT = AugmentConfig(min_gain_db=-40.0, max_gain_db=10.0, cut_probability=0.5, cut_frames=3)


def test_gains_and_cuts_are_drawn_for_training_only_and_repeat_themselves():
    arguments = corpus()
    first, second = (factory(*arguments, augment=AUGMENT) for _ in range(2))
    assert first.batches(1) == second.batches(1) != first.batches(2)
    examples = [example for epoch in range(1, 9) for batch in first.batches(epoch) for example in batch]
    gains = [example.gain_db for example in examples]
    assert -40 <= min(gains) < -38 and 8 < max(gains) <= 10 and len(set(gains)) == len(gains)
    kept = [example.kept for example in examples]
    assert set(kept) == {None, -1, 0, 1, 2, 3} and 0.4 < kept.count(None) / len(kept) < 0.6
    untouched = [*factory(*arguments, augment=AUGMENT, train=False).batches(1), *factory(*arguments).batches(1)]
    assert {(example.gain_db, example.kept) for batch in untouched for example in batch} == {(0.0, None)}


def test_augmentation_leaves_the_batches_as_they_are():
    arguments = corpus()
    plain, augmented = (factory(*arguments, CONCAT, augment=augment) for augment in (None, AUGMENT))
    first, second = (
        {example.utterances: example.offsets for batch in each.batches(1) for example in batch}
        for each in (plain, augmented)
    )
    assert first == second


@pytest.mark.parametrize("gain", [-40.0, -6.0, 10.0])
def test_an_example_at_another_level_is_what_a_file_of_16_bits_would_hold(gain):
    planted = Planted(2)
    speech = planted.items["u1"]["speech"]
    _, arrays = JoinedDataset(planted, RATE)[Example(("u1",), (0,), gain_db=gain)]
    expected = [max(-32768, min(32767, round(float(value) * 10 ** (gain / 20) * 32768))) / 32768 for value in speech]
    assert arrays["speech"].dtype == np.float32 and arrays["speech"].tolist() == pytest.approx(expected, abs=3.1e-5)
    assert set((arrays["speech"] * 32768 % 1).tolist()) == {0.0}
    assert np.array_equal(planted.items["u1"]["speech"], speech), "the utterance itself is not changed"
    assert np.array_equal(arrays["ends"], planted.items["u1"]["ends"])


@pytest.mark.parametrize("kept", [-1, 0, 2, 10000])
def test_a_cut_example_ends_after_its_last_token(kept):
    planted = Planted(2)
    whole = planted.items["u1"]["speech"]
    _, arrays = JoinedDataset(planted, RATE)[Example(("u1",), (0,), kept=kept)]
    assert np.array_equal(arrays["speech"], whole[: len(arrays["speech"])])
    frames = min(planted.items["u1"]["ends"][-1] + 1 + kept, timeline.frames(len(whole), RATE))
    assert timeline.frames(len(arrays["speech"]), RATE) == frames
    assert arrays["ends"].tolist() == np.minimum(planted.items["u1"]["ends"], frames - 1).tolist()


def test_an_example_without_alignment_or_text_is_not_cut():
    planted = Planted(2)
    planted.items["u0"]["ends"] = planted.items["u0"]["ends"][:0]
    del planted.items["u1"]["ends"]
    for name in ("u0", "u1"):
        _, arrays = JoinedDataset(planted, RATE)[Example((name,), (0,), kept=0)]
        assert len(arrays["speech"]) == len(planted.items[name]["speech"])


def test_joined_batches_build_the_slow_sequence():
    """In the decoder's sequence of a joined example, each token stands in the chunk of its own audio."""
    from espnet_speechllm_xl.config import ChunkingConfig
    from espnet_speechllm_xl.model.sequence import IGNORE, build_sequence

    planted = Planted(5)
    samples = {name: len(item["speech"]) for name, item in planted.items.items()}
    concat = ConcatConfig(max_seconds=9.0, probability=1.0)
    batches = BatchFactory(planted, samples, dict.fromkeys(samples, 4), None, concat, 2000, RATE, 5, True, 0)
    for _, batch in batches.build_iter(1):
        frames = timeline.frames(batch["speech_lengths"], RATE)
        tokens = batch["text"].clamp(min=0)
        sequence = build_sequence(frames, tokens, batch["text_lengths"], batch["ends"], ChunkingConfig(chunk=8), eoc=99)
        for row in range(len(frames)):
            count = int(batch["text_lengths"][row])
            arguments = (int(frames[row]), tokens[row, :count].tolist(), batch["ends"][row, :count].tolist(), 8, 0, 99)
            _, chunks, targets = slow_sequence(*arguments)
            assert sequence.chunk_id[row, : len(chunks)].tolist() == chunks
            assert sequence.target[row, : len(chunks)].tolist() == [IGNORE if t is None else t for t in targets]
