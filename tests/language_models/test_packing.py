"""Packed models whose decoder is a pretrained language model: with its weights, or with its name and digest."""

import zipfile

import pytest
import soundfile
import tiny
import yaml

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.trained_model import ModelError, load_model, pack

LORA = ("lora_rank=4",)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_with_its_weights_it_needs_nothing_else(trained, copies, decode, tmp_path):
    directory, llm = copies(*trained(*LORA))
    expected = decode(directory)
    pack(directory, tmp_path / "model.zip", with_llm=True)
    assert members(tmp_path / "model.zip")["llm/model.safetensors"] == (llm / "model.safetensors").stat().st_size
    llm.rename(tmp_path / "elsewhere")
    assert decode(tmp_path / "model.zip") == expected


def test_without_its_weights_it_says_which_it_needs(trained, copies, decode, tmp_path):
    directory, llm = copies(*trained(*LORA))
    expected = decode(directory)
    packed = tmp_path / "model.zip"
    pack(directory, packed)
    assert {"llm/config.json", "model.pth", "config.yaml"} < set(members(packed))
    assert not [name for name in members(packed) if name.endswith(".safetensors")]
    with zipfile.ZipFile(packed) as archive:
        config = yaml.safe_load(archive.read("config.yaml"))
    assert config["decoder_conf"]["pretrained"] == "TinyLM"
    digest = bytes(load_model(directory)[0].decoder.base_digest.tolist()).hex()[:12]
    message = f"model.zip was trained from the language model TinyLM .digest {digest}., and does not hold its weights"
    with pytest.raises(ModelError, match=message):
        decode(packed)
    llm.rename(tmp_path / "elsewhere")
    assert decode(packed, llm=tmp_path / "elsewhere") == expected
    assert decode(directory, llm=tmp_path / "elsewhere") == expected
    with pytest.raises(ConfigError, match="TinyLM holds no Hugging Face checkpoint .*--llm DIR"):
        decode(directory)


def test_another_language_model_of_the_same_shape_is_refused(trained, copies, decode, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    directory, llm = copies(*trained(*LORA))
    pack(directory, tmp_path / "model.zip")
    other = AutoModelForCausalLM.from_pretrained(llm)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="other is not the LLM that the weights were trained with"):
        decode(tmp_path / "model.zip", llm=tmp_path / "other")


def test_one_that_trained_as_a_whole_needs_no_other_weights(trained, copies, decode, tmp_path):
    directory, llm = copies(*trained())
    expected = decode(directory)
    pack(directory, tmp_path / "model.zip")
    assert "llm/config.json" in members(tmp_path / "model.zip")
    assert not [name for name in members(tmp_path / "model.zip") if name.endswith(".safetensors")]
    llm.rename(tmp_path / "elsewhere")
    assert decode(tmp_path / "model.zip") == expected


def test_models_without_a_language_model_have_no_such_options(tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match="no pretrained language model: leave out --with-llm"):
        pack(tiny_model_dir, tmp_path / "model.zip", with_llm=True)
    with pytest.raises(ConfigError, match="no pretrained language model: leave out its directory .--llm."):
        load_model(tiny_model_dir, llm=tmp_path)


def test_the_commands(trained, copies, tmp_path, capsys):
    directory, llm = copies(*trained(*LORA))
    soundfile.write(tmp_path / "a.wav", tiny.speech(7, 40000), 16000)
    search = ["--search", "greedy", "--max-tokens-per-chunk", "4"]

    def transcribe(model, *options):
        capsys.readouterr()
        code = cli.main(["transcribe", str(tmp_path / "a.wav"), "--model", str(model), *search, *map(str, options)])
        return code, *capsys.readouterr()

    code, text, _ = transcribe(directory)
    assert code == 0 and text.strip()
    for name, options in (("light.zip", []), ("heavy.zip", ["--with-llm"])):
        assert cli.main(["pack", "--model", str(directory), "--out", str(tmp_path / name), *options]) == 0
    llm.rename(tmp_path / "elsewhere")
    assert transcribe(tmp_path / "heavy.zip")[:2] == (0, text)
    assert transcribe(tmp_path / "light.zip", "--llm", tmp_path / "elsewhere")[:2] == (0, text)
    code, _, error = transcribe(tmp_path / "light.zip")
    assert code == 2 and len(error.splitlines()) == 1 and "--llm DIR" in error
