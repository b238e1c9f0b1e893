"""Searches against exhaustive search and against slow references, on toy decoders that depend on all of the past.

A toy decoder's row is its history, a tuple of ('f', chunk, frames) and tokens; nothing is shared with searches.py.
"""

import itertools
import math
import random

import pytest
import torch
from slow import stacked

from espnet_speechllm_xl.config import SearchConfig
from espnet_speechllm_xl.decoding.engine import run
from espnet_speechllm_xl.decoding.searches import AlignmentSync, ChunkSync, make_search


class Toy:
    """Next-output log-probabilities as a seeded random function of the history."""

    def __init__(self, seed, vocabulary, end_bias=0.0):
        self.seed, self.vocabulary, self.end_bias = seed, vocabulary, end_bias
        self.known, self.calls = {}, []

    def log_probs(self, history):
        if history not in self.known:
            rng = random.Random(f"{self.seed} {history}")
            logits = [rng.gauss(0, 1.5) for _ in range(self.vocabulary)] + [rng.gauss(self.end_bias, 1.5)]
            norm = math.log(sum(math.exp(x) for x in logits))
            self.known[history] = [x - norm for x in logits]
        return self.known[history]

    def extend(self, requests):
        self.calls.append(requests)
        results = []
        for r in requests:
            assert (r.frames is None) != (r.token is None)
            row = r.past + ((("f", r.chunk_id, len(r.frames)),) if r.token is None else (r.token,))
            results.append((row, torch.tensor(self.log_probs(row), dtype=torch.float64)))
        return stacked(results)


class TieToy(Toy):
    """Small integers instead of log-probabilities: sums are exact and full of ties."""

    def log_probs(self, history):
        rng = random.Random(f"{self.seed} {history}")
        return [-float(rng.randint(1, 2)) for _ in range(self.vocabulary + 1)]


class RunOn(AlignmentSync):
    """Alignment-synchronous search that never stops early."""

    def _done(self, complete, active):
        return False


def config(method="alsd", beam=4, cap=3, nbest=1000, recombine=False, margin=math.inf):
    sizes = {"beam_size": beam, "nbest": nbest, "max_tokens_per_chunk": cap}
    return SearchConfig(method, **sizes, recombine=recombine, margin=margin)


def decode(search, toy, sizes):
    for size in sizes:
        assert run([search.advance(torch.zeros(size, 2))], toy.extend) == [None]
    return run([search.finish()], toy.extend)[0]


def history_of(segments, sizes):
    """The decoder's inputs so far when ``segments`` are the tokens of the chunks begun."""
    return tuple(x for k, words in enumerate(segments) for x in (("f", k, sizes[k]), *words))


def text_of(segments):
    return tuple(itertools.chain(*segments))


def chunks_of(segments):
    return tuple(k for k, words in enumerate(segments) for _ in words)


def rank(item):
    (segments, *_), score = item
    return -score, text_of(segments), chunks_of(segments)


def all_paths(toy, sizes, cap):
    """Score of every segmentation of every text: {segments: (score, token scores)}."""
    one_chunk = [w for n in range(cap + 1) for w in itertools.product(range(toy.vocabulary), repeat=n)]
    paths = {}
    for segments in itertools.product(one_chunk, repeat=len(sizes)):
        score, tokens = 0.0, []
        for k, words in enumerate(segments):
            for n in range(len(words) + 1):
                log_probs = toy.log_probs(history_of(segments[:k] + (words[:n],), sizes))
                score += log_probs[words[n] if n < len(words) else toy.vocabulary]
                tokens += [log_probs[words[n]]] if n < len(words) else []
        paths[segments] = (score, tuple(tokens))
    return paths


def best_per_text(scored):
    """[(text, chunks, score)] of {(segments, ...): score}: the best path of each text, best first."""
    texts = {}
    for (segments, *_), score in sorted(scored.items(), key=rank):
        texts.setdefault(text_of(segments), (chunks_of(segments), score))
    return [(text, *rest) for text, rest in texts.items()]


def within(candidates, beam, margin):
    """The best of {state: score}, none further from the first than ``margin``."""
    kept = sorted(candidates.items(), key=rank)[:beam]
    return {state: score for state, score in kept if score >= kept[0][1] - margin}


