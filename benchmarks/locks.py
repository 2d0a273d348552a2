"""Services with right and with too coarse locks, played in virtual time, and judged.

    python -m benchmarks.locks [RUNS]

The judge is told only what clients and the model's side saw. It must call no service too coarse
that has a lock for each session, also when its turns wait for a free place in a pool of workers.
"""

from __future__ import annotations

import heapq
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from kode_lab.check import check
from kode_lab.history.operation import Details, ModelCalls, Operation, Read, digest_of
from kode_lab.key import SessionKey

__all__ = ["LOCKS", "SHAPES", "played"]

_MS = 1_000_000
_Lock = Callable[[SessionKey], object]


def _stripe(number: int) -> _Lock:
    return lambda key: zlib.crc32(str(key).encode()) % number


# What a turn locks; all but the first are wrong.
LOCKS: dict[str, _Lock] = {
    "session": lambda key: key,
    "all": lambda _: 0,
    "user": lambda key: key.user_id,
    "name": lambda key: key.session_id,
    "two stripes": _stripe(2),
    "three stripes": _stripe(3),
}
# Users, names of sessions, clients and turns of each; then times in milliseconds, from and to.
_PLAIN: dict[str, Any] = {
    "users": 3, "names": 3, "clients": 2, "turns": 6, "think": (0, 5), "model": (20, 60),
    "way": (1, 4), "pool": 0,
}  # fmt: skip
SHAPES: tuple[dict[str, Any], ...] = tuple(
    _PLAIN | changed
    for changed in (
        {},
        {"users": 1, "names": 4},
        {"users": 4, "names": 1},
        {"users": 1, "names": 2, "clients": 1, "turns": 12},
        {"clients": 1, "turns": 8, "think": (0, 80)},
        {"users": 5, "names": 2, "turns": 3},
        {"model": (1, 2), "way": (1, 20)},
        {"model": (5, 300)},
        {"think": (50, 400), "turns": 5},
        {"users": 2, "names": 2, "clients": 3, "turns": 8, "think": (0, 0)},
        {"users": 1, "names": 2, "turns": 4, "think": (30, 60)},
        {"users": 2, "names": 2, "turns": 2, "think": (0, 200)},
        {"users": 1, "names": 2, "clients": 3, "turns": 5, "model": (1, 3), "way": (5, 30)},
        {"pool": 2},
        {"pool": 3, "users": 3, "names": 2, "turns": 4},
        {"pool": 4, "users": 4, "names": 4, "turns": 3},
        {"pool": 8, "users": 5, "names": 3, "turns": 3},
    )
)


def played(  # noqa: C901, PLR0915 - the steps of one simulation share its state
    seed: int, lock: _Lock, shape: dict[str, Any]
) -> list[Operation]:
    """Return what clients and the model's side saw of a service; its lists are right."""
    random = Random(seed)
    due: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
    order, names = count(), count()
    held: set[object] = set()
    queues: dict[object, list[Any]] = defaultdict(list)
    pool: list[Any] = []
    at_work = 0
    lists: dict[SessionKey, list[str]] = defaultdict(list)
    history: list[Operation] = []

    def at(time_ns: int, do: Callable[..., None], *about: Any) -> None:
        heapq.heappush(due, (time_ns, next(order), do, about))

    def took_ns(name: str) -> int:
        return int(random.uniform(*shape[name]) * _MS)

    def send(now: int, key: SessionKey, left: int) -> None:
        if left:
            marker = f"{key.user_id}{key.session_id}-{next(names)}"
            at(now + took_ns("way"), arrive, (key, marker, now, left))

    def arrive(now: int, turn: Any) -> None:
        if lock(turn[0]) in held:
            queues[lock(turn[0])].append(turn)
        else:
            held.add(lock(turn[0]))
            pool.append(turn)
            admit(now)

    def admit(now: int) -> None:
        nonlocal at_work
        while pool and (not shape["pool"] or at_work < shape["pool"]):
            turn = pool.pop(0)
            at_work += 1
            calls, ends = [], now
            for _ in range(random.randint(1, 3)):
                calls.append((ends, ends + took_ns("model")))
                ends = calls[-1][1] + random.randrange(2 * _MS)
            at(ends, leave, turn, tuple(calls), list(lists[turn[0]]))

    def leave(now: int, turn: Any, calls: tuple[tuple[int, int], ...], before: list[str]) -> None:
        nonlocal at_work
        key, marker, sent, left = turn
        lists[key].append(marker)
        at_work -= 1
        done = now + took_ns("way")
        read = Read(len(before), digest_of(before), tuple(before[-8:]))
        details = Details(model=ModelCalls(calls))
        process = f"p{len(history)}"
        history.append(
            Operation(key, "turn", process, "ok", sent, done, marker, marker, read, details=details)
        )
        if queues[lock(key)]:
            pool.append(queues[lock(key)].pop(0))
        else:
            held.remove(lock(key))
        admit(now)
        at(done + took_ns("think"), send, key, left - 1)

    for user in range(shape["users"]):
        for name in range(shape["names"]):
            for _ in range(shape["clients"]):
                key = SessionKey(f"u{user}", f"s{name}", "agent")
                at(random.randrange(5 * _MS), send, key, shape["turns"])
    while due:
        now, _, do, about = heapq.heappop(due)
        do(now, *about)
    end = max(one.complete_ns for one in history)
    reads = [
        Operation(
            key, "read", str(key), "ok", int(end) + 1, int(end) + 2, markers=tuple(lists[key])
        )
        for key in lists
    ]
    return [*history, *reads]


def main(runs: int) -> None:
    """Print how many right services were called too coarse, and how many wrong ones."""
    for name, lock in LOCKS.items():
        found: Counter[int] = Counter()
        tries = runs if name == "session" else 5 * len(SHAPES)
        for seed in range(tries):
            shape = seed % len(SHAPES)
            verdict = check(played(seed, lock, SHAPES[shape]))
            found[shape] += "needless serialisation" in verdict.counts
        each = [found[shape] for shape in range(len(SHAPES))]
        sys.stdout.write(f"{name}: {sum(each)} of {tries} called too coarse; by shape {each}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3_000)
