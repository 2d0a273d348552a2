"""What the judge must say of small traces: overlap and needless serialisation, and what is neither.

A trace is a list of turns: (session key, turn id, began to wait, began to work, ended).
"""

from kode_lab.check.ascii_history import drawn
from kode_lab.history.span import Span
from kode_lab.key import SessionKey

ADA, BOB = SessionKey("ada", "1", "agent"), SessionKey("bob", "1", "agent")
# What clients saw of it is beyond doubt.
FINE = drawn(
    """
    ada:1  |--a--|                    -> a
    ada:1    |--b--|                  -> a b
    ada:1             |-=-|           -> a b
    """
)


def spans_of(key, turn_id, waited, began, ended):
    middle = (began + ended) // 2
    return [
        Span(key, turn_id, "turn", waited, ended + 1),
        Span(key, turn_id, "wait", waited, began),
        Span(key, turn_id, "ask", began, middle),
        Span(key, turn_id, "commit", middle, ended),
    ]


def one_after_another(keys):
    """Return turns that all wait from the beginning and are served in a row, without a gap."""
    return [(key, f"t{at}", at, at * 20, at * 20 + 20) for at, key in enumerate(keys)]


def keys(*names):
    return [SessionKey(*name.split(":"), "a") for name in names]


FOUR = keys("1:1", "2:2", "3:3", "4:1")
OF_ADA = keys("ada:1", "ada:2", "ada:3", "ada:4")
NAMED_1 = keys("a:1", "b:1", "c:1", "d:1")
FREE = (SessionKey("free", "free", "a"), "free", 0, 0, 70)  # works beside all the others

TRACES = {
    "two turns of one session at work together": (
        [(ADA, "t1", 0, 0, 20), (ADA, "t2", 5, 19, 30)],
        {"overlap": 1},
    ),
    "a turn that waits for its predecessor": (
        [(ADA, "t1", 0, 0, 20), (ADA, "t2", 5, 20, 30)],
        {},
    ),
    "two agents of one session, which share its lock": (
        [(ADA, "t1", 0, 0, 20), (ADA._replace(agent_id="other"), "t2", 5, 19, 30)],
        {"overlap": 1},
    ),
    "sessions of one name of two users": ([(ADA, "t1", 0, 0, 20), (BOB, "t2", 5, 5, 30)], {}),
    "an attempt in the background beside its retry": (
        [(ADA, "t1", 0, 0, 20), (ADA, "t1", 10, 15, 40)],
        {"overlap": 1},
    ),
    "a long turn over two short ones": (
        [(ADA, "t1", 0, 0, 90), (ADA, "t2", 0, 10, 20), (ADA, "t3", 0, 80, 95)],
        {"overlap": 1},
    ),
    "one lock for all": (one_after_another(FOUR), {"needless serialisation": 1}),
    "one lock for all, who are one user": (
        one_after_another(OF_ADA),
        {"needless serialisation": 1},
    ),
    "one lock for a user": ([*one_after_another(OF_ADA), FREE], {"needless serialisation": 1}),
    "one lock for a name": ([*one_after_another(NAMED_1), FREE], {"needless serialisation": 1}),
    "a queue of one session": (
        [*one_after_another([ADA, ADA, ADA, ADA]), (BOB, "b", 80, 80, 90)],
        {},
    ),
    "two sessions in turn, each free while the other works": (
        [
            (ADA, "t0", 0, 0, 20), (BOB, "t1", 20, 20, 40), (ADA, "t2", 10, 40, 60),
            (BOB, "t3", 30, 60, 80), (ADA, "t4", 50, 80, 99), (BOB, "t5", 70, 99, 120),
        ],
        {"needless serialisation": 1},
    ),
    "two sessions in turn, each behind its own turns": (
        [
            (ADA, "t0", 0, 0, 20), (ADA, "t1", 5, 20, 40), (ADA, "t2", 10, 40, 60),
            (BOB, "t3", 60, 60, 80), (BOB, "t4", 65, 80, 99), (BOB, "t5", 70, 99, 120),
        ],
        {},
    ),
    "turns that follow each other without waiting": (
        [(key, f"t{at}", at * 20, at * 20, at * 20 + 20) for at, key in enumerate(FOUR)],
        {},
    ),
    "grants that take their time, whichever turn works": (
        [
            turn
            for at, key in enumerate(FOUR)
            for turn in [(key, f"t{at}", at * 20 - 2 * (at > 0), at * 20 + 3, at * 20 + 20)]
        ],
        {},
    ),
    "turns that begin long after another's ended": (
        [(key, f"t{at}", 0, at * 35, at * 35 + 20) for at, key in enumerate(FOUR)],
        {},
    ),
    "turns that waited for a moment only": (
        [
            (key, f"t{at}", max(0, 20 * at - 4), 20 * at, 20 * at + 20)
            for at, key in enumerate(FOUR)
        ],
        {},
    ),
    "turns that waited for a pool, of which the group had a place": (
        [
            (key, f"t{at}", 0, at * 20, at * 20 + 20)
            for at, key in enumerate(keys("1:1", "a:2", "b:3", "1:4", "c:5", "d:6", "1:7", "e:8"))
        ]
        + [(FREE[0], "f", 0, 0, 170)],
        {},
    ),
    "sessions that once worked together": (
        [*one_after_another(FOUR), (FOUR[0], "x", 75, 75, 90)],
        {},
    ),
    "too few waits to tell": (one_after_another(FOUR[:3]), {}),
}  # fmt: skip


def trace_differences(name, check):
    """Return what a judge says of a trace that the specification does not."""
    turns, counts = TRACES[name]
    spans = [span for turn in turns for span in spans_of(*turn)]
    verdict = check(FINE, spans, ["lock"])
    status = "invalid" if counts else "valid"
    if (verdict.status, dict(verdict.counts)) != (status, counts):
        return [f"{verdict.status}, {dict(verdict.counts)}, not {counts}"]
    return []
