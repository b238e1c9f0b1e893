"""How every command ends: an error that somebody can mend is one line, with the exit code of its kind."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

OK, SOME_FAILED, WRONG_USE, BROKEN, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\
exit codes:
  0    all is done
  1    some inputs failed and are named, the others are done; data, align-report and
       border-report: the data is unusable; nobody reads the output any more
  2    wrong use: an option, a missing or damaged file; or the disk, the memory or a
       permission is missing: the same command goes on from there
  3    a bug; the traceback says where
  130  stopped by Ctrl-C
"""


def run(command: Callable[[], int | None], program: str, bad_input: int = WRONG_USE, tidy: bool = True) -> int:
    """Run a command and return its exit code, one of :data:`EXIT_CODES`.

    Args:
        command: prints its results itself and returns its exit code (None: 0).
        program: text with which every line on standard error begins.
        bad_input: exit code of a UserError.
        tidy: remove temporary files when SIGTERM comes; False for a command whose own processes have to end by
            themselves (training).
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
        return INTERRUPTED
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
    """Send the output nowhere: at its end Python would complain once more about what it could not write."""
    with contextlib.suppress(OSError):  # a test's has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