def slow_chunk_sync(toy, sizes, beam, cap, merge=False, margin=math.inf):
    """{(segments, True): score}: dicts of (segments, ended) instead of hypotheses."""
    states = {((), True): 0.0}
    for _ in sizes:
        states = {(segments + ((),), False): score for (segments, _), score in states.items()}
        while not all(ended for _, ended in states):
            candidates = {}
            for (segments, ended), score in states.items():
                if ended:
                    candidates[segments, True] = score
                    continue
                log_probs = toy.log_probs(history_of(segments, sizes))
                candidates[segments, True] = score + log_probs[-1]
                for w in range(toy.vocabulary if len(segments[-1]) < cap else 0):
                    candidates[segments[:-1] + (segments[-1] + (w,),), False] = score + log_probs[w]
            if merge:
                candidates = slow_merge(candidates, lambda s: (text_of(s[0]), s[1]))
            states = within(candidates, beam, margin)
    return states


def slow_alignment_sync(toy, sizes, beam, cap, merge=False, margin=math.inf):
    """{(segments,): score} of the complete ones; a state is the tokens of the chunks begun."""
    active, pool = {(((),),): 0.0}, {}
    while active and (not pool or max(pool.values()) < max(active.values())):
        candidates = {}
        for (segments,), score in active.items():
            log_probs = toy.log_probs(history_of(segments, sizes))
            candidates[(segments + ((),),)] = score + log_probs[-1]
            for w in range(toy.vocabulary if len(segments[-1]) < cap else 0):
                candidates[(segments[:-1] + (segments[-1] + (w,),),)] = score + log_probs[w]
        if merge:
            candidates = slow_merge(candidates, lambda s: (text_of(s[0]), len(s[0])))
        best = within(candidates, beam, margin)
        pool.update({(s[:-1],): score for (s,), score in best.items() if len(s) > len(sizes)})
        active = {state: score for state, score in best.items() if len(state[0]) <= len(sizes)}
    return pool


def slow_merge(candidates, key):
    groups = {}
    for state, score in sorted(candidates.items(), key=rank):
        groups.setdefault(key(state), []).append((state, score))
    return {group[0][0]: math.log(sum(math.exp(score) for _, score in group)) for group in groups.values()}


SLOW = {"chunk_sync": slow_chunk_sync, "alsd": slow_alignment_sync}


def assert_nbest(found, expected, tolerance=1e-9):
    """``expected``: [(text, chunks, score)]."""
    assert [(h.tokens, h.chunk_ids) for h in found] == [(text, chunks) for text, chunks, _ in expected]
    assert [h.score for h in found] == pytest.approx([score for *_, score in expected], abs=tolerance, rel=0)


@pytest.mark.parametrize("vocabulary, sizes, cap", [(2, (4, 4, 1), 2), (3, (4, 4, 3), 1), (3, (4, 2), 2), (2, (3,), 3)])
@pytest.mark.parametrize("seed", range(4))
def test_beam_as_large_as_the_space_is_exhaustive(vocabulary, sizes, cap, seed):
    toy = Toy(seed, vocabulary)
    paths = all_paths(toy, sizes, cap)
    expected = best_per_text({(segments,): score for segments, (score, _) in paths.items()})
    conf = config(beam=10 * len(paths), cap=cap, nbest=10**6)
    exact = decode(ChunkSync(conf, (), vocabulary), toy, sizes)
    assert_nbest(exact, expected)
    assert_nbest(decode(RunOn(conf, (), vocabulary), toy, sizes), expected)
    early = decode(AlignmentSync(conf, (), vocabulary), toy, sizes)
    assert_nbest(early[:1], expected[:1])
    assert len({h.tokens for h in early}) == len(early)
    for h in exact + early:
        outputs = list(zip(h.tokens, h.chunk_ids, strict=True))
        segments = tuple(tuple(w for w, c in outputs if c == k) for k in range(len(sizes)))
        score, tokens = paths[segments]
        assert h.score == pytest.approx(score, abs=1e-9)
        assert h.token_scores == pytest.approx(tokens, abs=1e-12)
        assert h.capped == sum(len(words) == cap for words in segments)


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
@pytest.mark.parametrize("beam", [1, 2, 3, 7])
@pytest.mark.parametrize("margin", [math.inf, 2.0])
@pytest.mark.parametrize("toy_class", [Toy, TieToy])
def test_small_beam_equals_the_slow_reference(method, beam, margin, toy_class):
    for seed in range(25):
        vocabulary, sizes, cap = 2 + seed % 3, (4, 4, 4, 4, 3)[seed % 4 :], 1 + seed % 4
        toy = toy_class(seed, vocabulary)
        found = decode(make_search(config(method, beam, cap, margin=margin), (), vocabulary), toy, sizes)
        assert_nbest(found, best_per_text(SLOW[method](toy, sizes, beam, cap, margin=margin)))


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
def test_a_margin_asks_for_fewer_decoder_steps(method):
    steps = []
    for margin in (math.inf, 1.0):
        toy = Toy(1, 4)
        decode(make_search(config(method, 7, margin=margin), (), 4), toy, (4, 4, 4))
        steps.append(sum(map(len, toy.calls)))
    assert steps[1] < 0.8 * steps[0]


