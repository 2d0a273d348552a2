"""What the conversations prove: each finding is proved or suspect, with the turns that show it.

Without markers, two texts can be equal by accident, and what a trace does not show may have
happened all the same. So a finding is *proved* only where every innocent reading is excluded:

    firm          a text of at least 12 characters, asked once, in one session, and found only in
                  histories with one beginning
    fork          two turns of one session at the same time, in traces of their own, ask different
                  things of one history, and both are found in one later history; or the history is
                  firm and both were continued; or each has a root span of the same name
    lost update   an answered firm turn is in no later turn, while a turn at the same time was kept
                  where it began, in a history that shows what was before both
    leak          another user's ask together with its answer, under another session's name, in a
                  conversation of which no other question lacks its turn
    torn turn     a later history holds a firm ask with a part of its answer, while this service
                  keeps most answers whole
    foreign answer  a later history holds a firm ask with an answer that one turn of another user
                  was given, and that turn's own history lacks it
    reorder       the second of two firm turns was shown the first, and a later history that holds
                  all that the second was shown has them the other way round
    tool call run twice   one call id, which one answer issued, ran in two turns, one after another

Everything else that looks alike is *suspect*, with the reading that would explain it. What is
legitimate is recognised and counted: edits, regenerations, retries, samples, side calls, branches
into another session, sub-agents, compaction, windows, shared rooms, answers cut by the client.

Source: Elle (Kingsbury and Alvaro, 2020) for anomalies inferred from what transactions read.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from typing import NamedTuple

from kode_lab.audit.readers import Log
from kode_lab.audit.turns import ROOT, Turn

__all__ = ["GUARANTEE_OF", "Finding", "Judgement", "judged"]

# Below this a text ("yes please") may well be said twice.
FIRM_CHARS = 12
# How many pairs of turns of one history are compared.
_PAIRS_LIMIT = 20_000
# A text that stands in more different histories is taken for a phrase.
_SAME_TEXT_LIMIT = 50
# Of each kind, findings that are kept with their turns; the others are counted.
FINDINGS_LIMIT = 10_000
# With more missing turns than this, an equal question may have been asked in one of them.
_MISSING_SHARE = 0.01
# So many turns of a session that followed closely, none too early, show that clocks agree.
_CLOSE_TURNS = 5
# A log of fewer turns does not show whether it is a sample, or whether users share a script.
_FEW_TURNS = 10
_DIGITS = re.compile(r"\d+")
_PARTS = re.compile(r"[^A-Za-z0-9]")
GUARANTEE_OF = {
    "cross-session leak": "apart",
    "foreign answer": "apart",
    "lost update": "kept",
    "torn turn": "whole",
    "fork": "ordered",
    "real-time reorder": "ordered",
    "tool call run twice": "tools",
}


class Finding(NamedTuple):
    """One anomaly.

    Attributes:
        name: as in ``GUARANTEE_OF``.
        is_proved: every innocent reading is excluded.
        turns: the two or three turns that show it, by time.
        why: the argument, a sentence; for a suspect with the reading that would explain it.
    """

    name: str
    is_proved: bool
    turns: tuple[Turn, ...]
    why: str


class Judgement(NamedTuple):
    """What the rules say of a log.

    Attributes:
        findings: in no order.
        recognised: how often each legitimate oddity was seen.
        counts: of the evidence.
    """

    findings: list[Finding]
    recognised: Counter[str]
    counts: dict[str, int]


def judged(log: Log, *, sessions_per_user: bool = False) -> Judgement:
    """Return the findings of all that a log holds so far, and the evidence.

    Args:
        sessions_per_user: the operator says that two users never share a session, whatever its
            name; then one name with two users is proof, too.
    """
    facts = _Facts(log)
    counts = facts.recognised
    if log.conversations.retries:
        counts["retries and samples"] += log.conversations.retries
    if log.conversations.repeated:
        counts["second records of one call"] += log.conversations.repeated
    found = [
        *_forks(facts),
        *_leaks(facts, sessions_per_user=sessions_per_user),
        *_records(facts),
        *_tools(facts, log),
    ]
    return Judgement(found, counts, facts.evidence())


class _Facts:
    """What the rules look up: who asked what, which texts are firm, what was continued."""

    def __init__(self, log: Log) -> None:
        conversations = log.conversations
        conversations.own_asks()
        self.tree = tree = conversations.tree
        self.turns = sorted(conversations.turns, key=lambda turn: (turn.begin_ns, turn.number))
        self.was_asked_before = log.was_asked_before
        self.recognised: Counter[str] = Counter()
        self.lost: set[int] = set()
        self._sessions: dict[tuple[str, str], list[Turn]] | None = None
        self._shapes: dict[str, tuple[int, bool]] | None = None
        self._firm: dict[int, bool] = {}
        self._firm_history: dict[int, bool] = {ROOT: False}
        self._order_nodes()
        # The first turn that asked an item, and the others.
        self.asker: dict[int, Turn] = {}
        self.also: dict[int, list[Turn]] = {}
        item_of = tree.item_of
        # A router or a check in front is shown the same questions, and no history holds what it
        # answers: it asks only what the service itself did not.
        kept: Counter[tuple[str | None, str]] = Counter()
        for turn in self.turns:
            kept[turn.root, turn.host] += tree.is_sent[turn.end]
        for turn in sorted(self.turns, key=lambda turn: not kept[turn.root, turn.host]):
            is_beside = not kept[turn.root, turn.host]
            for ask in turn.asks:
                item = item_of[ask]
                if is_beside and item in self.asker and self.asker[item].base == turn.base:
                    continue
                if self.asker.setdefault(item, turn) is not turn:
                    self.also.setdefault(item, []).append(turn)
        self._find_gaps()
        begin = self.begin
        self.by_base = sorted(self.turns, key=lambda turn: begin[turn.base])
        self.base_begins = array("I", (begin[turn.base] for turn in self.by_base))
        self.clock_error_ns = self._clock_error()
        self.has_edits = self._has_edits()
        # The turns that were given an answer, by its text; and of torn turns what was kept.
        self.answered: dict[int, list[Turn]] = {}
        self.kept_part: dict[int, str] = {}
        for turn in self.turns:
            if turn.answer:
                self.answered.setdefault(turn.answer, []).append(turn)

    def _order_nodes(self) -> None:
        """Number the nodes so that all that follows a history is one interval of numbers."""
        tree = self.tree
        parent, count = tree.parent, len(tree)
        size = array("I", [1]) * count
        for node in range(count - 1, 0, -1):
            size[parent[node]] += size[node]
        self.begin, self.size = array("I", [0]) * count, size
        following = array("I", [1]) * count
        # The nearest ask above each node, and the nearest text.
        self.ask_above, self.text_above = array("I", [0]) * count, array("I", [0]) * count
        items, item_of = tree.items, tree.item_of
        is_ask = bytearray(item[0] == "u" for item in items)
        is_text = bytearray(item[0] in "ua" for item in items)
        self.is_ask_item, self.is_text_item = is_ask, is_text
        begin, ask_above, text_above = self.begin, self.ask_above, self.text_above
        for node in range(1, count):
            above = parent[node]
            at = begin[node] = following[above]
            following[above] = at + size[node]
            following[node] = at + 1
            ask_above[node] = above if is_ask[item_of[above]] else ask_above[above]
            text_above[node] = above if is_text[item_of[above]] else text_above[above]

    def _find_gaps(self) -> None:
        """Count questions that histories hold, and those of them whose turn is not recorded.

        A question before all recorded ones of its history is older than the log; it is no gap.
        """
        tree, asker = self.tree, self.asker
        self.shown = self.gaps = 0
        is_known = bytearray(len(tree))
        self.has_gap = has_gap = bytearray(len(tree))
        for node in range(1, len(tree)):
            above = tree.parent[node]
            is_known[node], has_gap[node] = is_known[above], has_gap[above]
            if not (tree.is_sent[node] and self.is_ask_item[tree.item_of[node]]):
                continue
            self.shown += 1
            if tree.item_of[node] in asker:
                is_known[node] = 1
            elif is_known[above]:
                self.gaps += 1
                has_gap[node] = 1

    @property
    def is_complete(self) -> bool:
        """Whether the log seems to hold the turns of all questions that its histories show."""
        return self.gaps <= self.shown * _MISSING_SHARE

    def _clock_error(self) -> int:
        """Return by how much clocks differ, as seen from answers shown before they were given."""
        worst = 0
        gaps: dict[tuple[str, str], list[int]] = {}
        by_end: dict[int, Turn] = {}
        for turn in self.turns:
            if turn.answer:
                by_end.setdefault(turn.end, turn)
        self.hosts_compared = False
        for turn in self.turns:
            before = by_end.get(turn.base)
            if before is not None and before is not turn and turn.first_ns:
                worst = max(worst, before.last_ns - turn.first_ns)
                gaps.setdefault(turn.who, []).append(turn.first_ns - before.last_ns)
                self.hosts_compared = self.hosts_compared or before.host != turn.host
        self._turn_gaps_ns = gaps
        return worst

    def turns_closer_than(self, gap_ns: int, who: tuple[str, str]) -> int:
        """Return how many turns of a session began so soon after the one before them."""
        return sum(gap < gap_ns for gap in self._turn_gaps_ns.get(who, ()))

    # ---- of nodes

    def is_below(self, node: int, above: int) -> bool:
        """Whether the history that ends at ``node`` begins with the one that ends at ``above``."""
        at = self.begin[above]
        return at <= self.begin[node] < at + self.size[above]

    def is_ask(self, node: int) -> bool:
        """Whether the node is a text that a user said."""
        return bool(self.is_ask_item[self.tree.item_of[node]])

    def askers(self, item: int) -> Iterator[Turn]:
        """Yield the turns that asked this."""
        if item in self.asker:
            yield self.asker[item]
            yield from self.also.get(item, ())

    def asks_before(self, node: int) -> Iterator[int]:
        """Yield the asks of the history that ends at a node, the last first."""
        if not self.is_ask(node):
            node = self.ask_above[node]
        while node:
            yield node
            node = self.ask_above[node]

    def is_firm(self, node: int) -> bool:
        """Whether the text at this node identifies its turn."""
        item = self.tree.item_of[node]
        known = self._firm.get(item)
        if known is None:
            known = self._firm[item] = self._firm_item(item)
        return known

    def _firm_item(self, item: int) -> bool:
        if len(self.tree.start_of(item)) < FIRM_CHARS or self.was_asked_before(item):
            return False
        if item in self.also:
            owners = list(self.askers(item))
            # A retry or regeneration asks the same of the same history: that is one ask.
            if (
                len({turn.base for turn in owners}) > 1
                or len({turn.session for turn in owners}) > 1
            ):
                return False
        elif item not in self.asker:
            return False
        nodes = self.tree.nodes_of(item)
        if len(nodes) == 1:
            return True
        if len(nodes) > _SAME_TEXT_LIMIT:
            return False
        is_twice = any(one != two and self.is_below(one, two) for one in nodes for two in nodes)
        return not is_twice and len({self._beginning(node) for node in nodes}) == 1

    def _beginning(self, node: int) -> int:
        """Return where a history begins; one cut by a window begins where its first ask did."""
        for _ in range(64):
            start = self.first_of(node)
            owner = self.asker.get(self.tree.item_of[start])
            is_one = owner is not None and self.tree.item_of[start] not in self.also
            if (
                owner is None
                or not is_one
                or len(self.tree.start_of(self.tree.item_of[start])) < 12
            ):
                return start
            node = owner.asks[-1]
            if self.first_of(node) == start:
                return start
        return start

    def first_of(self, node: int) -> int:
        parent = self.tree.parent
        while parent[node]:
            node = parent[node]
        return node

    def is_firm_history(self, node: int) -> bool:
        """Whether a history holds a firm ask, so that two of it are one conversation."""
        known, path = self._firm_history, []
        while node not in known:
            path.append(node)
            node = self.tree.parent[node]
        is_firm = known[node]
        for one in reversed(path):
            is_firm = is_firm or (self.is_ask(one) and self.is_firm(one))
            known[one] = is_firm
        return is_firm

    # ---- of turns

    def turns_after(self, node: int) -> Sequence[Turn]:
        """Return the turns whose history before the ask goes through this node."""
        at = self.begin[node]
        first = bisect_left(self.base_begins, at)
        last = bisect_left(self.base_begins, at + self.size[node])
        return self.by_base[first:last]

    def holders(self, turn: Turn) -> Iterator[Turn]:
        """Yield the turns whose history holds this turn's ask, wherever it stands there."""
        for node in self.tree.nodes_of(self.tree.item_of[turn.asks[-1]]):
            yield from self.turns_after(node)

    def is_held(self, turn: Turn) -> bool:
        """Whether any history holds this turn's ask before its own."""
        item = self.tree.item_of[turn.asks[-1]]
        begins = self.base_begins
        for node in self.tree.nodes_of(item):
            at = self.begin[node]
            first = bisect_left(begins, at)
            if first < len(begins) and begins[first] < at + self.size[node]:
                return True
        return False

    def is_kept(self, turn: Turn) -> bool:
        """Whether a later turn of its history holds its ask and something after it."""
        return bool(turn.asks) and any(
            later is not turn and later.begin_ns >= turn.begin_ns and not self.is_side_call(later)
            for later in self.turns_after(turn.asks[-1])
        )

    def is_side_call(self, turn: Turn) -> bool:
        """Whether words like these were asked several times, and no later history holds any."""
        if not turn.asks or self.turns_after(turn.asks[-1]):
            return False
        if self.tree.item_of[turn.asks[-1]] in self.also:
            return True
        if self._shapes is None:
            self._shapes = {}
            for one in self.turns:
                if one.asks:
                    times, is_held = self._shapes.get(shape := self._shape(one), (0, False))
                    self._shapes[shape] = (times + 1, is_held or self.is_held(one))
        times, is_held = self._shapes[self._shape(turn)]
        return times > 1 and not is_held

    def _shape(self, turn: Turn) -> str:
        """Return how a question begins, numbers apart: what a template would write."""
        text = self.tree.start_of(self.tree.item_of[turn.asks[-1]])
        return _DIGITS.sub("#", text[:60])[:24]

    def beginning_at(self, node: int) -> Sequence[Turn]:
        """Return the turns whose history before the ask ends exactly here."""
        first = bisect_left(self.base_begins, self.begin[node])
        last = bisect_left(self.base_begins, self.begin[node] + 1)
        return self.by_base[first:last]

    def owner_of(self, node: int) -> Turn | None:
        """Return the one turn that asked the firm text at this node, or None."""
        item = self.tree.item_of[node]
        owner = self.asker.get(item)
        return owner if owner is not None and item not in self.also and self.is_firm(node) else None

    def first_with(self, node: int, default: Turn) -> Turn:
        """Return the first turn whose history goes through this node."""
        return min(self.turns_after(node), key=lambda turn: turn.begin_ns, default=default)

    def follower_of(self, node: int, later: Turn) -> Turn | None:
        """Return the turn that asked what follows a node in a later history, if it is recorded."""
        if later.base == node:
            return later
        for ask in self.asks_before(later.base):
            if self.text_above[ask] == node:
                return self.asker.get(self.tree.item_of[ask])
        return later

    def earlier_asks(self, turn: Turn) -> set[int]:
        """Return what was asked in the turn's session before it, as items."""
        if self._sessions is None:
            self._sessions = {}
            for one in self.turns:
                self._sessions.setdefault(one.who, []).append(one)
        return {
            self.tree.item_of[one.asks[-1]]
            for one in self._sessions[turn.who]
            if one.asks and one.end_ns <= turn.begin_ns
        }

    def _has_edits(self) -> bool:
        """Whether any history was extended twice, by different words, one after the other."""
        item_of = self.tree.item_of
        return any(
            one.base and one.asks and two.asks and one.end_ns <= two.begin_ns
            and item_of[one.asks[-1]] != item_of[two.asks[-1]]
            and not self.also.keys() & {item_of[one.asks[-1]], item_of[two.asks[-1]]}
            for turns in self.groups()
            for one, two in pairwise(turns)
        )  # fmt: skip

    def evidence(self) -> dict[str, int]:
        """Return the counts of the evidence."""
        again = sum(1 for turn in self.turns if turn.asks and self.is_held(turn))
        pairs = 0
        for turns in self.groups():
            for at, turn in enumerate(turns[1:], 1):
                pairs += turns[at - 1].overlaps(turn)
        return {
            "turns": len(self.turns),
            "sessions": len({turn.who for turn in self.turns if turn.session}),
            "users": len({turn.user for turn in self.turns if turn.user}),
            "turns seen again in a later history": again,
            "turns with a root span": sum(turn.root is not None for turn in self.turns),
            "turns of one history at the same time": pairs,
            "questions in histories": self.shown,
            "questions whose turn is not recorded": self.gaps,
            "clock error in microseconds": self.clock_error_ns // 1000,
        }

    def groups(self) -> list[list[Turn]]:
        """Return the turns that extend one history, where there are several; by time."""
        groups: dict[object, Turn | list[Turn]] = {}
        for turn in self.turns:
            # Of two conversations that begin, only those of one session can be one.
            key = turn.base or (turn.who if turn.user and turn.session else None)
            if key is None:
                continue
            known = groups.get(key)
            if known is None:
                groups[key] = turn
            elif isinstance(known, list):
                known.append(turn)
            else:
                groups[key] = [known, turn]
        return [turns for turns in groups.values() if isinstance(turns, list)]


