"""Floors against bytes and operations that were counted by hand; the machine of planted times."""

import pytest

from espnet_speechllm_xl.benchmarks.floors import DecoderShape, Machine, least, step_floor
from espnet_speechllm_xl.benchmarks.rounds import Figure

# A layer: 4 products of 4 x 4 and 3 of 4 x 6 are 64 + 72 weights; the output layer 10 x 4.
SHAPE = DecoderShape(dim=4, layers=2, heads=2, ffn_dim=6, outputs=10)
MACHINE = Machine(bandwidth=1000.0, rate=100.0)


def test_weights_keys_and_values_are_counted():
    assert SHAPE.layer_weights == 272 and SHAPE.weights == 312
    assert SHAPE.keys_and_values(3) == 48  # 2 layers, a key and a value, 4 numbers, 3 inputs


def test_the_floor_of_a_token_step():
    floor = step_floor(SHAPE, MACHINE, products=0.5, batch=3, new=1, visible=5, itemsize=2)
    cache = 3 * 5 * 16 * 2  # hypotheses, inputs, numbers, bytes
    assert floor.bytes == pytest.approx((312 * 2 + cache) / 1000)
    assert floor.products_and_cache == pytest.approx(0.5 + cache / 1000)
    assert floor.operations == pytest.approx(2 * 3 * 312 / 100)


def test_in_a_prefill_only_the_last_input_has_logits():
    floor = step_floor(SHAPE, MACHINE, products=0.0, batch=3, new=7, visible=7, itemsize=4)
    assert floor.operations == pytest.approx(2 * 3 * (7 * 272 + 40) / 100)


def test_the_paper_sizes_make_the_paper_floor():
    shape = DecoderShape(dim=768, layers=12, heads=12, ffn_dim=2048, outputs=5001)
    assert shape.weights == 12 * (4 * 768**2 + 3 * 768 * 2048) + 5001 * 768
    assert 4 * shape.keys_and_values(180) == pytest.approx(13.27e6, rel=1e-3)


def test_a_machine_reads_as_fast_as_its_fastest_way():
    times = {"sum": 0.4, "mv": 0.2, "attention": 0.5, "products": 0.1}
    probe = {name: Figure.of([9.0, seconds, seconds, 8.0]) for name, seconds in times.items()}
    assert Machine.of(probe, num_bytes=1000, operations=50) == Machine(bandwidth=5000.0, rate=500.0)


def test_operations_and_bytes_go_at_once():
    assert least(200, 500, MACHINE) == 2.0 and least(20, 500, MACHINE) == 0.5
