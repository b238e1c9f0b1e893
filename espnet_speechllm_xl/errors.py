"""Errors that somebody can mend: bad input, and a machine that refuses; and how they look."""

import errno
import os
import re

MOST = 700  # characters of a message; what is longer quotes something endless
HEAD, TAIL = 400, 250  # of them stay: the head names the input, the tail the next action


class UserError(ValueError):
    """Bad input; the message is one line that names it and the next action, whatever the values in it are."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """``text`` with line ends as spaces, unprintable characters as escapes, and cut in the middle if it is endless."""
    text = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    if len(text) > MOST:
        text = f"{text[:HEAD]} ... {text[-TAIL:]}"
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def beside(value: float, limit: float, digits: int = 3) -> str:
    """Return ``value`` with so many decimals, or with as many more as it takes to differ from ``limit``."""
    texts = (f"{value:.{number}f}" for number in range(digits, 17))
    return next((text for text in texts if float(text) != limit), repr(value))


_NO_ROOM = "free some there, or name another place; then run the same command again"
_IN_THE_WAY = "name another path, or move away what is in the way"
_BROKEN = "the disk or the network fails: tell whoever looks after it, then run the same command again"
# What to do about an error of the file system, by its number.
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
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)  # of torch, which has no class for it
_NO_TEMPORARY = "No usable temporary directory found"


def is_of_memory(error: Exception) -> bool:
    """Tell whether memory did not hold what was asked for."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def of_machine(error: Exception) -> str | None:
    """One line about a file system or a memory that refuses, with the next action; None for any other error."""
    if is_of_memory(error):
        said = " ".join(str(error).split())[:200]
        return f"memory is used up{f' ({said})' if said else ''}: give a smaller batch or --nj, or a larger machine"
    # EINVAL: of a file cut short, in which a reader goes to a place before its beginning.
    if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
        return None
    if str(error.strerror).startswith(_NO_TEMPORARY):  # of Python, which looked for one where it could write
        where = str(error.strerror).removeprefix(_NO_TEMPORARY)
        return f"no temporary file can be written{where}: free some room there, or set TMPDIR to a folder that has some"
    name = error.filename2 or error.filename  # the file wanted, not the temporary one that was to take its name
    what = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "a file"
    verb = "written" if error.errno in WRITING else "written or read"
    return f"{what} cannot be {verb}: {error.strerror}: {action(error)}"


def action(error: OSError) -> str:
    """What to do about an error of the file system."""
    return ACTIONS.get(error.errno, "mend that, then run the same command again")
