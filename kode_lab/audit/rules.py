"""What the conversations prove: each finding is proved or suspect, with the calls that show it.

Without markers, two texts can be equal by accident, and what a trace does not show may have
happened all the same. So a finding is *proved* only where every innocent reading is excluded:

    firm          a text of at least 12 characters, asked once, in one session, and found only in
                  histories with one beginning
    fork          two turns at the same time, in traces of their own, ask different things of one
                  history, and both are found in one later history; or the history is firm and both
                  were continued; or each has a root span of the same name
    lost update   an answered firm turn is in no later turn, while a turn at the same time was kept
    leak          another user's ask together with its answer, under another session's name
    torn turn     a later history holds a firm ask with a cut or a missing answer
    foreign answer  a later history holds a firm ask with the answer of another turn
    reorder       the second of two firm turns was shown the first, and a later history holds them
                  the other way round
    tool call run twice   one call id ran in two turns

Everything else that looks alike is *suspect*, with the reading that would explain it. Edits,
regenerations, retries, samples and side calls are recognised and counted.

Source: Elle (Kingsbury and Alvaro, 2020) for anomalies inferred from what transactions read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kode_lab.audit.readers import Log
from kode_lab.audit.turns import ROOT, Conversations, Turn, asked_digests

__all__ = ["GUARANTEE_OF", "Finding", "findings_of"]

# Below this a text ("yes please") may well be said twice.
FIRM_CHARS = 12
# How many pairs of turns of one history are compared.
_PAIRS_LIMIT = 200_000
# A text that stands in more different histories is taken for a phrase.
_SAME_TEXT_LIMIT = 50
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


class _Facts:
    """What the rules look up: who asked what, which texts are firm, what was continued."""

    def __init__(self, conversations: Conversations) -> None:
        self.tree = conversations.tree
        self.turns = conversations.turns
        self.asked = asked_digests(self.tree, self.turns)
        self._firm: dict[bytes, bool] = {}
        self._firm_prefix: dict[int, bool] = {ROOT: False}
        self.lost: set[int] = set()
        self.by_number = {turn.number: turn for turn in self.turns}
        self.starts_below: dict[int, list[Turn]] = defaultdict(list)
        for turn in self.turns:
            self.starts_below[turn.base].append(turn)

    def is_firm(self, node: int) -> bool:
        """Whether the text at this node identifies its turn."""
        digest = self.tree.digest[node]
        if digest not in self._firm:
            owners = self.asked.get(digest, [])
            # A retry or regeneration asks the same of the same history: that is one ask.
            bases = {turn.base for turn in owners}
            beginnings = {self._beginning(found) for found in self.tree.nodes_of[digest]}
            self._firm[digest] = (
                len(self.tree.text(node)) >= FIRM_CHARS
                and len(bases) == 1
                and len({turn.session for turn in owners}) == 1
                and len(beginnings) == 1
                and not self._is_said_twice(self.tree.nodes_of[digest])
            )
        return self._firm[digest]

    def _is_said_twice(self, nodes: Sequence[int]) -> bool:
        """Whether one history holds the text twice, though the trace may show one ask only."""
        if len(nodes) > _SAME_TEXT_LIMIT:
            return True
        return any(
            self.tree.depth[above] < self.tree.depth[node] and self.tree.is_below(node, above)
            for node in nodes
            for above in nodes
        )

    def _beginning(self, node: int) -> int:
        """Return where a history begins; one cut by a window begins where its first ask did."""
        tree = self.tree
        start = tree.beginning(node)
        for _ in range(64):
            owners = self.asked.get(tree.digest[start], ())
            if len(owners) != 1 or len(tree.text(start)) < FIRM_CHARS:
                return start
            earlier = tree.beginning(owners[0].asks[-1])
            if earlier == start:
                return start
            start = earlier
        return start

    def is_firm_history(self, node: int) -> bool:
        """Whether a history holds a firm ask, so that two of it are one conversation."""
        path = []
        while node not in self._firm_prefix:
            path.append(node)
            node = self.tree.parent[node]
        for one in reversed(path):
            before = self._firm_prefix[self.tree.parent[one]]
            self._firm_prefix[one] = before or (self.tree.is_ask(one) and self.is_firm(one))
        return self._firm_prefix[path[0] if path else node]

    def later_with(self, turn: Turn, after_ns: int) -> list[Turn]:
        """Return the turns that began after a moment and whose history holds this turn's ask."""
        nodes = self.tree.nodes_of[self.tree.digest[turn.asks[-1]]]
        found = (later for node in nodes for later in self.through.get(node, ()))
        return [later for later in found if later.begin_ns >= after_ns]

    def is_side_call(self, turn: Turn) -> bool:
        """Whether its words were asked several times and stay in no later history."""
        owners = self.asked.get(self.tree.digest[turn.asks[-1]], ()) if turn.asks else ()
        return len(owners) > 1 and not self.turns_after(turn)

    def owner_of(self, node: int) -> Turn | None:
        """Return the one turn that asked the firm text at this node, or None."""
        if node == ROOT or not self.tree.is_ask(node):
            return None
        owners = self.asked.get(self.tree.digest[node], ())
        return owners[0] if len(owners) == 1 and self.is_firm(node) else None

    def last_ask_of(self, node: int) -> int:
        """Return the node itself if it ends what its turn asked, else the root."""
        owner = self.owner_of(node)
        if owner is None or not owner.asks:
            return ROOT
        return node if self.tree.digest[node] == self.tree.digest[owner.asks[-1]] else ROOT

    def first_with(self, node: int, default: Turn) -> Turn:
        """Return the first turn whose history goes through this node."""
        below = (turn for turn in self.turns if self.tree.is_below(turn.base, node))
        return next(below, default)

    def is_continued(self, turn: Turn) -> bool:
        """Whether a later turn's history holds this turn's ask and something after it."""
        asks = {self.tree.digest[ask] for ask in turn.asks}
        return any(
            other is not turn and other.begin_ns >= turn.begin_ns and self._holds(other.base, asks)
            for other in self.turns_after(turn)
        )

    def turns_after(self, turn: Turn) -> Sequence[Turn]:
        """Return the turns whose history goes through this turn's ask, by way of the tree."""
        return self.through.get(turn.asks[-1], ()) if turn.asks else ()

    def _holds(self, node: int, digests: set[bytes]) -> bool:
        return any(self.tree.digest[one] in digests for one in self.tree.up(node))

    def index(self) -> None:
        """Note for each ask node the turns whose history goes through it."""
        self.through: dict[int, list[Turn]] = defaultdict(list)
        asks = {ask for turn in self.turns for ask in turn.asks}
        digests = {self.tree.digest[ask] for ask in asks}
        # The nearest ask above a node, so that histories are walked from ask to ask.
        nearest: dict[int, int] = {}
        for turn in self.turns:
            node, path = turn.base, []
            while node != ROOT and node not in nearest:
                path.append(node)
                node = self.tree.parent[node]
            above = nearest.get(node, ROOT)
            for one in reversed(path):
                if self.tree.digest[one] in digests and self.tree.is_ask(one):
                    above = one
                nearest[one] = above
        self.nearest = nearest
        for turn in self.turns:
            node = nearest.get(turn.base, ROOT)
            while node != ROOT:
                self.through[node].append(turn)
                node = nearest.get(self.tree.parent[node], ROOT)


