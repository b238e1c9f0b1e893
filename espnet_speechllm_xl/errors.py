"""The base of all errors that a user can mend, and how they look."""

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