# ---- forks and lost updates


def _forks(facts: _Facts) -> Iterator[Finding]:
    for turns in facts.groups():
        under_way: list[Turn] = []
        pairs = 0
        for turn in turns:
            under_way = [other for other in under_way if other.end_ns > turn.begin_ns]
            if not under_way and turn is not turns[0] and turn.base:
                facts.recognised["edits and regenerations"] += 1
            for other in under_way:
                pairs += 1
                if pairs <= _PAIRS_LIMIT:
                    yield from _fork(facts, other, turn)
            under_way.append(turn)


def _fork(facts: _Facts, one: Turn, two: Turn) -> Iterator[Finding]:
    recognised, item_of = facts.recognised, facts.tree.item_of
    asks = [{item_of[ask] for ask in turn.asks} for turn in (one, two)]
    if not all(asks) or asks[0] & asks[1]:
        recognised["the same ask at the same time"] += 1
        return
    if one.trace_id and one.trace_id == two.trace_id:
        recognised["calls side by side in one turn"] += 1
        return
    if one.session != two.session and one.session and two.session and one.user == two.user:
        recognised["branches into another session"] += 1
        return
    base = one.base
    is_firm = facts.is_firm_history(base)
    is_apart = bool(one.user and two.user and one.user != two.user)
    if is_apart and not is_firm:
        recognised["conversations that began with the same words"] += 1
        return
    if not base and not any(facts.is_held(turn) for turn in (one, two)):
        recognised["side calls"] += 1  # sub-agents: nothing of them stays in the conversation
        return
    are_rooted = one.is_rooted and two.is_rooted
    error_ns = 2 * facts.clock_error_ns
    # An edit and what it replaces are two ends of one history, one after the other: where this
    # service has edits, only clocks that are known to agree tell them from a fork.
    is_timed = one.host == two.host and one.host.count("/") > 1
    if not is_timed and facts.has_edits:
        is_timed = (
            not error_ns and facts.turns_closer_than(one.overlap_ns(two), one.who) >= _CLOSE_TURNS
        )
    elif not is_timed:
        is_timed = one.host == two.host or facts.hosts_compared
    # A turn that was stopped by the next one (an interrupt, a rollback) has no answer.
    are_answered = bool(one.answer and two.answer)
    is_beside = are_answered and one.overlaps(two, error_ns) and one.asks_beside(two, error_ns)
    is_fork = False
    if _in_one_history(facts, one, two):
        is_fork, why = is_beside, "and a later history holds both"
    elif is_firm and facts.is_kept(one) and facts.is_kept(two):
        is_fork, why = is_beside and is_timed and not is_apart, "and later turns continue each"
    elif facts.is_side_call(one) or facts.is_side_call(two):
        recognised["side calls"] += 1
        return
    elif _is_summary(facts, one) or _is_summary(facts, two):
        recognised["compaction"] += 1
        return
    elif any(
        _is_delegated(facts, part, whole)
        for whole in (one, two, *facts.beginning_at(base)[:20])
        for part in (one, two)
        if part is not whole
    ):
        recognised["sub-agents"] += 1
        return
    elif (
        (are_rooted and one.root == two.root and base and is_firm and not is_apart)
        and is_beside
    ):  # fmt: skip
        is_fork, why = is_timed and facts.is_complete, "each as a turn of its own"
        is_fork = is_fork and len(facts.turns) >= _FEW_TURNS
        # Where nothing of both stays, they may be parts of a task, or calls beside the last turn.
        is_fork = is_fork and any(facts.is_held(turn) for turn in (one, two))
    elif _is_rootless_aside(facts, one, two):
        recognised["side calls"] += 1
        return
    else:
        why = (
            "innocent if one of them is a side call (a title, suggestions), or if two "
            "conversations began with the same words"
        )
    why = f"both extend the same history at the same time, {why}"
    if not is_fork and "innocent" not in why:
        why += "; innocent if clocks differ, or if turns are missing from the log"
    yield Finding("fork", is_fork, (one, two), why)
    for lost, kept in ((one, two), (two, one)):
        if _is_lost(facts, lost, kept) and lost.number not in facts.lost:
            facts.lost.add(lost.number)
            why = "it was answered, and no later history holds it, while its twin was kept"
            if not are_rooted:
                why += "; innocent if the twin was never meant to be kept (a draft, a side call)"
            yield Finding("lost update", is_fork and are_rooted, (lost, kept), why)


