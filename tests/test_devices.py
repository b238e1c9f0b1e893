"""Training, decoding, streaming and aligning on a GPU that is pretended: no operation mixes devices.

tests/pretend_gpu.py is the pretended GPU; what it cannot see, ``local/gpu_check.sh`` sees on a real one.
"""

import pytest
import soundfile
import tiny
import torch
import training
from pretend_gpu import MixedDevicesError, pretend_gpu

from espnet_speechllm_xl import Speech2Text
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.dump import format_dir
from espnet_speechllm_xl.corpus.kaldi import read_table, write_table
from espnet_speechllm_xl.decoding.engine import Engine
from espnet_speechllm_xl.model.alignment import viterbi
from espnet_speechllm_xl.systems import find_system
from espnet_speechllm_xl.trained_model import load_model

# The pretended GPU itself


def ones(*shape, device="cuda", **options):
    return torch.ones(*shape, device=device, **options)


MIXES = {
    "sum": lambda gpu, cpu: gpu + cpu,
    "in place": lambda gpu, cpu: gpu.add_(cpu),
    "product": lambda gpu, cpu: torch.nn.functional.linear(cpu, gpu),
    "joined": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "chosen": lambda gpu, cpu: torch.where(cpu > 0, gpu, 0.0),
    "by index": lambda gpu, cpu: gpu.gather(1, cpu.long()),
    "indexed the other way round": lambda gpu, cpu: cpu[gpu[0].long()],
    "stored by index": lambda gpu, cpu: gpu.__setitem__(torch.tensor([0, 1, 1]), cpu),
    "a number of the GPU": lambda gpu, cpu: cpu * gpu.sum(),
    "numpy": lambda gpu, cpu: gpu.numpy(),
    "view": lambda gpu, cpu: gpu[1:].T + cpu[1:].T,
    "gradient": lambda gpu, cpu: _gradient(gpu) + cpu,
    "made like it": lambda gpu, cpu: torch.zeros_like(gpu) + cpu,
    "brought back": lambda gpu, cpu: gpu.cpu() + gpu,
    "by a module": lambda gpu, cpu: torch.nn.Linear(3, 3).to("cuda")(cpu),
    "by a recurrent module": lambda gpu, cpu: torch.nn.LSTM(3, 3).cuda()(cpu),
    "by a module that stayed": lambda gpu, cpu: torch.nn.Linear(3, 3)(gpu),
    "loss": lambda gpu, cpu: torch.nn.functional.cross_entropy(gpu, cpu[:, 0].long()),
    "CTC": lambda gpu, cpu: torch.nn.functional.ctc_loss(
        gpu[:, None], cpu[:1].long(), torch.tensor([3]), torch.tensor([1])
    ),
}
NO_MIXES = {
    "a number of the CPU": lambda gpu, cpu: gpu + cpu.sum(),
    "a CPU index": lambda gpu, cpu: gpu[cpu[0].long()],
    "a slice": lambda gpu, cpu: gpu.__setitem__(slice(0, 2), cpu[:2]),
    "copied": lambda gpu, cpu: gpu.copy_(cpu),
    "moved": lambda gpu, cpu: gpu + cpu.to(gpu) + cpu.to("cuda:0") + cpu.to(device=gpu.device) + cpu.cuda(),
    "new": lambda gpu, cpu: gpu + gpu.new_tensor([1.0]) + torch.tensor([1.0], device=gpu.device),
    "a number taken out": lambda gpu, cpu: cpu[: gpu[0, 0].long()] + float(gpu.sum()) + gpu.tolist()[0][0],
    "lengths of CTC": lambda gpu, cpu: torch.nn.functional.ctc_loss(
        gpu[:, None], gpu[:1].long(), torch.tensor([3]), torch.tensor([1])
    ),
}


def _gradient(gpu):
    weight = gpu.clone().requires_grad_()
    (weight * 2).sum().backward()
    return weight.grad


@pytest.mark.parametrize("name", MIXES)
def test_a_planted_mix_is_found(name):
    with pretend_gpu():
        with pytest.raises((MixedDevicesError, TypeError)):
            MIXES[name](ones(3, 3), ones(3, 3, device="cpu"))


@pytest.mark.parametrize("name", NO_MIXES)
def test_what_cuda_allows_passes(name):
    with pretend_gpu():
        NO_MIXES[name](ones(3, 3), ones(3, 3, device="cpu"))


