"""A terminal for commands that might ask it something."""

import os
import pty
import select
import signal
import subprocess
import time


def run_at_terminal(command, cwd, env, seconds=240):
    """The ended process, with all output as ``stdout``; its three standard streams are a terminal at which nobody sits.

    Fails where the command does not end by itself: it waits for an answer.
    """
    ours, its = pty.openpty()
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=cwd, env=env, start_new_session=True)
    os.close(its)
    output, end = b"", time.monotonic() + seconds
    try:
        while select.select([ours], [], [], max(0, end - time.monotonic()))[0]:
            output += os.read(ours, 65536)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"it waits: {output.decode(errors='replace')[-2000:]}")
    except OSError:  # every process that had the terminal has ended
        pass
    finally:
        os.close(ours)
    text = output.decode().replace("\r\n", "\n")
    return subprocess.CompletedProcess(command, process.wait(timeout=60), stdout=text)
