"""Fronts that are wrong in one way each: what stands between a client and the manager.

A front takes turns as the manager does. These forget a turn's name, answer before there is an
answer, or go on working after a client was told that the turn is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from kode_lab.errors import DeadlineExceeded, Refused
from kode_lab.faults.site import Altered, Front, Site
from kode_lab.key import SessionKey
from kode_lab.message import Usage
from kode_lab.sessions import TurnEvent, TurnReply
from kode_lab.sessions.lock import KeyedLock

__all__ = [
    "acknowledging_on_enqueue",
    "going_on",
    "leaving_messages",
    "mixing_streams",
    "nameless",
    "one_child",
    "only_stopping",
    "reporting_whole",
    "same_session",
]

_QUEUE_LIMIT = 1_000


def nameless(front: Front, _site: Site) -> Altered:
    """Take each attempt at a turn for a new turn."""
    numbers = count(1)

    async def turn(key: SessionKey, prompt: str, *, turn_id: str | None, **how: Any) -> TurnReply:
        return await front.turn(key, prompt, turn_id=f"{turn_id}, {next(numbers)}", **how)

    return Altered(front, turn=turn)


def reporting_whole(front: Front, _site: Site) -> Altered:
    """Tell clients that every reply is whole."""

    async def turn(key: SessionKey, prompt: str, **how: Any) -> TurnReply:
        return (await front.turn(key, prompt, **how))._replace(stop_reason="end_turn")

    return Altered(front, turn=turn)


def going_on(front: Front, site: Site) -> Altered:
    """Give the session up when a turn's time is up; the work goes on."""
    lock: KeyedLock[SessionKey] = KeyedLock()

    async def turn(
        key: SessionKey, prompt: str, *, deadline_s: float | None, **how: Any
    ) -> TurnReply:
        await lock.hold(key, queue_limit=_QUEUE_LIMIT)
        try:
            work = site.spawn(front.turn(key, prompt, deadline_s=None, **how))
            done, _ = await asyncio.wait((work,), timeout=deadline_s)
            if not done:
                raise DeadlineExceeded(f"{key}: no reply within {deadline_s} s")
            reply: TurnReply = work.result()
            return reply
        finally:
            lock.release(key)

    return Altered(front, turn=turn)


def acknowledging_on_enqueue(front: Front, site: Site) -> Altered:
    """Answer at once, and let several workers do it in whatever order they come to it."""

    async def turn(key: SessionKey, prompt: str, *, turn_id: str | None, **how: Any) -> TurnReply:
        site.spawn(work(key, prompt, {"turn_id": turn_id, **how}))
        return TurnReply(turn_id or "", "accepted", (), Usage(), "", is_replay=False)

    async def work(key: SessionKey, prompt: str, how: dict[str, Any]) -> None:
        await site.io(15)
        await front.turn(key, prompt, **how)

    return Altered(front, turn=turn)


def leaving_messages(front: Front, site: Site) -> Altered:
    """Store the question before it is known whether the turn is accepted."""

    async def turn(key: SessionKey, prompt: str, **how: Any) -> TurnReply:
        try:
            return await front.turn(key, prompt, **how)
        except Refused:
            site.spawn(site.store.litter(key, prompt))
            raise

    return Altered(front, turn=turn)


def only_stopping(front: Any, _site: Site) -> Altered:
    """Stop a turn that is to be rolled back, and keep what it did."""

    async def turn(
        key: SessionKey, prompt: str, *, strategy: str | None = None, **how: Any
    ) -> TurnReply:
        other = "interrupt" if strategy == "rollback" else strategy
        reply: TurnReply = await front.turn(key, prompt, strategy=other, **how)
        return reply

    return Altered(front, turn=turn)


def mixing_streams(front: Any, _site: Site) -> Altered:
    """Send each piece of text to the client that asked last."""
    listeners: list[Callable[[TurnEvent], None]] = []

    async def turn(
        key: SessionKey, prompt: str, *, on_event: Callable[[TurnEvent], None], **how: Any
    ) -> TurnReply:
        def send(event: TurnEvent) -> None:
            listeners[-1](event)

        listeners.append(on_event)
        reply: TurnReply = await front.turn(key, prompt, on_event=send, **how)
        return reply

    return Altered(front, turn=turn)


def same_session(front: Any, _site: Site) -> Altered:
    """Let a sub-agent speak in the session of the turn that waits for it."""
    return Altered(front, sub_session=lambda key: key)


def one_child(front: Front, _site: Site) -> Altered:
    """Take the turns of all sub-agents of a user in one session, whoever asked."""

    async def turn(key: SessionKey, prompt: str, **how: Any) -> TurnReply:
        child = key.session_id.rpartition("/")[2]
        return await front.turn(key._replace(session_id=child), prompt, **how)

    return Altered(front, turn=turn)
