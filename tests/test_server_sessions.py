"""What a client can do beside a turn: stop, rewind, fork, delete, resume a stream."""

import asyncio
import json

import pytest
from house import prompts, run, until
from served import JSON, events_of, served

from kode_lab import AgentConfig
from kode_lab.sessions import Pending, ToolContext

S1 = "/v1/sessions/ada/s1/clerk"


async def post(house, path, **fields):
    data = json.dumps(fields) if fields else b""
    status, told, _ = await house.ask("POST", path, data=data, headers=JSON if fields else {})
    return status, told


@pytest.mark.parametrize(
    ("fields", "kept"), [({}, ["hello"]), ({"how": "rollback"}, []), ({"turnId": "t1"}, ["hello"])]
)
def test_a_turn_is_stopped_at_once_and_its_client_is_told(tmp_path, fields, kept):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            turn = asyncio.create_task(house.post("hello", turnId="t1"))
            await house.gates["ask"].reached.wait()
            status, told = await post(house, f"{S1}/stop", **fields)
            assert (status, told["stopped"]) == (200, ["t1"])
            status, told, _ = await turn
            assert (status, told["error"]["type"]) == (410, "Superseded")
            assert prompts(await house.history()) == kept
            house.gates["ask"].open()
            assert (await house.post("next"))[0] == 200

    run(scenario())