def findings_of(
    conversations: Conversations, log: Log, *, sessions_per_user: bool = False
) -> tuple[list[Finding], Counter[str]]:
    """Return the findings, and how often each legitimate oddity was recognised.

    Args:
        sessions_per_user: the operator says that two users never share a session, whatever its
            name; then one name with two users is proof, too.
    """
    facts = _Facts(conversations)
    facts.index()
    counts: Counter[str] = Counter()
    if conversations.retries:
        counts["retries and samples"] = conversations.retries
    found = [
        *_forks(facts, counts),
        *_leaks(facts, counts, sessions_per_user=sessions_per_user),
        *_records(facts),
        *_tools(facts, log),
    ]
    return found, counts


def _forks(facts: _Facts, counts: Counter[str]) -> Iterator[Finding]:
    pairs = 0
    for base, turns in facts.starts_below.items():
        under_way: list[Turn] = []
        for turn in turns:
            under_way = [other for other in under_way if other.end_ns > turn.begin_ns]
            if not under_way and turn is not turns[0]:
                counts["edits and regenerations"] += 1
            for other in under_way:
                pairs += 1
                if pairs > _PAIRS_LIMIT:
                    return
                yield from _fork(facts, counts, base, other, turn)
            under_way.append(turn)


def _fork(  # noqa: C901 - one decision, read from top to bottom
    facts: _Facts, counts: Counter[str], base: int, one: Turn, two: Turn
) -> Iterator[Finding]:
    asks = [{facts.tree.digest[ask] for ask in turn.asks} for turn in (one, two)]
    if not all(asks) or asks[0] & asks[1]:
        counts["the same ask at the same time"] += 1
        return
    if one.trace_id and one.trace_id == two.trace_id:
        counts["calls side by side in one turn"] += 1
        return
    is_firm = facts.is_firm_history(base)
    if base == ROOT and (one.who != two.who or not all(one.who)):
        return  # two conversations that begin
    are_rooted = one.is_rooted and two.is_rooted
    together = _in_one_history(facts, one, two)
    both_continued = facts.is_continued(one) and facts.is_continued(two)
    like_named = (
        (one.root is not None and two.root is not None and one.root.name == two.root.name)
        and (are_rooted and base != ROOT and is_firm and one.asks_beside(two))
    )  # fmt: skip
    if together:
        why = "both extend the same history at the same time, and a later history holds both"
    elif is_firm and both_continued:
        why = "both extend the same history at the same time, and later turns continue each"
    elif like_named:
        why = "both extend the same history at the same time, each as a turn of its own"
    elif _has_side_call(facts, one, two):
        counts["side calls"] += 1
        return
    else:
        why = (
            "both extend the same history at the same time; innocent if one of them is a side call "
            "(a title, suggestions), or if two conversations began with the same words"
        )
    is_fork = together or (is_firm and both_continued) or like_named
    yield Finding("fork", is_fork, (one, two), why)
    for lost, kept in ((one, two), (two, one)):
        if _is_lost(facts, lost, kept) and lost.number not in facts.lost:
            facts.lost.add(lost.number)
            why = "it was answered, and no later history holds it, while its twin was kept"
            if not are_rooted:
                why += "; innocent if the twin was never meant to be kept (a draft, a side call)"
            yield Finding("lost update", is_fork and are_rooted, (lost, kept), why)


