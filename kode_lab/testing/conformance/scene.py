"""What a contract works with: handles on one storage, keys of its own, and turns to write.

It owns the handles and the tasks that a contract begins, and ends them whatever comes of it. It
knows no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from kode_lab.key import SessionKey
from kode_lab.message import Message, ToolResult, Usage, assistant, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = ["QUEUE", "TURN_MESSAGES", "Broken", "Claims", "MakeStore", "Scene", "Skipped", "demand"]

MakeStore: TypeAlias = Callable[[], Store | Awaitable[Store]]
T = TypeVar("T")

# More than any contract lets wait.
QUEUE = 100
# Of the turns that ``Scene.turn`` gives: prompt, call, result, reply.
TURN_MESSAGES = 4
_LOOK_S = 0.002
# Attempts to cancel: so many ticks of the loop first, then times that grow to some seconds.
_CANCELS, _TICKS = 60, 24
_FIRST_S, _GROWTH = 0.0001, 1.33


class Broken(Exception):
    """The store does not keep the contract; the message says how that was seen."""


class Skipped(Exception):
    """The contract cannot be tried on this store; the message says why."""


class Claims(NamedTuple):
    """What a store says of itself, beyond what all must keep.

    Attributes:
        is_shared: several handles can be open at once, and so several processes.
        apart_s: who asks this much earlier comes first, in whichever handle; None: between handles
            nobody starves, and that is all.
        ttl_s: after this time a holder that does not run is overtaken; None: it never is.
        patience_s: after this time what should come counts as never coming.
    """

    is_shared: bool = True
    apart_s: float | None = None
    ttl_s: float | None = None
    patience_s: float = 10.0


def demand(holds: object, why: str) -> None:
    """Say that the contract is broken unless this holds."""
    if not holds:
        raise Broken(why)


class Scene:
    """The world of one contract.

    Attributes:
        name: of the user that is this contract's own.
    """

    def __init__(self, make_store: MakeStore, claims: Claims, name: str) -> None:
        self.make_store = make_store
        self.claims = claims
        self.name = name
        self._open: list[Store] = []
        self._tasks: list[asyncio.Task[Any]] = []

    # ---- handles

    async def store(self) -> Store:
        """Open one more handle.

        Raises:
            Skipped: there is one already, and the store is not shared.
        """
        if self._open and not self.claims.is_shared:
            raise Skipped("the store says that one handle can be open at a time")
        made = self.make_store()
        store = await made if inspect.isawaitable(made) else made
        self._open.append(store)
        return store

    async def stores(self) -> tuple[Store, Store]:
        """Open two handles, which stand for two processes."""
        return await self.store(), await self.store()

    async def perhaps_another(self, store: Store) -> Store:
        """Return a second handle where there can be one, else the same."""
        return await self.store() if self.claims.is_shared else store

    async def reopened(self, store: Store) -> Store:
        """Close this handle and open another."""
        await self.close(store)
        return await self.store()

    async def close(self, store: Store) -> None:
        """Close this handle."""
        self._open.remove(store)
        await self.soon(store.aclose(), "aclose")

    async def aclose(self) -> None:
        """End what the contract began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for store in self._open:
            with contextlib.suppress(Exception):  # the contract has said already what is wrong
                await asyncio.wait_for(store.aclose(), self.claims.patience_s)

    # ---- time

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something that goes on beside; it ends with the scene."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def soon(self, work: Awaitable[T], what: str) -> T:
        """Wait for what must come within the patience."""
        limit_s = self.claims.patience_s
        # Not wait_for: a store whose own limit ran out is another matter.
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait([task], timeout=limit_s)
        if not done:
            task.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.wait([task], timeout=limit_s)
        demand(done, f"{what} did not end within patience_s={limit_s:g}")
        return task.result()

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a state that sends no event."""
        until_s = time.monotonic() + self.claims.patience_s
        while not holds():
            why = f"{what}: not seen within patience_s={self.claims.patience_s:g}"
            demand(time.monotonic() < until_s, why)
            await asyncio.sleep(_LOOK_S)

    async def waits(self, store: Store, number: int) -> None:
        """Wait until so many wait in the handle."""
        await self.until(
            lambda: store.statistics().waiting == number, f"statistics().waiting == {number}"
        )

    async def try_cancelling(
        self, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> AsyncIterator[Any]:
        """Begin the work again and again, cancel it ever later, and give the task each time.

        The last one was not cancelled any more. What runs on the loop alone is cancelled at each of
        its awaits; what waits for a disk or a network is cancelled at times that grow by a third.
        """
        for number in range(_CANCELS):
            task = self.begin(work())
            if number < _TICKS:
                for _ in range(number):
                    await asyncio.sleep(0)
            else:
                await asyncio.wait([task], timeout=_FIRST_S * _GROWTH ** (number - _TICKS))
            is_last = task.done()
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=self.claims.patience_s)
            demand(done, f"what was cancelled goes on after {self.claims.patience_s:g} s")
            yield task
            if is_last:
                return
        raise Broken(f"it did not end in {_CANCELS} attempts, the last one of some seconds")

    # ---- keys and turns

    def key(self, session: str = "s", agent: str = "a", user_id: str = "") -> SessionKey:
        """Return a key that no other contract uses."""
        return SessionKey.of(f"{self.name}{user_id}", agent, session)

    @staticmethod
    def turn(turn_id: str, text: str = "") -> tuple[OpenTurn, list[dict[str, Any]]]:
        """Return a finished turn of ``TURN_MESSAGES`` messages, and its entries for the journal."""
        turn = OpenTurn(turn_id, user(f"prompt of {turn_id} {text}"), "v1")
        call = {"type": "tool_use", "id": f"c-{turn_id}", "name": "note", "input": {"text": text}}
        asked = {"role": "assistant", "content": [call]}
        entries = [turn.reply_entry(asked, Usage(3, 2))]
        turn.add_reply(asked, Usage(3, 2))
        result = ToolResult(f"c-{turn_id}", f"noted {text}")
        turn.add_result(result)
        entries.append(turn.result_entry(result))
        said = assistant(f"reply of {turn_id} {text}")
        turn.add_reply(said, Usage(5, 1))
        return turn, [*entries, turn.reply_entry(said, Usage(5, 1))]

    async def hold(self, store: Store, key: SessionKey, queue_limit: int = QUEUE) -> Lease:
        """Hold the session, soon."""
        lease = await self.soon(store.hold(key, queue_limit=queue_limit), f"hold of {key}")
        demand(lease.key == key, f"hold of {key} gave a lease of {lease.key}")
        return lease

    async def append(self, store: Store, key: SessionKey, turn_id: str, text: str = "") -> Finished:
        """Hold the session, append a turn, and release."""
        lease = await self.hold(store, key)
        try:
            await self.soon(store.load(lease), "load")
            turn, entries = self.turn(turn_id, text)
            return await self.soon(store.append(lease, turn, entries), "append")
        finally:
            store.release(lease)

    async def stored(self, store: Store, key: SessionKey) -> Stored:
        """Hold the session, load it, and release."""
        lease = await self.hold(store, key)
        try:
            return await self.soon(store.load(lease), "load")
        finally:
            store.release(lease)

    def expect(self, found: Sequence[Message], turn_ids: Sequence[str], text: str = "") -> None:
        """Demand that the conversation is these turns and no other, whole."""
        wanted = [message for one in turn_ids for message in self.turn(one, text)[0].messages]
        if list(found) == wanted:
            return
        prompts = [str(m["content"])[:60] for m in found if m["role"] == "user"]
        raise Broken(
            f"the conversation should be the turns {list(turn_ids)!r:.200}, so {len(wanted)} "
            f"messages; it has {len(found)}, of the user: {prompts!r:.300}"
        )
