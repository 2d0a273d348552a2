"""What the judge must say of drawn histories: each anomaly beside its nearest valid neighbour.

Used by the judge's own tests, and by the tests that break the judge and must notice.
"""

from typing import NamedTuple

from kode_lab.check.ascii_history import drawn


class Spec(NamedTuple):
    """A drawing, the anomalies in it by number, and the argument for the first.

    ``limit`` is claimed of overtaking, ``most`` the figure of it.
    """

    picture: str
    counts: dict[str, int]
    argument: tuple[str, str] | None = None
    status: str = ""
    guarantees: tuple[str, ...] | None = None
    limit: int | None = None
    most: int | None = None

    @property
    def expected(self):
        return self.status or ("invalid" if self.counts else "valid")


def differences(spec, check):
    """Return what a judge says of a drawing that the specification does not."""
    found, told = [], []
    for engine in ("rules", "columns"):
        history = drawn(spec.picture)
        verdict = check(history, None, spec.guarantees, overtaking_limit=spec.limit, engine=engine)
        if verdict.status != spec.expected:
            found.append(f"{engine}: {verdict.status}, not {spec.expected}: {verdict.reason}")
        if dict(verdict.counts) != spec.counts:
            found.append(f"{engine}: {dict(verdict.counts)}, not {spec.counts}")
        if spec.most not in (None, verdict.evidence.most_overtaken):
            found.append(f"{engine}: {verdict.evidence.most_overtaken} overtook, not {spec.most}")
        found += [f.reason for f in verdict.findings if "the rule failed" in f.reason]
        told.append(verdict)
    for anomaly in told[0].anomalies:
        alone = check(list(anomaly.witness), overtaking_limit=spec.limit)
        if anomaly.name not in alone.counts or len(set(anomaly.witness)) < len(anomaly.witness):
            found.append(f"the witness alone shows {dict(alone.counts)}, not {anomaly.name}")
    return found if told[0] == told[1] else [*found, "the engines differ"]


BOTH_FIRST = (
    "However, both stand at position 0 (b is gone), so neither was shown the other, "
    "and no order of the two explains that: a contradiction."
)

