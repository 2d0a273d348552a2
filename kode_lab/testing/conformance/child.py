"""A process that holds a session, to be killed or paused by a contract.

It owns how the two talk: a pickled order on stdin first, then a line of JSON each.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import os
import pickle
import signal
import sys
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.errors import KodeLabError
from kode_lab.key import SessionKey
from kode_lab.testing.conformance.scene import QUEUE, MakeStore, Scene, Skipped, demand

__all__ = ["Child", "Order", "main"]


class Order(NamedTuple):
    """What a child is to do.

    Attributes:
        turns: append so many, one after another, and wait; with 0, hold, journal one step, and
            wait for a word.
    """

    make_store: MakeStore
    key: SessionKey
    turns: int


class Child:
    """One such process, from ``async with`` to its end; it never outlives that.

    Raises:
        Skipped: ``make_store`` cannot be sent to a process.
    """

    def __init__(self, scene: Scene, key: SessionKey, *, turns: int = 0) -> None:
        if not scene.claims.is_shared:
            raise Skipped("the store says that one handle can be open at a time")
        try:
            pickled = pickle.dumps(Order(scene.make_store, key, turns))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Skipped(f"make_store cannot be sent to a process: {error}") from None
        self._scene = scene
        self._order = base64.b64encode(pickled)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"from {__name__} import main; main()"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.say(self._order.decode())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.send(signal.SIGKILL)
        assert self._process is not None
        await self._process.communicate()

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it is gone."""
        assert self._process is not None
        if self._process.returncode is None:
            # Its own send_signal would look whether it ended, and take that news from the loop.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def hear(self) -> Any:
        """Return its next word.

        Raises:
            Broken: it ended, or said nothing.
            Skipped: there it cannot import what makes the store.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._scene.soon(self._process.stdout.readline(), "a word of the process")
        demand(line, "the process that used the store ended by itself; its stderr says why")
        word = json.loads(line)
        if isinstance(word, dict):
            raise Skipped(f"make_store cannot be used in another process: {word['unusable']}")
        return word

    async def rest(self) -> list[Any]:
        """Return all its words that are left, after it was killed."""
        assert self._process is not None
        assert self._process.stdout is not None
        rest = await self._scene.soon(self._process.stdout.read(), "the last words of the process")
        return [json.loads(line) for line in rest.splitlines(keepends=True) if line[-1:] == b"\n"]


def main() -> None:
    """Do as ordered."""
    try:
        order = pickle.loads(base64.b64decode(sys.stdin.readline()))  # noqa: S301 - from our parent
    except (AttributeError, ImportError) as error:  # a class of a script or a notebook
        _tell({"unusable": str(error)})
        return
    asyncio.run(_write(order) if order.turns else _wait(order))


async def _write(order: Order) -> None:
    made = order.make_store()
    store = await made if inspect.isawaitable(made) else made
    for number in range(order.turns):
        lease = await store.hold(order.key, queue_limit=QUEUE)
        await store.load(lease)
        await store.append(lease, *Scene.turn(f"t{number}"))
        store.release(lease)
        _tell(number)
    await asyncio.Event().wait()  # to be killed


async def _wait(order: Order) -> None:
    made = order.make_store()
    store = await made if inspect.isawaitable(made) else made
    lease = await store.hold(order.key, queue_limit=QUEUE)
    await store.load(lease)
    turn, entries = Scene.turn("held")
    begun = type(turn)(turn.turn_id, turn.messages[0], turn.version)
    begun.replay(entries[0])
    await store.journal(lease, begun, entries[0])
    _tell(lease.fence)
    # Beside the loop, which may have to say that it lives.
    while await asyncio.to_thread(sys.stdin.readline):
        for name, call in (
            ("journal", partial(store.journal, lease, turn, entries[1])),
            ("append", partial(store.append, lease, turn, entries[1:])),
            ("discard", partial(store.discard, lease)),
            ("delete", partial(store.delete, lease)),
        ):
            try:
                await call()
            except KodeLabError as error:
                _tell([name, type(error).__name__])
            else:
                _tell([name, ""])


def _tell(word: object) -> None:
    sys.stdout.write(f"{json.dumps(word)}\n")
    sys.stdout.flush()
