"""Joint decoding: CTC's prefixes against all paths, the searches against exhaustive search, streams, bad settings."""

import itertools
import math
import random

import pytest
import torch
from slow import stacked
from test_searches import Toy, all_paths, config, rank, text_of

from espnet_speechllm_xl.config import ChunkingConfig, SearchConfig
from espnet_speechllm_xl.decoding.engine import run
from espnet_speechllm_xl.decoding.joint_ctc import SpelledOutputs, _Row, joint_decoder
from espnet_speechllm_xl.decoding.searches import make_search
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.model.ctc_spelling import Spelled, Written
from espnet_speechllm_xl.model.decoder_steps import Request, make_results
from espnet_speechllm_xl.systems.ctc import collapse


def random_log_probs(frames, classes, seed, sharpness=2.0):
    noise = torch.randn(frames, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * noise).log_softmax(-1)


def begun(log_probs, text, margin=None):
    """log of the probability of all paths whose text begins with ``text``; ``margin``: and ends with it until then."""
    frames, classes = log_probs.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=frames):
        early = () if margin is None else collapse(list(path[: max(0, frames - margin)]), classes - 1)
        if tuple(collapse(list(path), classes - 1)[: len(text)]) == text and len(early) <= len(text):
            total += math.exp(sum(log_probs[t, symbol].item() for t, symbol in enumerate(path)))
    return math.log(total) if total else -math.inf


# Prefixes


@pytest.mark.parametrize("pieces", [(6,), (3, 3), (1, 4, 1), (2, 2, 2)])
def test_prefixes_are_those_of_all_paths(pieces):
    """Tokens are written between the pieces of audio; every value is of the audio so far."""
    log_probs, rng = random_log_probs(sum(pieces), 3, seed=len(pieces)), random.Random(3)
    for _ in range(4):
        prefix, text, heard = None, (), 0
        for piece in pieces:
            new, heard = log_probs[heard : heard + piece], heard + piece
            prefix = Prefix.empty(new) if prefix is None else prefix.grow(new, 99)
            for written in range(3):
                assert prefix.value.item() == pytest.approx(begun(log_probs[:heard], text), abs=1e-9)
                following = [begun(log_probs[:heard], (*text, token)) for token in range(2)]
                assert prefix.next().tolist() == pytest.approx(following, abs=1e-9)
                for margin in (0, 2, 9):
                    expected = begun(log_probs[:heard], text, margin)
                    assert prefix.waiting(margin).item() == pytest.approx(expected, abs=1e-9)
                if written < 2 and rng.random() < 0.7:
                    token = rng.choice([v for v in range(2) if math.isfinite(following[v])] or [0])
                    if not math.isfinite(following[token]):
                        break
                    prefix, text = prefix.extend(token), (*text, token)


def test_old_audio_and_tokens_are_forgotten():
    """Clear tokens every 10 frames: what happened two pieces ago changes nothing, and the window stays small."""
    log_probs = torch.full((200, 5), -9.0, dtype=torch.float64)
    log_probs[:, 4] = 0.0
    log_probs[5::10, 4] = -9.0
    for spoken in range(20):
        log_probs[5 + 10 * spoken, spoken % 4] = 0.0
    log_probs = log_probs.log_softmax(-1)
    exact = short = None
    for begin in range(0, 200, 20):
        new = log_probs[begin : begin + 20]
        exact = Prefix.empty(new) if exact is None else exact.grow(new, 999)
        short = Prefix.empty(new) if short is None else short.grow(new, 20)
        for spoken in range(begin // 10, begin // 10 + 2):
            assert short.next()[spoken % 4].item() == pytest.approx(exact.next()[spoken % 4].item(), abs=1e-3)
            exact, short = exact.extend(spoken % 4), short.extend(spoken % 4)
        assert short.value.item() == pytest.approx(exact.value.item(), abs=1e-3)
        assert len(short.log_probs) <= 40 and len(short.tokens) <= 5
    assert len(exact.log_probs) == 200 and len(exact.tokens) == 21


@pytest.mark.parametrize("begun_with", [(), (0,), (1, 0)])
def test_values_of_texts_are_those_of_their_tokens_one_by_one(begun_with):
    prefix = Prefix.empty(random_log_probs(7, 4, seed=5)).grow(random_log_probs(5, 4, seed=6), 4)
    for token in begun_with:
        prefix = prefix.extend(token)
    texts = [(), (0,), (1,), (0, 0), (0, 1, 2), (0, 1), (2, 2, 2, 2), (0, 1, 2), (1, 1)]
    expected = []
    for text in texts:
        longer = prefix
        for token in text:
            longer = longer.extend(token)
        expected.append(longer.value.item())
    assert prefix.values(texts).tolist() == pytest.approx(expected, abs=1e-12)
    assert prefix.values([]).tolist() == []
    least = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -1e9, -math.inf, -6.0, -2.0], dtype=torch.float64)
    bounded = prefix.values(texts, least).tolist()
    for value, bound, limit in zip(expected, bounded, least.tolist(), strict=True):
        assert bound == pytest.approx(value, abs=1e-12) if value >= limit else value <= bound + 1e-12


