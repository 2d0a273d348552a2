"""List-append transactions on several lists: is there a serial order that real time allows?

Every list is only appended to, each element to one list once, and a read shows a whole list. So
reads make the order of all writes of a list evident, and the order of transactions follows:

    ww   T1 appended the element before T2's            wr   T2 read a list that T1 appended to last
    rw   T2 appended the element after those T1 read    rt   T1 ended before T2 began

A cycle of these is a proof that no serial order exists, and if there is none, one exists. The
smallest cycle found is the witness. It owns these rules, and must never know what EDN or a session
is.

Source: Elle (Kingsbury, Alvaro: https://arxiv.org/abs/2003.10554); the names are Adya's.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

from kode_lab.check.search import Outcome
from kode_lab.errors import InvalidRecord

__all__ = ["Transaction", "judge_transactions"]

_Element = tuple[Hashable, Hashable]


class Transaction(NamedTuple):
    """Some reads of lists, and appends to them, that happen at once or not at all.

    Attributes:
        type: ``ok``, ``fail`` (it did not happen) or ``info`` (unknown).
        steps: ``("r", list, elements or None)`` and ``("append", list, element)``.
    """

    process: str
    type: str
    invoke_ns: int
    complete_ns: float
    steps: tuple[tuple[str, Hashable, Any], ...]

    def appends(self) -> Iterator[_Element]:
        """Return the lists and elements that it appends."""
        return ((name, value) for f, name, value in self.steps if f == "append")


def judge_transactions(transactions: Sequence[Transaction]) -> Outcome:
    """Return whether a serial order explains all that was read (strict serializability).

    Raises:
        InvalidRecord: two transactions append one element to one list: they cannot be told apart.
    """
    writer: dict[_Element, int] = {}
    for at, one in enumerate(transactions):
        for element in one.appends():
            if writer.setdefault(element, at) != at or list(one.appends()).count(element) > 1:
                raise InvalidRecord(
                    f"element {element[1]!r:.40} is appended to list {element[0]!r:.40} twice: "
                    "each append needs an element of its own"
                )
    if not any(one.type == "ok" for one in transactions):
        return Outcome("unknown", reason="no transaction was acknowledged")
    orders = _orders(transactions)
    wrong = chain(_direct(transactions, writer), _incompatible(transactions, orders))
    if (found := next(wrong, None)) is not None:
        return found
    cycle = _smallest_cycle(_edges(transactions, writer, orders))
    if cycle is None:
        return Outcome("valid", reason="a serial order explains all that was read")
    told = " -> ".join(f"{transactions[at].process} {kind}" for at, kind in cycle)
    name = _named([kind for _, kind in cycle])
    reason = f"{name}: {told} -> {transactions[cycle[0][0]].process}"
    return Outcome("invalid", tuple(transactions[at] for at, _ in cycle), reason)


def _incompatible(
    transactions: Sequence[Transaction], orders: Mapping[Hashable, tuple[Hashable, ...]]
) -> Iterator[Outcome]:
    for one in transactions:
        for name, reads in _external_reads(one).items():
            for shown in reads:
                if shown != orders[name][: len(shown)]:
                    both = f"{shown!r:.60} and as {orders[name]!r:.60}"
                    reason = f"incompatible order: list {name!r} was read as {both}"
                    yield Outcome("invalid", (one,), reason)


def _named(kinds: Sequence[str]) -> str:
    """Return Adya's name of a cycle."""
    count = Counter(kinds)
    name = (
        "G2" if count["rw"] > 1 else "G-single" if count["rw"] else "G1c" if count["wr"] else "G0"
    )
    return f"{name}-realtime" if count["rt"] else name


def _direct(
    transactions: Sequence[Transaction], writer: Mapping[_Element, int]
) -> Iterator[Outcome]:
    """Return what a single read shows: elements that cannot be there, or not so."""
    for one in transactions:
        own: dict[Hashable, list[Hashable]] = defaultdict(list)
        seen: dict[Hashable, tuple[Hashable, ...]] = {}
        for f, name, value in one.steps:
            if f == "append":
                own[name].append(value)
            elif value is not None and one.type == "ok":
                before = seen.get(name)
                expected = value[len(value) - len(own[name]) :] if own[name] else ()
                if list(expected) != own[name] or (
                    before is not None and before != value[: len(value) - len(own[name])]
                ):
                    yield Outcome(
                        "invalid",
                        (one,),
                        f"internal: it reads {value!r:.60} of {name!r}, "
                        "which contradicts its own earlier steps",
                    )
                seen.setdefault(name, value[: len(value) - len(own[name])])
                if len(set(value)) < len(value):
                    yield Outcome(
                        "invalid", (one,), f"duplicate elements in {value!r:.60} of {name!r}"
                    )
                yield from _wrong_elements(one, name, value, transactions, writer)


