"""Group commit: what arrives while one batch is on its way is sent together as the next batch.

A batch costs one round trip for any number of orders, and no order waits for a timer: the first one
is sent at once, those that come meanwhile are gathered. This file owns which caller gets which
answer; how a batch is sent and what the answers mean is the sender's. A batch that fails for a
reason that may lie in one of its orders is sent again one by one, so that it fails alone.

Source: group commit, Gray and Reuter, "Transaction Processing" (1992).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

Order = TypeVar("Order")
Answer = TypeVar("Answer")

# A message to the database stays well below a megabyte with ordinary turns.
_BATCH_LIMIT = 512


class _Pending(Generic[Order, Answer]):
    """One order, and the future of its answer."""

    __slots__ = ("answer", "is_done", "order")

    def __init__(self, order: Order, answer: asyncio.Future[Answer]) -> None:
        self.order = order
        self.answer = answer
        self.is_done = False

    def tell(self, answer: Answer | Exception) -> None:
        """Set the answer, unless the caller has left."""
        self.is_done = True
        if self.answer.done():
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class GroupCommit(Generic[Order, Answer]):
    """Sends orders in batches, one batch at a time.

    Args:
        send: returns an answer or an exception for each order; raises where all fail.
        may_be_one: whether what ``send`` raised may be the fault of one order alone.
    """

    __slots__ = ("_may_be_one", "_send", "_sender", "_waiting")

    def __init__(
        self,
        send: Callable[[Sequence[Order]], Awaitable[Sequence[Answer | Exception]]],
        *,
        may_be_one: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._send = send
        self._may_be_one = may_be_one
        self._waiting: list[_Pending[Order, Answer]] = []
        self._sender: asyncio.Task[None] | None = None

    def put(self, order: Order) -> asyncio.Future[Answer]:
        """Send the order with the next batch, and return the future of its answer."""
        return self._put(order).answer

    async def do(self, order: Order) -> Answer:
        """Return the answer to the order; a cancellation takes effect only after the answer.

        So the outcome of an order is known, cancelled or not.
        """
        waiting = self._put(order)
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                answer = await waiting.answer
                break
            except asyncio.CancelledError as error:
                cancelled = error
                if waiting.is_done:
                    break
                waiting.answer = asyncio.get_running_loop().create_future()
            except Exception:
                if cancelled is not None:
                    break
                raise
        if cancelled is not None:
            raise cancelled
        return answer

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        while self._sender is not None:
            await asyncio.wait((self._sender,))

    def _put(self, order: Order) -> _Pending[Order, Answer]:
        loop = asyncio.get_running_loop()
        waiting: _Pending[Order, Answer] = _Pending(order, loop.create_future())
        self._waiting.append(waiting)
        if self._sender is None:
            self._sender = loop.create_task(self._run())
        return waiting

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[:_BATCH_LIMIT]
                del self._waiting[:_BATCH_LIMIT]
                await self._send_batch(batch)
        finally:
            self._sender = None

    async def _send_batch(self, batch: list[_Pending[Order, Answer]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._send([waiting.order for waiting in batch])
        except Exception as error:  # noqa: BLE001 - each caller gets it as its answer
            if len(batch) > 1 and self._may_be_one(error):
                for one in batch:
                    await self._send_batch([one])
                return
            answers = [error] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.tell(answer)
