"""The exceptions that are answers to the user, not defects."""


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


class Interrupted(SystemExit):
    """A signal ended the program before its time: SIGTERM, or Ctrl-C.

    The message says what was saved and how to continue; the command line prints it. `code` is the
    status to exit with, by convention 128 plus the signal's number. It is a `SystemExit` so that
    nothing that catches every `Exception` swallows it, and so that it never ends in a traceback.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message

    def __str__(self) -> str:
        return self.message