def _is_rootless_aside(facts: _Facts, one: Turn, two: Turn) -> bool:
    """Whether one of two has no span around it as the other has, and no later history holds it."""
    if (one.root is None) == (two.root is None):
        return False
    rootless = one if one.root is None else two
    return not facts.turns_after(rootless.asks[-1])


def _is_summary(facts: _Facts, turn: Turn) -> bool:
    """Whether a later history of the session begins with this turn's answer."""
    said = facts.tree.text(turn.answer) if turn.answer else None
    if not said or len(said) < FIRM_CHARS or facts.is_held(turn):
        return False
    later = (one for one in facts.turns if one.begin_ns >= turn.last_ns and one.who == turn.who)
    for one in islice(later, 20):
        if one.base:
            text = facts.tree.text(facts.tree.item_of[facts.first_of(one.base)])
            if text is not None and said in text:
                return True
    return False


def _is_delegated(facts: _Facts, part: Turn, whole: Turn) -> bool:
    """Whether one turn is a task that the other gave away: its words stand in a tool call."""
    tree = facts.tree
    asked = tree.text(tree.item_of[part.asks[-1]])
    if not asked or len(asked) < FIRM_CHARS or facts.is_held(part):
        return False
    own = tree.text(tree.item_of[whole.asks[-1]])
    if own and len(own) >= FIRM_CHARS and own in asked:
        return True
    node = whole.end
    while node and node != whole.asks[-1]:
        if tree.code(node) == "c" and asked[:60] in (tree.text(tree.item_of[node]) or ""):
            return True
        node = tree.parent[node]
    return False


