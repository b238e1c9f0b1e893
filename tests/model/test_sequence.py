"""Decoder sequences: the paper's table, and random batches against a slow builder."""

import random

import pytest
import torch
from slow import slow_label_sequence, slow_sequence, slow_stacks

from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.model.sequence import (
    IGNORE,
    PAD_TOKEN,
    build_label_sequence,
    build_sequence,
    frame_chunks,
    gather_inputs,
    sequence_length,
    with_prompts,
)
from espnet_speechllm_xl.model.visibility import PADDING, PROMPT

TABLE = """
    input    a b c d  1   e f g h  2 3 4   i j k l  5 6
    target   . . . 1  $   . . . 2  3 4 $   . . . 5  6 $
    chunk    0 0 0 0  0   1 1 1 1  1 1 1   2 2 2 2  2 2
"""


# The same utterance, two or four frames to an input; and the last with chunks of 6 frames, of which an input lacks two.
REDUCED = {
    (4, 2): """
    input    ab cd  1   ef gh  2 3 4   ij kl  5 6
    target   .  1   $   .  2   3 4 $   .  5   6 $
    chunk    0  0   0   1  1   1 1 1   2  2   2 2
""",
    (4, 4): """
    input    abcd  1   efgh  2 3 4   ijkl  5 6
    target   1     $   2     3 4 $   5     6 $
    chunk    0     0   1     1 1 1   2     2 2
""",
    (6, 4): """
    input    abcd ef  1 2 3   ghij kl  4 5 6
    target   .    1   2 3 $   .    4   5 6 $
    chunk    0    0   0 0 0   1    1   1 1 1
""",
}


TABLES = {(4, 1): TABLE, **REDUCED}


@pytest.mark.parametrize("chunk, reduction, table", [(*key, table) for key, table in TABLES.items()])
def test_the_papers_table(chunk, reduction, table):
    rows = {line.split()[0]: line.split()[1:] for line in table.strip().splitlines()}
    sequence = build_sequence(
        torch.tensor([12]),
        torch.tensor([[1, 2, 3, 4, 5, 6]]),
        torch.tensor([6]),
        torch.tensor([[2, 4, 5, 7, 8, 11]]),
        ChunkingConfig(chunk=chunk, context=1),
        eoc=7,
        reduction=reduction,
    )
    names = {IGNORE: ".", 7: "$"}
    stacks = ["".join("abcdefghijkl"[frame] for frame in stack) for stack in slow_stacks(12, chunk, reduction)[0]]
    assert [[*stacks, *"123456"][i] for i in sequence.source[0].tolist()] == rows["input"]
    assert [names.get(t, str(t)) for t in sequence.target[0].tolist()] == rows["target"]
    assert list(map(str, sequence.chunk_id[0].tolist())) == rows["chunk"]
    assert sequence.position[0].tolist() == list(range(len(rows["input"])))


PROMPTED = """
    input    x y   a b c d  1   e f g h  2 3 4   i j k l  5 6
    target   . .   . . . 1  $   . . . 2  3 4 $   . . . 5  6 $
    chunk    P P   0 0 0 0  0   1 1 1 1  1 1 1   2 2 2 2  2 2
"""