def test_labels_are_what_a_program_sees():
    with pretend_gpu():
        gpu, cpu = ones(2), torch.ones(2)
        assert gpu.device == torch.device("cuda:0") and gpu.is_cuda and not cpu.is_cuda and cpu.device.type == "cpu"
        assert (gpu + 1).is_cuda and not gpu.cpu().is_cuda and cpu.cuda().is_cuda and not cpu.is_cuda
        module = torch.nn.BatchNorm1d(2).to("cuda")
        assert all(each.is_cuda for each in (*module.parameters(), *module.buffers()))
        assert not any(each.is_cuda for each in (*module.cpu().parameters(), *module.buffers()))
        assert ones(2, dtype=torch.float32).sum().item() == 2
        assert ones(2, device="meta").is_meta and cpu.to("meta").is_meta


def test_other_threads_pretend_too():
    import concurrent.futures

    with pretend_gpu(), concurrent.futures.ThreadPoolExecutor() as pool:
        with pytest.raises(MixedDevicesError):
            pool.submit(lambda: ones(2) + torch.ones(2)).result()


def test_it_ends_with_the_block():
    with pretend_gpu() as gpu:
        tensor = ones(2)
        tensor.tolist(), tensor.cpu(), tensor[tensor > 0], torch.ones(2).tolist()
        with torch.autocast("cuda", torch.bfloat16):
            assert (ones(2, 2) @ ones(2, 2)).dtype == torch.bfloat16
    assert gpu.waits == {"tolist": 1, "cpu": 1, "__getitem__": 1}
    assert tensor.device.type == "cpu" and (tensor + torch.ones(2)).tolist() == [2, 2]


# The systems


@pytest.fixture(scope="module")
def stats(toy_data, tmp_path_factory):
    """The statistics stage, on the GPU."""
    with pretend_gpu():
        return training.train("ctc", toy_data, tmp_path_factory.mktemp("stats") / "stats", options=["--ngpu", "1"])


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("system", ["ctc", "speechllm_xl", "chunked_aed", "ctc_prompt_lm", "transducer"])
def test_training(system, amp, toy_data, stats, tmp_path):
    """All of ESPnet's trainer: batches, steps, validation, checkpoints and their average; a second run goes on."""
    changes = {"use_amp": amp, "loss_conf": {"ctc_weight": 0.1}} if system != "ctc" else {"use_amp": amp}
    runs = 2 if amp else 1
    for epochs in range(1, runs + 1):
        with pretend_gpu():
            training.train(system, toy_data, tmp_path / "exp", stats, ["--ngpu", "1"], max_epoch=epochs, **changes)
    assert len(training.history(tmp_path / "exp")) == runs


def test_training_with_more_options(toy_data, stats, tmp_path):
    """Several chunk sizes, whole words, an embedding dropped now and then, weights to begin with."""
    options, encoder = ["--ngpu", "1"], {"encoder_conf": {"frontend": "conv", "conv_kernel": 3}}
    with pretend_gpu():
        aligner = training.train("ctc", toy_data, tmp_path / "aligner", stats, options, max_epoch=1, **encoder)
        options += ["--init_param", f"{aligner}/valid.ter.ave.pth:acoustic:acoustic"]
        training.train(
            "speechllm_xl", toy_data, tmp_path / "exp", stats, options, max_epoch=1, accum_grad=2,
            chunking_conf={"train_chunks": [8, 16], "unit": "word"}, decoder_conf={"embed_dropout": 0.2},
            **encoder,
        )  # fmt: skip


@pytest.mark.parametrize(
    "system, amp", [("speechllm_xl", False), ("speechllm_xl", True), ("chunked_aed", False), ("ctc_prompt_lm", False)]
)
def test_a_step_on_long_and_ragged_sequences(system, amp, model_of):
    """Of 24 s, where the decoder attends in blocks, and of 5 s."""
    samples = torch.tensor([384000, 80000])
    batch = {
        "speech": torch.zeros(2, 384000), "speech_lengths": samples,
        "text": torch.randint(0, 30, (2, 80)), "text_lengths": torch.tensor([80, 10]),
        "ends": torch.arange(0, 80 * 7, 7).minimum(samples[:, None] // 640 - 2),
    }  # fmt: skip
    for row, count in enumerate(samples.tolist()):
        batch["speech"][row, :count] = torch.as_tensor(tiny.speech(row, count))
    losses = []
    for device in ("cpu", "cuda"):
        with pretend_gpu():
            model, *_ = load_model(model_of(system), device=device)
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device, torch.bfloat16, enabled=amp):
                loss, stats, weight = model(**moved)
            loss.backward()
            assert all(each.device.type == device for each in (loss, weight, *stats.values()))
            gradients = [each.grad for each in model.parameters() if each.grad is not None]
            assert len(gradients) > 20 and all(each.isfinite().all() for each in gradients)
            losses.append(float(loss))
    # On a CPU the weights lie by columns, so sums are rounded otherwise.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if amp else 1e-5)


# Decoding

