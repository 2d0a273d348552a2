"""Logs of model calls with known truth: an agent service, its oddities, its faults, its damage.

``make_log(seed)`` plays some users' sessions turn by turn against a store and writes down the trace
that an instrumented service would export, as OTLP-JSON lines. Each log is right, or has faults of
known names; then it may be damaged as real logs are (spans dropped, shuffled, cut, clocks skewed).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAULTS", "ODDITIES", "PlayedLog", "damaged", "long_sessions", "make_log"]

FAULTS = ("lost update", "fork", "cross-session leak", "torn turn", "foreign answer", "tool twice")
ODDITIES = (
    "window", "compaction", "edit", "regenerate", "retry", "title", "suggestions", "reminder",
    "dated system", "samples", "sub-agent", "short asks", "shared words", "guardrail",
    "shared room", "two services", "hosts",
)  # fmt: skip
REFUSAL = "I am sorry, I cannot help with that."
_Message = dict[str, Any]


@dataclass(slots=True)
class PlayedLog:
    """One log.

    Attributes:
        lines: OTLP-JSON, one span a line.
        faults: names of the anomalies that an audit of the whole log should prove.
        oddities: what legitimate things the service did.
    """

    lines: list[str]
    faults: set[str]
    oddities: set[str] = field(default_factory=set)


# What makes a single turn's words not its own.
_BLURRING = {"short asks", "shared words", "guardrail"}


class _Player:
    def __init__(self, seed: int, oddities: Iterable[str]) -> None:
        self.draw = random.Random(seed)
        self.oddities = set(oddities)
        self.now_ns = 1_800_000_000_000_000_000
        self.lines: list[str] = []
        self.asked = 0
        self.host = ""
        # The clocks of three machines, a little apart.
        self.skews = {f"host-{n}": self.draw.randrange(-30, 30) * 1_000_000 for n in range(3)}

    def pass_time(self, most_ms: int = 40) -> int:
        self.now_ns += self.draw.randrange(1, most_ms) * 1_000_000
        return self.now_ns

    def id(self, digits: int) -> str:
        return f"{self.draw.getrandbits(4 * digits):0{digits}x}"

    def ask_text(self, user: str, session: str) -> str:
        self.asked += 1
        if "short asks" in self.oddities and self.draw.random() < 0.3:
            return self.draw.choice(("yes", "go on", "thanks"))
        if "shared words" in self.oddities and self.draw.random() < 0.3:
            return "Please tell me the weather in Paris."
        return f"Please note item {self.asked} on the {session} list of {user}."

    def span(
        self,
        trace: str,
        name: str,
        begin_ns: int,
        end_ns: int,
        attributes: dict[str, Any],
        parent: str = "",
        span_id: str = "",
    ) -> str:
        span_id = span_id or self.id(16)
        pairs = [
            {"key": key, "value": {"stringValue": value if isinstance(value, str) else str(value)}}
            for key, value in attributes.items()
        ]
        skew_ns = self.skews.get(self.host, 0)
        span = {
            "traceId": trace, "spanId": span_id, "parentSpanId": parent, "name": name,
            "startTimeUnixNano": str(begin_ns + skew_ns),
            "endTimeUnixNano": str(end_ns + skew_ns),
            "attributes": pairs,
        }  # fmt: skip
        scope = {"scope": {"name": "agent"}, "spans": [span]}
        told = {"key": "host.name", "value": {"stringValue": self.host}}
        resource = {"resource": {"attributes": [told]}} if self.host else {}
        self.lines.append(json.dumps({"resourceSpans": [{**resource, "scopeSpans": [scope]}]}))
        return span_id

    def call(
        self,
        who: tuple[str, str],
        trace: str,
        parent: str,
        sent: Sequence[_Message],
        answer: _Message,
        begin_ns: int,
        end_ns: int,
    ) -> None:
        system = "You are a planner."
        if "dated system" in self.oddities:
            system += f" It is {begin_ns}."
        self.span(
            trace, "chat any-model", begin_ns, end_ns,
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.response.id": f"resp_{self.id(16)}",
                "gen_ai.conversation.id": who[1],
                "user.id": who[0],
                "gen_ai.system_instructions": json.dumps([{"type": "text", "content": system}]),
                "gen_ai.input.messages": json.dumps([_gen_ai(message) for message in sent]),
                "gen_ai.output.messages": json.dumps([_gen_ai(answer)]),
            },
            parent,
        )  # fmt: skip

    def turn(
        self,
        who: tuple[str, str],
        shown: Sequence[_Message],
        ask: str,
        *,
        begin_ns: int = 0,
        end_ns: int = 0,
        uses_tool: bool = False,
        tool_runs: int = 1,
    ) -> list[_Message]:
        """Record one turn, and return the messages that it adds to its history."""
        begin_ns = begin_ns or self.pass_time()
        end_ns = end_ns or begin_ns + self.draw.randrange(20, 60) * 1_000_000
        self.now_ns = max(self.now_ns, end_ns)
        trace, root = self.id(32), self.id(16)
        prompt = {"role": "user", "text": ask}
        if "reminder" in self.oddities and self.draw.random() < 0.5:
            prompt = {"role": "user", "text": ask, "before": "<reminder>Be brief.</reminder>"}
        sent = [*self._context(shown), prompt]
        middle = (begin_ns + end_ns) // 2
        added = [prompt]
        if uses_tool:
            call_id = f"call_{self.id(12)}"
            called = {"role": "assistant", "call": call_id}
            result = {"role": "tool", "call": call_id, "text": "sunny"}
            self.call(who, trace, root, sent, called, begin_ns + 1_000, middle)
            for _ in range(tool_runs):
                about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": call_id}
                self.span(trace, "execute_tool weather", middle, middle + 1_000, about, root)
            sent = [*sent, called, result]
            added += [called, result]
        answer = {"role": "assistant", "text": f"Noted as number {self.id(6)}: {ask}"}
        if "guardrail" in self.oddities and self.draw.random() < 0.3:
            if self.draw.random() < 0.5:  # the model itself says what the guard would
                answer = {"role": "assistant", "text": REFUSAL}
            else:  # the guard replaces what the model said
                self.call(who, trace, root, sent, answer, middle + 5_000, end_ns - 1_000)
                about = {"gen_ai.conversation.id": who[1], "user.id": who[0]}
                self.span(trace, "invoke_agent planner", begin_ns, end_ns, about, span_id=root)
                return [*added, {"role": "assistant", "text": REFUSAL}]
        if "retry" in self.oddities and self.draw.random() < 0.3:
            self.call(who, trace, root, sent, answer, middle + 2_000, middle + 3_000)
        samples = 3 if "samples" in self.oddities and self.draw.random() < 0.3 else 1
        for number in range(samples):
            said = answer if number == samples - 1 else {**answer, "text": f"Sample {number}."}
            self.call(who, trace, root, sent, said, middle + 5_000 + number, end_ns - 1_000)
        if "title" in self.oddities and not shown:
            other = self.id(32)
            name = [{"role": "user", "text": f"Give this conversation a title: {ask}"}]
            said = {"role": "assistant", "text": "A list"}
            self.call(who, other, "", name, said, begin_ns, end_ns)
        if "suggestions" in self.oddities and self.draw.random() < 0.5:
            other = self.id(32)
            asked = {"role": "user", "text": "Suggest three questions for this conversation."}
            said = {"role": "assistant", "text": f"1. {self.id(6)}"}
            late = end_ns + self.draw.randrange(5, 60) * 1_000_000
            self.call(who, other, "", [*shown, *added, answer, asked], said, end_ns, late)
        if "two services" in self.oddities and self.draw.random() < 0.5:
            # A router in front sees the same conversation, in a trace of its own.
            routed = {"role": "assistant", "text": self.draw.choice(("billing", "support"))}
            other, above = self.id(32), self.id(16)
            self.call(who, other, above, [*self._context(shown), prompt], routed, begin_ns, middle)
            self.span(other, "POST /route", begin_ns, middle, {}, span_id=above)
        if "sub-agent" in self.oddities and self.draw.random() < 0.5:
            order = [{"role": "user", "text": f"Research for the main agent: {ask}"}]
            said = {"role": "assistant", "text": f"Found {self.id(6)}."}
            self.call(who, trace, root, order, said, begin_ns + 500, middle)
        about = {"gen_ai.operation.name": "invoke_agent", "gen_ai.conversation.id": who[1]}
        self.span(trace, "invoke_agent planner", begin_ns, end_ns, {**about, "user.id": who[0]},
                  span_id=root)  # fmt: skip
        return [*added, answer]

    def _context(self, shown: Sequence[_Message]) -> list[_Message]:
        if "window" in self.oddities:
            asks = [at for at, message in enumerate(shown) if message["role"] == "user"]
            return list(shown[asks[-3] :] if len(asks) > 3 else shown)
        if "compaction" in self.oddities and len(shown) > 8:
            asks = [at for at, message in enumerate(shown) if message["role"] == "user"]
            summary = {"role": "user", "text": f"Summary of {len(asks) - 2} turns."}
            return [summary, *shown[asks[-2] :]]
        return list(shown)


def _gen_ai(message: _Message) -> dict[str, Any]:
    if message["role"] == "tool":
        part = {"type": "tool_call_response", "id": message["call"], "response": message["text"]}
        return {"role": "tool", "parts": [part]}
    if "call" in message:
        part = {"type": "tool_call", "id": message["call"], "name": "weather", "arguments": {}}
        return {"role": "assistant", "parts": [part]}
    texts = [message[name] for name in ("before", "text") if message.get(name)]
    return {
        "role": message["role"],
        "parts": [{"type": "text", "content": text} for text in texts],
    }


def make_log(
    seed: int, *, faults: Iterable[str] | None = None, oddities: Iterable[str] | None = None
) -> PlayedLog:
    """Return a log; what is not given is drawn.

    Args:
        faults: names of ``FAULTS``; an empty list makes a right log.
        oddities: names of ``ODDITIES``.
    """
    draw = random.Random(seed)
    if faults is None:
        faults = draw.sample(FAULTS, draw.choice((0, 0, 1, 1, 2)))
    if oddities is None:
        oddities = draw.sample(ODDITIES, draw.choice((0, 1, 1, 2)))
    player = _Player(seed, oddities)
    sessions = [("ada", "trip"), ("bob", "trip2"), ("cyd", "work"), ("ada", "work2")]
    stores: dict[tuple[str, str], list[_Message]] = {who: [] for who in sessions}
    made: set[str] = set()

    def plain(who: tuple[str, str], **options: Any) -> None:
        if "hosts" in player.oddities:
            player.host = draw.choice(list(player.skews))
        ask = player.ask_text(*who)
        if "shared room" in player.oddities and who[1] == "work" and draw.random() < 0.5:
            guest = ("dan", who[1])
            stores[who] += player.turn(guest, stores[who], player.ask_text(*guest), **options)
        stores[who] += player.turn(who, stores[who], ask, **options)

    def firm(who: tuple[str, str], **options: Any) -> None:
        """A turn whose words are its own, so that a fault can be shown with it."""
        kept, player.oddities = player.oddities, player.oddities - _BLURRING
        plain(who, **options)
        player.oddities = kept

    def lost_update(who: tuple[str, str], *, keeps_both: bool) -> None:
        begin, end = player.pass_time(), player.pass_time() + 60_000_000
        shown = list(stores[who])
        kept, player.oddities = player.oddities, player.oddities - _BLURRING
        asks = [player.ask_text(*who) for _ in range(2)]
        player.oddities = kept
        turns = [
            player.turn(who, shown, ask, begin_ns=begin + at * 1_000_000, end_ns=end + at)
            for at, ask in enumerate(asks)
        ]
        stores[who] += turns[0] + turns[1] if keeps_both else turns[1]
        made.update({"fork"} if keeps_both else {"fork", "lost update"})

    def leak(who: tuple[str, str]) -> None:
        other = next(one for one in sessions if one[0] != who[0] and stores[one])
        firm(other)
        stores[who] += stores[other][-2:]
        made.add("cross-session leak")

    def torn(who: tuple[str, str]) -> None:
        firm(who)
        answer = stores[who][-1]
        stores[who][-1] = {**answer, "text": answer["text"][:12]}
        made.add("torn turn")

    def foreign(who: tuple[str, str]) -> None:
        other = next(one for one in sessions if one != who and one[0] != who[0])
        firm(who)
        firm(other)
        stores[who][-1], stores[other][-1] = stores[other][-1], stores[who][-1]
        made.add("foreign answer")

    def tool_twice(who: tuple[str, str]) -> None:
        firm(who, uses_tool=True, tool_runs=2)  # within one turn: only a suspicion

    steps: dict[str, Callable[[tuple[str, str]], None]] = {
        "fork": lambda who: lost_update(who, keeps_both=True),
        "lost update": lambda who: lost_update(who, keeps_both=False),
        "cross-session leak": leak,
        "torn turn": torn,
        "foreign answer": foreign,
        "tool twice": tool_twice,
    }
    for who in sessions:
        firm(who)
    for name in (*faults, ""):
        for who in draw.sample(sessions, len(sessions)):
            for _ in range(draw.randrange(0, 3)):
                plain(who, uses_tool=draw.random() < 0.3)
            if "edit" in player.oddities and len(stores[who]) > 2 and draw.random() < 0.5:
                asks = [at for at, one in enumerate(stores[who]) if one["role"] == "user"]
                stores[who] = stores[who][: asks[-1]]
                plain(who)
            if "regenerate" in player.oddities and len(stores[who]) > 2 and draw.random() < 0.5:
                asks = [at for at, one in enumerate(stores[who]) if one["role"] == "user"]
                at = asks[-1]
                again = stores[who][at]["text"]
                before, player.oddities = player.oddities, player.oddities - {"reminder"}
                stores[who] = stores[who][:at]
                stores[who] += player.turn(who, stores[who], again)
                player.oddities = before
        if name:
            who = draw.choice(sessions)
            steps[name](who)
            for one in sessions:
                firm(one)
                firm(one)
    return PlayedLog(player.lines, made, player.oddities)


def long_sessions(turns: int, sessions: int) -> list[str]:
    """Return the lines of plain sessions of so many turns of 200 characters each."""
    player = _Player(turns, ())
    for number in range(sessions):
        who = (f"user {number}", f"session {number}")
        history: list[_Message] = []
        for _ in range(turns):
            history += player.turn(who, history, f"{player.ask_text(*who)} {'x' * 200}")
    return player.lines


def damaged(lines: Sequence[str], seed: int) -> list[str]:
    """Return the lines as a bad day would leave them."""
    draw = random.Random(seed)
    left = list(lines)
    for kind in draw.sample(("drop", "shuffle", "head", "cut", "skew", "sample"), 2):
        if kind == "drop":
            left = [line for line in left if draw.random() > 0.15]
        elif kind == "shuffle":
            draw.shuffle(left)
        elif kind == "head":
            left = left[draw.randrange(len(left) // 2 + 1) :]
        elif kind == "cut":
            left = [line if draw.random() > 0.05 else line[: len(line) // 2] for line in left]
        elif kind == "skew":
            offset = draw.randrange(-80, 80) * 1_000_000
            left = [_shifted(line, offset) if draw.random() < 0.3 else line for line in left]
        else:
            kept: dict[str, bool] = {}
            left = [
                line for line in left
                if kept.setdefault(_trace_of(line), draw.random() > 0.3)
            ]  # fmt: skip
    return left


def _trace_of(line: str) -> str:
    at = line.find('"traceId": "')
    return line[at + 12 : at + 44]


def _shifted(line: str, offset_ns: int) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    for resource in record["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for edge in ("startTimeUnixNano", "endTimeUnixNano"):
                    span[edge] = str(int(span[edge]) + offset_ns)
    return json.dumps(record)
