"""Where the steps of turns are written: a file, a line each, handed to the system at once.

A turn never fails for its trace. What cannot be written, on a full disk for example, is dropped and
counted; the log says so once, and how much is missing when the file is closed. It knows nothing of
turns.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from kode_lab.errors import StoreUnwritable
from kode_lab.history.span import Span, span_line

__all__ = ["TraceFile"]

_LOG = logging.getLogger("kode_lab.server")


class TraceFile:
    """A file that spans are appended to, beside other processes that append to it.

    Attributes:
        dropped: how many spans could not be written.

    Raises:
        StoreUnwritable: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._is_torn = False
        self.dropped = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StoreUnwritable(
                f"the trace {path.name}: {error.strerror}: choose a path"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it, and say what it lacks."""
        os.close(self._fd)
        if self.dropped:
            _LOG.warning("the trace %s lacks %d steps", self._name, self.dropped)

    def write(self, span: Span) -> None:
        """Append one step, or count it as dropped."""
        line = span_line(span).encode() + b"\n"
        if self._is_torn:  # the line that was cut ends here, and spoils no other one
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._drop(error.strerror or type(error).__name__)
            return
        is_whole = written == len(line)
        if not is_whole:
            self._drop("only a part of a line could be written")
        self._is_torn = not is_whole

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped == 1:
            _LOG.warning(
                "the trace %s: %s: its steps are dropped until it can be written; free some space",
                self._name,
                why,
            )
