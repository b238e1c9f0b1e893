"""What the worker measures, in this process: counted work, not times."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from espnet_speechllm_xl.benchmarks import worker
from espnet_speechllm_xl.benchmarks.floors import DecoderShape

CONFIG = Path(__file__).parents[1] / "conf/train_micro.yaml"  # chunks of 16 frames, context 2
VOCABULARY, TOKENS = 30, 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {
        "model": None, "llm": None, "config": str(CONFIG), "vocab_size": VOCABULARY,
        "folder": str(tmp_path_factory.mktemp("bench")), "audio": None, "dtype": "float32", "beam_size": 2,
        "tokens": TOKENS,
    }  # fmt: skip


class CountingDecoder:
    """A decoder whose pasts are the chunk ids of all inputs; it notes what each step finds, in sight of its chunk."""

    dim, eoc, context = 4, 7, 2
    config = SimpleNamespace(pretrained=None, dim=4, layers=1, heads=1, ffn_dim=8)

    def __init__(self):
        self.found = []

    def initial_past(self, context):
        assert context == self.context
        return ()

    def extend(self, requests):
        results = []
        for request in requests:
            self.found.append(sum(chunk_id >= request.chunk_id - self.context for chunk_id in request.past))
            new = 1 if request.frames is None else len(request.frames)
            results.append(SimpleNamespace(past=request.past + (request.chunk_id,) * new))
        return results


@pytest.mark.parametrize("reduction", [1, 4])
def test_a_decoder_step_finds_as_many_inputs_as_are_counted(settings, monkeypatch, reduction):
    decoder, chunking = CountingDecoder(), SimpleNamespace(chunk=16, context=2)
    acoustic = SimpleNamespace(encoder=SimpleNamespace(output_size=lambda: 3))
    model = SimpleNamespace(decoder=decoder, acoustic=acoustic, parameters=lambda: iter([torch.ones(1)]))
    model.projection = lambda frames: frames[::reduction]
    planted = SimpleNamespace(model=model, chunking=chunking)
    monkeypatch.setattr(worker, "load_model", lambda _: planted)
    subject = worker.Step({**settings, "batch": 2})
    new = 16 // reduction
    assert (subject.facts["frames"], subject.facts["inputs"], subject.facts["context"]) == (16, new, 2)
    for _ in range(2):
        decoder.found.clear()
        measured = subject.measure()
        assert len(measured["prefill"]) == 1 and len(measured["token"]) == TOKENS
        before = 2 * (new + TOKENS)  # in the two chunks of the context
        assert decoder.found == [before] * 2 + [before + new + number // 2 for number in range(2 * TOKENS)]


def test_bare_products_and_the_peer_have_the_weights_of_the_decoder(settings):
    step = worker.Step({**settings, "batch": 1})
    shape = step.facts["shape"]
    bare = worker.Bare({**settings, **shape, "rows": 2, "batch": 2, "repeats": 4})
    # The micro decoder shares its embedding with its output layer.
    matrices = sum(weight.numel() for weight in step.decoder.parameters() if weight.dim() == 2)
    assert bare.facts == {"weights": matrices, "itemsize": 4} and matrices == DecoderShape(**shape).weights
    assert len(bare.measure()["products"]) == 4
    peer = worker.HuggingFace({**settings, **shape, "batch": 2, "cached": 11})
    layers = sum(weight.numel() for weight in peer.model.model.layers.parameters() if weight.dim() == 2)
    assert layers == DecoderShape(**shape).layer_weights
    for _ in range(2):
        assert len(peer.measure()["token"]) == TOKENS
        assert peer.cache.get_seq_length() == 11


@pytest.mark.parametrize("search", ["greedy", "chunk_sync"])
def test_streams_write_as_many_tokens_as_planned(settings, search):
    subject = worker.Streams({**settings, "streams": 2, "chunks": 3, "search": search})
    assert subject.facts["audio_seconds"] == pytest.approx(2 * 3 * 0.64)
    hypotheses = 1 if search == "greedy" else settings["beam_size"]
    for _ in range(2):
        measured = subject.measure()
        assert measured["tokens_a_chunk"] == pytest.approx([TOKENS * hypotheses])
        assert 6 <= subject.requests["prefill"] <= 6 * hypotheses


def test_a_profile_counts_products_and_attention_as_a_part_of_the_time(settings):
    subject = worker.ProfiledStreams({**settings, "streams": 1, "chunks": 1, "search": "greedy"})
    measured = subject.measure()
    assert 0 < measured["products"][0] < measured["seconds"][0]
    assert 0 < measured["attention"][0] < measured["seconds"][0]


def test_names_of_products_and_attention():
    products = ["aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::_weight_int8pack_mm",
                "quantized::linear_dynamic", "mkldnn::_linear_pointwise", "aten::_addmm_activation"]  # fmt: skip
    others = ["aten::mul", "aten::copy_", "aten::cat", "aten::softmax", "aten::norm", "aten::sum", "aten::linspace"]
    assert all(worker.PRODUCTS.search(name) for name in products)
    assert not any(worker.PRODUCTS.search(name) for name in others)
    assert worker.ATTENTION.search("aten::_scaled_dot_product_flash_attention_for_cpu")


def test_the_parts_of_the_pipeline(settings):
    subject = worker.Chunk(settings)
    assert subject.facts["encoder_weights"] < subject.facts["encoder_parameters"] < subject.facts["parameters"]
    for _ in range(2):
        measured = subject.measure()
        assert {name: len(samples) for name, samples in measured.items()} == {"encoder": 1, "prefill": 1, "tokens": 1}


def test_streaming_peers_hear_a_chunk_at_a_time(settings):
    small = {
        "input_dim": 80, "encoding_dim": 16, "segment_length": 32, "right_context_length": 8,
        "time_reduction_input_dim": 8, "time_reduction_stride": 4, "transformer_num_heads": 2,
        "transformer_ffn_dim": 16, "transformer_num_layers": 2, "transformer_dropout": 0.1,
        "transformer_activation": "gelu", "transformer_left_context_length": 8, "transformer_max_memory_size": 0,
        "transformer_weight_init_scale_strategy": "depthwise", "transformer_tanh_on_mem": True,
        "symbol_embedding_dim": 8, "num_lstm_layers": 1, "lstm_layer_norm": True, "lstm_layer_norm_epsilon": 1e-3,
        "lstm_dropout": 0.0,
    }  # fmt: skip
    emformer = worker.TorchaudioEmformer({"shape": small, "outputs": 10, "chunk_seconds": 1.28})
    assert emformer.calls == 4 and emformer.facts["audio_seconds"] == 1.28
    assert emformer.facts["encoder_parameters"] < emformer.facts["parameters"]
    assert len(emformer.measure()["seconds"]) == 1 and emformer.states is not None
    conf = {"output_size": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 1, "block_size": 70,
            "hop_size": 32, "look_ahead": 6}  # fmt: skip
    conformer = worker.ContextualBlockConformer({"encoder_conf": conf})
    blocks = conformer.states["n_processed_blocks"]
    for number in (1, 2):
        conformer.measure()
        assert conformer.states["n_processed_blocks"] == blocks + number
    assert conformer.facts["audio_seconds"] == 1.28


def test_a_recording_is_transcribed_whole(settings):
    subject = worker.Recording({**settings, "seconds": 2.5})
    assert subject.samples.shape == (40000,) and subject.facts["audio_seconds"] == 2.5
    assert len(subject.measure()["seconds"]) == 1


def test_a_training_batch(settings):
    subject = worker.Training({**settings, "seconds": 3.0, "batch": 2})
    assert subject.facts == {"audio_seconds": 6.0}
    assert subject.batch["speech"].shape == (2, 48000) and int(subject.batch["ends"].max()) < 75
    measured = subject.measure()
    assert measured["peak_bytes"][0] >= measured["bytes_before"][0] > 1e6
    assert all(weight.grad is None for weight in subject.model.parameters())


def test_a_peak_is_of_what_came_after_the_last_one():
    large = np.ones(40_000_000)
    first = worker.peak_bytes()
    del large
    worker.forget_peak()
    assert worker.peak_bytes() < first - 200e6
    larger = np.ones(60_000_000)
    assert worker.peak_bytes() > first and larger[0] == 1


def test_a_probe_reads_what_it_says():
    subject = worker.Probe({"megabytes": 1, "size": 64, "dtype": "bfloat16"})
    assert subject.facts["bytes"] == subject.values.nbytes == 976 * 1024  # whole rows of 1024
    assert subject.facts["operations"] == 2 * 32 * 64 * 64 and subject.rows.dtype == torch.bfloat16
    assert set(subject.measure()) == {"sum", "mv", "attention", "products"}


def test_infinite_chunks_are_refused(settings, tmp_path):
    other = tmp_path / "infinite.yaml"
    other.write_text(CONFIG.read_text("utf-8").replace("    context: 2", "    context: null"), "utf-8")
    with pytest.raises(ValueError, match="infinite chunk or context"):
        worker.Step({**settings, "config": str(other), "batch": 1})


def test_the_users_audio_is_heard(settings, tmp_path):
    import soundfile

    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 2
    soundfile.write(tmp_path / "tone.wav", tone, 16000, subtype="FLOAT")
    heard = worker.audio({"audio": str(tmp_path / "tone.wav")}, worker.load_model(settings), 1.0)
    assert heard.shape == (16000,) and np.array_equal(heard, np.concatenate([tone, tone]))


def test_seconds_are_those_of_the_work(monkeypatch):
    monkeypatch.setattr(worker, "_clock", time.perf_counter)  # and back
    assert 0.05 <= worker.seconds(time.sleep, 0.05) < 5
    worker.choose_clock("cpu")
    assert worker.seconds(time.sleep, 0.3) < 0.1
