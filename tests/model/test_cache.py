"""Slots: who writes in place, who is copied, what is free again, and rows of all kinds in one call."""

import copy
import gc
import threading

import pytest
import torch
from test_llm import ROUND_OFF, full_forward, make_decoder

from espnet_speechllm_xl.model.cache import FEWEST, NARROWEST
from espnet_speechllm_xl.model.decoder_steps import Request


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return make_decoder()


def frames(count):
    return torch.randn(count, 16, dtype=torch.float64)


def extend(decoder, *steps):
    """Pasts after steps (past, chunk, frames or token)."""
    requests = [
        Request(past, chunk, token=new) if isinstance(new, int) else Request(past, chunk, frames=new)
        for past, chunk, new in steps
    ]
    return [result.past for result in decoder.extend(requests)]


def places(pasts):
    return [(past.slot.store.width, past.slot.index) for past in pasts]


def slots_in_use(decoder):
    return sum(
        len(store.chunk_id) - len(store._free) - len(store._returned) for store in decoder._pool._stores.values()
    )


def test_one_child_is_written_in_place_and_others_are_copied(decoder):
    (parent,) = extend(decoder, (decoder.initial_past(1), 0, frames(5)))
    held = parent.entries.clone()
    children = extend(decoder, *[(parent, 0, token) for token in (1, 2, 3)])
    assert sorted(place == places([parent])[0] for place in places(children)) == [False, False, True]
    assert len(set(places(children))) == 3
    assert torch.equal(parent.entries, held)
    for child in children:
        assert torch.equal(child.entries[:, :5], held)
    (late,) = extend(decoder, (parent, 0, 4))
    assert places([late])[0] not in places([parent, *children])


def test_greedy_search_keeps_its_slot_within_a_chunk_and_has_two_at_most(decoder):
    past = decoder.initial_past(1)
    for chunk in range(12):
        (past,) = extend(decoder, (past, chunk, frames(5)))
        place = places([past])
        for token in range(4):
            (past,) = extend(decoder, (past, chunk, token))
        assert places([past]) == place
    gc.collect()
    assert slots_in_use(decoder) == 1
    assert [len(store.chunk_id) for store in decoder._pool._stores.values()] == [FEWEST]


def test_slots_are_free_once_nothing_refers_to_them(decoder):
    pasts = extend(decoder, *[(decoder.initial_past(1), 0, frames(5))] * 9)
    assert slots_in_use(decoder) == 9
    kept, pasts = pasts[3], None
    gc.collect()
    assert slots_in_use(decoder) == 1
    (fork,) = extend(decoder, (kept, 0, 1))
    kept = fork = None  # noqa: F841
    gc.collect()
    assert slots_in_use(decoder) == 0
    extend(decoder, (decoder.initial_past(1), 0, frames(5)))
    assert all(len(store.chunk_id) <= FEWEST for store in decoder._pool._stores.values()), "memory is given back"


def test_a_past_outgrows_slot_after_slot(decoder):
    torch.manual_seed(1)
    past, inputs, widths = decoder.initial_past(None), [], []
    for chunk in range(12):
        inputs.append((chunk, frames(30)))
        result = decoder.extend([Request(past, chunk, frames=inputs[-1][1])])[0]
        past = result.past
        widths.append(past.slot.store.width)
        assert widths[-1] >= past.length == 30 * (chunk + 1)
    assert widths[0] == NARROWEST and widths == sorted(widths) and len(set(widths)) > 4
    assert max(width / length for width, length in zip(widths[3:], range(120, 361, 30), strict=True)) < 1.7
    assert (result.log_probs - full_forward(decoder, inputs, None)[-1]).abs().max() < ROUND_OFF


def test_rows_of_several_widths_and_far_apart_in_one_call(decoder):
    torch.manual_seed(2)
    histories = [[(0, frames(count))] for count in (3, 70, 5, 100, 4, 90, 6, 5, 4, 3, 7, 8)]
    pasts = extend(decoder, *[(decoder.initial_past(None), 0, history[0][1]) for history in histories])
    assert len({width for width, _ in places(pasts)}) > 1
    for rows in ([0, 11], [0, 2, 11], [1, 5, 10], [3, 0, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [2], [11, 0, 1]):
        results = decoder.extend([Request(pasts[row], 0, token=row % 5) for row in rows])
        for row, result in zip(rows, results, strict=True):
            histories[row].append((0, row % 5))
            pasts[row] = result.past
            wanted = full_forward(decoder, histories[row], None)[-1]
            assert (result.log_probs - wanted).abs().max() < ROUND_OFF


def test_a_failed_call_leaves_pasts_as_they_were(decoder):
    (past,) = extend(decoder, (decoder.initial_past(1), 0, frames(5)))
    held = past.entries.clone()
    with pytest.raises(RuntimeError):
        decoder.extend([Request(past, 1, frames=torch.randn(4, 17, dtype=torch.float64))])
    assert torch.equal(past.entries, held)
    new = frames(3)
    given = decoder.extend([Request(past, 1, frames=new)])[0]
    again = decoder.extend([Request(past, 1, frames=new)])[0]
    assert torch.equal(given.log_probs, again.log_probs)


def test_a_broken_stream_does_not_spread_to_later_ones(decoder):
    """NaN in a slot that another past takes over, where it is out of sight: 0 * NaN would be NaN."""
    broken = extend(decoder, (decoder.initial_past(None), 0, torch.full((40, 16), torch.nan, dtype=torch.float64)))
    place, broken = places(broken), None
    history = [[(0, frames(count))] for count in (3, 30)]
    results = decoder.extend([Request(decoder.initial_past(None), 0, frames=one[0][1]) for one in history])
    assert place[0] in places([result.past for result in results])
    for result, inputs in zip(results, history, strict=True):
        assert (result.log_probs - full_forward(decoder, inputs, None)[-1]).abs().max() < ROUND_OFF


def test_copies_of_a_decoder_have_a_cache_of_their_own(decoder):
    (past,) = extend(decoder, (decoder.initial_past(1), 0, frames(5)))
    other = copy.deepcopy(decoder)
    extend(other, (other.initial_past(1), 0, frames(5)))
    assert slots_in_use(other) == 0 and slots_in_use(decoder) == 1
    assert past.slot.store in decoder._pool._stores.values()


def test_another_type_begins_anew(decoder):
    extend(decoder, (decoder.initial_past(1), 0, frames(5)))
    decoder.float()
    (past,) = extend(decoder, (decoder.initial_past(1), 0, frames(5).float()))
    assert past.entries.dtype == torch.float32


def test_threads_share_a_decoder(decoder):
    """Each gets what it gets alone, whoever extends at the same time."""
    torch.manual_seed(3)
    inputs = [[frames(6) for _ in range(8)] for _ in range(4)]

    def play(pieces):
        past, scores = decoder.initial_past(1), []
        for chunk, piece in enumerate(pieces):
            for new in ({"frames": piece}, {"token": chunk}, {"token": 1}):
                (result,) = decoder.extend([Request(past, chunk, **new)])
                past = result.past
                scores.append(result.log_probs)
        return torch.stack(scores)

    alone = [play(pieces) for pieces in inputs]
    together = [None] * len(inputs)

    def worker(index):
        together[index] = play(inputs[index])

    threads = [threading.Thread(target=worker, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert (one - other).abs().max() < ROUND_OFF
