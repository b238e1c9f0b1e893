"""The server of a load test: one that runs already, or a process that is started for the test."""

import collections
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from espnet_speechllm_xl.benchmarks.load_clients import Address
from espnet_speechllm_xl.errors import UserError

ADDRESS = re.compile(r"speechllm-xl serve: (http://\S+)")
REQUEST_SECONDS = 30
STOP_SECONDS = 60  # a server that was told to stop may take so long
LAST_LINES = 3  # of what a server wrote that did not start


class Counters(NamedTuple):
    """What a server's engine has done so far."""

    busy: float  # seconds in which it computed
    calls: float  # of the decoder, for a token
    requests: float  # that these calls answered


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        address: where it is.
        process: its process; None: others started it.
    """

    address: Address
    process: int | None = None

    def counters(self) -> Counters | None:
        """Read what its engine has done so far; None where it does not say."""
        names = ["engine_busy_seconds_total"]
        names += [f'engine_{counter}_total{{kind="token"}}' for counter in ("calls", "requests")]
        try:
            values = dict(re.findall(r"^speechllm_xl_(\S+) (\S+)$", self._get("/metrics"), re.M))
            return Counters(*(float(values.get(name, 0)) for name in names))
        except (OSError, ValueError):
            return None

    def most_streams(self) -> int:
        """Ask how many streams it admits.

        Raises:
            UserError: it does not answer, as it has ended or is another program.
        """
        try:
            state = json.loads(self._get("/health"))
            return int(state["max_streams"])
        except HTTPError as error:
            url = self.address.url
            raise UserError(f"{url}/health answers {error.code}: the server fails or stops: start it anew") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.address.url}/health does not tell the state of a server ({error}): it has ended (memory may "
                "have run out), or it is none of `speechllm-xl serve`"
            ) from error

    def resident_bytes(self) -> int | None:
        """Return its resident set now; None where others started it, or it has ended."""
        import psutil

        if self.process is None:
            return None
        try:
            return psutil.Process(self.process).memory_info().rss
        except psutil.Error:
            return None

    def _get(self, path: str) -> str:
        request = Request(self.address.url.rstrip("/") + path, headers=self.address.headers)
        with urlopen(request, timeout=REQUEST_SECONDS) as response:
            return response.read().decode()


@contextlib.contextmanager
def started(arguments: Sequence[str], token: str | None, query: str) -> Iterator[Server]:
    """Start ``speechllm-xl serve`` and yield the server; it is stopped with the block.

    Its other messages go to standard error.

    Args:
        arguments: of the command.
        token: secret of the server, see :class:`~espnet_speechllm_xl.benchmarks.load_clients.Address`.
        query: settings of the streams, see there.

    Raises:
        UserError: it does not start; it says why.
    """
    command = [sys.executable, "-m", "espnet_speechllm_xl", "serve", *arguments]
    # A process group of its own: Ctrl-C is for the load test, which then stops the server.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", start_new_session=True
    )
    assert process.stderr is not None
    try:
        url = _wait_for_address(process, process.stderr)
        yield Server(Address(url, token, query), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_address(process: "subprocess.Popen[str]", stderr: IO[str]) -> str:
    """Return the address that a server writes when it is ready; from then on its lines are passed on."""
    last = collections.deque[str](maxlen=LAST_LINES)
    for line in stderr:
        if match := ADDRESS.match(line):
            threading.Thread(target=_pass_on, args=(stderr,), daemon=True).start()
            return match[1]
        last.append(line.strip())
    status = process.wait()
    said = re.split(r"speechllm-xl[\w -]*: error: ", " ".join(last))[-1]
    raise UserError(said or f"the server ended with status {status} before it began")


def _pass_on(lines: IO[str]) -> None:
    with contextlib.suppress(ValueError):  # closed at the end
        for line in lines:
            sys.stderr.write(line)
