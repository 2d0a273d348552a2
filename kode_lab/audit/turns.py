"""Model calls as turns of conversations: one tree of items, in which every history is a path.

A conversation of n turns is sent n times. In the tree, what was sent before is found again, so a
call costs what is new in it. A turn is one ask of a user with all model calls until its last
answer; the path to its ask is what the session believed itself to be: its read set.

This module must not decide what is right or wrong; ``rules`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kode_lab.audit.items import History, Item
from kode_lab.audit.readers import Call, Log, SpanRecord

__all__ = ["ROOT", "Conversations", "Tree", "Turn"]

ROOT = 0
# A call that lies outside its parent by more than this was stamped by another clock.
_CLOCK_ERROR_NS = 1_000_000


class Tree:
    """All items of a log, each below the one that came before it.

    Node numbers count from 1; ``ROOT`` (0) is the empty history.
    """

    def __init__(self) -> None:
        self.parent: list[int] = [ROOT]
        self.depth: list[int] = [0]
        self.item: list[Item | None] = [None]
        self.digest: list[bytes] = [b""]
        self._children: dict[tuple[int, bytes], int] = {}
        # One copy of each item, however often it was sent.
        self._items: dict[bytes, Item] = {}
        self.nodes_of: dict[bytes, list[int]] = {}
        # The nodes that were part of a request, by the order in which they were first sent.
        self.sent: dict[int, None] = {}

    def send(self, history: History) -> int:
        """Add a history that was sent to a model, and return the node that ends it."""
        parts: list[History] = []
        part: History | None = history
        while part is not None and part.node is None:
            parts.append(part)
            part = part.before
        node = ROOT if part is None or part.node is None else part.node
        for fresh_part in reversed(parts):
            node = fresh_part.node = self.add(node, fresh_part.items)
        fresh = []
        for one in self.up(node):
            if one in self.sent:
                break
            fresh.append(one)
        self.sent.update(dict.fromkeys(reversed(fresh)))
        return node

    def add(self, node: int, items: Iterable[Item]) -> int:
        """Return the node below ``node`` that ends these items."""
        for item in items:
            digest = item.digest
            child = self._children.get((node, digest))
            if child is None:
                child = len(self.parent)
                self._children[node, digest] = child
                self.parent.append(node)
                self.depth.append(self.depth[node] + 1)
                self.item.append(self._items.setdefault(digest, item))
                self.digest.append(digest)
                self.nodes_of.setdefault(digest, []).append(child)
            node = child
        return node

    def up(self, node: int) -> Iterator[int]:
        """Yield the node and all before it, the root left out."""
        while node != ROOT:
            yield node
            node = self.parent[node]

    def is_below(self, node: int, above: int) -> bool:
        """Whether the history that ends at ``node`` begins with the one that ends at ``above``."""
        least = self.depth[above]
        while self.depth[node] > least:
            node = self.parent[node]
        return node == above

    def is_ask(self, node: int) -> bool:
        """Whether the node is a text that a user said."""
        item = self.item[node]
        return item is not None and item.role == "user" and item.kind == "text"

    def beginning(self, node: int) -> int:
        """Return the first node of the history that ends here."""
        while self.parent[node] != ROOT:
            node = self.parent[node]
        return node

    def text(self, node: int) -> str:
        """Return the node's text."""
        item = self.item[node]
        return "" if item is None else item.text


class Turn:
    """One ask and what came of it.

    Attributes:
        calls: its model calls, by start.
        base: the node of the history before the ask.
        asks: the nodes of the user's texts that were asked, usually one.
        end: the node after the last answer.
        answer: the digest of the last answer's text, or b"".
        root: the outermost span around it, or None.
        begin_ns, end_ns: of the root span, else of the calls.
    """

    __slots__ = (
        "answer", "answer_text", "asks", "base", "begin_ns", "calls", "end", "end_ns", "number",
        "root", "session", "trace_id", "user",
    )  # fmt: skip

    def __init__(self, number: int, call: Call, root: SpanRecord | None) -> None:
        self.number = number
        self.calls = [call]
        self.root = root
        self.base = self.end = ROOT
        self.asks: tuple[int, ...] = ()
        self.answer = b""
        self.answer_text = ""
        self.trace_id = call.trace_id
        self.session = call.session
        self.user = call.user
        self.begin_ns = call.start_ns if root is None else min(root.start_ns, call.start_ns)
        self.end_ns = call.end_ns if root is None else max(root.end_ns, call.end_ns)

    @property
    def is_rooted(self) -> bool:
        """Whether a span around the turn was recorded, with clocks that agree with its calls."""
        root = self.root
        return root is not None and all(
            root.start_ns - _CLOCK_ERROR_NS <= call.start_ns
            and call.end_ns <= root.end_ns + _CLOCK_ERROR_NS
            for call in self.calls
        )

    @property
    def who(self) -> tuple[str, str]:
        """The user and the session."""
        return self.user, self.session

    @property
    def is_answered(self) -> bool:
        """Whether the trace shows a reply in words."""
        return bool(self.answer)

    def overlaps(self, other: Turn) -> bool:
        """Whether both were under way at one moment, as far as the clocks can be trusted."""
        return self.begin_ns < other.end_ns and other.begin_ns < self.end_ns

    def asks_beside(self, other: Turn) -> bool:
        """Whether each asked the model before the other had its last answer."""
        return (
            self.calls[0].start_ns < other.calls[-1].end_ns
            and other.calls[0].start_ns < self.calls[-1].end_ns
        )


