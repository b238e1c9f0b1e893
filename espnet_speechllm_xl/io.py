"""Files written whole or not at all; text, YAML and weights read whole or refused."""

import codecs
import contextlib
import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from espnet_speechllm_xl.errors import UserError


class DamagedWeights(UserError):
    """A file holds no weights; the message is the reason."""


def read_weights(path):
    """The tensors of a state dict file, by name, on the CPU; raises FileNotFoundError or DamagedWeights."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds, none of its own, for a truncated or foreign file
        raise DamagedWeights(loading_error(error)) from error
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DamagedWeights("it holds other things than tensors by name")
    return state


def loading_error(error):
    """One line of what ``torch.load`` raised, without its advice on how to load just any file."""
    said = re.sub(r"\x1b\[\d*m", "", str(error)).rpartition("WeightsUnpickler error:")[2]
    said = re.split("Please use|Check the documentation|This is an internal", said)[0]
    return " ".join(said.split())[:200].strip(" .") or type(error).__name__


# What `text_lines` puts in the place of each byte that is no UTF-8.
NOT_UTF8 = re.compile("[\udc80-\udcff]")
CONVERT = "convert the file (iconv -f ENCODING -t UTF-8)"


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a text file, for all tables that are read here.

    Only the line feed ends a line, with or without the carriage return of Windows before it: neither the form feed nor
    another end of Unicode, at which `str.splitlines` would cut.  A mark of Windows' editors at the begin is left out.
    Bytes that are no UTF-8 become characters that :data:`NOT_UTF8` finds.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n")


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path`` that takes its name when the block ends without an error.

    A file that would not change keeps its time, so that stages after it need not run again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
            return
        # mkstemp makes files private; give them the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file for writing that appears under ``path`` only when the block ends without an error."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary:
        with open(temporary, mode, encoding=encoding) as stream:
            yield stream


def copy_file(source, target):
    """Copy a file; the copy appears whole."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return Path(target)