def _in_one_history(facts: _Facts, one: Turn, two: Turn) -> bool:
    if not (facts.is_firm(one.asks[-1]) and facts.is_firm(two.asks[-1])):
        return False
    nodes_of, item_of = facts.tree.nodes_of, facts.tree.item_of
    return any(
        facts.is_below(first, second) or facts.is_below(second, first)
        for first in nodes_of(item_of[one.asks[-1]])
        for second in nodes_of(item_of[two.asks[-1]])
    )


def _is_lost(facts: _Facts, lost: Turn, kept: Turn) -> bool:
    """Whether later turns hold ``kept`` where it began, and none holds ``lost``."""
    if not (lost.answer and facts.is_firm(lost.asks[-1]) and facts.is_firm(kept.asks[-1])):
        return False
    item_of = facts.tree.item_of
    # What was last asked before both must still be shown directly before it: else a window or a
    # summary may have taken the other away.
    before = next(facts.asks_before(kept.base), ROOT)
    nodes = [
        node
        for node in facts.tree.nodes_of(item_of[kept.asks[-1]])
        if node == kept.asks[-1] or (before and item_of[facts.ask_above[node]] == item_of[before])
    ]
    later = [
        turn for node in nodes for turn in facts.turns_after(node) if turn.begin_ns >= lost.end_ns
    ]
    holders = (turn for turn in facts.holders(lost) if not facts.is_side_call(turn))
    if not later or any(turn.begin_ns >= lost.end_ns for turn in holders):
        return False
    tree = facts.tree
    text = tree.text(tree.item_of[lost.asks[-1]])
    if text is None:
        return False
    for turn in later:
        for node in tree.up(turn.base):
            # Of a text that was not kept whole, nothing can be said.
            found = tree.text(tree.item_of[node])
            if found is None or text in found:
                return False
    return True


