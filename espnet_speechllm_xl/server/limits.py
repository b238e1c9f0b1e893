"""The limits of the server, which are the options of ``speechllm-xl serve``."""

import dataclasses
import re
from dataclasses import dataclass

from espnet_speechllm_xl.settings import option, require

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # browsers leave them out


def _origin(text: str) -> str:
    """Return an origin as browsers write it; raise ConfigError if the text is no origin."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^\s/?#@]+)/?", text.strip().lower())
    require(
        match or text.strip() == "*",
        f"allow_origin '{text}' is no origin: give scheme://name[:port], such as https://a.example",
    )
    if not match:
        return "*"
    scheme, place = match.groups()
    return f"{scheme}://{place.removesuffix(DEFAULT_PORTS.get(scheme, '/'))}"


@dataclass(frozen=True)
class ServerConfig:
    """The limits and the address of a server; each field is an option of the command.  Infinity means no limit."""

    host: str = option("127.0.0.1", "address to listen on; where other machines reach it, give a --token")
    port: int = option(8000, "0: any free one")
    token: str | None = option(None, "secret that clients must send as 'Authorization: Bearer TOKEN' or '?token=TOKEN'")
    allow_origin: tuple[str, ...] = option(
        (), "origin, scheme://name[:port], whose pages may use the server; may be given several times; '*': any"
    )
    handshake_seconds: float = option(10.0, "a request's line and headers may take so long; then it is closed")
    max_streams: int = option(32, "live streams at a time; more are refused")
    max_message_bytes: int = option(1 << 20, "longest message of a stream")
    max_queue_seconds: float = option(10.0, "audio of a stream that may wait to be decoded; then it is not read on")
    max_span_seconds: float = option(
        60.0, "longest window (chunk and context), stream segment and settle_seconds of a stream"
    )
    max_prompt_tokens: int = option(256, "longest prompt of a stream or file; every chunk costs attention to it")
    max_phrases: int = option(10000, "phrases of a stream or file; more are refused")
    idle_seconds: float = option(30.0, "a stream without audio for so long is ended")
    max_stream_seconds: float = option(14400.0, "a stream is ended after so much audio, or time")
    send_seconds: float = option(10.0, "a client that reads no results for so long is dropped")
    max_files: int = option(4, "whole files decoded at a time; more are refused")
    max_file_bytes: int = option(25 << 20, "largest file; it is held in memory")
    max_file_seconds: float = option(3600.0, "longest audio of a file")
    upload_seconds: float = option(120.0, "a file's upload may take so long")
    shutdown_seconds: float = option(30.0, "decoding the audio sent before SIGTERM may take so long")

    def __post_init__(self) -> None:
        # An unset variable of a shell must not open the server: "" would mean every address, and no token.
        require(self.host.strip(), "host is empty: give an address of this machine (0.0.0.0: all of them)")
        require(self.token is None or self.token.strip(), "token is empty: give one, or leave --token out")
        require(0 <= self.port <= 65535, f"port {self.port} is not in 0 .. 65535")
        object.__setattr__(self, "allow_origin", tuple(map(_origin, self.allow_origin)))
        require(self.token or "*" not in self.allow_origin, "allow_origin '*': any page could listen: give a --token")
        for field in dataclasses.fields(self):
            if field.type in (int, float) and field.name != "port":
                require(getattr(self, field.name) > 0, f"server {field.name} must be positive")
