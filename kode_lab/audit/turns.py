"""Model calls as turns of conversations: one tree of items, in which every history is a path.

A conversation of n turns is sent n times. In the tree, what was sent before is found again, so a
call costs what is new in it. A turn is one ask of a user with all model calls until its last
answer; the path to its ask is what the session believed itself to be: its read set.

Numbers instead of objects: a log of a million calls has millions of items. This module must not
decide what is right or wrong; ``rules`` does.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain

from msgspec import Struct

from kode_lab.audit.items import Item

__all__ = ["ROOT", "Call", "Conversations", "Forgotten", "Root", "Tree", "Turn"]

ROOT = 0
# A call that lies outside its parent by more than this was stamped by another clock.
_CLOCK_ERROR_NS = 1_000_000
# Longer texts are found by their digest and are kept only while there is room.
_LONG_CHARS = 512
_CODES = {
    ("user", "text"): "u", ("assistant", "text"): "a", ("assistant", "call"): "c",
    ("tool", "result"): "r", ("user", "other"): "x", ("tool", "text"): "r",
}  # fmt: skip


class Tree:
    """All items of a log, each below the one that came before it.

    Node numbers count from 1; ``ROOT`` (0) is the empty history. Items are numbered, too: two
    nodes with one item number hold the same words.

    Args:
        texts_limit_bytes: for texts of more than 512 characters; what does not fit is known by its
            digest and its first 512 characters only.
    """

    def __init__(self, texts_limit_bytes: int = 150_000_000) -> None:
        self.parent = array("I", [ROOT])
        self.item_of = array("I", [0])
        self.is_sent = bytearray(1)
        self.items: list[str] = [" "]
        self.first_node = array("I", [ROOT])
        self.more_nodes: dict[int, list[int]] = {}
        self.shortened = 0
        self._room = self._limit = texts_limit_bytes
        self._numbers: dict[str, int] = {}
        self._long: dict[int, str] = {}
        # Most nodes have one child: the first stands in an array, the others in a table.
        self._child = array("I", [0])
        self._children: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.parent)

    def item(self, role: str, kind: str, text: str) -> int:
        """Return the number of an item, a new one if these words are new."""
        key = _CODES.get((role, kind), "o") + text
        if len(key) > _LONG_CHARS:
            said = key.encode(errors="surrogatepass")
            long_key = f"{key[0]}{blake2b(said, digest_size=16).hexdigest()}\0{len(key)}"
            number = self._numbers.get(long_key)
            if number is None:
                number = self._new_item(long_key, key[:_LONG_CHARS])
                if self._room >= len(said):
                    self._room -= len(said)
                    self._long[number] = text
                else:
                    self.shortened += 1
                    self._long[number] = ""
            return number
        number = self._numbers.get(key)
        return self._new_item(key, key) if number is None else number

    def _new_item(self, key: str, shown: str) -> int:
        number = len(self.items)
        self._numbers[key] = number
        self.items.append(shown)
        self.first_node.append(ROOT)
        return number

    def add(self, node: int, items: Iterable[Item]) -> int:
        """Return the node below ``node`` that ends these items."""
        numbers, codes, child_of, item_of = self._numbers, _CODES, self._child, self.item_of
        for role, kind, text, _ in items:
            # As ``item`` and ``step``, for the many that are short and extend an end.
            key = codes.get((role, kind), "o") + text
            number = numbers.get(key)
            if number is None:
                number = self.item(role, kind, text)
            child = child_of[node]
            node = child if child and item_of[child] == number else self.step(node, number)
        return node

    def step(self, node: int, number: int) -> int:
        """Return the node below ``node`` that holds an item."""
        child = self._child[node]
        if child and self.item_of[child] == number:
            return child
        key = node << 32 | number
        found = self._children.get(key)
        if found is not None:
            return found
        fresh = len(self.parent)
        self.parent.append(node)
        self.item_of.append(number)
        self.is_sent.append(0)
        self._child.append(0)
        if child or node == ROOT:
            self._children[key] = fresh
        else:
            self._child[node] = fresh
        if self.first_node[number]:
            self.more_nodes.setdefault(number, []).append(fresh)
        else:
            self.first_node[number] = fresh
        return fresh

    def mark_sent(self, node: int) -> None:
        """Note that a request sent the history that ends here."""
        while node and not self.is_sent[node]:
            self.is_sent[node] = 1
            node = self.parent[node]

    def nodes_of(self, number: int) -> Sequence[int]:
        """Return all nodes that hold an item."""
        return (self.first_node[number], *self.more_nodes.get(number, ()))

    def up(self, node: int) -> Iterator[int]:
        """Yield the node and all before it, the root left out."""
        while node:
            yield node
            node = self.parent[node]

    def code(self, node: int) -> str:
        """Return the kind of a node: ``u`` asked, ``a`` answered, else a call or a result."""
        return self.items[self.item_of[node]][0]

    def kept(self, is_kept: bytearray) -> tuple[Tree, array[int], dict[int, int]]:
        """Return a tree of some nodes, which hold their parents, and the new numbers.

        Of nodes by their old number (0 where it was left out), and of items.
        """
        tree = Tree(0)
        numbers, items = array("I", [0]) * len(self), {0: 0}
        keys = {number: key for key, number in self._numbers.items()}
        for node in range(1, len(self)):
            if not is_kept[node]:
                continue
            item = self.item_of[node]
            if item not in items:
                items[item] = tree._new_item(keys[item], self.items[item])
                if (text := self._long.get(item)) is not None:
                    tree._long[items[item]] = text
            numbers[node] = tree.step(numbers[self.parent[node]], items[item])
            tree.is_sent[numbers[node]] = self.is_sent[node]
        held = sum(map(len, tree._long.values()))
        tree._room = max(0, self._limit - held)
        tree._limit, tree.shortened = self._limit, self.shortened
        return tree, numbers, items

    def text(self, number: int) -> str | None:
        """Return an item's text; None if only its beginning was kept."""
        long = self._long.get(number)
        return self.items[number][1:] if long is None else long or None

    def start_of(self, number: int) -> str:
        """Return the first characters of an item's text."""
        return self.items[number][1:]