SPECS = {
    # ---- G1 apart
    "leak into a prompt": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--|                -> a x
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           -> x
        """,
        {"cross-session leak": 1},
        (
            "Then a belongs to ada:1 alone, which sent it as T2.",
            "However, T1 of bob:1 shows it: a contradiction.",
        ),
    ),
    "leak into a list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--|                -> x
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           -> x a
        """,
        {"cross-session leak": 1},
        (
            "Then a belongs to ada:1 alone, which sent it as T1.",
            "However, R1 of bob:1 shows it: a contradiction.",
        ),
    ),
    "no session leaks": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--|                -> x
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           -> x
        """,
        {},
    ),
    "a leak into a turn that never answered": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--?                -> a x
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           ->
        """,
        {"cross-session leak": 1},
    ),
    "a leak into the first of two attempts": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--?                -> a x
        bob:1           |--x--|           -> x
        ada:1                   |-=-|     -> a b
        bob:1                   |-=-|     -> x
        """,
        {"cross-session leak": 1},
    ),
    "garbage in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a b z
        """,
        {"garbage read": 1},
        (
            "Then all that a session shows was sent in it.",
            "However, R1 shows z, which was never sent in this history: a contradiction.",
        ),
    ),
    "garbage beside another session": Spec(
        """
        bob:1      |--x--|
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1             |-=-|           -> x
        ada:1             |-=-|           -> a b z
        """,
        {"garbage read": 1},
    ),
    "garbage after a turn that was not observed": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|
        ada:1             |-=-|           -> a b z
        """,
        {"garbage read": 1},
    ),
    "garbage in a prompt": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> z a b
        ada:1             |-=-|           -> a b
        """,
        {"garbage read": 1, "fork": 1},
    ),
    "leak into a list before its own": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        bob:1      |--x--|                -> x
        bob:1      |--y--|                -> x y
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           -> a x y
        """,
        {"cross-session leak": 1},
    ),
    "a leak of what no other saw": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1      |--c--?
        bob:1      |--x--|                -> x
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           -> x c
        """,
        {"cross-session leak": 1},
    ),
    "garbage that bridges to a turn after the final read": Spec(
        """
        ada:1  |--a--|                            -> a
        ada:1    |--b--|                          -> a b
        ada:1             |-=-|                   -> a b
        ada:1                   |--c--|           -> a b z c
        """,
        {"garbage read": 1},
    ),
    "a reply to another prompt": Spec(
        """
        ada:1  |--a--|                    -> a    answers b
        ada:1    |--b--|                  -> a b  answers b
        ada:1             |-=-|           -> a b
        """,
        {"foreign reply": 1},
        ("Then the reply to T1 answers it.", "However, it answers b: a contradiction."),
    ),
    "each reply to its prompt": Spec(
        """
        ada:1  |--a--|                    -> a    answers a
        ada:1    |--b--|                  -> a b  answers b
        ada:1             |-=-|           -> a b
        """,
        {},
    ),
    # ---- G2 kept
    "an acknowledged turn is gone": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a
        """,
        {"lost write": 1},
        (
            "Then T1 was acknowledged before R1 was sent, so R1 must show b.",
            "However, R1 does not: a contradiction.",
        ),
    ),
    "a turn that was not observed is gone": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|
        ada:1             |-=-|           -> a
        """,
        {"lost write": 1},
    ),
    "an indeterminate turn is not there": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--c--|                  -> a c
        ada:1    |--b--?
        ada:1             |-=-|           -> a c
        """,
        {},
    ),
    "an indeterminate turn is there": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--?
        ada:1    |--c--|                  -> a b c
        ada:1             |-=-|           -> a b c
        """,
        {},
    ),
    "an indeterminate turn comes late": Spec(
        """
        ada:1  |--b--?
        ada:1  |--a--|                    -> a
        ada:1     |--c--|                 -> a c
        ada:1             |-=-|           -> a c
        ada:1                   |-=-|     -> a c b
        """,
        {},
    ),
    "an indeterminate turn comes and goes": Spec(
        """
        ada:1  |--b--?
        ada:1  |--a--|                    -> a
        ada:1     |--c--|                 -> a c
        ada:1             |-=-|           -> a c b
        ada:1                   |-=-|     -> a c
        """,
        {"stale read": 1},
    ),
    "an acknowledged turn comes and goes under its reader": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1     |--b----------------------|
        ada:1             |-=-|           -> a b
        ada:1                   |-=-|     -> a
        """,
        {"stale read": 1},
    ),
    "a turn is lost in a crash": Spec(
        """
        ada:1    |--a--|                  -> a
        ada:1      |--b--|                -> a b
        nemesis           !kill !restart
        ada:1                      |-=-|  -> a
        """,
        {"lost after acknowledgement": 1},
        (
            "Then T1 was acknowledged before the crash at 0.009 ms, so R1 must show b.",
            "However, R1 does not: it did not survive: a contradiction.",
        ),
    ),
    "a turn is lost in a crash, and the next takes its place": Spec(
        """
        ada:1    |--a--|                              -> a
        ada:1      |--b--|                            -> a b
        nemesis           !kill !restart
        ada:1                      |--c--|            -> a c
        ada:1                                |-=-|    -> a c
        """,
        {"lost after acknowledgement": 1},
    ),
    "a turn is lost, and nothing crashed": Spec(
        """
        ada:1    |--a--|                  -> a
        ada:1      |--b--|                -> a b
        nemesis           !pause !resume
        ada:1                      |-=-|  -> a
        """,
        {"lost write": 1},
    ),
    "an acknowledged turn was seen, and is gone": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1                   |-=-|          -> a
        """,
        {"lost write": 1},
    ),
    "a lost turn was shown another order": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1    |--c--|                       -> b a c
        ada:1             |-=-|                -> a b
        """,
        {"lost write": 1, "fork": 1},
    ),
    "a turn that ends as the final read begins": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b------|
        ada:1              |-=-|               -> a
        """,
        {},
        status="unknown",
    ),
    "a turn that ends as the final read begins, and is in it": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b------|                   -> a b
        ada:1              |-=-|               -> a b
        """,
        {},
    ),
    "a read that ends after the last began shows more": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b------------------|
        ada:1              |---=-----|         -> a b
        ada:1                  |-=-|           -> a
        """,
        {},
        status="unknown",
    ),
    "an attempt's list without a second witness": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |-=-?                  -> b a
        ada:1                  |-=-|           -> a b
        """,
        {},
    ),
    "nothing is shown after a turn": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |-=-|                  ->
        ada:1                  |-=-|           -> a b
        """,
        {"stale read": 1},
    ),
    "a turn was lost before the crash": Spec(
        """
        nemesis  !kill !restart
        ada:1                     |--a--|         -> a
        ada:1                       |--b--|       -> a b
        ada:1                               |-=-| -> a
        """,
        {"lost write": 1},
    ),
    "a crash that takes only what was not acknowledged": Spec(
        """
        ada:1    |--a--|                  -> a
        ada:1    |--c--|                  -> a c
        ada:1      |--b--?                -> a c b
        nemesis           !kill !restart
        ada:1                      |-=-|  -> a c
        """,
        {},
        guarantees=("durable", "kept"),
    ),
    "one turn twice in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a b a
        """,
        {"duplicate": 1},
        (
            "Then a is one turn, and happens once.",
            "However, R1 shows that it happened 2 times: a contradiction.",
        ),
    ),
    "one unobserved turn twice in the list": Spec(
        """
        ada:1  |--a--|
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a b a
        """,
        {"duplicate": 1},
    ),
    "one turn that was given up, twice in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--?
        ada:1             |-=-|           -> a c b b
        """,
        {"duplicate": 1},
    ),
    "one turn twice, around a later one": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1  |--b--|                         -> a b
        ada:1         |--c--|                  -> a b c
        ada:1                |-=-|             -> a b c a
        """,
        {"duplicate": 1},
    ),
    "a retry whose first acknowledgement counts": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1  |--b--|                              -> a b
        ada:1         |-=-|                         -> a
        ada:1               |--b--|                 -> a b
        ada:1                       |-=-|           -> a b
        """,
        {"stale read": 1},
    ),
    "two attempts that were both given up": Spec(
        """
        ada:1  |--a--?                              -> a
        ada:1  |--b--|                              -> b
        ada:1  |--c--|                              -> b c
        ada:1         |--a--?
        ada:1               |-=-|                   -> b c a
        """,
        {},
    ),
    "a retry that ran again": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b---|                      -> a b
        ada:1            |--a--|               -> a b a
        ada:1                     |-=-|        -> a b
        """,
        {"duplicate": 1},
    ),
    "a retry that got the saved answer": Spec(
        """
        ada:1  |--a--?
        ada:1    |--b---|                      -> a b
        ada:1            |--a--|               -> a
        ada:1                     |-=-|        -> a b
        """,
        {},
    ),
    "a retry that took effect between two others": Spec(
        """
        ada:1  |--a--?                         -> a
        ada:1     |--b---|                     -> b
        ada:1      |--c---|                    -> b c
        ada:1              |--a--|             -> b c a
        ada:1                     |-=-|        -> b c a
        """,
        {},
    ),
    # ---- G3 whole
    "a refused turn is in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--x
        ada:1             |-=-|           -> a c b
        """,
        {"aborted read": 1},
        ("Then T1 never happened.", "However, R1 shows b: a contradiction."),
    ),
    "a refused turn that was shown its place is in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--x                  -> a c b
        ada:1             |-=-|           -> a c b
        """,
        {"aborted read": 1},
    ),
    "a refused turn was shown to the next": Spec(
        """
        ada:1  |--b--x
        ada:1      |--a--|                -> b a
        ada:1      |--c--|                -> b a c
        ada:1             |-=-|           -> a c
        """,
        {"aborted read": 1, "fork": 2},
    ),
    "a refused turn was shown to the next, and there is no read": Spec(
        """
        ada:1  |--b--x
        ada:1      |--a--|                -> b a
        """,
        {"aborted read": 1},
    ),
    "a refused turn is nowhere": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--x
        ada:1             |-=-|           -> a c
        """,
        {},
    ),
    "half a turn is shown to the next": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1    |--b----|                -> a/ b
        ada:1             |-=-|           -> a b
        """,
        {"intermediate read": 1},
        (
            "Then T1 is shown a whole or not at all.",
            "However, T1 was shown its prompt without a final reply: a contradiction.",
        ),
    ),
    "half a turn rests": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1    |--b----|                -> a b
        ada:1       |-c-?
        ada:1             |-=-|           -> a b c/
        """,
        {"torn turn": 1},
        (
            "Then c rests in the session whole or not at all.",
            "However, R1 shows its prompt without a final reply: a contradiction.",
        ),
    ),
    # ---- G4 ordered
    "two turns at one position, one gone": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> b
        ada:1             |-=-|           -> a
        """,
        {"lost update": 1},
        (
            "Then one of T1 and T2 is first, and the other is shown it.",
            BOTH_FIRST,
        ),
    ),
    "two turns at one position, both there": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> b
        ada:1             |-=-|           -> a b
        """,
        {"lost update": 1},
    ),
    "two turns at one position that touch": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1        |--b--|              -> b
        ada:1               |-=-|         -> a b
        """,
        {"lost update": 1},
    ),
    "two turns at one position that touch, the first gone": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1        |--b--|              -> b
        ada:1               |-=-|         -> b
        """,
        {"lost update": 1},
    ),
    "a turn that was given up overlooks another": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--?                  -> b
        ada:1             |-=-|           -> a c b
        """,
        {},
    ),
    "a turn that never happened was shown another order": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--?                  -> c b
        ada:1             |-=-|           -> a c
        """,
        {},
    ),
    "a refused turn was shown another order": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1  |--c--|                    -> a c
        ada:1    |--b--x                  -> c b
        ada:1             |-=-|           -> a c
        """,
        {},
    ),
    "two turns after the final read at one position": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1    |--b--|                            -> a b
        ada:1             |-=-|                     -> a b
        ada:1                   |--c--|             -> a b c
        ada:1                     |--d--|           -> a b d
        """,
        {"lost update": 1},
    ),
    "a turn after the final read was shown what was sent later": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1    |--b--|                            -> a b
        ada:1             |-=-|                     -> a b
        ada:1                   |--c--|             -> a b e c
        ada:1                           |--e--?
        """,
        {"real-time reorder": 1, "future read": 1},
    ),
    "a turn after the final read beside one that was given up": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1    |--b--|                            -> a b
        ada:1             |-=-|                     -> a b
        ada:1                   |--c--?             -> a b c
        ada:1                     |--d--|           -> a b d
        """,
        {},
    ),
    "a read that is too old for one turn and too new for another": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1          |--b--|                      -> b
        ada:1     |------=---------|                -> b
        """,
        {"lost write": 1},
    ),
    "two turns, one after the other": Spec(
        """
        ada:1  |--a--|                    -> b a
        ada:1    |--b--|                  -> b
        ada:1             |-=-|           -> b a
        """,
        {},
    ),
    "two turns at one position, and none was read": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> b
        """,
        {"lost update": 1},
    ),
    "two orders of the same turns": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1  |--b----|                  -> a b
        ada:1    |--c----|                -> b a c
        ada:1             |-=-|           -> a b c
        """,
        {"fork": 1},
        (
            "Then what T1 shows are the first turns of the one order of ada:1.",
            "However, it shows [b a] where the session has [a b]: a contradiction.",
        ),
    ),
    "two lists of one session": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1  |--b----|
        ada:1            |-=-|            -> b a
        ada:1                  |-=-|      -> a b
        """,
        {"fork": 1},
    ),
    "a read shows what was sent later": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1    |-=-|                    -> a b
        ada:1         |--b----|           -> a b
        ada:1         |--c----|           -> a b c
        ada:1                   |-=-|     -> a b c
        """,
        {"future read": 1},
        (
            "Then R1 can show only what was sent before it returned.",
            "However, it shows b (T1), which was sent only later: a contradiction.",
        ),
    ),
    "a read shows what was sent as it returned": Spec(
        """
        ada:1  |--a----|                  -> a
        ada:1     |-=-|                   -> a b
        ada:1         |--b----|           -> a b
        ada:1         |--c----|           -> a b c
        ada:1                   |-=-|     -> a b c
        """,
        {},
    ),
    "a turn was shown what was sent later": Spec(
        """
        ada:1  |--a--|                    -> b a
        ada:1         |--b--|             -> b
        ada:1           |--c--|           -> b a c
        ada:1                   |-=-|     -> b a c
        """,
        {"future read": 1, "real-time reorder": 1},
    ),
    "a turn misses what was acknowledged": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1         |--b--|             -> b
        ada:1           |--c--|           -> a b c
        ada:1                   |-=-|     -> a b c
        """,
        {"stale read": 1},
        (
            "Then a was in the session when T2 returned, and T1 was sent after that.",
            "However, T1 was shown the session without it: a contradiction.",
        ),
    ),
    "a turn is shown what was acknowledged": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1         |--b--|             -> a b
        ada:1           |--c--|           -> a b c
        ada:1                   |-=-|     -> a b c
        """,
        {},
    ),
    "a read misses what was acknowledged": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1            |-=-|            -> a
        ada:1                   |-=-|     -> a b
        """,
        {"stale read": 1},
    ),
    "a read misses what is acknowledged as it asks": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |-----b--|               -> a b
        ada:1             |-=-|           -> a
        ada:1                   |-=-|     -> a b
        """,
        {},
    ),
    "a read misses a turn behind one that still runs": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1    |--b-----------------|
        ada:1    |--c--|                            -> a b c
        ada:1            |-=-|                      -> a
        ada:1                           |-=-|       -> a b c
        """,
        {"stale read": 1},
    ),
    "the final read shows what was given up only later": Spec(
        """
        ada:1  |--a--|                              -> a
        ada:1    |--b--|                            -> a b
        ada:1            |-=-|                      -> a b c
        ada:1                   |--c--?
        """,
        {"future read": 1},
    ),
    "two reads, the later shows less": Spec(
        """
        ada:1  |--a---|                   -> a
        ada:1  |--b-----------------|
        ada:1           |-=-|             -> a b
        ada:1                 |-=-|       -> a
        ada:1                         |-=-| -> a b
        """,
        {"stale read": 1},
    ),
    "two reads at once, one shows less": Spec(
        """
        ada:1  |--a---|                   -> a
        ada:1  |--b-----------------|
        ada:1           |--=---|          -> a b
        ada:1                 |-=-|       -> a
        ada:1                         |-=-| -> a b
        """,
        {},
    ),
    "the order contradicts the time": Spec(
        """
        ada:1  |--a--|
        ada:1         |--b--|
        ada:1           |--c--|           -> b a c
        ada:1                   |-=-|     -> b a c
        """,
        {"real-time reorder": 1},
        (
            "Then T1 was acknowledged before T2 was sent, so it stands before T2.",
            "However, ada:1 has T2 before T1: a contradiction.",
        ),
    ),
    "the order contradicts the time across another turn": Spec(
        """
        ada:1  |--a--|
        ada:1  |--d---------------|
        ada:1         |--b--|
        ada:1                      |-=-|  -> b d a
        """,
        {"real-time reorder": 1},
    ),
    "a turn that was given up takes effect late": Spec(
        """
        ada:1  |--a--?
        ada:1         |--b--|             -> b
        ada:1           |--c--|           -> b c
        ada:1                   |-=-|     -> b c a
        """,
        {},
    ),
    "the order of turns that touch": Spec(
        """
        ada:1  |--a--|
        ada:1        |--b--|
        ada:1           |--c--|           -> b a c
        ada:1                   |-=-|     -> b a c
        """,
        {},
    ),
    "a turn after the final read continues the order": Spec(
        """
        ada:1  |--a--|                        -> a
        ada:1    |--b--|                      -> a b
        ada:1             |-=-|               -> a b
        ada:1                   |--c--|       -> a b c
        """,
        {},
    ),
    "a turn after the final read misses it": Spec(
        """
        ada:1  |--a--|                        -> a
        ada:1    |--b--|                      -> a b
        ada:1             |-=-|               -> a b
        ada:1                   |--c--|       -> a c
        """,
        {"stale read": 1},
    ),
    # ---- G6 tools
    "one id for two effects": Spec(
        """
        ada:1  |--a--|    -> a    did 7 create a ada
        bob:1  |--b--|    -> b    did 7 create b bob
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        bob:1             |-=-|   -> b
        """,
        {"duplicate id": 1},
        (
            "Then id 7 names one effect, [7 create a ada ].",
            "However, it also names [7 create b bob ]: a contradiction.",
        ),
    ),
    "an effect twice": Spec(
        """
        ada:1  |--a--|    -> a    did 7 create a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        ada:1             |-world-|  did 7 create a ada did 8 create a ada
        """,
        {"effect twice": 1},
        (
            "Then one tool call of a acts once, as [7 create a ada ].",
            "However, it acted again, as [8 create a ada ]: a contradiction.",
        ),
    ),
    "an effect for the wrong user": Spec(
        """
        ada:1  |--a--|    -> a
        ada:1   |--c--|   -> a c
        bob:1   |--b--|   -> b
        ada:1             |-=-|   -> a c
        bob:1             |-=-|   -> b
        ada:1             |-world-|  did 7 create a bob
        """,
        {"tool misattributed": 1},
        (
            "Then a tool that a asked for acts for ada:1.",
            "However, R1 shows that it acted for [bob ]: a contradiction.",
        ),
    ),
    "two effects of one turn, told by turn and world": Spec(
        """
        ada:1  |--a--|    -> a  did 7 create a ada did 8 create/2 a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        ada:1             |-world-|  did 7 create a ada did 8 create/2 a ada
        """,
        {},
    ),
    "a refused turn was shown to one that was given up": Spec(
        """
        ada:1  |-r-x
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1           |--c--?           -> a b r
        ada:1                   |-=-|     -> a b
        """,
        {"aborted read": 1},
    ),
    "a refused turn beside one that was given up, both in the list": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1        |--r--x
        ada:1        |--c--?
        ada:1                   |-=-|     -> a b r c
        """,
        {"aborted read": 1},
    ),
    "garbage beside a turn that was given up": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1                   |-=-|     -> a b z
        ada:1        |--c--?
        """,
        {"garbage read": 1},
    ),
    "two orders of the same turns beside one that was given up": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1   |--b--|                   -> a b
        ada:1    |--d--?
        ada:1     |--c--|                 -> b a c
        ada:1                   |-=-|     -> a b c d
        """,
        {"fork": 1},
    ),
    "an earlier read, told after the last one, misses a turn": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1                   |-=-|     -> a b
        ada:1            |-=-|            -> a
        """,
        {"stale read": 1},
    ),
    "a session that only was read": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a b
        bob:1             |-=-|           ->
        """,
        {},
    ),
    # ---- G4 with a limit
    "a turn that two overtook, of which one is allowed": Spec(
        """
        ada:1  |--------a--------|                     -> b c a
        ada:1    |--b--|                               -> b
        ada:1       |--c--|                            -> b c
        ada:1                |----d----|               -> b c a d
        ada:1                             |-=-|        -> b c a d
        """,
        {"overtaking": 1},
        (
            "Then no more than 1 of the turns sent after T1 stand before it.",
            "However, 2 do, T2 among them: a contradiction.",
        ),
        limit=1,
        most=2,
    ),
    "a turn that two overtook, of which both are allowed": Spec(
        """
        ada:1  |--------a--------|                     -> b c a
        ada:1    |--b--|                               -> b
        ada:1       |--c--|                            -> b c
        ada:1                |----d----|               -> b c a d
        ada:1                             |-=-|        -> b c a d
        """,
        {},
        limit=2,
        most=2,
    ),
    "a turn that two overtook, and no limit is claimed": Spec(
        """
        ada:1  |--------a--------|                     -> b c a
        ada:1    |--b--|                               -> b
        ada:1       |--c--|                            -> b c
        ada:1                             |-=-|        -> b c a
        """,
        {},
        most=2,
    ),
    "two turns sent at once, of which one must be the second": Spec(
        """
        ada:1  |--a--|                                 -> b a
        ada:1  |--b--|                                 -> b
        ada:1                             |-=-|        -> b a
        """,
        {},
        limit=0,
        most=0,
    ),
    "the newest of four is served first": Spec(
        """
        ada:1  |------a------|                         -> d c b a
        ada:1   |-----b-----|                          -> d c b
        ada:1    |----c----|                           -> d c
        ada:1     |---d---|                            -> d
        ada:1                             |-=-|        -> d c b a
        """,
        {"overtaking": 3},
        limit=0,
        most=3,
    ),
    "each of four behind one that was sent last": Spec(
        """
        ada:1  |------a------|                         -> d a
        ada:1   |-----b-----|                          -> d a b
        ada:1    |----c----|                           -> d a b c
        ada:1     |---d---|                            -> d
        ada:1                             |-=-|        -> d a b c
        """,
        {},
        limit=1,
        most=1,
    ),
    "turns of another session overtake no turn": Spec(
        """
        ada:1  |------a------|                         -> a
        bob:1   |--b--|                                -> b
        bob:1    |--c--|                               -> b c
        ada:1                             |-=-|        -> a
        bob:1                             |-=-|        -> b c
        """,
        {},
        limit=0,
        most=0,
    ),
    "a turn that was given up may have been let in late": Spec(
        """
        ada:1  |--a--?
        ada:1    |--b--|                               -> b
        ada:1      |--c--|                             -> b c
        ada:1                             |-=-|        -> b c a
        """,
        {},
        limit=0,
        most=0,
    ),
    "a turn that was given up is no measure": Spec(
        """
        ada:1  |--a--?
        ada:1    |--b--|                               -> b
        ada:1      |--c--|                             -> b c
        ada:1                             |-=-|        -> b c a
        """,
        {},
        most=0,
    ),
    "either of two attempts may have let a turn in": Spec(
        """
        ada:1  |-a-?
        ada:1    |--b--|                               -> b
        ada:1       |--a--|                            -> b a
        ada:1           |--c--|                        -> b a c
        ada:1                             |-=-|        -> b a c
        """,
        {},
        limit=0,
        most=0,
    ),
    "a turn refused once was let in by its second attempt": Spec(
        """
        ada:1  |-a-x
        ada:1    |--b--|                               -> b
        ada:1     |------a------|                      -> b c a
        ada:1           |--c--|                        -> b c
        ada:1                             |-=-|        -> b c a
        """,
        {"overtaking": 1},
        limit=0,
        most=1,
    ),
    "two turns sent at once, then one that was sent earlier": Spec(
        """
        ada:1   |--a--|                                -> a
        ada:1   |--b--|                                -> a b
        ada:1  |--c--|                                 -> a b c
        ada:1                             |-=-|        -> a b c
        """,
        {"overtaking": 1},
        limit=0,
        most=2,
    ),
    "turns of two sessions were overtaken": Spec(
        """
        ada:1  |------a------|                         -> b a
        ada:1   |--b--|                                -> b
        bob:1  |------x------|                         -> y z x
        bob:1   |--y--|                                -> y
        bob:1    |--z--|                               -> y z
        cid:1  |------u------|                         -> w u
        cid:1   |--w--|                                -> w
        ada:1                             |-=-|        -> b a
        bob:1                             |-=-|        -> y z x
        cid:1                             |-=-|        -> w u
        """,
        {},
        limit=2,
        most=2,
    ),
    "one turn twice in the list overtakes once": Spec(
        """
        ada:1  |--------a--------|                     -> b b a
        ada:1    |--b--|                               -> b
        ada:1                             |-=-|        -> b b a
        """,
        {"duplicate": 1},
        limit=1,
        most=1,
    ),
    "overtaking is claimed beside what else is named": Spec(
        """
        ada:1  |--------a--------|                     -> b a
        ada:1    |--b--|                               -> b
        ada:1                             |-=-|        -> b a
        """,
        {"overtaking": 1},
        guarantees=("whole",),
        limit=0,
    ),
    "two effects of one call, told by two": Spec(
        """
        ada:1  |--a--|    -> a    did 7 create a ada did 8 create a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        ada:1             |-world-|  did 7 create a ada did 8 create a ada
        """,
        {"effect twice": 1},
    ),
    "an effect told for two users": Spec(
        """
        ada:1  |--a--|    -> a    did 7 create a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        bob:1             |-world-|  did 7 create a bob
        """,
        {"tool misattributed": 1},
    ),
    "an effect told for two users, by the world first": Spec(
        """
        bob:1             |-world-|  did 7 create a bob
        ada:1  |--a--|    -> a    did 7 create a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        """,
        {"tool misattributed": 1},
    ),
    "who tells first decides nothing": Spec(
        """
        bob:1    |--b--|  -> b    did 7 create b bob
        bob:1          |=|        -> b
        ada:1  |--a--|    -> a    did 7 create a ada
        ada:1   |--c--|   -> a c
        ada:1             |-=-|   -> a c
        bob:1             |-=-|   -> b
        """,
        {"duplicate id": 1},
    ),
    "an effect of a refused turn": Spec(
        """
        ada:1  |--a--|    -> a
        ada:1   |--c--|   -> a c
        ada:1    |--r--x
        ada:1             |-=-|   -> a c
        ada:1             |-world-|  did 7 create r ada
        """,
        {"aborted read": 1},
        ("Then T1 never happened.", "However, R1 shows r: a contradiction."),
    ),
    "an effect of a turn that was refused at first": Spec(
        """
        ada:1  |--r--x
        ada:1  |--a--|           -> a
        ada:1   |--c--|          -> a c
        ada:1          |--r--|   -> a c r
        ada:1                  |-=-|      -> a c r
        ada:1                  |-world-|  did 7 create r ada
        """,
        {},
    ),
    # ---- G8 service
    "no answer after the faults": Spec(
        """
        ada:1  |--a--|                                        -> a
        ada:1    |--b--|                                      -> a b
        nemesis         !pause  !resume  !quiet
        ada:1                                   |--c--?
        ada:1                                         |-=-|   -> a b
        """,
        {"stuck session": 1},
        (
            "Then all faults were over when T1 was sent, so ada:1 answers.",
            "However, of 1 turns asked since, none was answered: a contradiction.",
        ),
    ),
    "an answer after the faults": Spec(
        """
        ada:1  |--a--|                                        -> a
        ada:1    |--b--|                                      -> a b
        nemesis         !pause  !resume  !quiet
        ada:1                                 |-c-x
        ada:1                                     |--d--|     -> a b d
        ada:1                                            |-=-| -> a b d
        """,
        {},
    ),
    "two configurations at once": Spec(
        """
        ada:1  |--a--|           -> a    config v1
        bob:1    |--b--|         -> b    config v2
        ada:1    |--c--|         -> a c  config v1
        ada:1             |-=-|  -> a c
        bob:1             |-=-|  -> b
        """,
        {"configuration drift": 1},
        (
            "Then T1 and T2 ran with the same configuration, which did not change between them.",
            "However, one ran with v1, the other with v2: a contradiction.",
        ),
    ),
    "two configurations, told in any order": Spec(
        """
        bob:1    |--b--|         -> b    config v1
        bob:1          |=|       -> b
        ada:1  |--a--|           -> a    config v1
        ada:1    |--c--|         -> a c  config v2
        ada:1             |-=-|  -> a c
        bob:1             |-=-|  -> b
        """,
        {"configuration drift": 1},
    ),
    "two configurations, and a change between them": Spec(
        """
        ada:1  |--a--|                                          -> a      config v1
        ada:1    |--c--|                                        -> a c    config v1
        nemesis         !configure        !configured
        ada:1                     |--d--|                       -> a c d  config v2
        ada:1                            |--e--|                -> a c d e config v1
        ada:1                                          |--f--|  -> a c d e f config v2
        ada:1                                                 |-=-| -> a c d e f
        """,
        {},
    ),
    # ---- unknown
    "two configurations after the change": Spec(
        """
        ada:1  |--a--|                                          -> a      config v1
        ada:1    |--c--|                                        -> a c    config v1
        nemesis         !configure   !configured
        ada:1                                    |--d--|        -> a c d  config v2
        ada:1                                    |--e--|        -> a c d e config v1
        ada:1                                           |-=-|   -> a c d e
        """,
        {"configuration drift": 1},
    ),
    "no turn was answered": Spec(
        """
        ada:1  |--a--?
        ada:1    |--b--x
        ada:1             |-=-|           ->
        """,
        {},
        status="unknown",
    ),
    "no two turns met": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1         |--b--|             -> a b
        ada:1                   |-=-|     -> a b
        """,
        {},
        status="unknown",
    ),
    "the list was never read": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        """,
        {},
        status="unknown",
    ),
    "the list was read too early": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1         |-=-|               -> a b
        """,
        {},
    ),
    "it is not told what a turn was shown": Spec(
        """
        ada:1  |--a--|
        ada:1    |--b--|
        ada:1             |-=-|           -> a b
        """,
        {},
    ),
    "durability without a crash": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> a b
        ada:1             |-=-|           -> a b
        """,
        {},
        status="unknown",
        guarantees=("G5",),
    ),
    "only what is claimed is judged": Spec(
        """
        ada:1  |--a--|                    -> a
        ada:1    |--b--|                  -> b
        ada:1             |-=-|           -> a
        """,
        {},
        guarantees=("whole",),
    ),
    "a crash before all turns": Spec(
        """
        nemesis  !kill !restart
        ada:1                 |--a--|               -> a
        ada:1                   |--b--|             -> a b
        ada:1                            |-=-|      -> a b
        """,
        {},
    ),
    "a crash after all reads": Spec(
        """
        ada:1  |--a--|                 -> a
        ada:1    |--b--|               -> a b
        ada:1             |-=-|        -> a b
        nemesis                   !kill !restart
        """,
        {},
    ),
    "service without a probe": Spec(
        """
        ada:1  |--a--|                 -> a    config v1
        ada:1    |--b--|               -> a b  config v1
        ada:1             |-=-|        -> a b
        """,
        {},
        status="unknown",
        guarantees=("service",),
    ),
    "a session that was not asked after the faults": Spec(
        """
        ada:1  |--a--|                                         -> a
        ada:1    |--b--|                                       -> a b
        bob:1    |--x--|                                       -> x
        nemesis         !pause  !resume  !quiet
        ada:1                                    |--d--|     -> a b d
        ada:1                                            |-=-| -> a b d
        bob:1                                            |-=-| -> x
        """,
        {},
    ),
    "an empty history": Spec("", {}, status="unknown"),
    # ---- declared by the service
    "a declared window": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |--c--|                -> b c  suffix
        ada:1                  |-=-|           -> a b c
        """,
        {},
    ),
    "a window that is not declared": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |--c--|                -> b c
        ada:1                  |-=-|           -> a b c
        """,
        {"fork": 1},
    ),
    "a window that ends too early": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1  |--b--|                         -> a b
        ada:1           |--c--|                -> a c  suffix
        ada:1                  |-=-|           -> a b c
        """,
        {"stale read": 1},
    ),
    "a window with a gap": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1  |--b--|                         -> a b
        ada:1           |--c--|                -> a b c
        ada:1                 |--d--|          -> a c d  suffix
        ada:1                        |-=-|     -> a b c d
        """,
        {"fork": 1},
    ),
    "a read of the last turns": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |--c--|                -> a b c
        ada:1                  |-=-|           -> b c  suffix
        """,
        {},
    ),
    "a read of the last turns misses one": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b
        ada:1           |--c--|                -> a b c
        ada:1                  |-=-|           -> a b  suffix
        """,
        {"lost write": 1},
    ),
    "a compaction": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |--c--|                            -> a b c
        ada:1                  |-compact:b-|
        ada:1                               |--d--|        -> c d
        ada:1                                      |-=-|   -> c d
        """,
        {},
    ),
    "a compaction that is not declared": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |--c--|                            -> a b c
        ada:1                               |--d--|        -> c d
        ada:1                                      |-=-|   -> c d
        """,
        {"fork": 2, "lost write": 2},
    ),
    "a compaction that swallows a later turn": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1                 |-compact:b-|
        ada:1                               |--c--|        -> c
        ada:1                               |--d--|        -> c d
        ada:1                                      |-=-|   -> d
        """,
        {"lost write": 1, "fork": 1},
    ),
    "a compaction that swallows a turn beyond its end": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |--c--|                            -> a b c
        ada:1                  |-compact:a-|
        ada:1                               |--d--|        -> c d
        ada:1                                      |-=-|   -> c d
        """,
        {"lost write": 1},
    ),
    "a reset": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-reset-|
        ada:1                    |--c--|                   -> c
        ada:1                           |-=-|              -> c
        """,
        {},
    ),
    "a reset that is not declared": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1                    |--c--|                   -> c
        ada:1                           |-=-|              -> c
        """,
        {"lost write": 2, "fork": 1},
    ),
    "a reset that leaks into the next turn": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-reset-|
        ada:1                    |--c--|                   -> a b c
        ada:1                           |-=-|              -> c
        """,
        {"resurrected": 1, "fork": 1},
    ),
    "a turn beside a reset": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b-----|                                -> b
        ada:1       |-reset-|
        ada:1                    |--c--|                   -> b c
        ada:1                           |-=-|              -> b c
        """,
        {},
    ),
    "a turn after a reset is lost": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-reset-|
        ada:1                    |--c--|                   -> c
        ada:1                           |-=-|              ->
        """,
        {"lost write": 1},
    ),
    "a deleted session": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-delete-|
        ada:1                           |-=-|              ->
        """,
        {},
    ),
    "a deleted session comes back": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-delete-|
        ada:1                           |-=-|              -> a b
        """,
        {"resurrected": 1},
        (
            "Then a was removed by D1 before R1 was sent.",
            "However, R1 shows 2 of the removed turns, a among them: a contradiction.",
        ),
    ),
    "a deletion that was never answered": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-delete-?
        ada:1                           |-=-|              -> a b
        """,
        {},
    ),
    "a fork": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:2           |-fork:ada/1@a-|
        ada:2                           |--c--|            -> a c
        ada:1                                   |-=-|      -> a b
        ada:2                                   |-=-|      -> a c
        """,
        {},
    ),
    "a fork that is not declared": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:2                           |--c--|            -> a c
        ada:1                                   |-=-|      -> a b
        ada:2                                   |-=-|      -> a c
        """,
        {"cross-session leak": 1},
    ),
    "a fork that takes too much": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:2           |-fork:ada/1@a-|
        ada:2                           |--c--|            -> a c
        ada:1                                   |-=-|      -> a b
        ada:2                                   |-=-|      -> a b c
        """,
        {"cross-session leak": 1},
    ),
    "a fork that takes too little": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:2           |-fork:ada/1@b-|
        ada:2                           |--c--|            -> a c
        ada:1                                   |-=-|      -> a b
        ada:2                                   |-=-|      -> a c
        """,
        {"broken fork": 1},
    ),
    "an edit": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |--c--|                            -> a b c
        ada:1                  |-d<b-|                     -> a d
        ada:1                         |--e--|              -> a d e
        ada:1                                |-=-|         -> a d e
        """,
        {},
    ),
    "an edit that is not declared": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |--c--|                            -> a b c
        ada:1                  |--d--|                     -> a d
        ada:1                                |-=-|         -> a d
        """,
        {"lost write": 2, "fork": 1},
    ),
    "an edit whose old turn is shown again": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1                  |-d<b-|                     -> a d
        ada:1                         |--e--|              -> a b e
        ada:1                                |-=-|         -> a d e
        """,
        {"resurrected": 1, "fork": 1},
    ),
    "an edit that takes an earlier turn away": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1                  |-d<b-|                     -> a d
        ada:1                                |-=-|         -> d
        """,
        {"lost write": 1},
    ),
    "a burst that one turn answers": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b------|                               -> a b c  merged b,c
        ada:1     |--c-----|                               -> a b c  merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {},
    ),
    "a burst that is not declared": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b------|                               -> a b c
        ada:1     |--c-----|                               -> a b c
        ada:1                |-=-|                         -> a b c
        """,
        {"interleaved turn": 1},
    ),
    "a burst of which one was sent too late": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b c  merged b,c
        ada:1              |--c--|                         -> a b c  merged b,c
        ada:1                      |-=-|                   -> a b c
        """,
        {"future read": 1},
    ),
    "a prompt that steers a running turn": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--------|                             -> a b c
        ada:1      |--c--|                                 -> a b c  into b
        ada:1                  |-=-|                       -> a b c
        """,
        {},
    ),
    "a burst whose members tell their positions": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b------|                               at 1  merged b,c
        ada:1     |--c-----|                               at 2  merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {},
    ),
    "a burst whose members tell one position": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b------|                               at 1  merged b,c
        ada:1     |--c-----|                               at 1  merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {"lost update": 1},
    ),
    "a burst after a compaction, one member of which was shown another session": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1          |-compact:a-|
        ada:1                        |--b------|           -> b c  merged b,c
        ada:1                         |--c-----|           at 3    merged b,c
        ada:1                                     |-=-|    -> b c
        """,
        {"fork": 1},
    ),
    "a burst after a compaction": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1          |-compact:a-|
        ada:1                        |--b------|           -> b c  merged b,c
        ada:1                         |--c-----|           at 1    merged b,c
        ada:1                                     |-=-|    -> b c
        """,
        {},
    ),
    "a prompt that is given to a turn which had ended": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1              |--c--|                         into b
        ada:1                      |-=-|                   -> a b c
        """,
        {"future read": 1},
    ),
    "a prompt that is given to a turn which was sent later": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b  into c
        ada:1              |--c--|
        ada:1                      |-=-|                   -> a b c
        """,
        {"future read": 1},
    ),
    "an interleaved turn after a reset": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1          |-reset-|
        ada:1                    |--b------|               -> b c
        ada:1                     |--c-----|
        ada:1                                |-=-|         -> b c
        """,
        {"interleaved turn": 1},
    ),
    "a window of a session that is never read": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|
        ada:1             |--c--|                          -> b c  suffix
        """,
        {},
        status="unknown",
    ),
    "a window that shows a turn before it was sent": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> d b  suffix
        ada:1             |--d--|
        """,
        {"future read": 1},
    ),
    "a turn that was shown another twice": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a a b
        ada:1             |-=-|                            -> a b
        """,
        {"duplicate": 1, "fork": 1},
    ),
    "a fork of a compacted session": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-compact:a-|
        ada:2                         |-fork:ada/1@b-|
        ada:2                                          |--c--|          -> b c
        ada:1                                                  |-=-|    -> b
        ada:2                                                  |-=-|    -> b c
        """,
        {},
    ),
    "a fork before its source was compacted": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:2           |-fork:ada/1@b-|
        ada:1                            |-compact:a-|
        ada:2                                          |--c--|          -> a b c
        ada:1                                                  |-=-|    -> b
        ada:2                                                  |-=-|    -> a b c
        """,
        {},
    ),
    "a fork with a turn that its source had replaced": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--|                                   -> a b
        ada:1           |-c<a-|                            -> c
        ada:2                   |-fork:ada/1@c-|
        ada:1                                    |-=-|     -> c
        ada:2                                    |-=-|     -> a c
        """,
        {"broken fork": 1},
    ),
    "a fork of a turn that was refused": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--b--x
        ada:1    |--c--|                                   -> a c
        ada:2           |-fork:ada/1@b-|
        ada:1                            |-=-|             -> a c
        """,
        {"broken fork": 1},
    ),
    "a fork that was made before its last turn was sent": Spec(
        """
        ada:1  |--a--|                                     -> a
        ada:1    |--c--|                                   -> a c
        ada:2           |-fork:ada/1@b-|
        ada:1                            |--b--|           -> a c b
        ada:1                                    |-=-|     -> a c b
        """,
        {"broken fork": 1},
    ),
    # ---- evidence that people can write
    "only positions": Spec(
        """
        ada:1  |--a--|                         at 0
        ada:1    |--b--|                       at 1
        ada:1             |-=-|                -> a b
        """,
        {},
    ),
    "only positions, one of them twice": Spec(
        """
        ada:1  |--a--|                         at 0
        ada:1    |--b--|                       at 0
        ada:1             |-=-|                -> a b
        """,
        {"lost update": 1},
    ),
    "only a list, in an order against time": Spec(
        """
        ada:1  |--a--|
        ada:1    |--b--|
        ada:1           |--c--|
        ada:1                  |-=-|           -> c a b
        """,
        {"real-time reorder": 2},
    ),
    "a refusal is all that shows concurrency": Spec(
        """
        ada:1  |-----a-----|                   -> a
        ada:1     |--b--x
        ada:1               |--c--|            -> a c
        ada:1                      |-=-|       -> a c
        """,
        {},
    ),
    "two turns at one place beyond what is known": Spec(
        """
        ada:1  |--a--|                         at 7
        ada:1    |--b--|                       at 7
        """,
        {"lost update": 1},
    ),
    "a place that is older than an acknowledged one": Spec(
        """
        ada:1  |--a--|                         at 7
        ada:1          |--b--|                 at 6
        """,
        {"stale read": 1},
    ),
    # ---- services that are not honest
    "a rolled-back turn stays": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--x                       undone
        ada:1           |--c--|                -> a b c
        ada:1                  |-=-|           -> a b c
        """,
        {"rolled-back turn": 1},
    ),
    "a rolled-back turn is gone": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--x                       undone
        ada:1           |--c--|                -> a c
        ada:1                  |-=-|           -> a c
        """,
        {},
    ),
    "question, question, answer, answer": Spec(
        """
        ada:1  |--a-----|                      -> a b
        ada:1    |--b-----|                    -> a b
        ada:1              |-=-|               -> a b
        """,
        {"interleaved turn": 1},
        (
            "Then T1 is the last prompt that its model is shown.",
            "However, it was shown b after it, whose answer is then not its own: a contradiction.",
        ),
    ),
    "a reply that was cut": Spec(
        """
        ada:1  |--a--|                         -> a    stopped end_turn model-stopped max_tokens
        ada:1    |--b--|                       -> a b  stopped end_turn model-stopped end_turn
        ada:1             |-=-|                -> a b
        """,
        {"cut reply": 1},
    ),
    "a cut reply whose client was told": Spec(
        """
        ada:1  |--a--|                         -> a    stopped max_tokens model-stopped max_tokens
        ada:1    |--b--|                       -> a b  stopped end_turn model-stopped end_turn
        ada:1             |-=-|                -> a b
        """,
        {},
    ),
    "two configurations in one turn": Spec(
        """
        ada:1  |--a--|                         -> a    model-configs v1,v2
        ada:1    |--b--|                       -> a b  model-configs v1,v1
        ada:1             |-=-|                -> a b
        """,
        {"mixed configuration": 1},
    ),
    "another session's words in a stream": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b  streamed b,x
        bob:1    |--x--|                       -> x    streamed x
        ada:1             |-=-|                -> a b
        bob:1             |-=-|                -> x
        """,
        {"cross-session leak": 1},
    ),
    "crossed tool answers": Spec(
        """
        ada:1  |--a--|                         -> a    model-results t1>t2,t2>t1
        ada:1    |--b--|                       -> a b  model-results t3>t3
        ada:1      |--c--|                     -> a b c  model-results t4>t4
        ada:1             |-=-|                -> a b c
        """,
        {"crossed tool answers": 1},
    ),
    "an effect of a turn that is not in the history": Spec(
        """
        ada:1  |--a--|                         -> a    did 7 create a ada
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1             |-world-|            did 7 create a ada did 8 create zz ada
        """,
        {},
    ),
    "one id for two effects, each told twice": Spec(
        """
        ada:1  |--a--|                         -> a    did 7 create a ada
        ada:1    |--b--|                       -> a b  did 7 create b ada
        ada:1             |-=-|                -> a b
        ada:1             |-world-|            did 7 create a ada did 7 create b ada
        """,
        {"duplicate id": 1},
    ),
    "a lost effect beside one that is there": Spec(
        """
        ada:1  |--a--|                         -> a    tools create,delete
        ada:1    |--b--|                       -> a b  tools create
        ada:1             |-=-|                -> a b
        ada:1             |-world-|            did 7 create a ada did 8 create b ada
        """,
        {"lost effect": 1},
        (
            "Then the client of T1 was told of delete, so R1 lists its effect.",
            "However, 1 of the tool calls of a have none there: a contradiction.",
        ),
    ),
    "a list of effects that was asked for before the turn ended": Spec(
        """
        ada:1  |--a--------|                   -> a    tools create
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1        |-world-|
        """,
        {},
    ),
    "a lost effect of another user's list": Spec(
        """
        ada:1  |--a--|                         -> a    tools create
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        bob:1             |-world-|
        """,
        {},
    ),
    "an effect for another session of its user": Spec(
        """
        ada:1  |--a--|                         -> a
        ada:1    |--b--|                       -> a b  did 7 create b bob
        ada:1             |-=-|                -> a b
        """,
        {"tool misattributed": 1},
    ),
    "sessions that answered before the faults were over, and after": Spec(
        """
        ada:1  |--a--?
        ada:1    |--b--|                       -> b
        nemesis          !quiet
        ada:1               |--c--|            -> b c
        ada:1               |--d--?
        ada:1                       |-=-|      -> b c
        """,
        {},
    ),
    "a turn that was sent as the faults ended": Spec(
        """
        ada:1    |--b--|                       -> b
        ada:1    |--c--|                       -> b c
        nemesis             !quiet
        ada:1               |--d--?
        ada:1               |--e--|            -> b c e
        ada:1                       |-=-|      -> b c e
        """,
        {},
    ),
    # ---- views that are written as lists
    "a burst whose members list what they were shown": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b------|                               -> a b c  listed merged b,c
        ada:1     |--c-----|                               -> a b c  listed merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {},
    ),
    "a burst whose members list only what came before": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b------|                               -> a b    listed merged b,c
        ada:1     |--c-----|                               -> a c    listed merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {},
    ),
    "a burst that was shown another session's list": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b------|                               -> b      listed merged b,c
        ada:1     |--c-----|                               -> a b c  listed merged b,c
        ada:1                |-=-|                         -> a b c
        """,
        {"lost update": 1},
    ),
    "a listed view with another session's turn": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b--|                                   -> a x b  listed
        bob:1    |--x--|                                   -> x      listed
        ada:1                |-=-|                         -> a b
        bob:1                |-=-|                         -> x
        """,
        {"cross-session leak": 1},
    ),
    "a listed view of the last turns": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b--|                                   -> a b    listed
        ada:1           |--c--|                            -> b c    listed suffix
        ada:1                       |-=-|                  -> a b c
        """,
        {},
    ),
    "a listed view of other turns than the last": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b--|                                   -> a b    listed
        ada:1           |--c--|                            -> a c    listed suffix
        ada:1                       |-=-|                  -> a b c
        """,
        {"stale read": 1},
    ),
    "a fork that lists what it took over": Spec(
        """
        ada:1  |--a--|                                     -> a      listed
        ada:1    |--b--|                                   -> a b    listed
        ada:2           |-fork:ada/1@b-|
        ada:2                            |--c--|           -> a b c  listed
        ada:1                                    |-=-|     -> a b
        ada:2                                    |-=-|     -> a b c
        """,
        {},
    ),
    "a steered prompt of a steered prompt": Spec(
        """
        ada:1  |--a------------|                           -> a
        ada:1    |--b--|                                   -> a b    listed into a
        ada:1        |--c--|                               -> a b c  listed into b
        ada:1                       |-=-|                  -> a b c
        """,
        {},
    ),
    "a lost effect": Spec(
        """
        ada:1  |--a--|                         -> a    tools create,create
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1             |-world-|            did 7 create a ada
        """,
        {"lost effect": 1},
    ),
    "a told effect that the world does not know": Spec(
        """
        ada:1  |--a--|                         -> a    did 7 create a ada
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1             |-world-|
        """,
        {"lost effect": 1},
    ),
    "all effects of which the client was told": Spec(
        """
        ada:1  |--a--|                         -> a    tools create,create
        ada:1    |--b--|                       -> a b
        ada:1             |-=-|                -> a b
        ada:1             |-world-|            did 7 create a ada did 8 create/2 a ada
        """,
        {},
    ),
    "an effect that was not listed yet": Spec(
        """
        ada:1             |--a--|              -> a    tools create
        ada:1               |--b--|            -> a b
        ada:1                      |-=-|       -> a b
        ada:1     |-world-|
        """,
        {},
    ),
    "two turns at the model at once": Spec(
        """
        ada:1  |--a-----|                      -> a    model-calls 17-21
        ada:1    |--b------|                   -> a b  model-calls 19-23
        ada:1               |-=-|              -> a b
        """,
        {"overlap": 1},
    ),
    "a call of an earlier attempt that went on": Spec(
        """
        ada:1  |--a-?
        ada:1         |--a--|             -> a    model-calls 17-31
        ada:1              |--b------|    -> a b  model-calls 29-33
        ada:1                          |-=-| -> a b
        """,
        {},
    ),
}
