"""What the API gives for what it is asked, over a real socket."""

import asyncio
import json
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from house import assert_idle, assert_legal, prompts, run, until
from prometheus_client.parser import text_string_to_metric_families
from served import JSON, events_of, served

from kode_lab.message import ToolResult
from kode_lab.server import Limits
from kode_lab.server.turns import EventLog
from kode_lab.sessions import TurnEvent
from kode_lab.sessions.ticket import PROMPT_LIMIT_BYTES


def test_a_turn_is_answered_in_the_reports_words(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            status, told, headers = await house.post("note:1 milk", turnId="t1")
            assert status == 200
            assert headers["Content-Type"] == "application/json"
            call = told.pop("toolCalls")[0]
            assert (call["name"], call["input"]) == ("note", {"text": "note:1 milk 0.0"})
            config = house.agents.current("clerk")
            assert told == {
                "userId": "ada",
                "sessionId": "s1",
                "agentId": "clerk",
                "turnId": "t1",
                "text": "re: note:1 milk",
                "usage": {"inputTokens": 4, "outputTokens": 2},
                "configVersion": config.version,
                "isReplay": False,
                "stopReason": "end_turn",
            }
            assert prompts(await house.history()) == ["note:1 milk"]

    run(scenario())


def test_a_message_that_steers_is_answered_with_the_running_turn_s_reply(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            gate = house.gates["ask"]
            gate.shut()
            running = asyncio.create_task(house.stream("note:1 one", turnId="t1"))
            await gate.reached.wait()
            steering = asyncio.create_task(house.stream("two", turnId="t2", strategy="steer"))
            await until(lambda: house.manager.statistics().turns == 2)
            gate.open()
            (_, first), (_, second) = await running, await steering
            for events in (first, second):
                assert ("steered", {"turnId": "t2", "into": "t1"}) in events
            assert first[-1][1]["steered"] == ["t2"]
            assert (second[-1][1]["into"], second[-1][1]["turnId"]) == ("t1", "t2")
            assert second[-1][1]["text"] == first[-1][1]["text"]

    run(scenario())


def test_the_largest_prompt_fits_into_a_body():
    assert Limits().connection.body_limit_bytes > PROMPT_LIMIT_BYTES + 1_000_000


def test_a_session_without_an_id_has_the_agents_name(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            body = json.dumps({"userId": "yeya", "agentId": "clerk", "message": "hello"})
            status, told, _ = await house.ask("POST", "/v1/turns", data=body, headers=JSON)
            assert (status, told["sessionId"]) == (200, "clerk")
            assert len(await house.history("yeya", "clerk")) == 2
            assert (tmp_path / "store/yeya/clerk/clerk/runtime/messages.json").is_file()

    run(scenario())


def test_a_turn_sent_again_is_answered_and_not_taken_again(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            _, first, _ = await house.post("note:1 milk", turnId="once")
            _, again, _ = await house.post("note:1 milk", turnId="once")
            assert again == first | {"isReplay": True}
            status, events = await house.stream("note:1 milk", turnId="once")
            assert status == 200
            assert events[-1] == ("done", again)
            assert len(house.world.notes) == 1
            assert len(await house.history()) == 4

    run(scenario())


def test_a_stream_tells_what_happens_in_order_and_ends_with_the_reply(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            status, events = await house.stream("note:1 milk", turnId="t1")
            assert status == 200
            names = [name for name, _ in events]
            assert names[:4] == ["accepted", "started", "tool_call", "tool_result"]
            assert set(names[4:-1]) == {"text"}
            assert names[-1] == "done"
            told = dict(events)
            assert told["accepted"] == told["started"] == {"turnId": "t1"}
            assert told["tool_call"]["input"] == {"text": "note:1 milk 0.0"}
            assert told["tool_result"] == {
                "callId": told["tool_call"]["id"],
                "content": "noted note:1 milk 0.0",
                "isError": False,
            }
            said = "".join(data["text"] for name, data in events if name == "text")
            assert said == told["done"]["text"] == "re: note:1 milk"
            _, replayed, _ = await house.post("note:1 milk", turnId="t1")
            assert replayed == told["done"] | {"isReplay": True}

    run(scenario())


def test_the_accept_header_asks_for_a_stream_and_the_field_decides(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            accept = JSON | {"Accept": "text/event-stream"}
            asked = {"data": house.body("a"), "headers": accept}
            _, _, headers = await house.ask("POST", "/v1/turns", **asked)
            assert headers["Content-Type"].startswith("text/event-stream")
            asked["data"] = house.body("b", stream=False)
            _, told, _ = await house.ask("POST", "/v1/turns", **asked)
            assert told["text"] == "re: b"

    run(scenario())


def test_a_stream_that_waits_says_accepted_before_its_session_is_free(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            first = asyncio.create_task(house.post("first"))
            await house.gates["ask"].reached.wait()
            async with house.client.post(
                f"{house.http.base_url}/v1/turns",
                data=house.body("second", stream=True, turnId="t2"),
                headers=JSON,
            ) as answer:
                assert await answer.content.readline() == b"event: accepted\n"
                _, state, _ = await house.ask("GET", "/v1/sessions/ada/s1/clerk/state")
                assert (state["isHeld"], state["waiting"]) == (True, 1)
                assert [turn["state"] for turn in state["turns"]] == ["running", "waiting"]
                house.gates["ask"].open()
                assert b"event: done" in await answer.content.read()
            assert (await first)[0] == 200
            _, state, _ = await house.ask("GET", "/v1/sessions/ada/s1/clerk/state")
            assert (state["isHeld"], state["waiting"], state["turns"]) == (False, 0, [])
            assert state["lastTurn"]["turnId"] == "t2"
            assert state["lastTurn"]["outcome"] == "ok"

    run(scenario())


def test_text_that_was_not_fetched_yet_becomes_one_piece():
    async def scenario():
        stream = EventLog(SimpleNamespace(turn_id="t1", key=None))
        for word in ("a ", "b ", "c"):
            stream.tell(TurnEvent("text", word))
        stream.tell(TurnEvent("tool_result", ToolResult("c1", "done")))
        stream.tell(TurnEvent("text", "d"))
        events = events_of(stream.after(0)[0].decode())
        assert [name for name, _ in events] == ["accepted", "text", "tool_result", "text"]
        assert events[1][1] == {"text": "a b c"}
        assert stream.after(4) == (b"", 4)

    run(scenario())


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
def test_a_busy_session_is_refused_by_status_before_anything_is_accepted(tmp_path, is_stream):
    async def scenario():
        async with served(tmp_path, agent={"queue_limit": 1}) as house:
            house.gates["ask"].shut()
            turns = [asyncio.create_task(house.post("first"))]
            await house.gates["ask"].reached.wait()
            turns.append(asyncio.create_task(house.post("second")))
            await until(lambda: house.manager.statistics().lock.waiting == 1)
            for fields, status, kind in (
                ({}, 429, "WaitingRoomFull"),
                ({"strategy": "reject"}, 409, "SessionBusy"),
            ):
                asked = {"data": house.body("third", stream=is_stream, turnId="t3", **fields)}
                found, told, headers = await house.ask("POST", "/v1/turns", **asked, headers=JSON)
                assert (found, told["error"]["type"]) == (status, kind)
                assert told["error"]["turnId"] == "t3"
                assert int(headers["Retry-After"]) >= 1
            house.gates["ask"].open()
            assert [(await turn)[0] for turn in turns] == [200, 200]
            assert prompts(await house.history()) == ["first", "second"]

    run(scenario())


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "stream"])
def test_a_turn_that_another_takes_the_place_of_says_so(tmp_path, is_stream):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            take = house.stream if is_stream else house.post
            first = asyncio.create_task(take("first", turnId="t1"))
            await house.gates["ask"].reached.wait()
            second = asyncio.create_task(house.post("second", strategy="rollback"))
            await until(lambda: "Superseded" in house.live_state.outcomes)
            house.gates["ask"].open()
            told = await first
            error = (told[1][-1][1] if is_stream else told[1])["error"]
            assert (error["type"], error["status"], error["turnId"]) == ("Superseded", 410, "t1")
            assert (await second)[0] == 200
            assert prompts(await house.history()) == ["second"]

    run(scenario())


def test_limits_are_said_before_acceptance_and_name_themselves(tmp_path):
    async def scenario():
        limits = Limits(turns_limit=1, sessions_per_user_limit=2)
        async with served(tmp_path, limits=limits) as house:
            house.gates["ask"].shut()
            turn = asyncio.create_task(house.post("first"))
            await house.gates["ask"].reached.wait()
            status, told, headers = await house.post("second", sessionId="s2")
            assert (status, told["error"]["type"]) == (429, "TooManyTurns")
            assert told["error"]["message"].endswith("turns_limit=1: send it again later")
            assert headers["Retry-After"] == "1"
            house.gates["ask"].open()
            assert (await turn)[0] == 200
            assert (await house.post("second", sessionId="s2"))[0] == 200
            status, told, headers = await house.post("third", sessionId="s3")
            assert (status, told["error"]["type"]) == (429, "TooManySessions")
            assert told["error"]["message"].endswith("sessions_per_user_limit=2")
            assert "Retry-After" in headers
            # Those that are there go on, and another user has room.
            assert (await house.post("again", sessionId="s2"))[0] == 200
            assert (await house.post("hello", sessionId="s3", userId="bob"))[0] == 200
            assert house.live_state.refusals == {"TooManyTurns": 1, "TooManySessions": 1}

    run(scenario())


def test_sessions_are_listed_read_and_deleted_each_by_itself(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            strange = "a/b ?#%:é\n..😀"
            for session in ("s1", "s2", strange):
                assert (await house.post("hello", sessionId=session))[0] == 200
            _, told, _ = await house.ask("GET", "/v1/users/ada/sessions")
            listed = {session["sessionId"] for session in told["sessions"]}
            assert listed == {"s1", "s2", strange}
            path = f"/v1/sessions/ada/{quote(strange, safe='')}/clerk"
            reader, writer = await house.connect()
            writer.write(f"GET {path}/messages HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert told["sessionId"] == strange
            assert prompts(told["messages"]) == ["hello"]
            writer.close()
            assert (await house.ask("DELETE", "/v1/sessions/ada/s2/clerk"))[0] == 204
            assert (await house.ask("DELETE", "/v1/sessions/ada/s2/clerk"))[0] == 204
            assert await house.history(session="s2") == []
            _, told, _ = await house.ask("GET", "/v1/users/ada/sessions")
            assert {session["sessionId"] for session in told["sessions"]} == {"s1", strange}
            assert prompts(await house.history()) == ["hello"]

    run(scenario())


def test_deleting_what_never_was_leaves_nothing_on_the_disk(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            assert (await house.ask("DELETE", "/v1/sessions/stranger/s/clerk"))[0] == 204
            assert await house.history("stranger", "s") == []
            assert not (tmp_path / "store" / "stranger").exists()

    run(scenario())


def test_a_deletion_comes_after_the_turns_that_came_before(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            turn = asyncio.create_task(house.post("first"))
            await house.gates["ask"].reached.wait()
            path = "/v1/sessions/ada/s1/clerk"
            deletion = asyncio.create_task(house.ask("DELETE", path))
            await until(lambda: house.manager.statistics().lock.waiting == 1)
            house.gates["ask"].open()
            assert (await turn)[0] == 200
            assert (await deletion)[0] == 204
            assert await house.history() == []

    run(scenario())


def test_the_figures_count_what_was_done(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            await house.post("note:1 milk", turnId="t1")
            await house.post("note:1 milk", turnId="t1")
            await house.post("", turnId="t2")
            await house.ask("GET", "/nowhere")
            _, told, _ = await house.ask("GET", "/v1/statistics")
            assert told["outcomes"] == {"ok": 1, "replay": 1, "InvalidPrompt": 1}
            assert told["refusals"] == {"NotFound": 1}
            assert (told["turnsInFlight"], told["lock"]["held"], told["residents"]) == (0, 0, 1)
            _, text, headers = await house.ask("GET", "/metrics")
            assert headers["Content-Type"].startswith("text/plain")
            samples = {
                (sample.name, *sample.labels.values()): sample.value
                for family in text_string_to_metric_families(text.decode())
                for sample in family.samples
            }
            assert samples["kode_lab_turns_total", "ok"] == 1
            assert samples["kode_lab_refusals_total", "NotFound"] == 1
            assert samples["kode_lab_turn_seconds_count",] == 3
            assert samples["kode_lab_ask_seconds_count",] == 2
            assert samples["kode_lab_tool_seconds_bucket", "+Inf"] == 1
            _, live, _ = await house.ask("GET", "/v1/live")
            outcomes = [turn["outcome"] for turn in live["recent"]]
            assert outcomes == ["ok", "replay", "InvalidPrompt"]
            assert live["sessions"] == []

    run(scenario())


def test_many_clients_of_one_session_are_served_in_the_order_of_their_arrival(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            turns = []
            for number in range(20):
                turns.append(asyncio.create_task(house.post(f"p{number}")))
                await until(lambda: house.service.turns_in_flight == len(turns))
            _, live, _ = await house.ask("GET", "/v1/live")
            assert live["sessions"][0]["waiting"] == 19
            assert live["sessions"][0]["holder"]["state"] == "running"
            house.gates["ask"].open()
            assert {(await turn)[0] for turn in turns} == {200}
            messages = await house.history()
            assert prompts(messages) == [f"p{number}" for number in range(20)]
            assert_legal(messages)
            assert_idle(house.manager)
            await house.idle()

    run(scenario())


def test_health_and_readiness_differ_while_the_server_drains(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            assert (await house.ask("GET", "/readyz"))[0] == 200
            house.service.is_draining = True
            assert (await house.ask("GET", "/healthz"))[0] == 200
            status, told, headers = await house.ask("GET", "/readyz")
            assert (status, told["error"]["type"]) == (503, "Draining")
            assert "Retry-After" in headers

    run(scenario())


def test_a_turn_id_of_another_prompt_is_422_and_the_right_prompt_still_gets_its_reply(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            _, first, _ = await house.post("hello", turnId="t")
            status, told, _ = await house.post("another", turnId="t")
            assert (status, told["error"]["type"]) == (422, "InvalidPrompt")
            assert (await house.stream("another", turnId="t"))[0] == 422
            status, again, _ = await house.post("hello", turnId="t")
            assert (status, again) == (200, first | {"isReplay": True})
            assert prompts(await house.history()) == ["hello"]

    run(scenario())


def test_a_wrong_turn_of_a_session_that_is_there_makes_no_room_for_another_one(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=Limits(sessions_per_user_limit=1)) as house:
            assert (await house.post("hello", turnId="t"))[0] == 200
            for wrong in ({"turnId": "t"}, {"strategy": "shout"}):
                assert (await house.post("another", **wrong))[0] == 422
            status, told, _ = await house.post("hello", sessionId="s2")
            assert (status, told["error"]["type"]) == (429, "TooManySessions")

    run(scenario())


def test_what_never_became_a_session_does_not_count_as_one(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=Limits(sessions_per_user_limit=1)) as house:
            for number in range(3):
                assert (await house.post("", sessionId=f"empty{number}"))[0] == 422
                assert (await house.post("a", agentId=f"no{number}"))[0] == 404
            assert (await house.post("hello"))[0] == 200
            assert (await house.post("hello", sessionId="s2"))[0] == 429
            assert (await house.ask("DELETE", "/v1/sessions/ada/s1/clerk"))[0] == 204
            assert (await house.post("hello", sessionId="s2"))[0] == 200

    run(scenario())