@pytest.mark.parametrize("text", [(), (1,), (0, 0, 1)])
def test_a_harmless_token_may_have_begun(text):
    """Against all paths: before the last frames they spell the text, no more than it, or it and the harmless 0."""
    log_probs = random_log_probs(6, 3, seed=9)
    prefix = Prefix.empty(log_probs)
    for token in text:
        prefix = prefix.extend(token)
    for margin in (0, 1, 3, 9):
        total = 0.0
        for path in itertools.product(range(3), repeat=6):
            whole, early = (tuple(collapse(list(part), 2)) for part in (path, path[: max(0, 6 - margin)]))
            if whole[: len(text)] == text and (len(early) <= len(text) or early == (*text, 0)):
                total += math.exp(sum(log_probs[t, symbol].item() for t, symbol in enumerate(path)))
        expected = math.log(total) if total else -math.inf
        assert prefix.waiting(margin, harmless=0).item() == pytest.approx(expected, abs=1e-9)


# Searches


class Heard(torch.nn.Module):
    """A toy model: frames are their own CTC log-probabilities, the decoder is a toy of test_search.py."""

    def __init__(self, toy, delay=0, spelling=None):
        super().__init__()
        self.acoustic, self.projection = torch.nn.Identity(), torch.nn.Identity()
        self.chunking = ChunkingConfig(delay=delay)
        self.ctc = torch.nn.Identity()
        self.ctc.spelling = spelling
        self.decoder = toy
        toy.eoc, toy.initial_past = toy.vocabulary, lambda context: ()


class Texts:
    """A spelling: the tokens of CTC that each token of the decoder stands for."""

    def __init__(self, texts, space=None, refused=()):
        self.texts, self.space, self.refused = texts, space, list(refused)

    def advance(self, written, token):
        return written, Spelled(self.texts[token], False, False)

    def spell(self, tokens):
        return tuple(label for token in tokens for label in self.texts[token])


def decode(toy, log_probs, sizes, weight, settings, spelling=None):
    decoder = joint_decoder(Heard(toy, spelling=spelling), weight)
    search = make_search(settings, decoder.initial_past(None), toy.vocabulary)
    chunks = log_probs.split(sizes)
    for number, frames in enumerate(chunks, 1):
        run([search.advance(frames, last=number == len(chunks))], decoder.extend)
    return run([search.finish()], decoder.extend)[0]


def text_probabilities(log_probs):
    """Return the probability of every text that paths through (T, C + 1) spell."""
    found = {}
    frames, classes = log_probs.shape
    for path in itertools.product(range(classes), repeat=frames):
        text = tuple(collapse(list(path), classes - 1))
        chance = math.exp(sum(log_probs[t, symbol].item() for t, symbol in enumerate(path)))
        found[text] = found.get(text, 0.0) + chance
    return found


@pytest.mark.parametrize("method", ["alsd", "chunk_sync"])
@pytest.mark.parametrize("weight", [0.3, 0.8])
@pytest.mark.parametrize("texts, refused", [(None, []), ([(0,), (1, 0), ()], []), ([(0,), (1, 0), ()], [2])])
def test_beam_as_large_as_the_space_is_exhaustive(method, weight, texts, refused):
    """CTC has the decoder's tokens, or characters: then tokens have one, two or none, and some are refused."""
    spelling = None if texts is None else Texts(texts, refused=refused)
    for seed in range(4 if texts is None else 2):
        toy, sizes = Toy(seed, len(texts or "ab")), [2, 3, 1]
        log_probs = random_log_probs(sum(sizes), 3, seed)
        heard = [text_probabilities(log_probs[: sum(sizes[: k + 1])]) for k in range(3)]
        paths, joint = all_paths(toy, sizes, cap=2), {}
        for segments, (score, _) in paths.items():
            written = [text_of(segments[: k + 1]) for k in range(3)]
            if spelling is not None:
                written = list(map(spelling.spell, written))
            # A text that CTC cannot hear in time is never written.
            in_time = all(any(text[: len(part)] == part for text in heard[k]) for k, part in enumerate(written))
            allowed = not set(text_of(segments)) & set(refused)
            if allowed and in_time and written[-1] in heard[-1]:  # in the end no more than this text is heard
                joint[(segments,)] = (1 - weight) * score + weight * math.log(heard[-1][written[-1]])
        best = sorted(joint.items(), key=rank)
        found_texts = dict.fromkeys(text_of(segments) for (segments, *_), _ in best)
        found = decode(toy, log_probs, sizes, weight, config(method, beam=9999, cap=2), spelling)
        if method == "alsd":  # which may stop early: what it gives is right, the best first as a rule
            found, found_texts = found[:1], dict.fromkeys(list(found_texts)[:1])
        assert [h.tokens for h in found] == list(found_texts)
        assert found[0].score == pytest.approx(best[0][1], abs=1e-9)
        expected = paths[best[0][0][0]][1]
        assert found[0].token_scores == pytest.approx(expected, abs=1e-12)  # the decoder's alone