# ---- leaks


def _leaks(facts: _Facts, *, sessions_per_user: bool) -> Iterator[Finding]:
    tree = facts.tree
    numbers: dict[tuple[str, str], int] = {}
    passed = array("I", [0]) * len(tree)
    also_passed: set[tuple[int, int]] = set()
    told: set[tuple[int, int]] = set()
    for turn in facts.turns:
        if not turn.user:
            continue
        who = numbers.setdefault(turn.who, len(numbers) + 1)
        for node in facts.asks_before(turn.base):
            if passed[node] == who or (node, who) in also_passed:
                break
            if passed[node]:
                also_passed.add((node, who))
            else:
                passed[node] = who
            item = tree.item_of[node]
            owner = facts.asker.get(item)
            if (
                owner is None or item in facts.also or not owner.user or owner.user == turn.user
                or len(tree.start_of(item)) < FIRM_CHARS or (owner.number, turn.number) in told
            ):  # fmt: skip
                continue
            told.add((owner.number, turn.number))
            yield _leak(facts, owner, turn, node, sessions_per_user)


def _leak(facts: _Facts, owner: Turn, turn: Turn, node: int, sessions_per_user: bool) -> Finding:
    is_other_session = bool(owner.session and turn.session) and owner.session != turn.session
    turns = (owner, turn)
    if not is_other_session and not sessions_per_user:
        facts.recognised["turns of two users in one session"] += 1
        why = (
            "two users were in one session of the same name; innocent if the room is shared, proof "
            "if sessions belong to one user (--sessions-per-user)"
        )
        return Finding("cross-session leak", False, turns, why)
    if not _has_answer(facts, owner, turn.base, node):
        why = (
            "another user's question was shown; innocent if both users said the same words, or if "
            "it was quoted"
        )
        return Finding("cross-session leak", False, turns, why)
    if owner.last_ns > turn.last_ns:
        why = (
            "another user's question and answer, given later, were shown; innocent if clocks differ"
        )
        return Finding("cross-session leak", False, turns, why)
    # Where turns are missing, this user may have asked the same and had the same answer; the more
    # so where both conversations began alike, as those of a script do.
    items, after = facts.tree.item_of, facts.turns_after(node)
    is_thin = is_other_session and (
        len(facts.turns) < _FEW_TURNS
        or any(items[one] not in facts.asker for one in facts.asks_before(node))
    )
    is_script = (
        is_other_session
        and node in owner.asks
        and (
            len({one.user for one in after} - {owner.user, ""}) > 1
            or any(one.asks and items[one.asks[-1]] in facts.also for one in after)
        )
    )
    is_missing = not facts.is_complete or facts.has_gap[turn.base]
    if is_missing or is_thin or is_script or not _is_once(facts, owner.answer):
        why = (
            "another user's question and its answer were shown; innocent if this user asked the "
            "same in a turn that is not recorded, and had the same answer"
        )
        return Finding("cross-session leak", False, turns, why)
    return Finding(
        "cross-session leak", True, turns, "another user's question and its answer were shown"
    )


