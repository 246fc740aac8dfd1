"""The error of a user's mistake: one line on the screen and exit code 2, no traceback."""


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, what is allowed and what to do.

    Raised by our own checks only. Any other exception is a fault of the program or the machine: it
    keeps its traceback.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""
