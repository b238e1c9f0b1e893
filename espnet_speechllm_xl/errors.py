"""The base of all errors that a user can mend, and what their messages share."""


class UserError(ValueError):
    """Bad input; the message is one line that names it and the next action."""


def beside(value: float, limit: float, digits: int = 3) -> str:
    """Return ``value`` with so many decimals, or with as many more as it takes to differ from ``limit``."""
    texts = (f"{value:.{number}f}" for number in range(digits, 17))
    return next((text for text in texts if float(text) != limit), repr(value))