@pytest.mark.parametrize("search_class", [ChunkSync, RunOn])
@pytest.mark.parametrize("seed", range(4))
def test_only_openers_begin_a_chunk_and_any_token_the_text(search_class, seed):
    toy, sizes, cap, openers = Toy(seed, 3), (4, 4, 3), 1, (True, False, True)
    paths = all_paths(toy, sizes, cap)
    allowed = {
        (segments,): score
        for segments, (score, _) in paths.items()
        if all(openers[words[0]] for words in [words for words in segments if words][1:])
    }
    assert 0 < len(allowed) < len(paths) and ((1,), (0,), ()) in [segments for (segments,) in allowed]
    conf = config(beam=10 * len(paths), cap=cap, nbest=10**6)
    found = decode(search_class(conf, (), 3, torch.tensor(openers)), toy, sizes)
    assert_nbest(found, best_per_text(allowed))


def test_what_was_forgotten_keeps_the_next_chunks_first_token_an_opener():
    class Word(Toy):
        """Token 1, which continues a word, then the end of the chunk."""

        def log_probs(self, history):
            return [-3.0, -0.1, -5.0] if isinstance(history[-1], tuple) else [-9.0, -9.0, -0.1]

    search = ChunkSync(config(beam=1), (), 2, torch.tensor([True, False]))
    for _ in range(3):
        run([search.advance(torch.zeros(4, 2))], Word(0, 2).extend)
        search.forget(len(search.best().tokens) - 1)
    search.forget(1)
    run([search.advance(torch.zeros(4, 2))], Word(0, 2).extend)
    assert search.best().tokens == (0,)


def test_beams_of_the_two_methods_differ_somewhere():
    def best(method, seed):
        return decode(make_search(config(method, 2, 4), (), 3), Toy(seed, 3, -1.0), (4, 4, 4))[0].tokens

    assert any(best("chunk_sync", seed) != best("alsd", seed) for seed in range(30))


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
@pytest.mark.parametrize("beam", [2, 5, 500])
def test_recombination_equals_the_slow_reference(method, beam):
    merged = 0
    for seed in range(20):
        vocabulary, sizes, cap = 2 + seed % 2, (4, 4, 4, 1)[seed % 3 :], 1 + seed % 3
        toy = Toy(seed, vocabulary)
        found = decode(make_search(config(method, beam, cap, recombine=True), (), vocabulary), toy, sizes)
        assert_nbest(found, best_per_text(SLOW[method](toy, sizes, beam, cap, merge=True)))
        plain = decode(make_search(config(method, beam, cap), (), vocabulary), toy, sizes)
        merged += found[0].score > plain[0].score + 1e-6
    assert merged > 0


@pytest.mark.parametrize("search_class", [ChunkSync, RunOn])
def test_recombination_adds_up_all_segmentations_where_history_does_not_matter(search_class):
    """One token, one distribution: a text of n tokens over K chunks sums over its segmentations."""

    class Constant(Toy):
        def log_probs(self, history):
            return [math.log(0.4), math.log(0.6)]

    found = decode(search_class(config(beam=100, cap=2, recombine=True), (), 1), Constant(0, 1), (4, 4))
    ways = {0: 1, 1: 2, 2: 3, 3: 2, 4: 1}
    if search_class is RunOn:  # past the cap, it counts the tokens of the segmentation kept
        ways, found = {n: ways[n] for n in range(3)}, [h for h in found if len(h.tokens) < 3]
    expected = {(0,) * n: math.log(ways[n] * 0.4**n * 0.36) for n in ways}
    assert {h.tokens: h.score for h in found} == pytest.approx(expected)


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
def test_greedy_is_the_argmax_loop(method):
    for seed in range(20):
        toy, sizes, cap = Toy(seed, 4), (4, 4, 4, 2), 3
        segments, score, capped = (), 0.0, 0
        for _ in sizes:
            segments += ((),)
            while True:
                log_probs = toy.log_probs(history_of(segments, sizes))
                token = 4 if len(segments[-1]) == cap else max(range(5), key=log_probs.__getitem__)
                score += log_probs[token]
                if token == 4:
                    break
                segments = segments[:-1] + (segments[-1] + (token,),)
            capped += len(segments[-1]) == cap
        beam = 8 if method == "greedy" else 1
        (found,) = decode(make_search(config(method, beam, cap), (), 4), toy, sizes)
        assert (found.tokens, found.chunk_ids, found.capped) == (text_of(segments), chunks_of(segments), capped)
        assert found.score == pytest.approx(score, abs=1e-12)
        requests = [r for call in toy.calls for r in call]
        assert len(requests) == len(sizes) + len(found.tokens)  # `$` is never fed


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
def test_cap_allows_only_eoc_at_its_own_log_probability(method):
    class Talkative(Toy):
        def log_probs(self, history):
            return [-0.1, -5.0, -9.0]

    (found,) = decode(make_search(config(method, 2, 3, nbest=1), (), 2), Talkative(0, 2), (4, 4, 2))
    # an empty text would score -27.0, but a beam of 2 has lost it by the second step
    assert (found.tokens, found.chunk_ids) == ((0,) * 9, (0, 0, 0, 1, 1, 1, 2, 2, 2))
    assert found.score == pytest.approx(3 * (3 * -0.1 - 9.0))
    assert found.token_scores == (-0.1,) * 9
    assert found.capped == 3


