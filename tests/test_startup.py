"""What it takes to load a trained model and to decode a file: modules, memory, random numbers."""

import subprocess
import sys

import pytest
import soundfile
import tiny
import torch

from espnet_speechllm_xl import trained_model
from espnet_speechllm_xl.systems import SYSTEMS, find_system, find_task
from espnet_speechllm_xl.trained_model import load_model

# Modules that take long to import, or that lead to such.
HEAVY = {
    *("espnet2.tasks", "espnet2.train.class_choices", "espnet2.train.preprocessor", "espnet2.train.trainer"),
    *("espnet_speechllm_xl.systems.base_task", "espnet_speechllm_xl.training.trainer"),
    *("jiwer", "librosa", "matplotlib", "nltk", "numba", "pandas", "peft", "pkg_resources", "tensorboard"),
    *("scipy", "sympy", "torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "transformers", "typeguard"),
}
OPTIONS = {
    "speechllm_xl": tiny.conf("decoder_conf", tiny.DECODER),
    "ctc": [],
    "transducer": [*tiny.conf("decoder_conf", ["hidden_size=12"]), "--joint_network_conf", "joint_space_size=10"],
    "chunked_aed": [
        *tiny.conf("decoder_conf", ["dim=16", "heads=2", "ffn_dim=32", "lstm_layers=1", "blocks=1"]),
        *tiny.conf("chunking_conf", ["context=0"]),
    ],
    "ctc_prompt_lm": [
        *tiny.conf("decoder_conf", tiny.DECODER),
        *tiny.conf("chunking_conf", ["context=null"]),
        *tiny.conf("loss_conf", ["ctc_weight=0.3"]),
    ],
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_tokens):
    """``model_dir(system)``: the directory of a model of it, of random weights."""
    made = {}

    def make(name):
        if name not in made:
            weights = ".".join([*find_system(name).criterion[:2], "ave", "pth"])
            out = tmp_path_factory.mktemp("exp") / name
            made[name] = tiny.write_model(out, find_task(name), tiny_tokens, weights, OPTIONS[name])
        return made[name]

    return make


TRANSCRIBE = """
import sys
from espnet_speechllm_xl.bin import cli
code = cli.main(["transcribe", "--format", "json", "--model", *sys.argv[1:3]])
print(code, *(name for name in sys.argv[3:] if name in sys.modules))
"""

# ESPnet's label decoder, which the transducer is built of.
OF_ESPNET = """
import sys
from espnet2.asr.decoder import transducer_decoder
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def last_line(program, *arguments):
    """Return the words that a new Python prints last when it runs ``program``."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_process_that_transcribes_imports_nothing_heavy(model_dir, tmp_path, name):
    soundfile.write(tmp_path / "a.wav", tiny.speech(1, 24000), 16000)
    code, *imported = last_line(TRANSCRIBE, model_dir(name), tmp_path / "a.wav", *sorted(HEAVY))
    needed = last_line(OF_ESPNET, *sorted(HEAVY)) if name == "transducer" else []
    assert (code, imported) == ("0", needed)


@pytest.mark.parametrize("name", SYSTEMS)
def test_weights_are_in_memory_once_and_not_drawn_before(model_dir, monkeypatch, name):
    read, states = trained_model.read_weights, []

    def remembering(path):
        states.append(dict(read(path)))
        return dict(states[-1])

    monkeypatch.setattr(trained_model, "read_weights", remembering)
    directory = model_dir(name)
    before = torch.get_rng_state()
    model, _, _ = load_model(directory)
    assert torch.get_rng_state().equal(before)
    weights = dict(model.named_parameters())
    assert len(weights) > 10
    by_columns = {f"{place}.weight" for place, module in model.named_modules() if type(module) is torch.nn.Linear}
    for weight_name, weight in weights.items():
        if weight_name not in by_columns:  # a layer at a time, these were written anew in another order
            assert weight.data_ptr() == states[0][weight_name].data_ptr(), weight_name
        assert weight.requires_grad and weight.dtype == torch.float32
    assert all(value.equal(states[0][key]) for key, value in model.state_dict().items())


def test_weights_of_another_type_become_the_wanted_one(model_dir, tmp_path):
    directory = model_dir("ctc")
    (file,) = directory.glob("*.pth")
    for name in ("config.yaml", "tokenizer.model"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    torch.save({name: value.double() for name, value in torch.load(file).items()}, tmp_path / file.name)
    model, other = (load_model(path)[0] for path in (tmp_path, directory))
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())


def test_shared_weights_stay_shared(tiny_tokens, tmp_path):
    options = tiny.conf("decoder_conf", [*tiny.DECODER, "tie_embeddings=true"])
    task, file = find_task("speechllm_xl"), "valid.acc_text.ave.pth"
    directory = tiny.write_model(tmp_path / "tied", task, tiny_tokens, file, options)
    # As the mean over epochs leaves them: apart.
    state = {name: value.clone() for name, value in torch.load(directory / file).items()}
    torch.save(state, directory / file)
    lm = load_model(directory, dtype="bfloat16")[0].decoder.lm
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


@pytest.mark.parametrize("adapters", [[], ["lora_rank=4"]], ids=["full", "lora"])
def test_trained_weights_of_a_pretrained_decoder(tiny_tokens, tmp_path, adapters):
    """They replace those of the checkpoint, and what was frozen stays so."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "llama")
    options = tiny.conf("decoder_conf", [f"pretrained={tmp_path / 'llama'}", *adapters])
    task, file, made = find_task("speechllm_xl"), "valid.acc_text.ave.pth", []

    def train(model):
        made.append(model)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))

    directory = tiny.write_model(tmp_path / "exp", task, tiny_tokens, file, options, change=train)
    model, trained = load_model(directory)[0], made[0].state_dict()
    assert [*model.state_dict()] == [*trained]
    assert all(value.equal(trained[name]) for name, value in model.state_dict().items())
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == [name for name, weight in made[0].named_parameters() if not weight.requires_grad]
    assert bool(frozen) == bool(adapters)
