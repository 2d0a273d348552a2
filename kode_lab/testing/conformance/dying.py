"""Holders that are killed or paused: the next one continues, and the old one writes nothing more.

It owns the process that holds a session meanwhile, and how the two talk: a pickled order on stdin
first, then one line of JSON for each message.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import pickle
import signal
import sys
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.errors import KodeLabError
from kode_lab.key import SessionKey
from kode_lab.testing.conformance.scene import (
    QUEUE,
    TURN_MESSAGES,
    Contract,
    MakeStore,
    Scene,
    Skipped,
    demand,
)

__all__ = ["DYING"]

# At the first kill the holder has nothing more to do: what it acknowledged must be down already.
_TURNS = (1, 100_000, 100_000)


async def _killed_holder(scene: Scene) -> None:
    key = scene.key()
    store = await scene.store()
    await scene.append(store, key, "t1")
    async with HoldingProcess(scene, key) as process:
        fence = await process.hear()
        waiting = scene.begin(scene.hold(store, key))
        await asyncio.sleep(0)
        process.send(signal.SIGKILL)
        lease = await waiting
        demand(lease.fence > fence, f"the killed holder had fence {fence}, the next {lease.fence}")
        found = await store.load(lease)
        scene.expect(found.messages, ["t1"])
        demand(found.open is not None, "the step that the killed holder had journalled is gone")
        turn, entries = scene.turn("held")
        await store.append(lease, turn, entries[1:])
        store.release(lease)
    scene.expect((await scene.stored(store, key)).messages, ["t1", "held"])


async def _killed_writer(scene: Scene) -> None:
    store = await scene.store()
    for number, turns_limit in enumerate(_TURNS):
        key = scene.key(f"s{number}")
        async with HoldingProcess(scene, key, turns=turns_limit) as process:
            for _ in range(20 * number + 1):
                last = await process.hear()
            await asyncio.sleep(0.0007 * number)  # anywhere in the next turn
            process.send(signal.SIGKILL)
            last = max([last, *await process.rest()])
        found = await scene.stored(store, key)
        turns = len(found.messages) // TURN_MESSAGES
        why = f"turn {last} was acknowledged before the kill, and {turns} turns are there"
        demand(turns > last, why)
        scene.expect(found.messages, [f"t{n}" for n in range(turns)])
        demand(turns <= last + 2, f"{turns} turns are there, of which {last + 1} were acknowledged")


async def _paused_holder(scene: Scene) -> None:
    ttl_s = scene.claims.ttl_s
    if ttl_s is None:
        raise Skipped("the store says that a holder that does not run is never overtaken")
    key = scene.key()
    store = await scene.store()
    await scene.append(store, key, "t1")
    async with HoldingProcess(scene, key) as process:
        fence = await process.hear()
        process.send(signal.SIGSTOP)
        waiting = scene.begin(store.hold(key, queue_limit=1))
        limit_s = ttl_s + scene.claims.patience_s
        await asyncio.wait([waiting], timeout=limit_s)
        demand(waiting.done(), f"the next one waits {limit_s:g} s already, with ttl_s={ttl_s:g}")
        lease = waiting.result()
        demand(lease.fence > fence, f"the paused holder had fence {fence}, the next {lease.fence}")
        await store.load(lease)
        process.send(signal.SIGCONT)
        process.say("go on")
        for _ in range(4):
            name, error = await process.hear()
            demand(error == "StaleLease", f"{name} by the overtaken holder gave {error or 'leave'}")
        await store.append(lease, *scene.turn("t2"))
        store.release(lease)
    scene.expect((await scene.stored(store, key)).messages, ["t1", "t2"])


DYING = (
    Contract(
        "When its holder is killed, the next one gets the session with its open turn.",
        _killed_holder,
    ),
    Contract("What was acknowledged survives kill -9; a torn turn is never seen.", _killed_writer),
    Contract("A holder paused past its time is overtaken, and refused.", _paused_holder),
)


# ---- the process that holds a session


class Order(NamedTuple):
    """What a process shall do.

    Attributes:
        turns: append so many, one after another, and wait; with 0, hold, journal one step, and
            wait for a line.
    """

    make_store: MakeStore
    key: SessionKey
    turns: int


class HoldingProcess:
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

    async def __aenter__(self) -> Self:
        path = os.pathsep.join(filter(None, sys.path))
        self._child = Child((PYTHON_MODULE, __name__), env={"PYTHONPATH": path}, is_piped=True)
        self.say(self._order.decode())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.kill()

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{line}\n".encode())
        self._child.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self._child.is_running:
            os.kill(self._child.pid, number)

    async def hear(self) -> Any:
        """Return its next message.

        Raises:
            Broken: it ended, or sent nothing.
            Skipped: it cannot import what makes the store.
        """
        assert self._child.stdout is not None
        reading = asyncio.to_thread(self._child.stdout.readline)
        line = await self._scene.soon(reading, "a message of the process")
        demand(line, "the process that used the store ended by itself; its stderr says why")
        word = json.loads(line)
        if isinstance(word, dict):
            raise Skipped(f"make_store cannot be used in another process: {word['unusable']}")
        return word

    async def rest(self) -> list[Any]:
        """Return all its messages that are left, after it was killed."""
        assert self._child.stdout is not None
        reading = asyncio.to_thread(self._child.stdout.read)
        rest = await self._scene.soon(reading, "the last messages of the process")
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


if __name__ == "__main__":
    main()