def test_a_prompt_comes_first_and_has_no_targets():
    """In a batch with an utterance that has none, and one that has a longer one and no frames."""
    rows = {line.split()[0]: line.split()[1:] for line in PROMPTED.strip().splitlines()}
    ends = torch.tensor([[2, 4, 5, 7, 8, 11]]).expand(3, -1)
    arguments = torch.tensor([[1, 2, 3, 4, 5, 6]]).expand(3, -1), torch.tensor([6, 6, 0]), ends
    prompts = torch.tensor([[8, 9, PAD_TOKEN], [PAD_TOKEN] * 3, [8, 9, 8]])
    lengths = torch.tensor([12, 12, 0])
    sequence = build_sequence(lengths, *arguments, ChunkingConfig(4, 1), eoc=7, prompts=prompts)
    names = {IGNORE: ".", 7: "$"}
    assert ["abcdefghijklxyz123456"[i] for i in sequence.source[0].tolist()] == rows["input"]
    assert [names.get(t, str(t)) for t in sequence.target[0].tolist()] == rows["target"]
    assert ["P" if k == PROMPT else str(k) for k in sequence.chunk_id[0].tolist()] == rows["chunk"]
    assert with_prompts(prompts, arguments[0])[:, :3].tolist() == [[8, 9, 0], [0, 0, 0], [8, 9, 8]]
    plain = build_sequence(lengths, *arguments, ChunkingConfig(4, 1), eoc=7)
    assert sequence.chunk_id[1].tolist() == [*plain.chunk_id[1].tolist(), PADDING, PADDING]
    assert sequence.target[1].tolist() == [*plain.target[1].tolist(), IGNORE, IGNORE]
    assert sequence.chunk_id[2].tolist() == [PROMPT] * 3 + [PADDING] * 17
    assert set(sequence.target[2].tolist()) == {IGNORE}


def random_batch(rng, vocabulary=9):
    utterances = []
    for _ in range(rng.randint(1, 6)):
        frames = rng.choice([1, 2, 3, 4, 5, 8, 9, rng.randint(1, 60)])
        count = rng.choice([0, 1, rng.randint(0, 25)])
        tokens = [rng.randrange(vocabulary) for _ in range(count)]
        utterances.append((frames, tokens, sorted(rng.randrange(frames) for _ in range(count))))
    return utterances


def tensors(utterances, pad=-1):
    longest = max(len(tokens) for _, tokens, _ in utterances)
    return (
        torch.tensor([frames for frames, _, _ in utterances]),
        torch.tensor([tokens + [pad] * (longest - len(tokens)) for _, tokens, _ in utterances]).long(),
        torch.tensor([len(tokens) for _, tokens, _ in utterances]),
        torch.tensor([ends + [pad] * (longest - len(ends)) for _, _, ends in utterances]).long(),
    )


