"""The two exceptions that are answers to the user, not defects."""


class UsageError(ValueError):
    """A mistake that the user can correct.

    The message names the option or file, says what was found and what to do. The command line
    prints it as it is and exits with status 2, without a traceback.
    """


class TrainingStopped(RuntimeError):
    """A run ended before its time, since what it was making had gone bad.

    The message says what was seen, where the checkpoint is and what users usually change. The
    command line prints it as it is and exits with status 3, without a traceback.
    """