def _has_side_call(facts: _Facts, one: Turn, two: Turn) -> bool:
    """Whether one of two is a call beside the conversation: a title, suggestions, a check."""
    if facts.is_side_call(one) or facts.is_side_call(two):
        return True
    rootless = one if one.root is None else two
    return (one.root is None) != (two.root is None) and not facts.turns_after(rootless)


def _in_one_history(facts: _Facts, one: Turn, two: Turn) -> bool:
    tree = facts.tree
    for first, second in ((one, two), (two, one)):
        if not (first.asks and second.asks):
            return False
        if not (facts.is_firm(first.asks[-1]) and facts.is_firm(second.asks[-1])):
            return False
        digest = tree.digest[first.asks[-1]]
        for node in tree.nodes_of[tree.digest[second.asks[-1]]]:
            if any(tree.digest[above] == digest for above in tree.up(tree.parent[node])):
                return True
    return False


def _is_lost(facts: _Facts, lost: Turn, kept: Turn) -> bool:
    """Whether later turns hold ``kept`` and none holds ``lost``."""
    tree = facts.tree
    if not kept.asks:
        return False
    if not (lost.is_answered and lost.asks and facts.is_firm(lost.asks[-1])):
        return False
    if not facts.is_firm(kept.asks[-1]):
        return False
    text = tree.text(lost.asks[-1])
    later = facts.later_with(kept, lost.end_ns)
    if not later or facts.later_with(lost, lost.end_ns):
        return False
    return not any(text in tree.text(node) for turn in later for node in tree.up(turn.base))


def _leaks(facts: _Facts, counts: Counter[str], *, sessions_per_user: bool) -> Iterator[Finding]:
    tree = facts.tree
    seen: set[tuple[int, tuple[str, str]]] = set()
    told: set[tuple[int, int]] = set()
    for turn in facts.turns:
        node = facts.nearest.get(turn.base, ROOT)
        while node != ROOT and (node, turn.who) not in seen:
            seen.add((node, turn.who))
            owners = facts.asked.get(tree.digest[node], ())
            if len(owners) == 1 and len(tree.text(node)) >= FIRM_CHARS:
                owner = owners[0]
                if owner is not turn and (owner.number, turn.number) not in told:
                    told.add((owner.number, turn.number))
                    yield from _leak(facts, counts, owner, turn, sessions_per_user)
            node = facts.nearest.get(tree.parent[node], ROOT)


def _leak(
    facts: _Facts,
    counts: Counter[str],
    owner: Turn,
    turn: Turn,
    sessions_per_user: bool,
) -> Iterator[Finding]:
    if not (owner.user and turn.user) or owner.user == turn.user:
        return
    is_other_session = bool(owner.session and turn.session) and owner.session != turn.session
    has_answer = owner.is_answered and any(
        facts.tree.digest[below] == owner.answer for below in facts.tree.up(turn.base)
    )
    if (is_other_session or sessions_per_user) and has_answer:
        why = "another user's question and its answer were shown"
        yield Finding("cross-session leak", True, (owner, turn), why)
    elif is_other_session:
        why = (
            "another user's question was shown; innocent if both users said the same words, or if "
            "it was quoted"
        )
        yield Finding("cross-session leak", False, (owner, turn), why)
    else:
        counts["sessions that two users share"] += 1
        why = (
            "two users were in one session of the same name; innocent if the room is shared, proof "
            "if sessions belong to one user (--sessions-per-user)"
        )
        yield Finding("cross-session leak", False, (owner, turn), why)