class Forgotten:
    """Which texts were asked by turns that are forgotten: a set that never grows.

    It may claim a text that was not asked, never the reverse.

    Source: Bloom, Space/time trade-offs in hash coding with allowable errors, 1970.
    """

    _BITS = 1 << 27

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, text: str) -> None:
        """Add a text."""
        if not self._bits:
            self._bits = bytearray(self._BITS // 8)
        for at in self._places(text):
            self._bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, text: str) -> bool:
        return bool(self._bits) and all(
            self._bits[at >> 3] >> (at & 7) & 1 for at in self._places(text)
        )

    def _places(self, text: str) -> tuple[int, int]:
        number = hash(text)
        return number & (self._BITS - 1), number >> 27 & (self._BITS - 1)


class Root(Struct, gc=False):
    """The outermost recorded span around a call."""

    name: str
    start_ns: int
    end_ns: int


class Call(Struct, gc=False):
    """One request to a model and its answer, as one record shows it.

    Attributes:
        file: where it stands; ``line`` counts from 1.
        trace_id: of the trace, span_id of the span; "" in logs without spans.
        response_id: the model's id of the answer: two records with one id are one call.
        node: the end of the conversation that was sent; None where it was not recorded.
        output: what was answered; None where it was not recorded or there was no answer.
        problem: why this call cannot be judged, or "".
        host: what the record says of the process that wrote it; one host has one clock.
    """

    file: str
    line: int
    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    response_id: str = ""
    start_ns: int = 0
    end_ns: int = 0
    session: str = ""
    user: str = ""
    node: int | None = None
    output: Sequence[Item] | None = None
    problem: str = ""
    host: str = ""
    root: Root | None = None


class Turn(Struct, gc=False, eq=False):
    """One ask and what came of it.

    Attributes:
        base: the node of the history before the ask.
        asks: the nodes of the user's texts that were asked, usually one.
        end: the node after the last answer.
        answer: the item number of the last answer in words, or 0.
        root: the name of the outermost span around it, or None.
        begin_ns, end_ns: of the root span, else of the calls.
        first_ns, last_ns: begin of the first and end of the last model call.
        is_rooted: a span around it was recorded, with clocks that agree with its calls.
        places: file and line of each call, one after the other.
    """

    number: int
    base: int
    asks: tuple[int, ...]
    trace_id: str
    session: str
    user: str
    host: str
    begin_ns: int
    end_ns: int
    first_ns: int
    last_ns: int
    places: tuple[str | int, ...]
    root: str | None = None
    is_rooted: bool = False
    end: int = ROOT
    answer: int = 0

    @property
    def who(self) -> tuple[str, str]:
        """The user and the session."""
        return self.user, self.session

    @property
    def calls(self) -> list[tuple[str, int]]:
        """File and line of each model call."""
        return list(zip(self.places[::2], self.places[1::2], strict=True))  # type: ignore[arg-type]

    def overlap_ns(self, other: Turn) -> int:
        """Return for how long both were under way; negative if one came after the other."""
        return min(self.end_ns, other.end_ns) - max(self.begin_ns, other.begin_ns)

    def overlaps(self, other: Turn, clock_error_ns: int = 0) -> bool:
        """Whether both were under way at one moment, by more than the clocks may be wrong."""
        return self.overlap_ns(other) > clock_error_ns

    def asks_beside(self, other: Turn, clock_error_ns: int = 0) -> bool:
        """Whether each asked the model before the other had its last answer."""
        return (
            min(self.last_ns, other.last_ns) - max(self.first_ns, other.first_ns) > clock_error_ns
        )


