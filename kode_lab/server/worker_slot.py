"""What one of several worker processes is told of its place among them, and how it is told.

The parent writes one line of JSON to the worker's standard input and keeps the pipe open: its end
is the parent's end, whatever the parent dies of. A DSN comes this way too, and so stands in no
list of processes.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["Place", "told_place", "words_for"]

_PATHS = ("data", "agents", "auth", "trace")


class Place(NamedTuple):
    """One worker's place.

    Attributes:
        number: its own, from 0.
        of: how many there are.
        directory: of the workers' sockets, which only their user may enter.
        listening: the descriptor of the socket on which all of them accept connections.
    """

    number: int
    of: int
    directory: str
    listening: int

    def socket(self, number: int) -> Path:
        """Return where the worker of that number listens for the others."""
        return Path(self.directory) / f"{number}.sock"


def words_for(options: Namespace, place: Place) -> bytes:
    """Return what is written to a worker."""
    fields = {name: value for name, value in vars(options).items() if name != "run"}
    for name in _PATHS:
        fields[name] = None if fields[name] is None else str(fields[name])
    return json.dumps([place, fields]).encode() + b"\n"


def told_place(pipe: BinaryIO) -> Namespace:
    """Return the server's options as this worker was told them, its place among them.

    Raises:
        InvalidScenario: nobody told it anything that can be used.
    """
    try:
        place, fields = json.loads(pipe.readline())
        for name in _PATHS:
            fields[name] = None if fields[name] is None else Path(fields[name])
        return Namespace(place=Place(*place), **fields)
    except (ValueError, TypeError, KeyError):
        raise InvalidScenario(
            "a worker is started by kode-lab serve --workers N, which tells it its place"
        ) from None