def _wrong_elements(
    one: Transaction,
    name: Hashable,
    value: Sequence[Hashable],
    transactions: Sequence[Transaction],
    writer: Mapping[_Element, int],
) -> Iterator[Outcome]:
    for element in value:
        at = writer.get((name, element))
        if at is None:
            reason = f"garbage read: {element!r} of {name!r} was never appended"
            yield Outcome("invalid", (one,), reason)
        elif transactions[at].type == "fail":
            reason = (
                f"G1a, aborted read: {element!r} of {name!r} was appended by a failed transaction"
            )
            yield Outcome("invalid", (one, transactions[at]), reason)
    last = writer.get((name, value[-1])) if value else None
    if last is not None and transactions[last] is not one:
        appended = [e for n, e in transactions[last].appends() if n == name]
        if appended[-1] != value[-1]:
            reason = f"G1b, intermediate read: {value!r:.60} of {name!r} ends within a transaction"
            yield Outcome("invalid", (one, transactions[last]), reason)


def _external_reads(one: Transaction) -> dict[Hashable, list[tuple[Hashable, ...]]]:
    """Return what a transaction was shown of each list before its own appends."""
    own: Counter[Hashable] = Counter()
    shown: dict[Hashable, list[tuple[Hashable, ...]]] = defaultdict(list)
    for f, name, value in one.steps:
        if f == "append":
            own[name] += 1
        elif value is not None and one.type == "ok":
            shown[name].append(value[: len(value) - own[name]])
    return shown


def _orders(transactions: Sequence[Transaction]) -> dict[Hashable, tuple[Hashable, ...]]:
    """Return the longest read of each list, its reader's own appends included."""
    orders: dict[Hashable, tuple[Hashable, ...]] = {}
    for one in transactions:
        for f, name, value in one.steps:
            if f == "r" and value is not None and one.type == "ok":
                orders[name] = max(orders.get(name, ()), value, key=len)
    return orders


_Edges = dict[int, dict[int, str]]


def _edges(
    transactions: Sequence[Transaction],
    writer: Mapping[_Element, int],
    orders: Mapping[Hashable, tuple[Hashable, ...]],
) -> _Edges:
    """Return for each transaction those that must come after it, and why."""
    edges: _Edges = defaultdict(dict)
    # What was appended, and no read shows, comes after all that was read.
    late: dict[Hashable, list[int]] = defaultdict(list)
    # An unanswered transaction happened if any of its elements was read.
    happened = {writer[name, element] for name, order in orders.items() for element in order}
    for (name, element), at in writer.items():
        is_done = transactions[at].type == "ok" or at in happened
        if is_done and element not in orders.get(name, ()):
            late[name].append(at)
    for name, order in orders.items():
        writers = [writer[name, element] for element in order]
        after = [(one, other, "ww") for one, other in pairwise(writers)]
        after += [(writers[-1], other, "ww") for other in late[name] if writers]
        _add(edges, after)
    for at, one in enumerate(transactions):
        for name, reads in _external_reads(one).items():
            for shown in reads:
                _add(edges, [(writer[name, element], at, "wr") for element in shown[-1:]])
                rest = orders[name][len(shown) :]
                following = [writer[name, rest[0]]] if rest else late[name]
                _add(edges, [(at, other, "rw") for other in following])
    _add_real_time(transactions, edges)
    return edges


def _add(edges: _Edges, added: Sequence[tuple[int, int, str]]) -> None:
    for one, other, kind in added:
        if one != other:
            edges[one].setdefault(other, kind)


def _add_real_time(transactions: Sequence[Transaction], edges: _Edges) -> None:
    """Add that one transaction ended before another began, by a chain of barriers.

    A barrier stands for each moment at which a transaction ended; its number is negative.
    """
    moments = [(one.complete_ns, 1, at) for at, one in enumerate(transactions) if one.type == "ok"]
    moments += [(one.invoke_ns, 0, at) for at, one in enumerate(transactions) if one.type != "fail"]
    barrier = 0
    for _, is_end, at in sorted(moments):
        if is_end:
            if barrier:
                edges[barrier].setdefault(barrier - 1, "rt")
            barrier -= 1
            edges[at].setdefault(barrier, "rt")
        elif barrier:
            edges[barrier].setdefault(at, "rt")


def _smallest_cycle(edges: _Edges) -> list[tuple[int, str]] | None:
    """Return a shortest cycle through a transaction as (transaction, kind of the way on), or None.

    Barriers are left out: a way through several of them is one step of real time.
    """
    best: list[tuple[int, str]] | None = None
    for start in _in_cycles(edges):
        if start < 0:
            continue
        came: dict[int, int] = {start: start}
        queue = deque([start])
        while queue:
            at = queue.popleft()
            if start in edges.get(at, {}):
                way = [at]
                while way[-1] != start:
                    way.append(came[way[-1]])
                way.reverse()
                cycle = [
                    (one, edges[one][way[(n + 1) % len(way)]])
                    for n, one in enumerate(way)
                    if one >= 0
                ]
                if best is None or len(cycle) < len(best):
                    best = cycle
                break
            for following in edges.get(at, {}):
                if following not in came:
                    came[following] = at
                    queue.append(following)
        if best is not None and len(best) == 2:
            break
    return best


def _in_cycles(edges: _Edges) -> list[int]:
    """Return the nodes that are left when those without a way in, or out, are taken away."""
    left = set(edges) | {following for out in edges.values() for following in out}
    size = -1
    while size != len(left):
        size = len(left)
        left = {at for at in left if not left.isdisjoint(edges.get(at, ()))}
        reached = {following for at in left for following in edges.get(at, ())}
        left &= reached
    return sorted(left)