def _has_answer(facts: _Facts, owner: Turn, end: int, ask: int) -> bool:
    """Whether a history shows the owner's answer between its ask and the next one."""
    tree = facts.tree
    if not owner.answer:
        return False
    for node in tree.up(end):
        if node == ask:
            return False
        if tree.item_of[node] == owner.answer and facts.ask_above[node] == ask:
            return True
    return False


def _is_once(facts: _Facts, answer: int) -> bool:
    """Whether a text is long enough, and only one turn was answered with it."""
    return len(facts.tree.start_of(answer)) >= FIRM_CHARS and len(facts.answered[answer]) == 1


# ---- what later histories hold of a turn


def _records(facts: _Facts) -> Iterator[Finding]:
    """Compare what later histories hold of a turn with what the turn was."""
    tree = facts.tree
    torn: dict[int, Finding] = {}
    others: dict[tuple[str, int], Finding] = {}
    whole: dict[tuple[str, str], list[int]] = {}
    item_of, asker = tree.item_of, facts.asker
    for node in range(1, len(tree)):
        if not tree.is_sent[node] or not facts.is_text_item[item_of[node]]:
            continue
        if not facts.is_ask_item[item_of[node]]:
            ask = facts.text_above[node]
            owner = asker.get(item_of[ask])
            if owner is None or not owner.answer or not ask:
                continue
            if owner.answer == item_of[node]:
                kept = whole.setdefault((owner.user, owner.session), [])
                if len(kept) < 100:
                    kept.append(len(tree.start_of(owner.answer)))
                continue
            if facts.owner_of(ask) is None or item_of[ask] != item_of[owner.asks[-1]]:
                continue
            found = _answer(facts, owner, node)
        else:
            above = facts.ask_above[node]
            one, two = asker.get(item_of[above]), asker.get(item_of[node])
            if one is None or two is None or one is two or not above:
                continue
            found = None
            if tree.parent[node] == above:
                found = _unanswered(facts, one, two, node)
            if found is None and two.end_ns <= one.begin_ns:
                found = _reorder(facts, above, node)
        if found is None:
            continue
        if found.name == "torn turn" and found.is_proved:
            torn.setdefault(found.turns[0].number, found)
        else:
            others.setdefault((found.name, found.turns[0].number), found)
    yield from _torn(facts, list(torn.values()), whole)
    yield from others.values()


