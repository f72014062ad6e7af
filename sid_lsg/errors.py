"""The one exception that stands for a user's mistake."""


class UsageError(ValueError):
    """A mistake that the user can correct.

    The message names the option or file, says what was found and what to do. The command line
    prints it as it is and exits with status 2, without a traceback.
    """