def test_waiting_turns_are_stopped_only_if_asked_and_nothing_to_stop_is_no_error(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            assert await post(house, f"{S1}/stop") == (
                200,
                house.key("s1").to_json() | {"stopped": []},
            )
            house.gates["ask"].shut()
            turns = [asyncio.create_task(house.post("one", turnId="t1"))]
            await house.gates["ask"].reached.wait()
            turns.append(asyncio.create_task(house.post("two", turnId="t2")))
            await until(lambda: house.manager.statistics().lock.waiting == 1)
            _, told = await post(house, f"{S1}/stop", turnId="unknown")
            assert told["stopped"] == []
            _, told = await post(house, f"{S1}/stop", waiting=True)
            assert sorted(told["stopped"]) == ["t1", "t2"]
            assert [(await turn)[0] for turn in turns] == [410, 410]

    run(scenario())


def test_a_deletion_waits_for_a_hung_turn_as_long_as_it_says_or_stops_it(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            turn = asyncio.create_task(house.post("hello"))
            await house.gates["ask"].reached.wait()
            status, told, headers = await house.ask("DELETE", f"{S1}?waitS=0.05")
            assert (status, told["error"]["type"]) == (504, "DeadlineExceeded")
            assert headers["Retry-After"] == "1"
            assert not turn.done()
            status, _, _ = await house.ask("DELETE", f"{S1}?stop=true")
            assert (status, (await turn)[0]) == (204, 410)
            assert await house.history() == []
            for query in ("waitS=-1", "waitS=nan", "stop=yes", "force=true"):
                status, told, _ = await house.ask("DELETE", f"{S1}?{query}")
                assert (status, told["error"]["type"]) == (422, "InvalidRequest"), query

    run(scenario())


def test_a_tool_that_waits_for_an_approval_is_answered_once(tmp_path):
    acted = []

    def note(text: str, context: ToolContext) -> object:
        if context.approval is None:
            return Pending("may I?")
        acted.append((text, context.approval))
        return f"noted, {context.approval}"

    async def scenario():
        async with served(tmp_path) as house:
            house.agents.put(AgentConfig("clerk", "stand-in", tools=[note]))
            status, told, _ = await house.post("note:1 x", turnId="t1")
            assert (status, told["error"]["type"]) == (502, "TurnPending")
            ((call_id, question),) = told["error"]["questions"].items()
            assert question == "may I?"
            path = f"{S1}/approvals/{call_id}"
            status, told = await post(house, path, answer="yes")
            assert (status, told["turnId"], told["stopReason"]) == (200, "t1", "end_turn")
            status, told = await post(house, path, answer="yes")
            assert (status, told["isReplay"]) == (200, True)
            status, told = await post(house, path, answer="no")
            assert (status, told["error"]["type"]) == (409, "AlreadyAnswered")
            assert "answered 'yes' already" in told["error"]["message"]
            assert (await post(house, f"{S1}/approvals/c9", answer="yes"))[0] == 404
            assert [answer for _, answer in acted] == ["yes"]

    run(scenario())


def test_a_conversation_is_rewound_and_forked(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            for number in range(3):
                await house.post(f"p{number}", turnId=f"t{number}")
            status, told = await post(house, f"{S1}/fork", sessionId="other", atTurn="t0")
            assert (status, told) == (200, house.key("other").to_json() | {"messages": 2})
            assert prompts(await house.history(session="other")) == ["p0"]
            _, told, _ = await house.ask("GET", "/v1/users/ada/sessions")
            assert {key["sessionId"] for key in told["sessions"]} == {"s1", "other"}
            for _ in range(2):  # sent again, it removes nothing more
                status, told = await post(house, f"{S1}/rewind", toTurn=1, turnId="r1")
                assert (status, told["removed"]) == (200, ["t1", "t2"])
            assert prompts(await house.history()) == ["p0"]
            status, told, _ = await house.post("p1", turnId="t1")
            assert (status, told["error"]["type"]) == (410, "Superseded")
            for path, fields in (
                ("rewind", {"toTurn": "unknown"}),
                ("rewind", {"toTurn": -1}),
                ("rewind", {}),
                ("fork", {"sessionId": ""}),
                ("fork", {"sessionId": "s1", "atTurn": 1.5}),
                ("stop", {"how": "gently"}),
            ):
                assert (await post(house, f"{S1}/{path}", **fields))[0] == 422, (path, fields)

    run(scenario())


async def read_until(answer, marker):
    """Return what a stream says up to this marker."""
    text = b""
    while marker not in text:
        text += await answer.content.readany()
    return text.decode()


@pytest.mark.parametrize("is_over", [False, True], ids=["while it runs", "after its end"])
def test_a_cut_stream_goes_on_after_the_last_event_that_the_client_has(tmp_path, is_over):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["midstream"].shut()
            data = house.body("some words to say", turnId="t1", stream=True)
            url = f"{house.http.base_url}/v1/turns"
            async with house.client.post(url, data=data, headers=JSON) as answer:
                seen = await read_until(answer, b"event: text")
                answer.close()
            last = seen.count("\n\n")
            if is_over:
                house.gates["midstream"].open()
                await house.idle()
            headers = JSON | {"Last-Event-ID": str(last)}
            async with house.client.post(url, data=data, headers=headers) as answer:
                assert answer.status == 200
                if not is_over:
                    await until(house.gates["midstream"].reached.is_set)
                    house.gates["midstream"].open()
                rest = (await answer.read()).decode()
            assert rest.splitlines()[1] == f"id: {last + 1}"
            whole = "".join(f"{block}\n\n" for block in seen.split("\n\n")[:last]) + rest
            events = events_of(whole)
            text = "".join(data["text"] for kind, data in events if kind == "text")
            assert (events[-1][0], events[-1][1]["text"]) == ("done", text)
            assert prompts(await house.history()) == ["some words to say"]

    run(scenario())


def test_a_stream_that_is_not_known_any_more_begins_again_with_higher_ids(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            await house.post("hello", turnId="t1")
            data = house.body("hello", turnId="t1", stream=True)
            headers = JSON | {"Last-Event-ID": "7"}
            url = f"{house.http.base_url}/v1/turns"
            async with house.client.post(url, data=data, headers=headers) as answer:
                text = (await answer.read()).decode()
            assert text.splitlines()[:2] == ["event: accepted", "id: 8"]
            assert events_of(text)[-1][1]["isReplay"]
            # Another prompt under the same id is refused before anything of the stream is shown.
            other = house.body("other", turnId="t1", stream=True)
            async with house.client.post(url, data=other, headers=headers) as answer:
                assert answer.status == 422

    run(scenario())


def test_two_clients_may_follow_one_turn(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["midstream"].shut()
            first = asyncio.create_task(house.stream("some words to say", turnId="t1"))
            await house.gates["midstream"].reached.wait()
            second = asyncio.create_task(house.stream("some words to say", turnId="t1"))
            await until(lambda: house.live_state.refusals or len(house.connections) == 2)
            house.gates["midstream"].open()
            (_, one), (_, other) = await first, await second
            assert one[-1] == other[-1]
            texts = [
                "".join(d["text"] for k, d in events if k == "text") for events in (one, other)
            ]
            assert texts[0] == texts[1] == one[-1][1]["text"]
            assert house.live_state.outcomes == {"ok": 1}

    run(scenario())