def _torn(
    facts: _Facts, found: Sequence[Finding], whole: Mapping[tuple[str, str], Sequence[int]]
) -> Iterator[Finding]:
    """Tell torn turns from a client that shortens what it keeps."""
    lengths = Counter(len(facts.kept_part[one.turns[0].number]) for one in found)
    torn = Counter(one.turns[0].who for one in found)
    for one in found:
        owner = one.turns[0]
        length = len(facts.kept_part[owner.number])
        # A client that shortens would have shortened the other long answers of the session, too.
        longer = sum(kept > length for kept in whole.get(owner.who, ()))
        if torn[owner.who] > longer or lengths[length] > 2 or not facts.is_complete:
            facts.recognised["answers that the client may have shortened"] += 1
            why = f"{one.why}; innocent if this client shortens what it keeps"
            yield one._replace(is_proved=False, why=why)
        else:
            yield one


def _answer(facts: _Facts, owner: Turn, node: int) -> Finding | None:
    """Compare the answer that a history holds with the one that was given."""
    tree = facts.tree
    item = tree.item_of[node]
    later = facts.first_with(node, owner)
    given, held = tree.text(owner.answer), tree.text(item)
    if given is not None and held is not None and given.startswith(held):
        facts.kept_part[owner.number] = held
        why = "a later history holds only a part of its answer"
        rest = given[len(held) :].lstrip(" ")
        if rest[:1] == "\n" or rest[:1] in "<[{(":
            why += "; innocent if the client leaves out what follows a break"
            return Finding("torn turn", False, (owner, later), why)
        follower = facts.follower_of(node, later)
        if follower is None or follower.begin_ns < owner.end_ns:
            why += "; innocent if the next question interrupted it"
            return Finding("torn turn", False, (owner, later), why)
        return Finding("torn turn", True, (owner, later), why)
    others = facts.answered.get(item, ())
    if len(others) != 1 or others[0] is owner or len(tree.start_of(item)) < FIRM_CHARS:
        return None
    other = others[0]
    if not other.asks or tree.item_of[other.asks[-1]] == tree.item_of[owner.asks[-1]]:
        return None
    if owner.overlaps(other) and facts.tree.parent[node] and other.base == owner.base:
        return None  # two turns at once, whose records stand in between each other: a fork
    why = "a later history holds its question with the answer of another turn"
    are_two = bool(owner.user and other.user and owner.user != other.user) or (
        owner.is_rooted and other.is_rooted and owner.root == other.root
        and owner.session != other.session and owner.session and other.session
    )  # fmt: skip
    is_apart = are_two and owner.trace_id != other.trace_id
    is_apart = is_apart and tree.item_of[other.asks[-1]] not in facts.also
    own = [
        tree.item_of[below]
        for ask in tree.nodes_of(tree.item_of[other.asks[-1]])
        for turn in facts.turns_after(ask)[:20]
        for below in tree.up(turn.base)
        if facts.text_above[below] == ask
    ]
    # Its own history lacks it: so it is no phrase that both were answered with.
    is_moved = bool(own) and item not in own
    if is_apart and is_moved:
        return Finding("foreign answer", True, (owner, other, later), why)
    why += (
        "; innocent if both were answered with one phrase (a refusal), or if it is a second draft"
    )
    return Finding("foreign answer", False, (owner, other, later), why)


