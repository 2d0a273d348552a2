"""The conversation in memory: what a model is shown, and what it cannot reach."""

import json
import subprocess
import sys
import time

import orjson
import pytest
from house import ADA, managing, run

from kode_lab.message import Reply, Usage, assistant, user
from kode_lab.sessions.conversation import Conversation


def said(count):
    return [user(f"q{n}") if n % 2 == 0 else assistant(f"a{n}") for n in range(count)]


def test_a_request_shows_the_messages_as_a_list_would():
    shown = Conversation(said(4)).shown([orjson.dumps(user("now"))])
    listed = [*said(4), user("now")]
    assert len(shown) == 5
    assert shown == listed
    assert shown[-1] == user("now")
    assert shown[1:3] == listed[1:3]
    assert list(reversed(shown)) == listed[::-1]
    assert shown[2:] + shown[:1] == [*listed[2:], listed[0]]
    assert json.loads(shown.to_json()) == listed
    with pytest.raises(IndexError):
        shown[5]


def test_a_request_can_begin_later_and_with_a_summary():
    shown = Conversation(said(4)).shown(head=[orjson.dumps(user("summary"))], start=2)
    assert list(shown) == [user("summary"), *said(4)[2:]]
    assert [shown[at] for at in range(3)] == [user("summary"), *said(4)[2:]]


def test_a_window_over_messages_that_others_wrote_shows_them_together_or_not_at_all():
    foreign = [user("a"), user("b"), assistant("c"), user("d")]  # as two turns in requests
    conversation = Conversation(foreign)
    conversation.extend([orjson.dumps(user("q")), orjson.dumps(assistant("r"))])
    shown = conversation.shown()
    assert [m["role"] for m in shown] == ["user", "assistant"] * 3
    assert list(conversation.shown(start=1)) == list(shown)
    assert list(conversation.shown(start=4)) == [user("q"), assistant("r")]
    assert [conversation.position(at, 4) for at in range(6)] == [None] * 4 + [0, 1]
    assert shown[conversation.position(5)] == assistant("r")
    assert [Conversation(said(4)).position(at, 2) for at in range(4)] == [None, None, 0, 1]


def test_what_a_model_changes_is_in_its_own_request_only():
    conversation = Conversation(said(4))
    shown, other = conversation.shown(), conversation.shown()
    shown[-1]["content"][0]["cache_control"] = {"type": "ephemeral"}
    assert b"ephemeral" in shown.to_json()
    shown.append(user("more"))
    shown[0] = user("other")
    del shown[1]
    assert next(iter(shown)) == user("other")
    assert json.loads(shown.to_json()) == list(shown)
    assert len(shown) == 4
    assert other == said(4)
    assert conversation.messages() == said(4)


def test_a_request_made_before_a_turn_shows_what_it_showed():
    conversation = Conversation(said(4))
    shown = conversation.shown()
    conversation.extend([orjson.dumps(user("later"))])
    assert list(shown) == said(4)
    assert conversation.messages() == [*said(4), user("later")]


def test_the_size_of_a_conversation_is_the_memory_that_it_takes():
    conversation = Conversation(
        [message for n in range(0, 3000, 7) for message in (user("é" * n or "-"), assistant("a"))]
    )
    lines = conversation._lines
    rounded = sum((sys.getsizeof(line) + 15) // 16 * 16 for line in lines)
    assert conversation.size_bytes == rounded + 8 * len(lines)


def changing(request):
    last = request.messages[-1]
    last["content"][0]["text"] += " (be brief)"
    last["content"][0]["cache_control"] = {"type": "ephemeral"}
    last["content"].append({"type": "text", "text": "and more"})


def growing(request):
    request.messages.append(user("and more"))
    request.messages[0] = user("something else")


@pytest.mark.parametrize("change", [changing, growing])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_model_that_changes_what_it_is_given_does_not_change_the_record(
    tmp_path, change, durability
):
    """Neither through the request nor through the blocks that it answered with."""
    block = {"type": "text", "text": "hi"}

    async def model(request, on_text=None):  # noqa: ARG001 - as a model is called
        change(request)
        return Reply((block,), "end_turn", Usage(1, 1))

    async def scenario():
        async with managing(tmp_path, model, store={"durability": durability}) as manager:
            for number in range(3):
                reply = await manager.turn(ADA, f"hello {number}", turn_id=f"t{number}")
                block["text"] = "changed"
                assert reply.text == "hi"
                block["text"] = "hi"
            again = await manager.turn(ADA, "hello 1", turn_id="t1")
            assert again.is_replay
            (await manager.history(ADA)).clear()
            there = await manager.history(ADA)
        async with managing(tmp_path, model, store={"durability": durability}) as manager:
            assert await manager.history(ADA) == there
        assert there == [m for n in range(3) for m in (user(f"hello {n}"), assistant("hi"))]

    run(scenario())


def test_showing_a_long_conversation_costs_as_much_as_showing_a_short_one():
    """An example of scale, not of seconds: a copy of the list would cost a thousand times more."""

    def cost_s(count):
        conversation, tail = Conversation(said(count)), [orjson.dumps(user("now"))]
        best_s = float("inf")
        for _ in range(20):
            start_s = time.perf_counter()
            for _ in range(50):
                assert conversation.shown(tail)[-1] is not None
            best_s = min(best_s, time.perf_counter() - start_s)
        return best_s

    assert cost_s(60_000) < 10 * cost_s(20)


GROWING = """
import gc, os, sys
from kode_lab.key import SessionKey
from kode_lab.message import Usage, assistant, user
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.residents import Agent, Residents
from kode_lab.sessions.store import Lease, Stored

LIMIT = 30_000_000


def resident_bytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")


def agent(number, turns, text):
    made = Agent(Lease(SessionKey(f"u{number}", f"s{number}", "a"), 1), Stored([], {}, None))
    for at in range(turns):
        turn = OpenTurn(os.urandom(12).hex(), user("q" * text), "v1")
        turn.add_reply(assistant("a" * text), Usage(1200, 400))
        made.took(turn, turn.finished(2 * at))
    return made


turns, text = map(int, sys.argv[1:])
residents = Residents(limit=10**6, limit_bytes=LIMIT, idle_limit_s=1e9)
residents.keep(agent(0, turns, text))
before, number, kept = resident_bytes() - residents.size_bytes, 0, 0
while len(residents) > kept:
    kept, number = len(residents), number + 1
    residents.keep(agent(number, turns, text))
assert residents.size_bytes <= LIMIT
print((resident_bytes() - before) / LIMIT)
"""


@pytest.mark.parametrize(("turns", "text"), [(0, 0), (10, 50), (400, 1000)])
def test_the_limit_of_the_residents_bytes_is_the_memory_of_the_process(turns, text):
    """Within ten per cent, allocator and containers included, for sessions of any content."""
    done = subprocess.run(
        [sys.executable, "-c", GROWING, str(turns), str(text)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 1.1