@pytest.mark.parametrize("recombine", [False, True])
def test_generators_driven_together_equal_each_alone(recombine):
    toy, vocabulary = Toy(5, 3), 3
    cases = [("chunk_sync", 3, (4, 4, 1)), ("alsd", 4, (4, 4, 4, 2)), ("greedy", 1, (4,)), ("alsd", 2, ())]
    cases += [("chunk_sync", 6, (2, 4)), ("alsd", 5, (4, 3))]

    def make(case, number):
        return make_search(config(case[0], case[1], 3, recombine=recombine), (("utterance", number),), vocabulary)

    def whole(search, sizes):
        for size in sizes:
            yield from search.advance(torch.zeros(size, 2))
        return (yield from search.finish())

    alone = [decode(make(case, i), toy, case[2]) for i, case in enumerate(cases)]
    toy.calls.clear()
    together = run([whole(make(case, i), case[2]) for i, case in enumerate(cases)], toy.extend)
    assert together == alone
    assert [[h.score for h in nbest] for nbest in together] == [[h.score for h in nbest] for nbest in alone]
    for call in toy.calls:
        assert call and len({r.token is None for r in call}) == 1
    assert len({r.past[0] for r in toy.calls[0]}) == 5  # one call prefills all utterances that have audio


def test_run_needs_one_result_per_request_and_nothing_for_nothing():
    toy = Toy(0, 2)
    with pytest.raises(ValueError, match="the model gave 0 results for 1 requests"):
        run([ChunkSync(config(), (), 2).advance(torch.zeros(4, 2))], lambda requests: [])
    assert run([], toy.extend) == []
    assert toy.calls == []


@pytest.mark.parametrize("method", ["greedy", "chunk_sync", "alsd"])
def test_no_chunks_give_one_empty_hypothesis(method):
    toy = Toy(0, 2)
    search = make_search(config(method), (), 2)
    (found,) = decode(search, toy, ())
    assert (found.tokens, found.chunk_ids, found.token_scores, found.score, found.capped) == ((), (), (), 0.0, 0)
    assert (search.best(), search.settled(), toy.calls) == (found, 0, [])


@pytest.mark.parametrize("beam", [1, 2, 4, 8])
def test_early_stop_never_changes_the_best(beam):
    fewer = 0
    for seed in range(40):
        # `$` is likely, so that complete hypotheses overtake long ones early
        early, late = Toy(seed, 3, 1.0), Toy(seed, 3, 1.0)
        stopped = decode(AlignmentSync(config(beam=beam, cap=4), (), 3), early, (4, 4, 4))
        ran_on = decode(RunOn(config(beam=beam, cap=4), (), 3), late, (4, 4, 4))
        assert stopped[0] == ran_on[0]
        fewer += len(early.calls) < len(late.calls)
    assert fewer > 0 or beam == 1


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
def test_only_survivors_are_extended(method):
    toy, beam = Toy(3, 4), 3
    rows = []

    def extend(requests):
        results = toy.extend(requests)
        rows.extend(r.past for r in results)
        return results

    search = make_search(config(method, beam, 3), (), 4)
    for size in (4, 4, 2):
        run([search.advance(torch.zeros(size, 2))], extend)
    run([search.finish()], extend)
    assert max(len(call) for call in toy.calls) <= beam
    assert len(set(rows)) == len(rows)  # no state is computed twice


