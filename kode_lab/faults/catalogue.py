"""The fault catalogue: every mistake that the judge has to convict, by its name.

A fault wraps real parts; it is never a switch inside them. Beside each stand the anomalies that
must be found and the scenario that provokes them; its honest twin is the same scenario on the parts
as they are.

Source: the mistakes are those found in public session stores, agent frameworks and queues while
this was designed; the names of the anomalies are the judge's.
"""

from __future__ import annotations

import asyncio
import posixpath
import unicodedata
from functools import partial
from typing import NamedTuple

from kode_lab.check import SAFETY
from kode_lab.errors import InvalidScenario, ModelUnavailable
from kode_lab.faults import fronts, locks, models, stores
from kode_lab.faults.scenario import KEYS, Scenario
from kode_lab.faults.site import Parts
from kode_lab.key import SessionKey

__all__ = ["CATALOGUE", "PLAIN", "Fault", "fault_of"]


class Fault(NamedTuple):
    """One mistake.

    Attributes:
        about: what is wrong, in one clause.
        shows: the anomalies that must be found, each of them; it is known by the first.
        scenario: what provokes it.
        parts: how the real parts are wrapped.
    """

    name: str
    about: str
    shows: tuple[str, ...]
    scenario: Scenario
    parts: Parts


def _key(user: str, session: str) -> SessionKey:
    return SessionKey(user, session, KEYS[0].agent_id)


def _stripe(key: SessionKey) -> str:
    """Return one of two names, which follows neither the user nor the session."""
    return str((key.user_id == KEYS[0].user_id) == (key.session_id == KEYS[0].session_id))


PLAIN = Scenario()
_TWO_PROCESSES = Scenario(processes=2)
_LEAVING = Scenario(hurried_percent=40, is_cancelling=True)
_KILL = Scenario(crash="kill", turns=5)
# With longer pauses, a waiting turn would not also wait for its own session.
_PENSIVE = Scenario(think_ms=60, turns=6)
_AT_ONCE = ("lost update", "overlap")
_LEAK = ("cross-session leak",)
_WAITS = ("needless serialisation",)
_STUCK = ("stuck session",)

_LOCK_FAULTS = (
    Fault(
        "no-lock",
        "turns of one session do not wait for each other",
        _AT_ONCE, PLAIN, Parts(store=locks.loose(lambda: locks.open_gate)),
    ),
    Fault(
        "lock-per-process",
        "each of two processes has a lock of its own",
        _AT_ONCE, _TWO_PROCESSES, Parts(store=locks.loose(locks.lock_gate)),
    ),
    Fault(
        "lease-expires-without-fence",
        "a holder that takes long is overtaken, and writes all the same",
        _AT_ONCE, PLAIN, Parts(store=locks.loose(lambda: locks.expiring_gate(0.012))),
    ),
    Fault(
        "lock-released-before-write",
        "the lock is released with the reply, and the turn is written after that",
        _AT_ONCE, PLAIN, Parts(store=locks.releasing_early),
    ),
    Fault(
        "agent-made-twice",
        "two first turns each make the session's agent: check, then act",
        _AT_ONCE, PLAIN, Parts(store=locks.twice_made),
    ),
    Fault(
        "evicted-in-flight",
        "the agent of a running turn is evicted, and its lock with it",
        _AT_ONCE, PLAIN, Parts(store=locks.loose(lambda: locks.evicting_gate(2))),
    ),
    Fault(
        "revision-check-not-atomic",
        "everybody may work; who read an older revision is refused, but the check comes too early",
        ("lost update",), PLAIN, Parts(store=stores.checking_before_writing),
    ),
    Fault(
        "lock-by-user",
        "all sessions of a user share one lock",
        _WAITS, _PENSIVE, Parts(store=locks.gated(lambda: locks.lock_gate(lambda k: k.user_id))),
    ),
    Fault(
        "lock-by-session-name",
        "sessions of one name share one lock, whosesoever they are",
        _WAITS, _PENSIVE, Parts(store=locks.gated(lambda: locks.lock_gate(lambda k: k.session_id))),
    ),
    Fault(
        "lock-striped",
        "sessions share two locks by a number that is made of their names",
        _WAITS, _PENSIVE, Parts(store=locks.gated(lambda: locks.lock_gate(_stripe))),
    ),
    Fault(
        "one-global-lock",
        "all sessions share one lock",
        _WAITS, _PENSIVE, Parts(store=locks.gated(lambda: locks.lock_gate(lambda _: "all"))),
    ),
    Fault(
        "last-in-first-out",
        "the newest waiter is served first",
        # Play and queue are one process: nothing can come between sending and queueing.
        ("overtaking",), Scenario(clients=4, overtaking_limit=0),
        Parts(store=locks.gated(locks.last_in_first_out)),
    ),
    Fault(
        "lock-leaked-on-exception",
        "a turn that fails keeps its lock",
        _STUCK, Scenario(failing_percent=10),
        Parts(store=stores.forgetting_to_release(ModelUnavailable)),
    ),
    Fault(
        "lock-leaked-on-cancel",
        "a turn that is cancelled keeps its lock",
        _STUCK, _LEAVING, Parts(store=stores.forgetting_to_release(asyncio.CancelledError)),
    ),
    Fault(
        "lock-not-reentrant",
        "a sub-agent asks in the session that waits for it",
        _STUCK, Scenario(is_delegating=True, turns=1), Parts(front=fronts.same_session),
    ),
)  # fmt: skip

