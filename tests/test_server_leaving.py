"""A client that leaves: at every stage of its turn, by JSON and by stream, under both policies."""

import asyncio
import socket
import struct

import pytest
from house import assert_idle, assert_legal, prompts, run, until
from served import served, turn_request

# Where the turn is, whether its client reads a stream, and how politely it goes.
STAGES = [
    ("waiting", False, "reset"),
    ("waiting", True, "close"),
    ("model", False, "close"),
    ("model", False, "reset"),
    ("model", True, "close"),
    ("model", True, "reset"),
    ("midstream", True, "reset"),
    ("tool", False, "close"),
    ("tool", True, "reset"),
    ("commit", False, "reset"),
    ("commit", True, "close"),
]


async def bring_to(house, stage, **fields):
    """Send ada's turn, bring it to the stage, give its connection and what opens its way."""
    reader, writer = await house.connect()
    gates = {
        "waiting": house.gates["ask"],
        "model": house.gates["ask"],
        "midstream": house.gates["midstream"],
        "commit": house.gates["commit"],
    }
    prompt = "note:1 milk" if stage == "tool" else "some words to say"
    way = None
    if stage == "tool":
        way = house.world.gates[f"{prompt} 0.0"] = asyncio.Event()
    else:
        gates[stage].shut()
    if stage == "waiting":
        before = asyncio.create_task(house.post("before", userId="ada"))
        await gates[stage].reached.wait()
    writer.write(turn_request(house.body(prompt, turnId="t1", **fields)))
    await writer.drain()
    if stage == "waiting":
        await until(lambda: house.manager.statistics().lock.waiting == 1)
        return reader, writer, prompt, gates[stage].open, before
    if stage == "tool":
        await house.world.started.wait()
        return reader, writer, prompt, way.set, None
    await gates[stage].reached.wait()
    return reader, writer, prompt, gates[stage].open, None


async def leave(house, writer, *, how, others):
    """End the connection, politely or not, and wait until the server knows."""
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort() if how == "reset" else writer.close()
    await until(lambda: len(house.connections) <= others)


@pytest.mark.parametrize(("stage", "is_stream", "how"), STAGES)
def test_with_finish_a_turn_whose_client_left_is_saved_once(tmp_path, stage, is_stream, how):
    async def scenario():
        async with served(tmp_path) as house:
            _, writer, prompt, go_on, before = await bring_to(house, stage, stream=is_stream)
            await leave(house, writer, how=how, others=1 if before else 0)
            assert house.service.turns_in_flight == (2 if before else 1)
            go_on()
            await house.idle()
            if before:
                assert (await before)[0] == 200
            messages = await house.history()
            assert prompts(messages) == (["before", prompt] if before else [prompt])
            assert_legal(messages)
            # A client that comes back with the turn's id gets its reply.
            status, told, _ = await house.post(prompt, turnId="t1")
            assert (status, told["isReplay"], told["text"]) == (200, True, f"re: {prompt}")
            assert len(house.world.notes) == (1 if stage == "tool" else 0)
            assert (await house.post("after"))[0] == 200
            assert_idle(house.manager)

    run(scenario())


@pytest.mark.parametrize(("stage", "is_stream", "how"), STAGES)
def test_with_rollback_a_turn_whose_client_left_is_forgotten_until_it_is_being_saved(
    tmp_path, stage, is_stream, how
):
    async def scenario():
        async with served(tmp_path) as house:
            _, writer, prompt, go_on, before = await bring_to(
                house, stage, stream=is_stream, onDisconnect="rollback"
            )
            await leave(house, writer, how=how, others=1 if before else 0)
            if stage == "commit":  # it is being appended, and an append is whole or not at all
                go_on()
                await house.idle()
                assert prompts(await house.history()) == [prompt]
            else:
                # It ends without anybody opening its way.
                await until(lambda: house.live_state.outcomes.get("Superseded") == 1)
                go_on()
                await house.idle()
                assert prompts(await house.history()) == (["before"] if before else [])
                # Forgotten means: the same id is a new turn.
                status, told, _ = await house.post(prompt, turnId="t1")
                assert (status, told["isReplay"]) == (200, False)
            if before:
                assert (await before)[0] == 200
            messages = await house.history()
            assert_legal(messages)
            assert prompts(messages).count(prompt) == 1
            assert (await house.post("after"))[0] == 200
            assert_idle(house.manager)

    run(scenario())


def test_a_client_that_leaves_after_its_answer_takes_nothing_back(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("hello", onDisconnect="rollback")))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await leave(house, writer, how="reset", others=0)
            assert prompts(await house.history()) == ["hello"]
            assert house.live_state.outcomes == {"ok": 1}

    run(scenario())


def test_of_two_clients_with_one_turn_the_one_that_leaves_takes_only_its_own_attempt(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            _, writer, prompt, go_on, _ = await bring_to(house, "model", onDisconnect="rollback")
            again = asyncio.create_task(house.post(prompt, turnId="t1"))
            await until(lambda: house.manager.statistics().lock.waiting == 1)
            await leave(house, writer, how="close", others=1)
            await until(lambda: house.live_state.outcomes.get("Superseded") == 1)
            go_on()
            status, told, _ = await again
            assert (status, told["isReplay"]) == (200, False)
            assert prompts(await house.history()) == [prompt]

    run(scenario())


def test_many_clients_that_leave_one_session_do_not_stop_it(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            house.gates["ask"].shut()
            for number in range(60):
                policy = "rollback" if number % 2 else "finish"
                body = house.body(f"p{number}", onDisconnect=policy, stream=number % 3 == 0)
                _, writer = await house.connect()
                writer.write(turn_request(body))
                accepted = number // 2 + 1 if policy == "finish" else (number + 1) // 2 + 1
                await until(lambda: house.service.turns_in_flight == accepted)  # noqa: B023
                writer.transport.abort()
                await until(lambda: not house.connections)
                gone = (number + 1) // 2
                await until(lambda: house.live_state.outcomes.get("Superseded", 0) == gone)  # noqa: B023
            house.gates["ask"].open()
            await house.idle()
            messages = await house.history()
            assert prompts(messages) == [f"p{number}" for number in range(0, 60, 2)]
            assert_legal(messages)
            assert_idle(house.manager)

    run(scenario())
