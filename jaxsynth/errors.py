"""The one exception for a user's mistake."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that names it, what was expected and what came.

    Raised by any layer. The commands print the line and exit with status 2 (`cli.run`); every other exception
    is a bug and keeps its traceback.
    """
