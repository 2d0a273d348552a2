"""A contract, and what it works with: handles on one storage, keys of its own, turns to write.

It owns the handles and the tasks that a contract begins, and ends them in any case; and the results
as data, with the text that is made of them. It knows no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from kode_lab.key import SessionKey
from kode_lab.message import Message, ToolResult, Usage, assistant, user
from kode_lab.sessions.open_turn import Finished, OpenTurn
from kode_lab.sessions.store import Lease, Store, Stored

__all__ = [
    "QUEUE",
    "TURN_MESSAGES",
    "Broken",
    "Claims",
    "ConformanceReport",
    "Contract",
    "ContractResult",
    "Handle",
    "HeldFlow",
    "MakeStore",
    "Scene",
    "Skipped",
    "demand",
]

MakeStore: TypeAlias = Callable[[], Store | Awaitable[Store]]
T = TypeVar("T")

# More than any contract lets wait.
QUEUE = 100
# Of the turns that ``Scene.turn`` gives: prompt, call, result, reply.
TURN_MESSAGES = 4
_LOOK_S = 0.002
_SIGNS = {"kept": "kept    ", "broken": "BROKEN  ", "skipped": "skipped "}
# Attempts to cancel: so many ticks of the loop first, then times that grow to some seconds.
_CANCELS, _TICKS = 60, 24
_FIRST_S, _GROWTH = 0.0001, 1.33


class Broken(Exception):
    """The store does not keep the contract; the message says how that was seen."""


class Skipped(Exception):
    """The contract cannot be tried on this store; the message says why."""


class HeldFlow(Protocol):
    """A handle whose way to its storage can be interrupted."""

    @property
    def store(self) -> Store:
        """The handle."""
        ...

    def hold_back(self) -> None:
        """Hold the next write back, until ``deliver``; its sender gets an error."""
        ...

    def let_pass(self) -> None:
        """Let later writes pass, but not the one that is held back."""
        ...

    async def deliver(self) -> None:
        """Let what was held back arrive, and wait until the storage has handled it."""
        ...


class Claims(NamedTuple):
    """What a store says of itself, beyond what all must keep.

    Attributes:
        is_shared: several handles can be open at once, and so several processes.
        apart_s: a caller that asks this much earlier is served first, in whichever handle; None:
            between handles each caller is served at some time, in no promised order.
        ttl_s: after this time a holder that does not run is overtaken; None: it never is.
        patience_s: after this time what should happen counts as never happening.
        delayed: opens a handle whose writes can be held back; None: there is no such way.
        copied: copies the storage as it is now, and returns a function that puts the copy in its
            place; None: it cannot be set back.
        at: opens a handle on a directory that holds everything; None: there is no such directory.
    """

    is_shared: bool = True
    apart_s: float | None = None
    ttl_s: float | None = None
    patience_s: float = 10.0
    delayed: Callable[[], AbstractAsyncContextManager[HeldFlow]] | None = None
    copied: Callable[[], Awaitable[Callable[[], Awaitable[None]]]] | None = None
    at: Callable[[Path], Store] | None = None


def demand(holds: object, why: str) -> None:
    """Raise ``Broken`` unless this holds."""
    if not holds:
        raise Broken(why)


# What a contract awaits of a handle, and so must end in time; it may wait for a hold on purpose.
_TIMED = ("load", "journal", "append", "discard", "delete", "peek", "rewind", "fill", "amend",
          "read_memory", "write_memory")  # fmt: skip


class Handle:
    """A handle on the storage: each call but ``hold`` must end within ``patience_s``.

    Attributes:
        inner: the store itself, for calls that are cancelled on purpose.
    """

    def __init__(self, scene: Scene, inner: Store) -> None:
        self._scene = scene
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in _TIMED:
            return method
        return lambda *arguments, **options: self._scene.soon(method(*arguments, **options), name)


class Scene:
    """What one contract works with.

    Attributes:
        name: of the user that is this contract's own.
    """

    def __init__(self, make_store: MakeStore, claims: Claims, name: str) -> None:
        self.make_store = make_store
        self.claims = claims
        self.name = name
        self._open: list[Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []

    # ---- handles

    async def store(self) -> Handle:
        """Open one more handle.

        Raises:
            Skipped: there is one already, and the store is not shared.
        """
        if self._open and not self.claims.is_shared:
            raise Skipped("the store says that one handle can be open at a time")
        made = self.make_store()
        store = Handle(self, await made if inspect.isawaitable(made) else made)
        self._open.append(store)
        return store

    async def stores(self) -> tuple[Handle, Handle]:
        """Open two handles, which stand for two processes."""
        return await self.store(), await self.store()

    async def perhaps_another(self, store: Handle) -> Handle:
        """Return a second handle where there can be one, else the same."""
        return await self.store() if self.claims.is_shared else store

    async def reopened(self, store: Handle) -> Handle:
        """Close this handle and open another."""
        await self.close(store)
        return await self.store()

    async def close(self, store: Handle) -> None:
        """Close this handle."""
        self._open.remove(store)
        await self.soon(store.aclose(), "aclose")

    async def aclose(self) -> None:
        """End everything that the contract began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for store in self._open:
            with contextlib.suppress(Exception):  # the result says already what is wrong
                await asyncio.wait_for(store.aclose(), self.claims.patience_s)

    # ---- time

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ends with the scene at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def soon(self, work: Awaitable[T], what: str) -> T:
        """Wait for what must happen within ``patience_s``."""
        limit_s = self.claims.patience_s
        # Not wait_for: a TimeoutError of the store itself must stay one.
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

    async def waits(self, store: Handle, number: int) -> None:
        """Wait until so many wait in the handle."""
        await self.until(
            lambda: store.statistics().waiting == number, f"statistics().waiting == {number}"
        )

    async def try_cancelling(
        self, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> AsyncIterator[Any]:
        """Start the work again and again, cancel it later each time, and yield the task.

        The last one ended before it was cancelled. Work of the loop alone is cancelled at each of
        its awaits; work that waits for a disk or a network at times that grow by a third.
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

    async def hold(self, store: Handle | Store, key: SessionKey, queue_limit: int = QUEUE) -> Lease:
        """Hold the session, soon."""
        holding: Awaitable[Lease] = store.hold(key, queue_limit=queue_limit)
        lease = await self.soon(holding, f"hold of {key}")
        demand(lease.key == key, f"hold of {key} gave a lease of {lease.key}")
        return lease

    @asynccontextmanager
    async def held(
        self, store: Handle | Store, key: SessionKey
    ) -> AsyncIterator[tuple[Lease, Stored]]:
        """Hold the session and load it; release it in the end."""
        lease = await self.hold(store, key)
        try:
            yield lease, await self.soon(store.load(lease), "load")
        finally:
            store.release(lease)

    async def append(
        self, store: Handle | Store, key: SessionKey, turn_id: str, text: str = ""
    ) -> Finished:
        """Hold the session, append a turn, and release."""
        async with self.held(store, key) as (lease, _):
            return await self.soon(store.append(lease, *self.turn(turn_id, text)), "append")

    async def stored(self, store: Handle | Store, key: SessionKey) -> Stored:
        """Hold the session, load it, and release."""
        async with self.held(store, key) as (_, found):
            return found

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


class ContractResult(NamedTuple):
    """The result of one contract.

    Attributes:
        status: ``kept``, ``broken``, or ``skipped`` where the store says that it does not apply.
        why: how it was broken, or why it was skipped; empty when it was kept.
    """

    sentence: str
    status: Literal["kept", "broken", "skipped"]
    why: str = ""


class Contract(NamedTuple):
    """One promise.

    Attributes:
        sentence: the promise, true of a store that keeps it.
    """

    sentence: str
    trial: Callable[[Scene], Awaitable[None]]

    async def check(self, make_store: MakeStore, claims: Claims | None = None) -> ContractResult:
        """Try it on the store. An exception where the store should not raise breaks it, too."""
        scene = Scene(make_store, claims or Claims(), f"conformance-{os.urandom(6).hex()}")
        try:
            await self.trial(scene)
        except Skipped as skipped:
            return ContractResult(self.sentence, "skipped", str(skipped))
        except Broken as broken:
            return ContractResult(self.sentence, "broken", str(broken))
        except Exception as error:  # noqa: BLE001 - it is the result
            return ContractResult(
                self.sentence, "broken", f"it raised {type(error).__name__}: {error}"
            )
        finally:
            await scene.aclose()
        return ContractResult(self.sentence, "kept")


class ConformanceReport(NamedTuple):
    """The results of all contracts; as text, one line each."""

    outcomes: tuple[ContractResult, ...]

    @property
    def is_conformant(self) -> bool:
        """Whether no contract was broken, and at least one was tried."""
        tried = [outcome.status for outcome in self.outcomes if outcome.status != "skipped"]
        return bool(tried) and "broken" not in tried

    def to_json(self) -> list[dict[str, Any]]:
        """Return the outcomes as JSON objects."""
        return [outcome._asdict() for outcome in self.outcomes]

    def __str__(self) -> str:
        lines = []
        for outcome in self.outcomes:
            lines.append(f"{_SIGNS[outcome.status]} {outcome.sentence}")
            if outcome.why:
                lines.append(f"          {outcome.why}")
        counts = [
            f"{sum(outcome.status == status for outcome in self.outcomes)} {status}"
            for status in _SIGNS
        ]
        return "\n".join([*lines, ", ".join(counts)])
