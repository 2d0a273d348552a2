"""Faults of turns, tools and models: done twice, for somebody else, or behind one's back."""

from __future__ import annotations

from kode_lab.check import SAFETY
from kode_lab.faults import fronts, locks, models
from kode_lab.faults.fault import LEAVING, PLAIN, Fault
from kode_lab.faults.scenario import Scenario
from kode_lab.faults.site import Parts

__all__ = ["TURN_FAULTS"]

TURN_FAULTS = (
    Fault(
        "retry-without-idempotency",
        "a turn that is sent again is taken again",
        ("duplicate", "effect twice"),
        Scenario(hurried_percent=40, attempts=2),
        Parts(front=lambda front, _: fronts.Nameless(front)),
    ),
    Fault(
        "time-out-goes-on",
        "a turn whose time was up gives the session away and goes on",
        ("overlap",),
        Scenario(deadline_s=0.018, turns=5),
        Parts(
            store=lambda store, _: locks.Loose(store, locks.OpenGate()),
            front=fronts.GoesOn,
        ),
    ),
    Fault(
        "acknowledged-on-enqueue",
        "a turn is acknowledged when it is queued, and parallel workers take the queue",
        ("real-time reorder",),
        PLAIN,
        Parts(front=fronts.AcknowledgedOnEnqueue),
    ),
    Fault(
        "configuration-mutated",
        "a session changes the configuration that all share",
        ("configuration drift",),
        PLAIN,
        Parts(agents=models.Mutated),
    ),
    Fault(
        "configuration-reloaded",
        "the configuration is read anew for each call of a turn",
        ("mixed configuration",),
        PLAIN,
        Parts(model=lambda model, _: models.ReloadedPrompt(model, 7)),
    ),
    Fault(
        "cut-reply-told-as-whole",
        "a reply that was cut at its limit is acknowledged as a whole one",
        ("cut reply",),
        Scenario(cutting_percent=20),
        Parts(front=lambda front, _: fronts.SaysWhole(front)),
    ),
    Fault(
        "effects-overwritten",
        "a tool reads all notes and writes them back, and loses those that were made meanwhile",
        ("lost effect",),
        PLAIN,
        Parts(tools="racing list"),
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
        ("effect twice",),
        PLAIN,
        Parts(model=lambda model, _: models.HiddenRetry(model, 0.006)),
    ),
    Fault(
        "module-level-session",
        "a tool keeps its session in one variable for all calls",
        ("tool misattributed",),
        PLAIN,
        Parts(tools="module-level session"),
    ),
    Fault(
        "context-of-the-worker",
        "a tool's worker runs in the context of who made the worker",
        ("tool misattributed",),
        PLAIN,
        Parts(tools="context of the worker"),
    ),
    Fault(
        "racing-ids",
        "the next id is read, and moved on only after the write",
        ("duplicate id",),
        PLAIN,
        Parts(tools="racing ids"),
    ),
    Fault(
        "cached-by-last-message",
        "replies are cached by the last message alone",
        ("foreign reply",),
        PLAIN,
        Parts(model=lambda model, _: models.CachedReplies(model)),
    ),
    Fault(
        "connection-reused-after-cancel",
        "the answer to a cancelled request goes to the next one on its connection",
        ("foreign reply",),
        LEAVING,
        Parts(model=models.ReusedConnections),
    ),
)
