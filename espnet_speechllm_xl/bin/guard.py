"""How every command ends: errors that somebody can mend are one line, with the exit code of their kind."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

OK, SOME_FAILED, WRONG_USE, BROKEN = 0, 1, 2, 3


def run(command: Callable[[], int | None], program: str, bad_input: int = WRONG_USE, tidy: bool = True) -> int:
    """Exit code of ``command()``, which is its value (None: 0) unless it raises.

    Args:
        command: prints its results itself.
        program: begins the lines on standard error.
        bad_input: the exit code of a UserError.
        tidy: SIGTERM removes what is temporary first; False for what has processes that it could not end (training).
    Returns:
        2 also where the disk, the memory or a permission is missing; 130 after Ctrl-C; 1 when nobody reads the output
        any more; 3, with the traceback, of a bug.
    """
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.files import orderly_end

    try:
        with orderly_end() if tidy else contextlib.nullcontext():
            code = command()
            sys.stdout.flush()  # else Python itself does so, with a traceback where the disk is full
        return code or OK
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return bad_input
    except BrokenPipeError:  # whoever read the output is gone
        _drop_output()
        return SOME_FAILED
    except KeyboardInterrupt:
        print(f"{program.removesuffix(': error')}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the last place: whatever a command raises gets its exit code
        return _ended(error, program)


def _ended(error: Exception, program: str) -> int:
    from espnet_speechllm_xl.errors import WRITING, of_machine

    # Files are named by files.py, so what has no name was printed.
    if isinstance(error, OSError) and error.filename is None and error.errno in WRITING:
        error.filename = "the standard output"
        _drop_output()
    line = of_machine(error)
    if line is None:  # Python itself would end with 1, after which recipes go on
        traceback.print_exception(error)
        return BROKEN
    print(f"{program}: {line}", file=sys.stderr)
    return WRONG_USE


def _drop_output() -> None:
    """Python would complain once more, at its end, about what it could not write."""
    with contextlib.suppress(OSError):  # a test's has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