@pytest.mark.parametrize("chunk", [1, 2, 4, 32, None])
@pytest.mark.parametrize("delay, reduction", [(0, 1), (1, 1), (7, 1), (0, 2), (0, 4), (1, 8)])
def test_random_batches_against_the_slow_builder(chunk, delay, reduction):
    rng = random.Random(f"{chunk} {delay}")
    eoc = 9
    for _ in range(25):
        utterances = random_batch(rng)
        frame_lengths, tokens, token_lengths, ends = tensors(utterances)
        chunking = ChunkingConfig(chunk=chunk, context=1, delay=delay)
        sequence = build_sequence(frame_lengths, tokens.clamp(min=0), token_lengths, ends, chunking, eoc, reduction)
        audio_inputs = len(slow_stacks(int(frame_lengths.max()), chunk, reduction)[0])
        frames = torch.randn(len(utterances), audio_inputs, 3)
        embeddings = torch.randn(*tokens.shape, 3)
        inputs = gather_inputs(sequence, frames, embeddings)
        longest = max(sequence_length(count, len(words), chunk, reduction) for count, words, _ in utterances)
        assert sequence.source.shape == sequence.chunk_id.shape == sequence.target.shape == (len(utterances), longest)
        for b, (count, words, own_ends) in enumerate(utterances):
            expected, chunks, targets = slow_sequence(count, words, own_ends, chunk, delay, eoc, reduction)
            size = len(expected)
            assert size == sequence_length(count, len(words), chunk, reduction)
            assert sequence.chunk_id[b].tolist() == chunks + [PADDING] * (longest - size)
            padded = targets + [None] * (longest - size)
            assert sequence.target[b].tolist() == [IGNORE if t is None else t for t in padded]
            assert sequence.position[b, :size].tolist() == list(range(size))
            for i, (kind, index) in enumerate(expected):
                assert torch.equal(inputs[b, i], (frames if kind == "frame" else embeddings)[b, index])
            assert sum(t == eoc for t in targets) == (1 if chunk is None else -(-count // chunk)), "one $ a chunk"
            assert [t for t in targets if t not in (None, eoc)] == words, "every token once, in order"


@pytest.mark.parametrize("chunk", [1, 2, 4, 32, None])
@pytest.mark.parametrize("delay", [0, 7])
def test_label_sequences_against_the_slow_builder(chunk, delay):
    rng = random.Random(f"labels {chunk} {delay}")
    eoc = 9
    for _ in range(25):
        utterances = random_batch(rng)
        frame_lengths, tokens, token_lengths, ends = tensors(utterances)
        chunking = ChunkingConfig(chunk, context=0, delay=delay)
        sequence = build_label_sequence(frame_lengths, tokens.clamp(min=0), token_lengths, ends, chunking, eoc)
        most_chunks = 1 if chunk is None else -(-int(frame_lengths.max()) // chunk)
        labels = gather_inputs(sequence, torch.full((len(tokens), most_chunks, 1), eoc), tokens[..., None])[..., 0]
        for b, (count, words, own_ends) in enumerate(utterances):
            expected, chunks, targets = slow_label_sequence(count, words, own_ends, chunk, delay, eoc)
            padding = [PADDING] * (labels.shape[1] - len(expected))
            assert labels[b, : len(expected)].tolist() == expected
            assert sequence.chunk_id[b].tolist() == chunks + padding
            assert sequence.target[b].tolist() == targets + [IGNORE] * len(padding)


def test_chunks_of_frames():
    assert frame_chunks(torch.tensor([5, 2, 0]), 2).tolist() == [
        [0, 0, 1, 1, 2],
        [0, 0, PADDING, PADDING, PADDING],
        [PADDING] * 5,
    ]
    assert frame_chunks(torch.tensor([3, 1]), None).tolist() == [[0, 0, 0], [0, PADDING, PADDING]]
    assert frame_chunks(torch.tensor([13, 7, 0]), 6, 4).tolist() == [
        [0, 0, 1, 1, 2],
        [0, 0, 1, PADDING, PADDING],
        [PADDING] * 5,
    ]


def test_an_utterance_without_frames_or_text_is_all_padding():
    nothing = torch.zeros(2, 0).long()
    sequence = build_sequence(torch.tensor([0, 3]), nothing, torch.tensor([0, 0]), nothing, ChunkingConfig(2), 5)
    assert sequence.chunk_id.tolist() == [[PADDING] * 3, [0, 0, 1]]
    assert sequence.target.tolist() == [[IGNORE] * 3, [IGNORE, 5, 5]]


@pytest.mark.parametrize(
    "frames, ends, said", [([5, 5], [[1, 4], [0, 5]], (1, 5, 5)), ([2, 0], [[0, 1], [0, 0]], (1, 0, 0))]
)
def test_a_token_past_the_audio_is_refused(frames, ends, said):
    utterance, end, count = said
    tokens, lengths = torch.zeros(2, 2).long(), torch.tensor([2, 2])
    message = (
        f"utterance {utterance} of the batch: a token ends at frame {end} but the audio has {count} frames: .*align"
    )
    for build in (build_sequence, build_label_sequence):
        with pytest.raises(ValueError, match=message):
            build(torch.tensor(frames), tokens, lengths, torch.tensor(ends), ChunkingConfig(4), 9)


def test_padded_ends_are_not_looked_at():
    """Joined batches pad with anything; only an utterance's own tokens count."""
    ends = torch.tensor([[0, 99], [0, 1]])
    sequence = build_sequence(
        torch.tensor([2, 2]), torch.ones(2, 2).long(), torch.tensor([1, 2]), ends, ChunkingConfig(2), 9
    )
    assert sequence.target.tolist() == [[IGNORE, 1, 9, IGNORE], [IGNORE, 1, 1, 9]]
