"""Exceptions that the command line prints as a message without a traceback."""


class UsageError(ValueError):
    """A mistake that the user can correct.

    The message names the option or file, says what was found and what to do. The command line
    prints it and exits with status 2.
    """


class SharedError(UsageError):
    """A mistake that all processes of a run have found together; the first one prints it."""


class TrainingStopped(RuntimeError):
    """A run was stopped because its generator collapsed or its training became unstable.

    The message says what was found, where the checkpoint is and what usually helps. The command
    line prints it and exits with status 3.
    """


class Interrupted(SystemExit):
    """A signal (SIGTERM or Ctrl-C) ended the program.

    The message says what was saved and how to continue; the command line prints it. `code` is the
    exit status, by convention 128 plus the signal's number. It is a `SystemExit` so that code that
    catches `Exception` does not swallow it, and so that it never prints a traceback. `together`
    says that all processes of a run have agreed to end.
    """

    def __init__(self, message: str, status: int, together: bool = False) -> None:
        super().__init__(status)
        self.message, self.together = message, together

    def __str__(self) -> str:
        return self.message
