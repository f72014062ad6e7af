"""Keep a command running when its output cannot be written any more."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class LastingStream:
    """A text stream to which writing never fails.

    After the first failure, such as a closed pipe, a closed terminal or a full disk, the rest goes
    nowhere. A failure other than a closed pipe, which `head` causes on purpose, is told once.

    Args:
        stream: The stream.
        name: Its name, for the message.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        """Send what is buffered, and all that follows, nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and self._name != "error":
            reason = error.strerror or error
            print(
                f"warning: the standard {self._name} cannot be written ({reason}); the rest of it "
                "is lost.",
                file=sys.stderr,
            )


def keep_output() -> None:
    """Let the program's standard output and error be lasting streams."""
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, LastingStream(sys.stdout, "output"))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, LastingStream(sys.stderr, "error"))
