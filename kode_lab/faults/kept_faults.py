"""Faults of what is kept: written too late, by halves, over each other, or in a wrong order."""

from __future__ import annotations

from kode_lab.faults import fronts, locks, stores, torn_stores, wrong_views
from kode_lab.faults.disks import Unsynced
from kode_lab.faults.fault import LEAVING, PLAIN, TWO_PROCESSES, Fault
from kode_lab.faults.scenario import Scenario
from kode_lab.faults.site import Parts

__all__ = ["KEPT_FAULTS"]

_KILL = Scenario(crash="kill", turns=5)

KEPT_FAULTS = (
    Fault(
        "stale-cache",
        "a process trusts its resident agents though another one wrote since",
        ("lost update", "fork"),
        TWO_PROCESSES,
        Parts(store=lambda store, _: stores.Believed(store)),
    ),
    Fault(
        "acknowledged-before-write",
        "a turn is acknowledged, written a while later, and the process is killed between",
        ("lost after acknowledgement",),
        _KILL,
        Parts(
            store=lambda store, site: stores.EarlyAcknowledgement(
                stores.Believed(store), store, site, 30
            )
        ),
    ),
    Fault(
        "directory-not-synced",
        "files are synced and the directories that name them are not; the power goes",
        ("lost after acknowledgement",),
        Scenario(crash="power-cut", turns=5),
        Parts(disk=lambda disk, _: Unsynced(disk)),
    ),
    Fault(
        "full-disk-swallowed",
        "a full disk is not reported; then the process is killed",
        ("lost after acknowledgement",),
        Scenario(crash="kill", turns=12, think_ms=10, has_full_disk=True),
        Parts(store=lambda store, _: stores.Swallowing(stores.Believed(store))),
    ),
    Fault(
        "torn-write",
        "question and answer are two writes, and the process is killed between",
        ("torn turn",),
        _KILL,
        Parts(store=torn_stores.InTwoWrites),
    ),
    Fault(
        "file-cut-short",
        "the whole file is written anew at each turn, and the process is killed meanwhile",
        ("stuck session",),
        _KILL,
        Parts(store=torn_stores.Rewriting),
    ),
    Fault(
        "prompt-stored-first",
        "the question is stored before the reply, where readers see it",
        ("intermediate read",),
        Scenario(is_reading=True),
        Parts(store=lambda store, _: torn_stores.PromptFirst(stores.Believed(store))),
    ),
    Fault(
        "question-stored-twice",
        "a cancelled turn leaves its question, and its next attempt stores it again",
        ("duplicate",),
        LEAVING._replace(attempts=2),
        Parts(
            store=lambda store, _: torn_stores.PromptFirst(
                stores.Believed(store), is_forgetful=True
            )
        ),
    ),
    Fault(
        "refused-turn-leaves-message",
        "the question is stored before it is known whether the turn is accepted",
        ("aborted read",),
        Scenario(strategy="reject", clients=3),
        Parts(
            store=lambda store, _: stores.Littered(store),
            front=fronts.LeavesMessage,
        ),
    ),
    Fault(
        "compaction-outside-lock",
        "a session is rewritten from what it was before the last turns",
        ("lost write", "stale read"),
        PLAIN,
        Parts(store=torn_stores.Compacting),
    ),
    Fault(
        "silent-truncation",
        "the oldest turns are dropped to keep the file small",
        ("lost write",),
        PLAIN,
        Parts(
            store=lambda store, _: stores.Truncating(stores.Believed(store, is_cached=False), 12)
        ),
    ),
    Fault(
        "sorted-by-skewed-clock",
        "turns are sorted by the clocks of processes that are 50 ms apart",
        ("real-time reorder",),
        TWO_PROCESSES,
        Parts(
            store=lambda store, site: wrong_views.SkewedOrder(
                stores.Believed(store, is_cached=False), site, -0.05
            )
        ),
    ),
    Fault(
        "revision-by-skewed-clock",
        "who read before the last write is refused, by clocks that are 50 ms apart",
        ("lost update",),
        TWO_PROCESSES,
        Parts(
            store=lambda store, site: torn_stores.NewestClockWins(
                locks.Loose(store, locks.OpenGate()), site, -0.05
            )
        ),
    ),
    Fault(
        "repeats-dropped",
        "a question in the words of the last one is taken for the same, and dropped",
        ("lost write",),
        PLAIN,
        Parts(
            store=lambda store, _: stores.WithoutRepeats(stores.Believed(store, is_cached=False))
        ),
    ),
    Fault(
        "lagging-replica",
        "histories are read from a copy that is behind",
        ("stale read",),
        Scenario(is_reading=True),
        Parts(store=lambda store, site: wrong_views.Lagging(store, site, 60)),
    ),
    Fault(
        "undeleted",
        "a deleted session comes back when it is used again",
        ("resurrected",),
        Scenario(is_deleting=True),
        Parts(store=lambda store, _: wrong_views.Undeleted(store)),
    ),
)