def _records(facts: _Facts) -> Iterator[Finding]:
    """Compare what later histories hold of a turn with what the turn was."""
    tree = facts.tree
    answers: dict[bytes, set[int]] = defaultdict(set)
    for turn in facts.turns:
        if turn.is_answered:
            answers[turn.answer].add(turn.number)
    told: set[tuple[str, int]] = set()
    for node in tree.sent:
        item = tree.item[node]
        if item is None or item.kind != "text":
            continue
        above = tree.parent[node]
        while above != ROOT and (before := tree.item[above]) is not None and before.kind != "text":
            above = tree.parent[above]
        owner = facts.owner_of(above)
        if item.role == "assistant":
            found = None if owner is None else _answer(facts, owner, above, node, answers)
        else:
            found = _unanswered(facts, owner, node) if owner is not None else None
            found = found or _reorder(facts, node)
        if found is not None and (key := (found.name, found.turns[0].number)) not in told:
            told.add(key)
            yield found


def _answer(
    facts: _Facts, owner: Turn, ask: int, node: int, answers: dict[bytes, set[int]]
) -> Finding | None:
    """Compare the answer that a history holds with the one that was given."""
    digest, text = facts.tree.digest[node], facts.tree.text(node)
    if not owner.is_answered or digest == owner.answer or ask != facts.last_ask_of(ask):
        return None
    turns = (owner, facts.first_with(node, owner))
    if owner.answer_text.startswith(text):
        return Finding("torn turn", True, turns, "a later history holds only a part of its answer")
    others = answers.get(digest, set()) - {owner.number}
    if len(others) == 1 and len(text) >= FIRM_CHARS:
        other = facts.by_number[next(iter(others))]
        if other.asks and facts.tree.text(other.asks[-1]) != facts.tree.text(owner.asks[-1]):
            why = "a later history holds its question with the answer of another turn"
            return Finding("foreign answer", True, (owner, other, turns[1]), why)
    return None


def _unanswered(facts: _Facts, owner: Turn, node: int) -> Finding | None:
    """A question without its answer, directly before the next question."""
    tree = facts.tree
    parent = tree.parent[node]
    asker = facts.owner_of(node)
    if not (owner.is_answered and tree.is_ask(parent) and asker is not None and asker is not owner):
        return None
    if node in owner.asks or parent in asker.asks or asker.begin_ns < owner.end_ns:
        return None
    why = (
        "a later history holds its question without its answer; innocent if this client keeps "
        "questions only"
    )
    return Finding("torn turn", False, (owner, asker), why)


def _reorder(facts: _Facts, node: int) -> Finding | None:
    """Two firm asks that a history holds against the order in which they were asked."""
    tree = facts.tree
    first = tree.parent[node]
    while first != ROOT and not tree.is_ask(first):
        first = tree.parent[first]
    one, two = facts.owner_of(first), facts.owner_of(node)
    if one is None or two is None or one is two or two.end_ns > one.begin_ns:
        return None
    # No clock is needed where the second was shown the first and a later history turns them round.
    asked = {tree.digest[ask] for ask in two.asks}
    was_shown = any(tree.digest[above] in asked for above in tree.up(one.base))
    why = "a later history holds them in the opposite order"
    if not was_shown:
        why += "; innocent if the clocks of two machines differ"
    return Finding("real-time reorder", was_shown, (two, one), why)


def _tools(facts: _Facts, log: Log) -> Iterator[Finding]:
    ran: dict[str, set[str]] = defaultdict(set)
    times: Counter[str] = Counter()
    for span in log.spans.values():
        if span.tool_call_id:
            ran[span.tool_call_id].add(span.trace_id)
            times[span.tool_call_id] += 1
    turns = {turn.trace_id: turn for turn in facts.turns}
    for call_id, traces in ran.items():
        if times[call_id] < 2:
            continue
        shown = tuple(turns[trace] for trace in sorted(traces) if trace in turns)
        why = f"the tool call {call_id[:60]} ran {times[call_id]} times"
        if len(traces) == 1:
            why += " within one turn; innocent if the tool was tried again after an error"
        yield Finding("tool call run twice", len(traces) > 1, shown[:3], why)
