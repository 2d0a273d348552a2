"""Faults of locks and of names: who is let in when, and which session is which."""

from __future__ import annotations

import asyncio
import posixpath
import unicodedata

from kode_lab.errors import ModelUnavailable
from kode_lab.faults import fronts, locks, stores, torn_stores, wrong_views
from kode_lab.faults.fault import (
    LEAVING,
    PLAIN,
    TWO_PROCESSES,
    Fault,
    named,
)
from kode_lab.faults.scenario import KEYS, Scenario
from kode_lab.faults.site import Parts
from kode_lab.key import SessionKey

__all__ = ["LOCK_FAULTS", "NAME_FAULTS"]

# With longer pauses, a waiting turn would not also wait for its own session.
_PENSIVE = Scenario(think_ms=60, turns=6)


def _stripe(key: SessionKey) -> str:
    """Return one of two names, which follows neither the user nor the session."""
    return str((key.user_id == KEYS[0].user_id) == (key.session_id == KEYS[0].session_id))


_AT_ONCE = ("lost update", "overlap")

LOCK_FAULTS = (
    Fault(
        "no-lock",
        "turns of one session do not wait for each other",
        _AT_ONCE,
        PLAIN,
        Parts(store=lambda store, _: locks.Loose(store, locks.OpenGate())),
    ),
    Fault(
        "lock-per-process",
        "each of two processes has a lock of its own",
        _AT_ONCE,
        TWO_PROCESSES,
        Parts(store=lambda store, _: locks.Loose(store, locks.LockGate(lambda key: key))),
    ),
    Fault(
        "lease-expires-without-fence",
        "a holder that takes long is overtaken, and writes all the same",
        _AT_ONCE,
        PLAIN,
        Parts(store=lambda store, _: locks.Loose(store, locks.ExpiringGate(0.012))),
    ),
    Fault(
        "lock-released-before-write",
        "the lock is released with the reply, and the turn is written after that",
        _AT_ONCE,
        PLAIN,
        Parts(
            store=lambda store, site: locks.EarlyRelease(
                locks.Loose(store, locks.LockGate(lambda key: key)), site
            )
        ),
    ),
    Fault(
        "agent-made-twice",
        "two first turns each make the session's agent: check, then act",
        _AT_ONCE,
        PLAIN,
        Parts(store=lambda store, site: locks.Loose(store, locks.TwiceMadeGate(site))),
    ),
    Fault(
        "evicted-in-flight",
        "the agent of a running turn is evicted, and its lock with it",
        _AT_ONCE,
        PLAIN,
        Parts(store=lambda store, _: locks.Loose(store, locks.EvictingGate(2))),
    ),
    Fault(
        "revision-check-not-atomic",
        "everybody may work; who read an older revision is refused, but the check comes too early",
        ("lost update",),
        PLAIN,
        Parts(
            store=lambda store, site: torn_stores.CheckThenWrite(
                locks.Loose(store, locks.OpenGate()), site
            )
        ),
    ),
    Fault(
        "lock-by-user",
        "all sessions of a user share one lock",
        ("needless serialisation",),
        _PENSIVE,
        Parts(store=lambda store, _: locks.Gated(store, locks.LockGate(lambda key: key.user_id))),
    ),
    Fault(
        "lock-by-session-name",
        "sessions of one name share one lock, whosesoever they are",
        ("needless serialisation",),
        _PENSIVE,
        Parts(
            store=lambda store, _: locks.Gated(store, locks.LockGate(lambda key: key.session_id))
        ),
    ),
    Fault(
        "lock-striped",
        "sessions share two locks by a number that is made of their names",
        ("needless serialisation",),
        _PENSIVE,
        Parts(store=lambda store, _: locks.Gated(store, locks.LockGate(_stripe))),
    ),
    Fault(
        "one-global-lock",
        "all sessions share one lock",
        ("needless serialisation",),
        _PENSIVE,
        Parts(store=lambda store, _: locks.Gated(store, locks.LockGate(lambda _key: "all"))),
    ),
    Fault(
        "last-in-first-out",
        "the newest waiter is served first",
        ("overtaking",),
        # Play and queue are one process: nothing can come between sending and queueing.
        Scenario(clients=4, overtaking_limit=0),
        Parts(store=lambda store, _: locks.Gated(store, locks.LastInFirstOut())),
    ),
    Fault(
        "lock-leaked-on-exception",
        "a turn that fails keeps its lock",
        ("stuck session",),
        Scenario(failing_percent=10),
        Parts(
            store=lambda store, _: stores.Leaking(
                store, lambda error: isinstance(error, ModelUnavailable)
            )
        ),
    ),
    Fault(
        "lock-leaked-on-cancel",
        "a turn that is cancelled keeps its lock",
        ("stuck session",),
        LEAVING,
        Parts(
            store=lambda store, _: stores.Leaking(
                store, lambda error: isinstance(error, asyncio.CancelledError)
            )
        ),
    ),
    Fault(
        "lock-not-reentrant",
        "a sub-agent asks in the session that waits for it",
        ("stuck session",),
        Scenario(is_delegating=True, turns=1),
        Parts(front=lambda front, _: fronts.SameSession(front)),
    ),
)


NAME_FAULTS = (
    Fault(
        "stored-without-user",
        "sessions of one name are stored in one place, whosesoever they are",
        ("cross-session leak",),
        PLAIN,
        Parts(
            store=lambda store, _: wrong_views.Renamed(
                store, lambda key: key._replace(user_id="everybody")
            )
        ),
    ),
    Fault(
        "ambiguous-key",
        "user and session are joined by a character that both may hold",
        ("cross-session leak",),
        Scenario(keys=(named("a:b", "c"), named("a", "b:c"), named("a", "c"))),
        Parts(
            store=lambda store, _: wrong_views.Renamed(
                store, lambda key: named("all", f"{key.user_id}:{key.session_id}")
            )
        ),
    ),
    Fault(
        "case-folded-key",
        "names that differ in case only are one",
        ("cross-session leak",),
        Scenario(keys=(named("Ada", "work"), named("ada", "work"), named("ada", "x"))),
        Parts(
            store=lambda store, _: wrong_views.Renamed(
                store, lambda key: named(key.user_id.casefold(), key.session_id.casefold())
            )
        ),
    ),
    Fault(
        "unicode-folded-key",
        "names that differ in their Unicode form only are one",
        ("cross-session leak",),
        Scenario(
            keys=(named("zo\u00eb", "work"), named("zoe\u0308", "work"), named("zo\u00eb", "x"))
        ),
        Parts(
            store=lambda store, _: wrong_views.Renamed(
                store, lambda key: named(unicodedata.normalize("NFC", key.user_id), key.session_id)
            )
        ),
    ),
    Fault(
        "path-traversal",
        "a session's name walks into another user's directory",
        ("cross-session leak",),
        Scenario(keys=(named("eve", "../bob/work"), named("bob", "work"), named("eve", "work"))),
        Parts(
            store=lambda store, _: wrong_views.Renamed(
                store,
                lambda key: named("all", posixpath.normpath(f"{key.user_id}/{key.session_id}")),
            )
        ),
    ),
    Fault(
        "shared-default-list",
        "all new sessions begin with the same empty list",
        ("cross-session leak",),
        PLAIN,
        Parts(store=lambda store, _: wrong_views.SharedDefault(store)),
    ),
)