@pytest.mark.parametrize("method", ["alsd", "chunk_sync", "greedy"])
@pytest.mark.parametrize("recombine", [False, True])
@pytest.mark.parametrize("margin", [math.inf, 2.0])
def test_tokens_of_ones_own_that_are_the_decoders_change_nothing(method, recombine, margin):
    for seed in range(4):
        log_probs = random_log_probs(9, 6, seed)
        settings = config(method, beam=3, cap=3, recombine=recombine, margin=margin)
        same = Texts([(token,) for token in range(5)])
        one, other = (decode(Toy(seed, 5), log_probs, [3, 4, 2], 0.4, settings, spelling) for spelling in (None, same))
        assert [h.tokens for h in one] == [h.tokens for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-9)


@pytest.mark.parametrize("count, margin", [(1, math.inf), (4, math.inf), (4, 1.5), (30, 4.0), (400, math.inf)])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
@pytest.mark.parametrize("phrases", [False, True])
def test_the_best_of_many_tokens_are_found_without_scoring_all(count, margin, closed, sharpness, phrases):
    rng, size = random.Random(count), 300
    texts = [tuple(rng.randrange(4) for _ in range(rng.randrange(4))) for _ in range(size)]
    prefix = Prefix.empty(random_log_probs(9, 5, seed=1)).extend(2)
    counted, ending = prefix.value - 0.3, prefix.waiting(2)
    for seed in range(3):
        log_probs = random_log_probs(1, size + 1, seed, sharpness)
        barred, refused = torch.zeros(size + 1), torch.zeros(size + 1)
        barred[:size:3] = refused[:size:7] = -math.inf
        added = torch.zeros(1, size + 1, dtype=torch.float64)
        if phrases:  # a few tokens go on with one, most others break one off
            added[:, :size] = -1.5
            added[:, rng.sample(range(size), 20)] = torch.linspace(-1.0, 9.0, 20, dtype=torch.float64)
        outputs = SpelledOutputs(log_probs, 0.3, Texts(texts), [_Row(prefix, Written(), counted, ending)], refused)
        able = [t for t in range(size + 1) if refused[t] == 0 and (not closed or barred[t] == 0)]
        every = [outputs.one(0, token) for token in able]
        every = [one._replace(score=one.score + added[0, one.token].item()) for one in every]
        every = sorted((one for one in every if one.score > -math.inf), key=lambda one: (-one.score, one.token))
        within = [one for one in every[:count] if one.score >= every[0].score - margin]
        scored, whole = [], outputs._scored

        def counted_scored(row, tokens, *others, scored=scored, whole=whole):
            scored.extend(tokens)
            return whole(row, tokens, *others)

        outputs._scored = counted_scored
        if phrases:
            (found,) = outputs.best_with([0], added + barred if closed else added, count, margin)
        else:
            found = outputs.best(0, count, barred if closed else None, margin)
        possible = [one for one in found if one.score > -math.inf and one.score >= every[0].score - margin]
        assert {one.token for one in within} <= {one.token for one in possible}
        assert len(possible) == len(within) or possible[len(within)].score == within[-1].score
        assert [one.score for one in possible] == sorted([one.score for one in possible], reverse=True)
        if sharpness == 3.0 and count == 1:
            assert len(scored) < 100


def test_a_space_that_was_heard_is_no_word():
    """CTC hears the word 1 and, long before the border, the space 0 behind it: to end the chunk costs nothing."""
    log_probs = torch.full((40, 4), 0.001)
    log_probs[:, 3] = 0.997
    for frame, label in ((5, 1), (9, 0), (38, 2)):
        log_probs[frame] = 0.001
        log_probs[frame, label] = 0.997
    scores = {}
    for space in (None, 0):
        decoder = joint_decoder(Heard(Toy(0, 2), spelling=Texts([(1,), (0, 2)], space)), 0.3)
        first = decoder.extend([Request(decoder.initial_past(None), 0, frames=log_probs.log())])[0]
        second = decoder.extend([Request(first.past, 0, token=0)])[0]
        end = second.outputs.end(second.row)
        scores[space] = (end.score - 0.7 * end.log_prob) / 0.3
    assert scores[0] > -0.2 and scores[None] < -3


