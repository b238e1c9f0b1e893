"""Times of tokens inside their chunks, against planted CTC outputs."""

import pytest
import torch

from espnet_speechllm_xl.config import ChunkingConfig
from espnet_speechllm_xl.decoding.token_times import LOOKBACK, TokenTimes, hypothesis_spans
from espnet_speechllm_xl.model.ctc_spelling import Spelled

BLANK = 3


class Head:
    """A CTC head whose frames already are what it says: frame (V + 1,) -> log-probabilities."""

    blank, spelling = BLANK, None

    def __call__(self, frames):
        return frames.log_softmax(-1)


def said(path):
    """Frames that say the classes of ``path``, a string with "-" for the blank."""
    return torch.stack([torch.eye(BLANK + 1)[BLANK if symbol == "-" else int(symbol)] * 9 for symbol in path])


def times_of(path, chunk, head=True, delay=0):
    times = TokenTimes(Head() if head else None, ChunkingConfig(chunk, 2, delay))
    for frames in said(path).split(chunk or len(path)):
        times.add(frames)
    return times


def test_tokens_get_the_frames_that_say_them():
    times = times_of("-00--1--2--00---", 8)
    assert hypothesis_spans(times, (0, 1, 2, 0), (0, 0, 1, 1)) == [(1.0, 3.0), (5.0, 6.0), (8.0, 9.0), (11.0, 13.0)]


def test_a_word_may_begin_before_its_chunk():
    times = times_of("-00---111---2---", 8)
    # 1 and 2 are one word, which ends in the second chunk
    assert hypothesis_spans(times, (0, 1, 2), (0, 1, 1)) == [(1.0, 3.0), (6.0, 9.0), (12.0, 13.0)]


def test_the_label_delay_is_taken_off():
    # Said in frames 0 to 5 and 18 to 23; the delay puts them two chunks later.
    times = times_of("-" * 48, 6, head=False, delay=12)
    assert hypothesis_spans(times, (0, 1, 2), (2, 5, 5)) == [(0.0, 6.0), (18.0, 21.0), (21.0, 24.0)]
    path = ["-"] * 96
    path[10] = "0"  # 36 frames before its chunk: within reach of the delay and LOOKBACK only
    assert hypothesis_spans(times_of("".join(path), 6, delay=12), (0,), (7,))[0] == (10.0, 11.0)


def test_no_token_begins_before_the_one_before_it_ended():
    times = times_of("-00----------1--", 8)
    # the decoder wrote 0 twice: the second finds its frames taken
    first, second, third = hypothesis_spans(times, (0, 0, 1), (0, 1, 1))
    assert (first, third) == ((1.0, 3.0), (13.0, 14.0)) and second[0] >= 3.0


def test_the_window_reaches_back_one_chunk_or_lookback():
    for chunk in (8, 32):
        path = ["-"] * 20 * chunk
        path[10 * chunk - max(LOOKBACK, chunk) - 1] = "0"  # just out of reach of chunk 10
        path[10 * chunk + 2] = "1"
        times = times_of("".join(path), chunk)
        (start, end), last = times.spans((0, 1), 10, 0.0)
        assert start >= 10 * chunk - max(LOOKBACK, chunk) and last == (10.0 * chunk + 2, 10.0 * chunk + 3)
        path[10 * chunk - max(LOOKBACK, chunk)] = "0"
        assert times_of("".join(path), chunk).spans((0, 1), 10, 0.0)[0][0] == 10 * chunk - max(LOOKBACK, chunk)


@pytest.mark.parametrize("head", [True, False])
def test_without_a_head_or_frames_tokens_share_the_chunk(head):
    path = "-" * 16
    times = times_of(path, 8, head)
    after = 10.0 if head else 0.0
    tokens = (0, 0, 0, 0)  # 4 and 3 blanks between them do not fit into the 6 frames after 10
    expected = [(after + 1.5 * i, after + 1.5 * (i + 1)) for i in range(4)] if head else [
        (8.0 + 2 * i, 10.0 + 2 * i) for i in range(4)
    ]  # fmt: skip
    assert times.spans(tokens, 1, after) == expected


def test_the_last_chunk_may_be_short_and_one_chunk_may_hold_all():
    assert times_of("-00------1", 8, head=False).spans((1,), 1, 0.0) == [(8.0, 10.0)]
    assert times_of("-00------1-", None).spans((0, 1), 0, 0.0) == [(1.0, 3.0), (9.0, 10.0)]
    assert times_of("-00------1-", None, head=False).spans((0,), 0, 0.0) == [(0.0, 11.0)]


def test_forgetting_changes_nothing_and_bounds_what_is_kept():
    path = ("-00--1--2--00---") * 10
    whole, forgetting = times_of(path, 8), TokenTimes(Head(), ChunkingConfig(8, 2))
    for chunk, frames in enumerate(said(path).split(8)):
        forgetting.add(frames)
        tokens = (0, 1) if chunk % 2 == 0 else (2, 0)
        assert forgetting.spans(tokens, chunk, 8.0 * chunk) == whole.spans(tokens, chunk, 8.0 * chunk)
        forgetting.forget(chunk)
        assert len(forgetting._chunks) <= 2 + LOOKBACK // 8 + 1
    assert forgetting.frames == len(path)


def test_a_chunk_that_earlier_words_took_whole_still_gives_time():
    times = times_of("-00---11", 8, head=False)
    assert times.spans((1,), 0, 7.5) == [(7.5, 8.0)]
    assert times.spans((1, 2), 0, 8.0) == [(8.0, 8.0), (8.0, 8.0)]  # no audio is left
    times = times_of("-" * 18, 6, head=False, delay=12)
    assert times.spans((1, 2), 1, 6.0) == [(6.0, 6.5), (6.5, 7.0)]


class Words:
    """A spelling with tokens by their names: CTC has the space 0, and the letters 1 and 2."""

    space = 0
    tokens = {
        "ab": Spelled((0, 1, 2), True, False),
        "b": Spelled((2,), False, False),
        "!": Spelled((), False, True),
        "(": Spelled((), True, True),
        "7": Spelled((), True, False),
    }

    def each(self, tokens):
        return [self.tokens[token] for token in tokens]


@pytest.mark.parametrize(
    ("path", "tokens", "expected"),
    [
        # The space is heard before the word and is no part of it.
        ("--0-1122---2----", ["ab", "b"], [(4, 8), (11, 12)]),
        ("--0-1122---2----", ["ab", "!", "b"], [(4, 8), (8, 8), (11, 12)]),
        ("--0-1122---2----", ["ab", "b", "!", "!"], [(4, 8), (11, 12), (12, 12), (12, 12)]),
        ("--0-1122---0-12-", ["(", "ab", "!", "(", "!", "ab"], [(4, 4), (4, 8), (8, 8), (13, 13), (13, 13), (13, 15)]),
        # Digits that CTC lacks are said between the words, or behind the last one.
        ("--0-1122---0-12-", ["ab", "7", "!", "ab"], [(4, 8), (8, 13), (8, 13), (13, 15)]),
        ("--0-1122--------", ["ab", "7"], [(4, 8), (8, 16)]),
        ("----------------", ["!", "("], [(0, 0), (0, 0)]),
        ("----------------", ["7", "7"], [(0, 8), (8, 16)]),
    ],
)
def test_tokens_have_the_times_of_their_characters(path, tokens, expected):
    head = Head()
    head.spelling = Words()
    times = TokenTimes(head, ChunkingConfig(16, 2))
    times.add(said(path))
    assert times.spans(tokens, 0, 0.0) == [(float(start), float(end)) for start, end in expected]