_NAME_FAULTS = (
    Fault(
        "stored-without-user",
        "sessions of one name are stored in one place, whosesoever they are",
        _LEAK, PLAIN, Parts(store=stores.renaming(lambda key: key._replace(user_id="everybody"))),
    ),
    Fault(
        "ambiguous-key",
        "user and session are joined by a character that both may hold",
        _LEAK, Scenario(keys=(_key("a:b", "c"), _key("a", "b:c"), _key("a", "c"))),
        Parts(store=stores.renaming(lambda key: _key("all", f"{key.user_id}:{key.session_id}"))),
    ),
    Fault(
        "case-folded-key",
        "names that differ in case only are one",
        _LEAK, Scenario(keys=(_key("Ada", "work"), _key("ada", "work"), _key("ada", "x"))),
        Parts(
            store=stores.renaming(
                lambda key: _key(key.user_id.casefold(), key.session_id.casefold())
            )
        ),
    ),
    Fault(
        "unicode-folded-key",
        "names that differ in their Unicode form only are one",
        _LEAK,
        Scenario(
            keys=(_key("zo\u00eb", "work"), _key("zoe\u0308", "work"), _key("zo\u00eb", "x"))
        ),
        Parts(
            store=stores.renaming(
                lambda key: _key(unicodedata.normalize("NFC", key.user_id), key.session_id)
            )
        ),
    ),
    Fault(
        "path-traversal",
        "a session's name walks into another user's directory",
        _LEAK,
        Scenario(keys=(_key("eve", "../bob/work"), _key("bob", "work"), _key("eve", "work"))),
        Parts(
            store=stores.renaming(
                lambda key: _key("all", posixpath.normpath(f"{key.user_id}/{key.session_id}"))
            )
        ),
    ),
    Fault(
        "shared-default-list",
        "all new sessions begin with the same empty list",
        _LEAK, PLAIN, Parts(store=stores.sharing_a_default),
    ),
)  # fmt: skip