class Conversations:
    """The turns of a log, over one tree of all that was said.

    Attributes:
        calls: how many model calls are part of a turn.
        issued: how many turns' models asked for a tool call, by its id.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.turns: list[Turn] = []
        self.calls = 0
        self.retries = 0
        self.repeated = 0
        self._unread: Counter[str] = Counter()
        self.issued: Counter[str] = Counter()
        self.forgotten = 0
        self._number = 0
        self._ends: dict[int, Turn] = {}
        self._responses: dict[int, tuple[int, Turn]] = {}
        self._wordless_ids: set[int] = set()
        # By the request alone: for turns whose answers were recorded without their tool calls.
        self._wordless: dict[int, Turn] = {}

    @property
    def unread(self) -> Counter[str]:
        """How many calls are part of no turn, by reason."""
        # Of two records of one call, it is enough that one has words.
        alone = len(self._wordless_ids - self._responses.keys())
        return self._unread + Counter({"no recorded messages": alone})

    def add(self, calls: Iterable[Call]) -> None:
        """Add the calls of one trace, or one call without a trace, by their start."""
        inputs: dict[int, Turn] = {}
        for call in calls:
            if call.problem or not call.node:
                why = call.problem or (
                    "no recorded messages" if call.node is None else "an empty conversation"
                )
                if call.node is None and not call.problem and call.response_id:
                    self._wordless_ids.add(hash(call.response_id))
                else:
                    self._unread[why] += 1
                continue
            self._add(call, call.node, inputs)

    def _add(self, call: Call, node: int, inputs: dict[int, Turn]) -> None:
        tree = self.tree
        if call.response_id:
            # Stub models give every answer one id: only with one request are two records one call.
            key = hash(call.response_id)
            before, known = self._responses.get(key, (ROOT, None))
            if known is not None and before == node:
                self.repeated += 1
                known.session = known.session or call.session
                known.user = known.user or call.user
                if call.output:
                    self._close(known, call, node)
                return
        self.calls += 1
        if not tree.is_sent[node]:
            tree.mark_sent(node)
        turn = self._continued(call, node, inputs)
        root = call.root
        is_rooted = (
            root is not None
            and root.start_ns - _CLOCK_ERROR_NS <= call.start_ns
            and call.end_ns <= root.end_ns + _CLOCK_ERROR_NS
        )
        if turn is None:
            base, asks = self._ask_of(node)
            begin, end = call.start_ns, call.end_ns
            if root is not None:
                begin, end = min(begin, root.start_ns), max(end, root.end_ns)
            turn = Turn(
                self._number, base, asks, call.trace_id, call.session, call.user, call.host,
                begin, end, call.start_ns, call.end_ns, (call.file, call.line),
                None if root is None else root.name, is_rooted,
            )  # fmt: skip
            self._number += 1
            self.turns.append(turn)
        else:
            turn.places = (*turn.places[:200], call.file, call.line)
            turn.begin_ns = min(turn.begin_ns, call.start_ns)
            turn.end_ns = max(turn.end_ns, call.end_ns)
            turn.first_ns = min(turn.first_ns, call.start_ns)
            turn.last_ns = max(turn.last_ns, call.end_ns)
            turn.session = turn.session or call.session
            turn.user = turn.user or call.user
            turn.is_rooted = turn.is_rooted and is_rooted
        if call.response_id:
            self._responses[key] = (node, turn)
        self._close(turn, call, node)
        if call.trace_id:
            inputs[node] = turn

    def _close(self, turn: Turn, call: Call, node: int) -> None:
        """Note the answer of a turn's newest call."""
        tree = self.tree
        output = call.output or ()
        answer = 0
        for item in output:
            number = tree.item(item.role, item.kind, item.text)
            node = tree.step(node, number)
            if item.role == "assistant":
                is_text = item.kind == "text"
                answer = number if is_text and answer >= 0 else -1
                if item.kind == "call" and item.call_id:
                    self.issued[item.call_id] += 1
        turn.end = node
        if answer > 0:
            turn.answer = answer
        if output:
            self._ends[node] = turn
        if not turn.answer:
            self._wordless[node] = turn

    def _continued(self, call: Call, node: int, inputs: dict[int, Turn]) -> Turn | None:
        """Return the turn that this call belongs to, if an earlier call began it."""
        same = inputs.get(node)
        if same is not None:
            self.retries += 1
            return same
        tree = self.tree
        above = node
        while above:
            if above != node:
                found = self._ends.get(above)
                if found is not None:
                    return found
                found = self._wordless.get(above)
                if found is not None and found.end_ns <= call.start_ns:
                    return found
            found = inputs.get(above)
            if found is not None:
                return found
            if tree.items[tree.item_of[above]][0] in "ua":
                return None  # behind a question or an answer in words, another turn begins
            above = tree.parent[above]
        return None

    def _ask_of(self, node: int) -> tuple[int, tuple[int, ...]]:
        """Return the node before the last ask of a history, and the ask's nodes."""
        tree = self.tree
        items, item_of, parent = tree.items, tree.item_of, tree.parent
        while node and items[item_of[node]][0] != "u":
            node = parent[node]
        asks: tuple[int, ...] = ()
        while node and items[item_of[node]][0] == "u":
            asks = (node, *asks)
            node = parent[node]
        return node, asks

    def forget(self, keep: int, forgotten: Forgotten, ends: Iterable[int]) -> array[int]:
        """Keep the newest turns and all that their histories hold; return the new node numbers.

        Of the others only what they asked stays, so that it is never taken for asked once.
        """
        old, parent = self.tree, self.tree.parent
        turns = sorted(self.turns, key=lambda turn: (turn.end_ns, turn.number))
        is_kept = bytearray(len(old))
        is_kept[ROOT] = 1
        newest, others = turns[-keep:], turns[:-keep]
        for end in chain(ends, *((turn.end, *turn.asks, turn.base) for turn in newest)):
            node = end
            while not is_kept[node]:
                is_kept[node] = 1
                node = parent[node]
        # Owners of what the newest turns were shown; so many that the bound still holds.
        owners = [turn for turn in others if turn.asks and is_kept[turn.asks[-1]]][-keep:]
        stay = {turn.number for turn in owners}
        for turn in others:
            if turn.number not in stay:
                self.forgotten += 1
                for ask in turn.asks:
                    forgotten.add(old.items[old.item_of[ask]])
        self.turns = sorted((*owners, *newest), key=lambda turn: turn.number)
        for turn in owners:
            is_kept[turn.end] = is_kept[parent[turn.end]]
        self.tree, numbers, items = old.kept(is_kept)
        for turn in self.turns:
            turn.base, turn.end = numbers[turn.base], numbers[turn.end]
            turn.asks = tuple(numbers[ask] for ask in turn.asks)
            turn.answer = items.get(turn.answer, 0)
        kept = {turn.number for turn in self.turns}
        self._ends = {turn.end: turn for turn in self.turns if turn.end}
        self._wordless = {
            numbers[node]: turn for node, turn in self._wordless.items()
            if numbers[node] and turn.number in kept
        }  # fmt: skip
        self._responses = {
            key: (numbers[node], turn) for key, (node, turn) in self._responses.items()
            if turn.number in kept
        }  # fmt: skip
        self._unread["no recorded messages"] += len(self._wordless_ids)
        self._wordless_ids.clear()
        self.issued = Counter(dict(list(self.issued.items())[-keep:]))
        return numbers

    def own_asks(self) -> None:
        """Take from each turn the questions before its own that other turns still wait for.

        Of several turns at once, later ones may be shown the unanswered questions of earlier ones.
        They extend one history all the same, so the base stays before all of these questions.
        """
        item_of = self.tree.item_of
        several = [turn for turn in self.turns if len(turn.asks) > 1]
        if not several:
            return
        bases = {turn.base for turn in several}
        last = {
            (turn.base, item_of[turn.asks[-1]]): turn
            for turn in self.turns
            if turn.asks and turn.base in bases
        }
        for turn in several:
            while len(turn.asks) > 1:
                owner = last.get((turn.base, item_of[turn.asks[0]]))
                if owner is None or owner is turn or owner.begin_ns > turn.end_ns:
                    break
                turn.asks = turn.asks[1:]
