"""Errors that the user can mend: bad input, and a machine that refuses; each is shown as one line."""

import errno
import os
import re

MOST = 700  # characters of a message; a longer one quotes something endless
HEAD, TAIL = 400, 250  # characters kept of a longer one: the head names the input, the tail the next action


class UserError(ValueError):
    """Bad input.  The message names it and the next action; it is shown as one line, whatever values it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Return ``text`` on one line: line ends become spaces, unprintable characters escapes; a long text is cut."""
    text = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    if len(text) > MOST:
        text = f"{text[:HEAD]} ... {text[-TAIL:]}"
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def beside(value: float, limit: float, digits: int = 3) -> str:
    """Write a value that is compared with a limit.

    Args:
        value: the number to write.
        limit: the number that the written one must not look equal to.
        digits: decimals, when they tell the two apart; otherwise as many more as it takes.
    """
    texts = (f"{value:.{number}f}" for number in range(digits, 17))
    return next((text for text in texts if float(text) != limit), repr(value))


_NO_ROOM = "free some there, or name another place; then run the same command again"
_IN_THE_WAY = "name another path, or move away what is in the way"
_BROKEN = "the disk or the network fails: tell whoever looks after it, then run the same command again"
# Error number of the file system -> what to do about it.
ACTIONS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f`), or name another place",
    errno.EROFS: "name another place",
    errno.EACCES: "get the permission, or name another place",
    errno.EPERM: "get the permission, or name another place",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ENAMETOOLONG: "give shorter names",
    errno.ENOENT: "correct the path, or run the stage that makes it",
    errno.EMFILE: "allow more open files (`ulimit -n`), or give a smaller --nj",
    errno.ENFILE: "allow more open files, or give a smaller --nj",
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
}
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTEMPTY)
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)  # torch has no class for this error
_NO_TEMPORARY = "No usable temporary directory found"


def is_of_memory(error: Exception) -> bool:
    """Tell whether ``error`` says that memory ran out."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def of_machine(error: Exception) -> str | None:
    """Return one line, with the next action, about a file system or a memory that refuses; None for other errors."""
    if is_of_memory(error):
        said = " ".join(str(error).split())[:200]
        return f"memory is used up{f' ({said})' if said else ''}: give a smaller batch or --nj, or a larger machine"
    # EINVAL comes from a damaged file: in one cut short a reader goes to a place before its beginning.
    if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
        return None
    if str(error.strerror).startswith(_NO_TEMPORARY):  # Python's tempfile found no folder to write to
        where = str(error.strerror).removeprefix(_NO_TEMPORARY)
        return f"no temporary file can be written{where}: free some room there, or set TMPDIR to a folder that has some"
    name = error.filename2 or error.filename  # a renaming has two: the second is the file that the user asked for
    what = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "a file"
    verb = "written" if error.errno in WRITING else "written or read"
    return f"{what} cannot be {verb}: {error.strerror}: {action(error)}"


def action(error: OSError) -> str:
    """Return what to do about an error of the file system."""
    return ACTIONS.get(error.errno or 0, "mend that, then run the same command again")
