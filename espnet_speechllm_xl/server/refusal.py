"""Why the server ends a stream or refuses a request."""

from espnet_speechllm_xl.errors import UserError

# code: (WebSocket close code, HTTP status)
CODES = {
    "unauthorized": (1008, 401),
    "foreign-origin": (1008, 403),
    "unknown-host": (1008, 403),
    "bad-setting": (1008, 400),
    "bad-rate": (1003, 400),
    "bad-message": (1007, 400),
    "bad-audio": (1007, 400),
    "too-big": (1009, 413),
    "too-long": (1008, 413),
    "idle": (1008, 408),
    "full": (1013, 503),
    "stopping": (1001, 503),
    "failed": (1011, 500),
}


class Refusal(UserError):
    """An error that a client is told about.

    Args:
        code: for programs, a key of :data:`CODES`.
        message: for people: what is wrong and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.close, self.status = CODES[code]
