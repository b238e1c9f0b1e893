"""A disk that is full, for tests: no file of this process, and of those it starts, may become longer than a limit."""

import contextlib
import resource


@contextlib.contextmanager
def longest_file(size):
    """Writing beyond ``size`` bytes raises OSError (EFBIG) within the block, as it does with ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