class Shy:
    """Leaves the token 0, said across a border, to the other chunk, both times; then writes 1."""

    vocabulary, eoc = 2, 2

    def extend(self, requests):
        results = []
        for request in requests:
            row = (*request.past, request.token if request.frames is None else "frames")
            told = row.count(0)
            if row.count("frames") == 1:
                chances = [0.05, 0.05, 0.9] if told else [0.3, 0.05, 0.65]
            else:
                chances = [0.01, 0.01, 0.98] if 1 in row else [0.01 if told else 0.35, 0.6, 0.05]
            results.append((row, torch.tensor(chances, dtype=torch.float64).log()))
        return stacked(results)


@pytest.mark.parametrize("method", ["alsd", "chunk_sync"])
def test_a_word_that_both_chunks_leave_out_is_found(method):
    log_probs = torch.full((8, 3), 0.01)
    log_probs[:, 2] = 0.98
    log_probs[3] = torch.tensor([0.98, 0.01, 0.01])  # 0 at the end of the first chunk
    log_probs[6] = torch.tensor([0.01, 0.98, 0.01])
    settings = SearchConfig(method, beam_size=8)
    texts = {weight: decode(Shy(), log_probs.log(), [4, 4], weight, settings)[0].tokens for weight in (1e-9, 0.3)}
    assert texts == {1e-9: (1,), 0.3: (0, 1)}


class Due:
    """Writes 0 in one chunk, with probability 0.9, and nothing in the others."""

    vocabulary, eoc = 2, 2

    def __init__(self, chunk):
        self.chunk = chunk

    def extend(self, requests):
        due = [request.frames is not None and request.chunk_id == self.chunk for request in requests]
        chances = [[0.9, 0.01, 0.09] if now else [0.01, 0.01, 0.98] for now in due]
        return make_results([()] * len(chances), torch.tensor(chances, dtype=torch.float64).log())


@pytest.mark.parametrize("chunk, delay", [(6, 12), (6, 30), (16, 40)])
def test_what_was_heard_is_known_until_its_delay_is_over(chunk, delay):
    count, said = 6 * max(chunk, delay) // chunk, 2 * chunk
    log_probs = torch.full((count * chunk, 3), 0.005)
    log_probs[:, 2] = 0.99
    log_probs[said] = torch.tensor([0.99, 0.005, 0.005])
    decoder = joint_decoder(Heard(Due((said + delay) // chunk), delay), 0.3)
    search = make_search(SearchConfig("chunk_sync", beam_size=8), decoder.initial_past(None), 2)
    for index, frames in enumerate(log_probs.log().split(chunk), 1):
        run([search.advance(frames, last=index == count)], decoder.extend)
    (found, *_), *_ = run([search.finish()], decoder.extend)
    assert found.tokens == (0,) and found.score > -1.2  # about -3 where CTC has forgotten it


@pytest.mark.parametrize("tail", [2, 16])
def test_a_short_last_chunk_knows_what_was_heard_in_the_one_before(tail):
    chunk, said = 64, 20  # 44 frames before the last chunk, which writes it
    log_probs = torch.full((chunk + tail, 3), 0.005)
    log_probs[:, 2] = 0.99
    log_probs[said] = torch.tensor([0.99, 0.005, 0.005])
    found = decode(Due(1), log_probs.log(), [chunk, tail], 0.5, SearchConfig("chunk_sync", beam_size=16))[0]
    assert found.tokens == (0,) and found.score > -1


class Brief:
    """Says 0 less readily than nothing, and no more than once."""

    vocabulary, eoc = 2, 2

    def extend(self, requests):
        chances = [[0.3, 0.05, 0.65] if request.token is None else [0.01, 0.01, 0.98] for request in requests]
        return make_results([()] * len(chances), torch.tensor(chances, dtype=torch.float64).log())


@pytest.mark.parametrize("method", ["alsd", "chunk_sync", "greedy"])
@pytest.mark.parametrize(
    ("behind", "delay", "last", "text"),
    [(3, 0, False, ()), (3, 0, True, (0,)), (14, 0, False, (0,)), (14, 4, False, ()), (14, 4, True, (0,))],
)
def test_a_word_near_the_end_is_left_to_the_next_chunk_unless_there_is_none(method, behind, delay, last, text):
    """CTC hears 0 ``behind`` frames before the end of the chunk."""
    log_probs = torch.full((30, 3), 0.01)
    log_probs[:, 2] = 0.98
    log_probs[-behind] = torch.tensor([0.98, 0.01, 0.01])
    decoder = joint_decoder(Heard(Brief(), delay), 0.3)
    search = make_search(SearchConfig(method, beam_size=4), decoder.initial_past(None), 2)
    run([search.advance(log_probs.log(), last)], decoder.extend)
    assert run([search.finish()], decoder.extend)[0][0].tokens == text