def test_stream_settles_only_what_stays():
    for seed in range(30):
        toy, search, seen = Toy(seed, 3, -0.5), ChunkSync(config("chunk_sync", 4, 3), (), 3), []
        assert (search.best().tokens, search.settled()) == ((), 0)
        for size in (4, 4, 4, 4, 2):
            run([search.advance(torch.zeros(size, 2))], toy.extend)
            count = search.settled()
            slow = 0
            while len({h.tokens[: slow + 1] for h in search.beam}) == 1 and slow < len(search.beam[0].tokens):
                slow += 1
            assert count == slow
            seen.append(search.best().tokens[:count])
        final = run([search.finish()], toy.extend)[0]
        assert final[0] == search.best()
        for earlier in seen:
            assert all(h.tokens[: len(earlier)] == earlier for h in final)
        assert [len(s) for s in seen] == sorted(len(s) for s in seen)


def test_dropped_generator_leaves_the_search_as_it_was():
    toy = Toy(1, 3)
    search, other = (ChunkSync(config("chunk_sync", 3, 3), (), 3) for _ in range(2))
    run([search.advance(torch.zeros(4, 2))], toy.extend)
    dropped = search.advance(torch.zeros(4, 2))
    requests = dropped.send(None)
    dropped.send(toy.extend(requests))
    dropped.close()
    assert decode(search, toy, (4, 2)) == decode(other, toy, (4, 4, 2))


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
def test_equal_scores_are_ordered_by_tokens(method):
    class Flat(Toy):
        def log_probs(self, history):
            return [-1.0] * (self.vocabulary + 1)

    # every output costs the same: fewer tokens win, then the smaller token sequence
    found = decode(make_search(config(method, 6, 2), (), 40), Flat(0, 40), (4, 4))
    assert [(h.tokens, h.score) for h in found][:1] == [((), -2.0)]
    toy = Flat(0, 40)
    assert_nbest(found, best_per_text(SLOW[method](toy, (4, 4), 6, 2)))


def test_results_hold_no_decoder_state():
    toy, search = Toy(0, 3), ChunkSync(config("chunk_sync", 4, 3), (), 3)
    found = decode(search, toy, (4, 4))
    assert all(h._past is None for h in [*found, search.best()])
    assert all(h._past is not None for h in search.beam)


def test_impossible_tokens_are_never_chosen():
    class Masked(Toy):
        def log_probs(self, history):
            return [-math.inf, *super().log_probs(history)[1:]]

    for method in ("chunk_sync", "alsd"):
        found = decode(make_search(config(method, 500, 2), (), 2), Masked(0, 2), (4, 2))
        assert all(0 not in h.tokens and math.isfinite(h.score) for h in found)
        assert found[0].tokens in {(1,) * n for n in range(5)}


@pytest.mark.parametrize("method", ["chunk_sync", "alsd"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_unusable_log_probabilities_are_an_error(method, value):
    class Broken(Toy):
        def log_probs(self, history):
            return [value] * 3 if len(history) > 1 else [-2.0, -1.0, -3.0]

    with pytest.raises(ValueError, match="no usable log-probabilities in chunk 0"):
        decode(make_search(config(method, 1, 2), (), 2), Broken(0, 2), (4, 2))


def test_wrong_shapes_are_errors():
    toy = Toy(0, 2)
    with pytest.raises(ValueError, match="3 log-probabilities for 5 tokens"):
        decode(ChunkSync(config(), (), 5), toy, (4,))
    for method in ("greedy", "alsd"):
        with pytest.raises(ValueError, match="1 frame at least"):
            decode(make_search(config(method), (), 2), toy, (4, 0))


def test_single_precision_log_probabilities_are_summed_in_double():
    class Single(Toy):
        def extend(self, requests):
            return stacked([(r.past, r.log_probs.float()) for r in super().extend(requests)])

    toy = Single(7, 3)
    for method in ("chunk_sync", "alsd"):
        (found, *_) = decode(make_search(config(method, 5, 3), (), 3), toy, (4, 4, 2))
        total, history = 0.0, ()
        for k, size in enumerate((4, 4, 2)):
            history += (("f", k, size),)
            for w in [w for w, c in zip(found.tokens, found.chunk_ids, strict=True) if c == k]:
                total += torch.tensor(toy.log_probs(history)[w]).float().item()
                history += (w,)
            total += torch.tensor(toy.log_probs(history)[3]).float().item()
        assert found.score == total
