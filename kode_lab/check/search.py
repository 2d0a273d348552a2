"""The slow reference: is there any order of these calls that the model allows?

A depth-first search over all linearizations, with memory of what was tried. It knows nothing of
markers, digests or lists: whoever doubts the rules for sessions asks here. It is also the judge of
other objects, whose writes do not make their order evident (registers, key-value stores), at a
price that grows exponentially with how many calls overlap; so it has a limit, and past it says
"unknown".

Source: Wing and Gong's search; the memory of (set of calls done, state) is Lowe's; checking each
key alone is Herlihy and Wing's locality, used so by Horn and Kroening and by porcupine.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "BUDGET_S",
    "KEY_VALUE",
    "REGISTER",
    "Call",
    "Model",
    "Outcome",
    "linearizable",
    "search",
]

# What one key may cost; the registers of public histories need milliseconds.
BUDGET_S = 10.0
# The clock is asked once in so many steps.
_STEPS_A_LOOK = 256


class Call(NamedTuple):
    """One call of any object, from its invoke to its completion.

    Attributes:
        type: ``ok``, ``fail`` (it did not happen) or ``info`` (zero times or once, at any time).
        value: what was asked; for an ``ok`` read, what was answered.
        complete_ns: infinity when nothing ever came.
        key: which object it is about, where there are several.
    """

    process: Hashable
    f: str
    type: str
    invoke_ns: int
    complete_ns: float
    value: Any = None
    key: Hashable = None


class Model(NamedTuple):
    """What one object may do: from which state a call leads to which, or to none.

    Attributes:
        initial: the first state; hashable.
        step: gives (allowed, next state) of a state and a call. An ``info`` call's answer is not
            known and must not matter.
    """

    name: str
    initial: Hashable
    step: Callable[[Any, Any], tuple[bool, Any]]


class Outcome(NamedTuple):
    """What the search found.

    Attributes:
        status: ``valid``, ``invalid`` or ``unknown``.
        order: calls in an order that explains them; when invalid, the longest that was found.
        reason: why it is not valid; names the key.
    """

    status: str
    order: tuple[Any, ...] = ()
    reason: str = ""


def linearizable(
    model: Model, *, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.monotonic
) -> Callable[[Iterable[Call]], Outcome]:
    """Return the judge of a model: a function from calls to an outcome, each key judged alone."""

    def judge(calls: Iterable[Call]) -> Outcome:
        by_key: dict[Hashable, list[Call]] = defaultdict(list)
        for call in calls:
            if call.type != "fail":
                by_key[call.key].append(call)
        outcome = Outcome("unknown", reason="there is no call that may have happened")
        for number, (key, group) in enumerate(by_key.items()):
            found = search(model, group, budget_s=budget_s, clock=clock)
            if found.status == "invalid":
                return found._replace(reason=f"key {key!r}: no order of these calls is allowed")
            if found.status == "unknown":
                outcome = found._replace(reason=f"key {key!r}: {found.reason}")
            elif number == 0 or outcome.status == "valid":
                outcome = found
        return outcome

    return judge


def search(
    model: Model,
    calls: Sequence[Any],
    *,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Return an order of ``calls`` that the model allows, or say that there is none.

    Calls have ``type``, ``invoke_ns`` and ``complete_ns`` (``Call`` and ``Operation`` do). What is
    not ``ok`` may be left out of the order, and ends at infinity.
    """
    calls = sorted(calls, key=lambda call: call.invoke_ns)
    ends = [call.complete_ns if call.type == "ok" else math.inf for call in calls]
    deadline_s = clock() + budget_s
    tried: set[tuple[int, int, Any]] = set()
    # Each frame: the first call that is not done, those done after it as bits, the state after
    # them, how many must still be done, and the candidates that are left to try next.
    first, done, state, left = 0, 0, model.initial, sum(call.type == "ok" for call in calls)
    frames = [(first, done, state, left, _candidates(calls, ends, first, done))]
    taken: list[int] = []
    longest: list[int] = []
    steps = 0
    while frames:
        first, done, state, left, candidates = frames[-1]
        if not left:
            return Outcome("valid", tuple(calls[at] for at in taken))
        for at in candidates:
            steps += 1
            if steps % _STEPS_A_LOOK == 0 and clock() > deadline_s:
                return Outcome("unknown", reason=f"not decided within budget_s={budget_s}")
            allowed, following = model.step(state, calls[at])
            entry = (*_done(first, done | 1 << at - first), following)
            if allowed and entry not in tried:
                tried.add(entry)
                taken.append(at)
                left -= calls[at].type == "ok"
                frames.append((*entry, left, _candidates(calls, ends, *entry[:2])))
                break
        else:
            frames.pop()
            if len(taken) > len(longest):
                longest = taken[:]
            if taken:
                taken.pop()
    return Outcome("invalid", tuple(calls[at] for at in longest))


def _done(first: int, done: int) -> tuple[int, int]:
    """Count the first call on past those that are done."""
    while done & 1:
        first, done = first + 1, done >> 1
    return first, done


def _candidates(
    calls: Sequence[Any], ends: Sequence[float], first: int, done: int
) -> Iterator[int]:
    """Return the calls that may come next: those sent before (or as) the first open one ended."""
    first_end = math.inf
    for at in range(first, len(calls)):
        # What was sent later ended later still.
        if calls[at].invoke_ns > first_end:
            break
        if not done >> at - first & 1:
            first_end = min(first_end, ends[at])
    else:
        at = len(calls)
    return iter([one for one in range(first, at) if not done >> one - first & 1])


def _register(state: Any, call: Call) -> tuple[bool, Any]:
    if call.f == "read":
        return call.type != "ok" or call.value == state, state
    if call.f == "write":
        return True, call.value
    if call.f == "cas":
        expected, new = call.value
        return state == expected, new
    raise ValueError(f"a register knows read, write and cas, not {call.f!r}")


_KV_NAMES: Mapping[str, str] = {"get": "read", "put": "write", "r": "read", "w": "write"}


def _key_value(state: Any, call: Call) -> tuple[bool, Any]:
    if call.f == "append":
        return True, f"{state or ''}{call.value}"
    return _register(state, call._replace(f=_KV_NAMES.get(call.f, call.f)))


REGISTER = Model("register", None, _register)
# One key of a store: get, put, cas, and append to a text; ``linearizable`` takes the keys apart.
KEY_VALUE = Model("key-value", None, _key_value)