def _unanswered(facts: _Facts, one: Turn, two: Turn, node: int) -> Finding | None:
    """A question without its answer, directly before the next question."""
    if facts.owner_of(facts.tree.parent[node]) is None or facts.owner_of(node) is None:
        return None
    if not one.answer or node in one.asks or facts.tree.parent[node] in two.asks:
        return None
    if two.begin_ns < one.end_ns:
        return None
    why = (
        "a later history holds its question without its answer; innocent if this client keeps "
        "questions only"
    )
    return Finding("torn turn", False, (one, two), why)


def _reorder(facts: _Facts, first: int, second: int) -> Finding | None:
    """Two firm asks that a history holds against the order in which they were asked."""
    tree = facts.tree
    one, two = facts.owner_of(first), facts.owner_of(second)
    if one is None or two is None or one is two:
        return None
    # No clock is needed where the second was shown the first and a later history turns them round.
    shown = {tree.item_of[ask] for ask in facts.asks_before(one.base)}
    was_shown = tree.item_of[two.asks[-1]] in shown
    held = {tree.item_of[ask] for ask in facts.asks_before(second)}
    why = "a later history holds them in the opposite order"
    if not was_shown:
        why += "; innocent if the clocks of two machines differ"
        return Finding("real-time reorder", False, (two, one), why)
    later = facts.first_with(second, one)
    is_whole = (
        len(held) > 3
        and shown <= held
        and facts.earlier_asks(later)
        <= {tree.item_of[ask] for ask in facts.asks_before(later.base)}
    )
    if not is_whole:
        why += "; innocent if a memory puts single messages into the history"
    return Finding("real-time reorder", is_whole, (two, one), why)


def _tools(facts: _Facts, log: Log) -> Iterator[Finding]:
    several = {call_id: runs for call_id, runs in log.tool_runs.items() if len(runs) > 1}
    if not several:
        return
    wanted = {run.trace_id for run in chain.from_iterable(several.values())}
    turns = {turn.trace_id: turn for turn in facts.turns if turn.trace_id in wanted}
    for call_id, runs in several.items():
        runs.sort(key=lambda run: run.start_ns)
        traces = list(dict.fromkeys(run.trace_id for run in runs))
        shown = tuple(turns[trace] for trace in traces if trace in turns)
        why = f"the tool call {call_id[:60]} ran {len(runs)} times"
        issued = log.conversations.issued[call_id]
        follow = all(one.end_ns <= two.start_ns for one, two in pairwise(runs))
        if len(traces) == 1:
            reading = "within one turn; innocent if the tool was tried again after an error"
        elif issued != 1 or len(set(_PARTS.split(call_id)[-1])) < 6 or not facts.is_complete:
            reading = "in two turns; innocent if the model uses one id for several calls"
        elif runs[0].is_failed:
            reading = "in two turns; innocent if the first failed and the turn was resumed"
        elif not follow:
            reading = "in two turns at once; innocent if two records show one run"
        else:
            yield Finding("tool call run twice", True, shown[:3], f"{why} in two turns")
            continue
        yield Finding("tool call run twice", False, shown[:3], f"{why} {reading}")