_STORE_FAULTS = (
    Fault(
        "stale-cache",
        "a process trusts its resident agents though another one wrote since",
        ("lost update", "fork"), _TWO_PROCESSES, Parts(store=stores.believed),
    ),
    Fault(
        "acknowledged-before-write",
        "a turn is acknowledged, written a while later, and the process is killed between",
        ("lost after acknowledgement",), _KILL, Parts(store=stores.acknowledging_early),
    ),
    Fault(
        "directory-not-synced",
        "files are synced and the directories that name them are not; the power goes",
        ("lost after acknowledgement",), Scenario(crash="power-cut", turns=5),
        Parts(disk=stores.unsynced),
    ),
    Fault(
        "full-disk-swallowed",
        "a full disk is not reported; then the process is killed",
        ("lost after acknowledgement",),
        Scenario(crash="kill", turns=12, think_ms=10, has_full_disk=True),
        Parts(store=stores.swallowing),
    ),
    Fault(
        "torn-write",
        "question and answer are two writes, and the process is killed between",
        ("torn turn",), _KILL, Parts(store=stores.in_two_writes),
    ),
    Fault(
        "file-cut-short",
        "the whole file is written anew at each turn, and the process is killed meanwhile",
        _STUCK, _KILL, Parts(store=stores.rewriting),
    ),
    Fault(
        "prompt-stored-first",
        "the question is stored before the reply, where readers see it",
        ("intermediate read",), Scenario(is_reading=True), Parts(store=stores.prompt_first),
    ),
    Fault(
        "question-stored-twice",
        "a cancelled turn leaves its question, and its next attempt stores it again",
        ("duplicate",), _LEAVING._replace(attempts=2),
        Parts(store=partial(stores.prompt_first, is_forgetful=True)),
    ),
    Fault(
        "refused-turn-leaves-message",
        "the question is stored before it is known whether the turn is accepted",
        ("aborted read",), Scenario(strategy="reject", clients=3),
        Parts(store=stores.littered, front=fronts.leaving_messages),
    ),
    Fault(
        "compaction-outside-lock",
        "a session is rewritten from what it was before the last turns",
        ("lost write", "stale read"), PLAIN, Parts(store=stores.compacting),
    ),
    Fault(
        "silent-truncation",
        "the oldest turns are dropped to keep the file small",
        ("lost write",), PLAIN, Parts(store=stores.truncating),
    ),
    Fault(
        "sorted-by-skewed-clock",
        "turns are sorted by the clocks of processes that are 50 ms apart",
        ("real-time reorder",), _TWO_PROCESSES, Parts(store=stores.sorted_by_clock),
    ),
    Fault(
        "revision-by-skewed-clock",
        "who read before the last write is refused, by clocks that are 50 ms apart",
        ("lost update",), _TWO_PROCESSES, Parts(store=stores.newest_clock_wins),
    ),
    Fault(
        "repeats-dropped",
        "a question in the words of the last one is taken for the same, and dropped",
        ("lost write",), PLAIN, Parts(store=stores.without_repeats),
    ),
    Fault(
        "lagging-replica",
        "histories are read from a copy that is behind",
        ("stale read",), Scenario(is_reading=True), Parts(store=stores.lagging),
    ),
    Fault(
        "fork-without-the-newest",
        "a copy of a session lacks the turn that was acknowledged last",
        ("broken fork",), Scenario(is_forking=True), Parts(store=stores.forking_short),
    ),
    Fault(
        "undeleted",
        "a deleted session comes back when it is used again",
        ("resurrected",), Scenario(is_deleting=True), Parts(store=stores.undeleting),
    ),
)  # fmt: skip

