"""Right services that look wrong: whatever an audit proves of their logs is false.

Written from the rules of the audit, to find what they overlook: users who share a script and its
stock answers, refusals, edits while clocks differ, branches, calls beside the conversation,
clients that shorten, interrupts, rooms, two services in one log, call ids that repeat, memories,
tasks given away, retries, a stub with one response id. ``attack(seed)`` plays up to three of them;
``damaged`` samples, drops, shuffles and cuts.
"""

import json
import random

SECOND, MILLISECOND = 10**9, 10**6
STOCK = ("I am sorry, I cannot help with that.", "Done, your request was registered.",
         "It is sunny today, 20 degrees.")  # fmt: skip
SCRIPT = ("Please check the weather in Paris.", "And what about tomorrow, please?",
          "Book a table for two people.", "Thank you, that is all for now.")  # fmt: skip


class Service:
    """A service and the log that it leaves, as pairs of trace id and line."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.now = 1_800_000_000 * SECOND
        self.log = []
        self.has_host_names = seed % 2 == 0
        self.skews = {}

    def id(self, digits):
        return f"{self.draw.getrandbits(4 * digits):0{digits}x}"

    def question(self, user, kind="Unique"):
        return f"{kind} question {self.id(6)} of {user}"

    def answer(self):
        return f"Answer {self.id(8)} for you"

    def span(self, trace, span, parent, name, begin, end, attributes, host="h1", service="svc"):
        skew = self.skews.get(host, 0)
        names = {"service.name": service} | ({"host.name": host} if self.has_host_names else {})
        told = {
            "traceId": trace, "spanId": span, "parentSpanId": parent, "name": name,
            "startTimeUnixNano": str(begin + skew), "endTimeUnixNano": str(end + skew),
            "attributes": pairs(attributes),
        }  # fmt: skip
        resource = {"resource": {"attributes": pairs(names)}, "scopeSpans": [{"spans": [told]}]}
        self.log.append((trace, json.dumps({"resourceSpans": [resource]})))

    def call(self, trace, parent, who, history, output, begin, end, *, response="", **place):
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.response.id": response or f"resp_{self.id(12)}",
            "gen_ai.input.messages": json.dumps([message(one) for one in history]),
        }
        if output:
            attributes["gen_ai.output.messages"] = json.dumps([message(output)])
        user, session = who
        attributes |= {"user.id": user} if user else {}
        attributes |= {"gen_ai.conversation.id": session} if session else {}
        self.span(trace, self.id(16), parent, "chat m", begin, end, attributes, **place)

    def turn(self, who, history, ask, answer, *, begin=None, took=0, root="POST /chat", trace="",
             waits=True, response="", **place):  # fmt: skip
        begin = self.now if begin is None else begin
        end = begin + (took or self.draw.randrange(200, 2000) * MILLISECOND)
        trace, span = trace or self.id(32), self.id(16)
        history = [*history, ("user", ask)]
        said = ("assistant", answer) if answer else None
        edges = (begin + 2 * MILLISECOND, end - 2 * MILLISECOND)
        parent = span if root else ""
        self.call(trace, parent, who, history, said, *edges, response=response, **place)
        if root:
            about = {"gen_ai.conversation.id": who[1]} if who[1] else {}
            self.span(trace, span, "", root, begin, end, about, **place)
        if waits:
            self.now = max(self.now, end) + self.draw.randrange(1, 3000) * MILLISECOND
        return [*history, said] if said else history

    def users(self, count):
        return [(f"u{number}", f"s{number}") for number in range(count)]


def pairs(table):
    return [{"key": key, "value": {"stringValue": value}} for key, value in table.items()]


def message(one):
    role, text = one[:2]
    if role == "call":
        part = {"type": "tool_call", "id": one[2], "name": "tool", "arguments": {"q": text}}
        return {"role": "assistant", "parts": [part]}
    if role == "result":
        part = {"type": "tool_call_response", "id": one[2], "response": text}
        return {"role": "tool", "parts": [part]}
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def shared_script(it):
    histories = {who: [] for who in it.users(it.draw.randrange(2, 6))}
    for number in range(it.draw.randrange(2, 5)):
        for who in it.draw.sample(list(histories), len(histories)):
            begin = it.now + it.draw.randrange(0, 50) * MILLISECOND
            histories[who] = it.turn(who, histories[who], SCRIPT[number], STOCK[number % 3],
                                     begin=begin, waits=it.draw.random() < 0.5)  # fmt: skip


def stock_answers(it):
    for who in it.users(it.draw.randrange(2, 6)):
        history = []
        for _ in range(it.draw.randrange(2, 6)):
            ask = it.draw.choice(SCRIPT) if it.draw.random() < 0.5 else it.question(who[0])
            answer = it.draw.choice(STOCK) if it.draw.random() < 0.5 else it.answer()
            history = it.turn(who, history, ask, answer)


def refusals(it):
    for who in it.users(4):
        history = []
        for _ in range(it.draw.randrange(3, 7)):
            ask, answer, chance = it.question(who[0]), it.answer(), it.draw.random()
            if chance < 0.3:  # a guard replaces what was said
                it.turn(who, history, ask, answer)
                history = [*history, ("user", ask), ("assistant", it.draw.choice(STOCK))]
            elif chance < 0.5:  # the model refuses in the guard's words
                history = it.turn(who, history, ask, it.draw.choice(STOCK))
            elif chance < 0.7:  # a second draft
                trace, begin, final = it.id(32), it.now, it.answer()
                it.turn(who, history, ask, answer, begin=begin, waits=False, trace=trace)
                it.turn(who, [], f"Polish this draft: {answer}", final, begin=begin + 2 * SECOND,
                        trace=trace if it.draw.random() < 0.5 else "")  # fmt: skip
                history = [*history, ("user", ask), ("assistant", final)]
            else:
                history = it.turn(who, history, ask, answer)


def edits_on_several_hosts(it):
    hosts = ("h1", "h2", "h3")
    it.skews = {host: it.draw.randrange(-3000, 3000) * MILLISECOND for host in hosts}
    for who in it.users(4):
        history = []
        for _ in range(it.draw.randrange(4, 9)):
            ask = it.question(who[0])
            longer = it.turn(who, history, ask, it.answer(), host=it.draw.choice(hosts))
            while it.draw.random() < 0.3:
                ask = it.question(who[0], "Edited")
                longer = it.turn(who, history, ask, it.answer(), host=it.draw.choice(hosts))
            history = longer


def branches(it):
    for user, session in it.users(3):
        history = []
        for _ in range(3):
            history = it.turn((user, session), history, it.question(user), it.answer())
        each = [list(history) for _ in range(3)]
        for _ in range(3):
            for number in range(3):
                who = (user, f"{session}-branch{number}" if number else session)
                each[number] = it.turn(who, each[number], it.question(user), it.answer(),
                                       begin=it.now + 10 * number, waits=False)  # fmt: skip
            it.now += 3 * SECOND


def calls_beside(it):
    kind = it.draw.choice(("suggestions", "summary", "tags"))
    for who in it.users(3):
        history = []
        for number in range(it.draw.randrange(3, 8)):
            begin, early = it.now, it.now - 100 * MILLISECOND
            if number and kind == "suggestions":
                ask = f"Suggest three follow-ups for turn {number}."
                it.turn(who, history, ask, f"1. {it.id(6)} 2. {it.id(6)}", begin=early, waits=False)
            if number and kind == "tags":
                ask = "Give tags for this conversation."
                it.turn(who, history, ask, f"tags {it.id(4)}", begin=early, waits=False)
            history = it.turn(who, history, it.question(who[0]), it.answer(), begin=begin)
            if kind == "summary" and number == 3:
                summary, begin = f"The user asked about {it.id(8)} and got answers.", it.now
                it.turn(who, history, "Summarise the conversation so far.", summary,
                        begin=begin - 50 * MILLISECOND, waits=False)  # fmt: skip
                last = it.turn(who, history, it.question(who[0]), it.answer(), begin=begin)[-2:]
                history = [("user", f"Summary: {summary}"), ("assistant", "Understood."), *last]


def shortening_clients(it):
    kind = it.draw.choice(("cut", "without sources", "dots"))
    for who in it.users(3):
        history = []
        for _ in range(it.draw.randrange(4, 9)):
            answer = f"{it.answer()}. {'And more words here. ' * it.draw.randrange(1, 6)}".strip()
            if kind == "without sources" and it.draw.random() < 0.5:
                answer += f"\n\nSources: [1] {it.id(6)}"
            kept = {"cut": answer[:40], "dots": f"{answer[:30]}...",
                    "without sources": answer.split("\n\n")[0]}[kind]  # fmt: skip
            history = it.turn(who, history, it.question(who[0]), answer)
            history = [*history[:-1], ("assistant", kept)]


def interrupts(it):
    for who in it.users(3):
        history = []
        for _ in range(it.draw.randrange(4, 8)):
            ask, answer = it.question(who[0]), f"{it.answer()}, and then much more text."
            kind = it.draw.choice(("interrupt", "rollback", "barge in", "", ""))
            begin, after = it.now, it.question(who[0], "Second")
            if not kind:
                history = it.turn(who, history, ask, answer)
                continue
            said = answer if kind == "barge in" else None
            it.turn(who, history, ask, said, begin=begin, took=SECOND, waits=False)
            it.now = begin + SECOND - 20 * MILLISECOND
            if kind != "rollback":
                history = [*history, ("user", ask)]
            if kind == "barge in":
                history = [*history, ("assistant", answer[:20])]
            history = it.turn(who, history, after, it.answer())


def rooms(it):
    for number in range(2):
        history = []
        for _ in range(it.draw.randrange(5, 12)):
            user = f"u{it.draw.randrange(3)}"
            history = it.turn((user, f"room{number}"), history, it.question(user), it.answer())


def two_services(it):
    for who in it.users(3):
        history = []
        for _ in range(it.draw.randrange(3, 7)):
            ask, begin = it.question(who[0]), it.now
            trace = it.id(32) if it.draw.random() < 0.5 else ""
            it.turn(who, history, ask, it.draw.choice(("billing", "support")), begin=begin,
                    took=100 * MILLISECOND, service="router", host="h2", waits=False,
                    root="POST /route", trace=trace)  # fmt: skip
            it.turn(who, [], f"Is this safe: {ask}", "yes, it is safe", begin=begin + 10,
                    took=100 * MILLISECOND, service="guard", host="h3", waits=False,
                    root=it.draw.choice(("POST /chat", "")))  # fmt: skip
            history = it.turn(who, history, ask, it.answer(), begin=begin + 100 * MILLISECOND)


def call_ids_that_repeat(it):
    call_id = it.draw.choice(("call_0", "functions.get_weather:0", "call_00000000000"))
    for who in it.users(3):
        history = []
        for number in range(it.draw.randrange(3, 7)):
            trace, root, at = it.id(32), it.id(16), it.now
            history = [*history, ("user", it.question(who[0]))]
            called = ("call", f"x{number}", call_id)
            it.call(trace, root, who, history, called, at + 1, at + 10)
            about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": call_id}
            it.span(trace, it.id(16), root, "execute_tool", at + 11, at + 12, about)
            history = [*history, called, ("result", f"result {it.id(4)}", call_id)]
            answer = ("assistant", it.answer())
            it.call(trace, root, who, history, answer, at + 13, at + 40)
            it.span(trace, root, "", "POST /chat", at, at + 41, {})
            history, it.now = [*history, answer], at + SECOND


def memories(it):
    for user, session in it.users(3):
        past = []
        for number in range(2):
            history = []
            for _ in range(it.draw.randrange(3, 7)):
                ask, answer, shown = it.question(user), it.answer(), []
                for one in it.draw.sample(past, min(len(past), it.draw.randrange(0, 3))):
                    shown += one
                window = history[-2 * it.draw.randrange(1, 4) :]
                it.turn((user, f"{session}-{number}"), [*shown, *window], ask, answer)
                history += [("user", ask), ("assistant", answer)]
                past.append(history[-2:])


def tasks_given_away(it):
    for who in it.users(3):
        history = []
        for _ in range(it.draw.randrange(3, 7)):
            trace, root, at, call_id = it.id(32), it.id(16), it.now, f"call_{it.id(20)}"
            tasks = [f"Research topic {it.id(6)} deeply" for _ in range(2)]
            before, history = history, [*history, ("user", it.question(who[0]))]
            called = ("call", " and ".join(tasks), call_id)
            it.call(trace, root, who, history, called, at + 1, at + 100 * MILLISECOND)
            is_forked = it.draw.random() < 0.5
            for number, task in enumerate(tasks):
                it.turn(who, before if is_forked else [], task, f"Found {it.id(8)} in the papers",
                        begin=at + (110 + number) * MILLISECOND, took=200 * MILLISECOND,
                        waits=False)  # fmt: skip
            history = [*history, called, ("result", f"found things {it.id(4)}", call_id)]
            answer = ("assistant", it.answer())
            it.call(trace, root, who, history, answer, at + 330 * MILLISECOND, at + SECOND)
            it.span(trace, root, "", "POST /chat", at, at + SECOND + 1, {})
            history, it.now = [*history, answer], at + 2 * SECOND


def retries(it):
    for who in it.users(3):
        history = []
        for _ in range(it.draw.randrange(3, 7)):
            ask, begin = it.question(who[0]), it.now
            if it.draw.random() < 0.5:
                it.turn(who, history, ask, it.answer(), begin=begin, took=SECOND, waits=False)
                begin += SECOND // 2
            history = it.turn(who, history, ask, it.answer(), begin=begin)


def one_response_id(it):
    for who in it.users(3):
        history = []
        for _ in range(4):
            history = it.turn(who, history, it.question(who[0]), "This is a stub answer.",
                              response="chatcmpl-123")  # fmt: skip


ATTACKS = (shared_script, stock_answers, refusals, edits_on_several_hosts, branches, calls_beside,
           shortening_clients, interrupts, rooms, two_services, call_ids_that_repeat, memories,
           tasks_given_away, retries, one_response_id)  # fmt: skip


def attack(seed, kinds=()):
    """Return the log of a service of these kinds, else of one to three that are drawn."""
    it = Service(seed)
    for kind in kinds or it.draw.sample(ATTACKS, it.draw.choice((1, 1, 2, 3))):
        kind(it)
    return it.log


def damaged(log, seed):
    """Return what is left of a log after sampling, loss, disorder and cuts."""
    draw = random.Random(seed)
    for kind in draw.sample(("sample", "drop", "shuffle", "head", "cut", "roots"), 2):
        if kind == "sample":
            share, keep = draw.choice((0.3, 0.5, 0.8)), {}
            log = [one for one in log if keep.setdefault(one[0], draw.random() > share)]
        elif kind == "drop":
            share = draw.choice((0.05, 0.15, 0.4))
            log = [one for one in log if draw.random() > share]
        elif kind == "shuffle":
            log = draw.sample(log, len(log))
        elif kind == "head":
            log = log[draw.randrange(len(log) + 1) :]
        elif kind == "cut":
            log = [(t, line if draw.random() > 0.1 else line[: len(line) // 2]) for t, line in log]
        else:
            log = [one for one in log if '"POST' not in one[1] or draw.random() > 0.5]
    return log