RECORDINGS = [tiny.speech(5, 36000), tiny.speech(6, 300), tiny.speech(7, 20000)]
MODELS = {
    "chunked_aed": [
        *tiny.conf("decoder_conf", ["dim=16", "lstm_layers=1", "blocks=1", "heads=2", "ffn_dim=24"]),
        *tiny.conf("chunking_conf", ["chunk=16", "context=0"]),
        *tiny.conf("loss_conf", ["ctc_weight=0.1"]),
    ],
    "ctc_prompt_lm": [
        *tiny.conf("decoder_conf", tiny.DECODER),
        *tiny.conf("chunking_conf", ["chunk=16", "context=null"]),
        *tiny.conf("loss_conf", ["ctc_weight=0.3"]),
    ],
    "transducer": [
        *tiny.conf("decoder_conf", ["hidden_size=12"]), *tiny.conf("joint_network_conf", ["joint_space_size=10"])
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def model_of(tiny_tokens, tiny_model_dir, tiny_aligner_dir, tmp_path_factory):
    """``model_of(name) -> directory`` of a model of random weights; its name is its system's, unless that is given."""
    made = {"speechllm_xl": tiny_model_dir, "ctc": tiny_aligner_dir}

    def make(name, system=None):
        if name not in made:
            found, folder = find_system(system or name), tmp_path_factory.mktemp("exp") / name
            weights = "{}.{}.ave.pth".format(*found.criterion)
            made[name] = tiny.write_model(folder, found.task(), tiny_tokens, weights, MODELS[name])
        return made[name]

    return make


def both(directory, use, **options):
    """What ``use(speech2text)`` gives on the CPU (None in half precision, which may differ) and on the GPU."""
    on_cpu = None if options.get("dtype") == "bfloat16" else use(Speech2Text.from_pretrained(directory, **options))
    with pretend_gpu():
        speech2text = Speech2Text.from_pretrained(directory, device="cuda", **options)
        assert all(weight.is_cuda for weight in speech2text.model.parameters())
        return on_cpu, use(speech2text)


def transcripts(speech2text):
    return speech2text.transcribe_batch(RECORDINGS)


def without_scores(results):
    """Text, tokens and words without their confidences, of recordings x n-best."""

    def words(transcript):
        return [(word.text, word.start, word.end) for word in transcript.words]

    return [[(one.text, one.token_ids, words(one)) for one in nbest] for nbest in results]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("search", ["greedy", "chunk_sync", "alsd"])
def test_decoding(search, ctc_weight, dtype, model_of):
    options = {"search": search, "ctc_weight": ctc_weight, "dtype": dtype, "nbest": 2, "recombine": search != "greedy"}
    on_cpu, on_gpu = both(model_of("speechllm_xl"), transcripts, **options)
    assert on_gpu[0][0].words and on_gpu[2][0].text
    assert dtype != "float32" or without_scores(on_cpu) == without_scores(on_gpu)


def test_a_pretrained_decoder_with_a_window_that_is_rebased(model_of, tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=60, **shape)).save_pretrained(tmp_path / "llm")
    MODELS["pretrained"] = [
        *tiny.conf("decoder_conf", [f"pretrained={tmp_path / 'llm'}"]),
        *tiny.conf("chunking_conf", ["chunk=8", "context=1"]),
    ]

    def rebased(speech2text):
        with monkeypatch.context() as patched:  # not when it is loaded, as that is when a model is tried out
            patched.setattr("espnet_speechllm_xl.model.pretrained.REBASE_POSITION", 8)
            return transcripts(speech2text)

    options = {"search": "chunk_sync", "beam_size": 2, "max_tokens_per_chunk": 3}
    on_cpu, on_gpu = both(model_of("pretrained", "speechllm_xl"), rebased, **options)
    assert without_scores(on_cpu) == without_scores(on_gpu) and len(on_gpu[0][0].token_ids) > 5


@pytest.mark.parametrize(
    "system, search",
    [
        *(("chunked_aed", search) for search in ("greedy", "chunk_sync", "alsd")),
        *(("ctc_prompt_lm", search) for search in ("greedy", "chunk_sync", "alsd")),
        *(("ctc", search) for search in ("greedy", "prefix_beam")),
        *(("transducer", search) for search in ("greedy", "alsd")),
    ],
)
def test_decoding_with_the_other_systems(system, search, model_of):
    on_cpu, on_gpu = both(model_of(system), transcripts, search=search, beam_size=2)
    assert without_scores(on_cpu) == without_scores(on_gpu)


@pytest.mark.parametrize("system", ["speechllm_xl", "chunked_aed", "ctc_prompt_lm"])
@pytest.mark.parametrize("search", ["greedy", "chunk_sync", "alsd"])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_decoding_with_phrases(search, system, ctc_weight, model_of):
    """What they add moves all systems that share the searches, and is where the scores are."""

    def found(speech2text):
        tree = speech2text.phrase_tree(["anna", "the other office", "it's late :2"])
        return [transcripts(speech2text), speech2text.transcribe_batch(RECORDINGS, phrases=[tree, tree, None])]

    options = {"search": search, "beam_size": 2, "ctc_weight": ctc_weight, "phrase_boost": 6.0}
    on_cpu, on_gpu = both(model_of(system), found, **options)
    assert [without_scores(one) for one in on_cpu] == [without_scores(one) for one in on_gpu]
    plain, swayed = on_cpu
    assert [one[0].token_ids for one in plain] != [one[0].token_ids for one in swayed]
    assert plain[2][0].token_ids == swayed[2][0].token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("search", ["greedy", "chunk_sync"])
def test_streams_through_the_engine(search, dtype, model_of):
    def streamed(speech2text):
        streams = [speech2text.stream(search, endpoint_silence=0.5, endpoint_length=1.0) for _ in RECORDINGS]
        with Engine(speech2text.model) as engine:
            futures = []
            for begin in range(0, 36000, 3000):
                for stream, recording in zip(streams, RECORDINGS, strict=True):
                    piece = recording[begin : begin + 3000]
                    futures.append(engine.submit(stream, stream.consume(piece, final=begin == 33000)))
            updates = [future.result(60) for future in futures]
        assert sum(update.text != "" for update in updates) > 2
        return [(update.text, update.partial) for update in updates]

    on_cpu, on_gpu = both(model_of("speechllm_xl"), streamed, dtype=dtype)
    assert dtype != "float32" or on_cpu == on_gpu


@pytest.mark.parametrize("system", ["chunked_aed", "ctc_prompt_lm"])
def test_streams_of_the_other_systems(system, model_of):
    def streamed(speech2text):
        pieces = [RECORDINGS[0][begin : begin + 5000] for begin in range(0, 36000, 5000)]
        return tiny.said(tiny.play(speech2text.stream("greedy", chunk_size=0.64), pieces))

    on_cpu, on_gpu = both(model_of(system), streamed)
    assert on_cpu == on_gpu


@pytest.mark.parametrize("part", ["acoustic.normalizer", "projection", "decoder", "ctc"])
def test_a_part_that_stayed_behind_is_found(part, model_of):
    with pretend_gpu():
        speech2text = Speech2Text.from_pretrained(model_of("speechllm_xl"), device="cuda", search="greedy")
        speech2text.model.get_submodule(part).cpu()
        with pytest.raises(MixedDevicesError):
            transcripts(speech2text)


# Work on sets


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    data, texts = root / "data/test", dict(zip(("a-1", "a-2"), tiny.SENTENCES[:2], strict=True))
    (data / "wav").mkdir(parents=True)
    for seed, name in enumerate(texts):
        soundfile.write(data / f"wav/{name}.wav", tiny.speech(seed, 40000), 16000)
    write_table(data / "wav.scp", {name: data / f"wav/{name}.wav" for name in texts})
    write_table(data / "text", texts)
    write_table(data / "utt2spk", {name: "a" for name in texts})
    format_dir(data, root / "dump/raw/test")
    times = {
        name: [Word(word, 0.3 * place, 0.3 * place + 0.26) for place, word in enumerate(text.split())]
        for name, text in texts.items()
    }
    write_ctm(root / "dump/raw/test/ref.ctm", times)
    return root / "dump/raw/test"


@pytest.mark.parametrize("cells", [None, 1])
def test_the_best_path_of_log_probabilities_on_the_gpu(cells, monkeypatch):
    """By torchaudio, and in blocks beyond its bounds."""
    if cells is not None:
        monkeypatch.setattr("espnet_speechllm_xl.model.alignment.NATIVE_CELLS", cells)
    log_probs = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    with pretend_gpu():
        assert viterbi(log_probs.cuda(), [1, 2, 2], 4) == viterbi(log_probs, [1, 2, 2], 4)


def test_aligning(dump, model_of, tmp_path):
    command = ["align", "--dump", str(dump), "--model", str(model_of("ctc"))]
    assert cli.main([*command, "--out", str(tmp_path / "cpu")]) == 0
    with pretend_gpu():
        assert cli.main([*command, "--out", str(tmp_path / "gpu"), "--device", "cuda"]) == 0
    on_cpu, on_gpu = (read_table(tmp_path / device / "char_ends") for device in ("cpu", "gpu"))
    assert on_cpu == on_gpu and len(on_gpu) == 2


def test_probabilities_at_borders(dump, model_of, capsys):
    command = ["border-report", "--model", str(model_of("speechllm_xl")), "--dump", str(dump), "--near", "8"]
    assert cli.main(command) == 0
    on_cpu = capsys.readouterr().out
    with pretend_gpu():
        assert cli.main([*command, "--device", "cuda"]) == 0
    assert capsys.readouterr().out == on_cpu