_TURN_FAULTS = (
    Fault(
        "retry-without-idempotency",
        "a turn that is sent again is taken again",
        ("duplicate", "effect twice"), Scenario(hurried_percent=40, attempts=2),
        Parts(front=fronts.nameless),
    ),
    Fault(
        "time-out-goes-on",
        "a turn whose time was up gives the session away and goes on",
        ("overlap",), Scenario(deadline_s=0.018, turns=5),
        Parts(store=locks.loose(lambda: locks.open_gate), front=fronts.going_on),
    ),
    Fault(
        "acknowledged-on-enqueue",
        "a turn is acknowledged when it is queued, and parallel workers take the queue",
        ("real-time reorder",), PLAIN, Parts(front=fronts.acknowledging_on_enqueue),
    ),
    Fault(
        "rollback-only-stops",
        "a turn that is rolled back is only stopped: what it did stays",
        ("rolled-back turn",), Scenario(strategy="rollback", clients=3),
        Parts(front=fronts.only_stopping),
    ),
    Fault(
        "stream-to-the-last-client",
        "text is streamed to the client that asked last, whosesoever it is",
        ("cross-session leak",), Scenario(is_streaming=True), Parts(front=fronts.mixing_streams),
    ),
    Fault(
        "answers-in-one-variable",
        "the answer of a tool is kept in one variable for all calls",
        ("crossed tool answers",), PLAIN, Parts(tools="one answer"),
    ),
    Fault(
        "configuration-mutated",
        "a session changes the configuration that all share",
        ("configuration drift",), PLAIN, Parts(agents=models.mutating),
    ),
    Fault(
        "configuration-reloaded",
        "the configuration is read anew for each call of a turn",
        ("mixed configuration",), PLAIN, Parts(model=models.reloading_prompt),
    ),
    Fault(
        "cut-reply-told-as-whole",
        "a reply that was cut at its limit is acknowledged as a whole one",
        ("cut reply",), Scenario(cutting_percent=20), Parts(front=fronts.reporting_whole),
    ),
    Fault(
        "memory-written-back",
        "a user's memory is written back whole, and loses what another session added meanwhile",
        ("lost effect",), PLAIN, Parts(tools="memory", store=stores.writing_memories_back),
    ),
    Fault(
        "child-of-any-parent",
        "sub-agents of different sessions speak in one, and are shown each other's words",
        ("cross-session leak",), Scenario(is_delegating=True, turns=2),
        Parts(front=fronts.one_child),
    ),
    Fault(
        "effects-overwritten",
        "a tool reads all notes and writes them back, and loses those that were made meanwhile",
        ("lost effect",), PLAIN, Parts(tools="racing list"),
    ),
    Fault(
        "tool-without-idempotency",
        "a tool call that is made again after a crash acts again",
        ("effect twice",),
        # The crash may come before anything was acknowledged: it need prove no durability.
        Scenario(crash="kill", turns=5, attempts=3, tool_ms=40, guarantees=(*SAFETY, "tools")),
        Parts(tools="without idempotency"),
    ),
    Fault(
        "hidden-retry",
        "the model's client sends a slow request again and joins both replies",
        ("effect twice",), PLAIN, Parts(model=models.retrying_unseen),
    ),
    Fault(
        "module-level-session",
        "a tool keeps its session in one variable for all calls",
        ("tool misattributed",), PLAIN, Parts(tools="module-level session"),
    ),
    Fault(
        "context-of-the-worker",
        "a tool's worker runs in the context of who made the worker",
        ("tool misattributed",), PLAIN, Parts(tools="context of the worker"),
    ),
    Fault(
        "racing-ids",
        "the next id is read, and moved on only after the write",
        ("duplicate id",), PLAIN, Parts(tools="racing ids"),
    ),
    Fault(
        "cached-by-last-message",
        "replies are cached by the last message alone",
        ("foreign reply",), PLAIN, Parts(model=models.caching_replies),
    ),
    Fault(
        "connection-reused-after-cancel",
        "the answer to a cancelled request goes to the next one on its connection",
        ("foreign reply",), _LEAVING, Parts(model=models.reusing_connections),
    ),
)  # fmt: skip

CATALOGUE = {
    fault.name: fault for fault in (*_LOCK_FAULTS, *_NAME_FAULTS, *_STORE_FAULTS, *_TURN_FAULTS)
}


def fault_of(name: str) -> Fault:
    """Return the fault of that name.

    Raises:
        InvalidScenario: there is none; the message lists those there are.
    """
    if name not in CATALOGUE:
        raise InvalidScenario(f"there is no fault {name!r:.60}: name one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
