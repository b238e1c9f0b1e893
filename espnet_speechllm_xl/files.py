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
from types import FrameType
from typing import IO, TYPE_CHECKING, Literal, overload

from espnet_speechllm_xl.errors import UserError, of_machine

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer


class DamagedWeights(UserError):
    """A file holds no weights; the message is the reason."""


def read_weights(path: str | os.PathLike) -> "dict[str, torch.Tensor]":
    """Return the tensors of a state dict file, by name, on the CPU.

    Raises:
        DamagedWeights: the file holds anything else.
        OSError: the machine cannot read it; the error names ``path``.
    """
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


def loading_error(error: Exception) -> str:
    """Return one line of an error of ``torch.load``, without torch's advice on how to load just any file."""
    said = re.sub(r"\x1b\[\d*m", "", str(error)).rpartition("WeightsUnpickler error:")[2]
    said = re.split("Please use|Check the documentation|This is an internal", said)[0]
    return " ".join(said.split())[:200].strip(" .") or type(error).__name__


# `text_lines` writes each byte that is no UTF-8 as one of these characters.
NOT_UTF8 = re.compile("[\udc80-\udcff]")
# Control characters but the tab, Unicode's other ends of line, and the byte order mark, which stands within a file when
# Windows' files were joined.
CONTROL_CHARACTER = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
# In Windows' encodings these are apostrophes and quotes; read as Unicode, nobody knows what they stand for.
OF_ANOTHER_ENCODING = re.compile("[\x80-\x84\x86-\x9f]")
CONVERT = "convert the file (iconv -f ENCODING -t UTF-8)"


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a text file.  All our readers of tables use it.

    Only the line feed ends a line, with or without Windows' carriage return before it.  The form feed and Unicode's
    other ends of line do not, although `str.splitlines` would cut there.  A byte order mark at the beginning is left
    out.  Bytes that are no UTF-8 become characters that :data:`NOT_UTF8` finds.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n")


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put ``path`` into OSErrors of the block that name no file, or the temporary file that was to become ``path``.

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
    """Remove empty folders after an error of the block: ``path`` and those above it that the block made."""
    path = Path(path)
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in absent:
            with contextlib.suppress(OSError):  # not made, or not empty
                folder.rmdir()
        raise


def share(path: str | os.PathLike) -> None:
    """Give a file, or a folder and the files in it, the permissions of new ones; some libraries make private ones."""
    umask = os.umask(0)
    os.umask(umask)
    path = Path(path)
    for each in (path, *path.iterdir()) if path.is_dir() else (path,):
        with contextlib.suppress(OSError):  # some mounted file systems know no permissions
            os.chmod(each, (0o777 if each.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` when the block ends without an error.

    A file whose content stays the same keeps its time, so that later stages need not run again.
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
            share(temporary)  # mkstemp makes files private
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


class _Remembering(io.FileIO):
    """A file that keeps its first error of writing, because torch hides it behind an error of its own."""

    failure: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


@overload
def atomic_write(path: str | os.PathLike) -> contextlib.AbstractContextManager[IO[str]]: ...
@overload
def atomic_write(path: str | os.PathLike, mode: Literal["wb"]) -> contextlib.AbstractContextManager[IO[bytes]]: ...
@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: Literal["w", "wb"] = "w") -> Iterator[IO]:
    """Open a file for writing, as UTF-8 or bytes; it appears under ``path`` when the block ends without an error.

    Raises:
        OSError: the file cannot be written; the error names ``path``, even if a library in the block hid it.
    """
    with atomic_path(path) as temporary:
        raw = _Remembering(temporary, "w")
        stream = io.BufferedWriter(raw)
        try:
            with stream if mode == "wb" else io.TextIOWrapper(stream, encoding="utf-8") as opened:
                yield opened
        except Exception as error:  # the block is any code; its error is raised again, or the one that it hides
            if raw.failure is None or error is raw.failure:
                raise
            raise raw.failure from error


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit within the block, so that temporary files are removed on the way out.

    A signal that is ignored or handled already stays so.  Outside of the main thread nothing changes.
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


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # a shell reports the same status for a command that the signal ended


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yield a new folder below ``parent``, or the system's temporary folder; it is removed however the block ends."""
    with orderly_end():
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it is renamed to ``path`` when the block ends without an error.

    Raises:
        UserError: ``path`` is there already.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(f".{path.name}.", path.parent) as parent:
        folder = parent / path.name
        folder.mkdir()
        yield folder
        share(folder)
        os.replace(folder, path)


def folder_bytes(folder: str | os.PathLike) -> int:
    """Return the bytes of all files below a folder, in which another process may make and remove some."""
    total = 0
    for path, _, names in os.walk(os.fspath(folder)):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(path, name)).st_size
    return total


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Copy a file, whole or not at all; return the path of the copy."""
    with open(source, "rb") as original, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(original, copy)
    return Path(target)
