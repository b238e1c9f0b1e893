"""The base of all errors that a user can mend."""


class UserError(ValueError):
    """Bad input; the message is one line that names it and the next action."""
