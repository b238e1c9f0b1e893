"""Errors that somebody can mend: bad input, and a machine that refuses."""

import errno
import os
import re


class UserError(ValueError):
    """Bad input; the message is one line that names it and the next action."""


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


def of_machine(error: Exception) -> str | None:
    """One line about a file system or a memory that refuses, with the next action; None for any other error."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        said = " ".join(str(error).split())[:200]
        return f"memory is used up{f' ({said})' if said else ''}: give a smaller batch or --nj, or a larger machine"
    # EINVAL: of a file cut short, in which a reader goes to a place before its beginning.
    if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
        return None
    name = error.filename2 or error.filename  # the file wanted, not the temporary one that was to take its name
    what = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "a file"
    verb = "written" if error.errno in WRITING else "written or read"
    return f"{what} cannot be {verb}: {error.strerror}: {action(error)}"


def action(error: OSError) -> str:
    """What to do about an error of the file system."""
    return ACTIONS.get(error.errno, "mend that, then run the same command again")
