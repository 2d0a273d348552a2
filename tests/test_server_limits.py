"""How many turns and sessions a server bears: right under a burst, and counted down again."""

import asyncio

import pytest
from house import prompts, run, until
from served import patient, served, serving

from kode_lab.errors import ModelUnavailable
from kode_lab.server import Limits


def test_a_burst_of_new_users_is_held_to_the_limit_of_turns(tmp_path):
    async def scenario():
        limits = Limits(turns_limit=3, sessions_per_user_limit=1)
        async with served(tmp_path, limits=limits) as house:
            house.gates["ask"].shut()
            burst = [asyncio.create_task(house.post(userId=f"user{n}")) for n in range(20)]
            await until(lambda: sum(turn.done() for turn in burst) + len(house.listings) >= 20)
            await until(lambda: sum(turn.done() for turn in burst) == 17)
            assert house.service.turns_in_flight == 3
            house.gates["ask"].open()
            answers = [await turn for turn in burst]
            assert sorted(status for status, _, _ in answers) == [200] * 3 + [429] * 17
            refused = [told["error"]["type"] for status, told, _ in answers if status == 429]
            assert set(refused) == {"TooManyTurns"}
            # The session that each refused turn would have made is not counted.
            house.listings.clear()
            for number in range(20):
                session = "s1" if answers[number][0] == 200 else "s2"
                assert (await house.post(userId=f"user{number}", sessionId=session))[0] == 200
            assert house.listings == []

    run(scenario())


@pytest.mark.parametrize("how", ["rolled back", "without a model"])
def test_first_turns_that_made_no_session_lock_no_user_out(tmp_path, how):
    async def unreachable(request, on_text=None):  # noqa: ARG001
        raise ModelUnavailable("no server answers")

    async def fails(house, session):
        if how == "without a model":
            clerk, house.model.clerk = house.model.clerk, unreachable
            assert (await house.post(sessionId=session))[0] == 502
            house.model.clerk = clerk
            return
        gate = house.gates["ask"]
        gate.shut()
        gate.reached.clear()
        first = asyncio.create_task(house.post(sessionId=session, onDisconnect="rollback"))
        await gate.reached.wait()
        first.cancel()
        await house.idle()
        gate.open()

    async def scenario():
        limits = Limits(sessions_per_user_limit=2)
        async with served(tmp_path, limits=limits) as house:
            assert (await house.post("hello"))[0] == 200
            for number in range(5):
                await fails(house, f"failed{number}")
            assert (await house.post("hello", sessionId="s2"))[0] == 200
            # There are two now, and the store says so.
            status, told, _ = await house.post("hello", sessionId="s3")
            assert (status, told["error"]["type"]) == (429, "TooManySessions")
            assert len(house.listings) < 10

    run(scenario())


def test_a_session_whose_first_turn_is_in_flight_counts_when_the_store_is_asked_again(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=Limits(sessions_per_user_limit=2)) as house:
            assert (await house.post("hello"))[0] == 200
            house.gates["ask"].shut()
            house.gates["ask"].reached.clear()
            turn = asyncio.create_task(house.post("hello", sessionId="s2"))
            await house.gates["ask"].reached.wait()
            for _ in range(2):
                assert (await house.post("hello", sessionId="s3"))[0] == 429
            house.gates["ask"].open()
            assert (await turn)[0] == 200

    run(scenario())


@pytest.mark.parametrize("where", ["a directory", "a database"])
def test_sessions_deleted_by_another_server_make_room(tmp_path, request, where):
    options, store = ("--sessions-per-user", "2"), {}
    if where == "a database":
        options = (*options, "--schema", request.getfixturevalue("postgres_schema"))
        store = {"KODE_LAB_STORE": request.getfixturevalue("postgres")}

    async def deleted(client, child, session):
        path = f"/v1/sessions/ada/{session}/schedule-assistant"
        async with client.delete(child.url + path) as answer:
            return answer.status

    async def scenario():
        with (
            serving(tmp_path, *options, **store) as one,
            serving(tmp_path, *options, **store) as other,
        ):
            async with patient() as client:
                for session in ("s1", "s2"):
                    assert (await one.post(client, "hello", session))[0] == 200
                assert (await one.post(client, "hello", "s3"))[0] == 429
                assert await deleted(client, other, "s1") == 204
                # A session that is not there is deleted all the same.
                assert await deleted(client, other, "s1") == 204
                assert (await one.post(client, "hello", "s3"))[0] == 200
                assert (await one.post(client, "hello", "s4"))[0] == 429
                # Asked to delete what the other one deleted, it forgets it, too.
                assert await deleted(client, other, "s3") == 204
                assert await deleted(client, one, "s3") == 204
                assert (await one.post(client, "hello", "s4"))[0] == 200

    run(scenario())


def test_a_deletion_asks_for_its_own_session_only(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            strange = "a/b ?#%:[*]é\n..😀"
            for session in ("s1", "clerk", strange):
                assert (await house.post("hello", sessionId=session))[0] == 200
                assert await house.store.has(house.key(session))
            house.listings.clear()
            made = sorted((tmp_path / "store").rglob("*"))
            for session in ("stranger's", "S1", "*"):
                assert await house.delete(session) == 204
            assert sorted((tmp_path / "store").rglob("*")) == made
            for session in ("clerk", strange):
                assert await house.delete(session) == 204
                assert not await house.store.peek(house.key(session))
            assert house.listings == []
            _, told, _ = await house.ask("GET", "/v1/users/ada/sessions")
            assert [key["sessionId"] for key in told["sessions"]] == ["s1"]

    run(scenario())


def test_an_unfinished_turn_alone_can_be_deleted(tmp_path):
    async def scenario():
        async with served(tmp_path, agent={"step_limit": 2}) as house:
            assert (await house.post("forever note:1 milk", turnId="t1"))[0] == 502
            assert await house.history() == []
            assert await house.delete("s1") == 204
            runs = len(house.world.runs)
            # From its beginning: nothing of it was left.
            assert (await house.post("forever note:1 milk", turnId="t1"))[0] == 502
            assert len(house.world.runs) > runs
            assert prompts(await house.history()) == []

    run(scenario())