class Conversations:
    """The turns of a log over the tree of what was said.

    Attributes:
        turns: by their begin.
        retries: calls that sent the same conversation again within one turn.
        unread: calls without a usable conversation, by reason.
    """

    def __init__(self, log: Log) -> None:
        self.tree = Tree()
        self.turns: list[Turn] = []
        self.calls = 0
        self.retries = 0
        self.unread: dict[str, int] = {}
        self._ends: dict[int, Turn] = {}
        self._inputs: dict[tuple[str, int], Turn] = {}
        # By the request alone: for turns whose answers were recorded without their tool calls.
        self._wordless: dict[int, Turn] = {}
        for call in log.finished():
            self._add(call, log)
        self.turns.sort(key=lambda turn: (turn.begin_ns, turn.number))
        self._own_asks()

    def _add(self, call: Call, log: Log) -> None:
        if call.history is None or call.problem:
            why = call.problem or "no recorded messages"
            self.unread[why] = self.unread.get(why, 0) + 1
            return
        if not call.history:
            why = "an empty conversation"
            self.unread[why] = self.unread.get(why, 0) + 1
            return
        self.calls += 1
        tree = self.tree
        node = tree.send(call.history)
        turn = self._continued(call, node)
        if turn is None:
            turn = Turn(len(self.turns), call, log.root_of(call))
            turn.base, turn.asks = self._ask_of(node)
            self.turns.append(turn)
        else:
            turn.calls.append(call)
            turn.end_ns = max(turn.end_ns, call.end_ns)
            turn.session, turn.user = turn.session or call.session, turn.user or call.user
        end = tree.add(node, call.output or ())
        turn.end = end
        said = [item for item in call.output or () if item.role == "assistant"]
        if said and all(item.kind == "text" for item in said):
            turn.answer, turn.answer_text = said[-1].digest, said[-1].text
        if call.output:
            self._ends[end] = turn
        if not turn.answer:
            self._wordless[node] = turn
        self._inputs[call.trace_id, node] = turn

    def _continued(self, call: Call, node: int) -> Turn | None:
        """Return the turn that this call belongs to, if an earlier call began it."""
        tree = self.tree
        same = self._inputs.get((call.trace_id, node)) if call.trace_id else None
        if same is not None:
            self.retries += 1
            return same
        for above in tree.up(node):
            found = self._ends.get(above)
            if found is not None and above != node:
                return found
            if call.trace_id and (found := self._inputs.get((call.trace_id, above))) is not None:
                return found
            found = self._wordless.get(above)
            if found is not None and above != node and found.end_ns <= call.start_ns:
                return found
            if (item := tree.item[above]) is not None and item.kind == "text":
                return None  # behind a question or an answer in words, another turn begins
        return None

    def _own_asks(self) -> None:
        """Take from each turn the questions before its own that other turns still wait for.

        Of several turns at once, later ones may be shown the unanswered questions of earlier ones.
        They extend one history all the same, so the base stays before all of these questions.
        """
        last = {
            (turn.base, self.tree.digest[turn.asks[-1]]): turn for turn in self.turns if turn.asks
        }
        for turn in self.turns:
            while len(turn.asks) > 1:
                owner = last.get((turn.base, self.tree.digest[turn.asks[0]]))
                if owner is None or owner is turn or owner.begin_ns > turn.end_ns:
                    break
                turn.asks = turn.asks[1:]

    def _ask_of(self, node: int) -> tuple[int, tuple[int, ...]]:
        """Return the node before the last ask of a history, and the ask's nodes."""
        tree = self.tree
        while node != ROOT and not tree.is_ask(node):
            node = tree.parent[node]
        asks = []
        while node != ROOT and tree.is_ask(node):
            asks.append(node)
            node = tree.parent[node]
        return node, tuple(reversed(asks))


def asked_digests(tree: Tree, turns: Sequence[Turn]) -> dict[bytes, list[Turn]]:
    """Return the turns that asked each text, by its digest."""
    found: dict[bytes, list[Turn]] = {}
    for turn in turns:
        for ask in turn.asks:
            found.setdefault(tree.digest[ask], []).append(turn)
    return found
