"""Files written whole or not at all; text, YAML and weights read whole or refused."""

import codecs
import contextlib
import filecmp
import io
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from espnet_speechllm_xl.errors import UserError, of_machine


class DamagedWeights(UserError):
    """A file holds no weights; the message is the reason."""


def read_weights(path):
    """The tensors of a state dict file, by name, on the CPU; raises DamagedWeights, or OSError of the machine."""
    import torch

    try:
        with naming(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, none of its own, for a truncated or foreign file
        if of_machine(error) and not isinstance(error, IsADirectoryError):
            raise
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
# Control characters but the tab, the other ends of line of Unicode, and the mark at the begin of Windows' files, which
# is elsewhere when files were joined.
CONTROL_CHARACTER = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
# Nobody knows what those stand for (of a Windows encoding, apostrophes and quotes).
OF_ANOTHER_ENCODING = re.compile("[\x80-\x84\x86-\x9f]")
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
def naming(path: str | os.PathLike) -> Iterator[None]:
    """OSErrors of the block that name no file, or a temporary one that was to become ``path``, name ``path``.

    Writing and closing a stream raise errors without a name.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        if name is None or (isinstance(name, str) and os.path.basename(name).startswith(f".{Path(path).name}.")):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def without_empty_folders(path: str | os.PathLike) -> Iterator[None]:
    """Remove what of ``path`` and the folders above it the block made, and left empty when it ended with an error."""
    path = Path(path)
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in absent:
            with contextlib.suppress(OSError):  # not made, or not empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path`` that takes its name when the block ends without an error.

    A file that would not change keeps its time, so that stages after it need not run again.
    """
    path = Path(path)
    with without_empty_folders(path.parent), naming(path):
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
            with contextlib.suppress(OSError):  # some mounted file systems have no permissions to give
                os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


class _Remembering(io.FileIO):
    """A file that keeps the first error of writing, which torch hides behind an error of its own."""

    failure = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file for writing that appears under ``path`` only when the block ends without an error.

    Raises:
        OSError: it cannot be written; the error names ``path``, whatever a library in the block made of it.
    """
    with atomic_path(path) as temporary:
        raw = _Remembering(temporary, "w")
        stream = io.BufferedWriter(raw)
        try:
            with stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8") as opened:
                yield opened
        except Exception as error:  # of the block, which is any code: it is raised again, or what it hides
            if raw.failure is None or error is raw.failure:
                raise
            raise raw.failure from error


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit, so that what is temporary is removed on the way out.

    Does nothing outside of the main thread, and to a signal that is ignored or handled already.
    """
    main = threading.current_thread() is threading.main_thread()
    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in ours:
            if signal.getsignal(each) is _end:
                signal.signal(each, signal.SIG_DFL)


def _end(number, _frame):
    raise SystemExit(128 + number)  # the status that a shell gives to what the signal ended


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yield a new folder, of the system's temporary ones or below ``parent``; it is removed however the block ends."""
    with orderly_end():
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def copy_file(source, target):
    """Copy a file; the copy appears whole."""
    with open(source, "rb") as original, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(original, copy)
    return Path(target)
