"""A client that sends its next request before it has its answer: each answer is its own request's.

A connection with half a head tells the time: what was sent before it has run out when it is told.
"""

import asyncio
import json
from contextlib import suppress

import pytest
from house import prompts, run, until
from served import events_of, served, turn_request

from kode_lab.http import ConnectionLimits

LIMITS = ConnectionLimits(
    head_limit_bytes=20_000,
    body_limit_bytes=100_000,
    head_timeout_s=0.1,
    body_timeout_s=0.1,
    keepalive_s=60.0,
)
NEXT = turn_request(b'{"userId":"ada","agentId":"clerk","sessionId":"s2","message":"next"}')
BEGINNINGS = {
    "half a line": NEXT[:9],
    "half a head": NEXT[:60],
    "half a body": NEXT[:-9],
    "a request and half a head": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + NEXT[:60],
}


async def time_is_up(house):
    """Wait until a request that begins now has run out of its time."""
    reader, writer = await house.connect()
    writer.write(b"GET / HT")
    assert b" 408 " in await reader.read()
    writer.close()


async def head_of(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:] if line)


async def answer_of(reader):
    status, headers = await head_of(reader)
    return status, json.loads(await reader.readexactly(int(headers["content-length"])))


async def chunks_of(reader):
    """Return the whole of a chunked body."""
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(pieces).decode()


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=list(BEGINNINGS))
def test_a_turn_is_answered_by_its_reply_and_only_then_the_next_request_has_its_time(
    tmp_path, beginning
):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            house.gates["ask"].shut()
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("first", turnId="t1")) + beginning)
            await house.gates["ask"].reached.wait()
            await time_is_up(house)
            house.gates["ask"].open()
            status, told = await answer_of(reader)
            assert (status, told["turnId"]) == (200, "t1")
            if b"/healthz" in beginning:
                assert await answer_of(reader) == (200, {"status": "ok"})
            status, told = await answer_of(reader)
            assert (status, told["error"]["type"]) == (408, "RequestTimeout")
            assert await reader.read() == b""
            assert prompts(await house.history()) == ["first"]
            writer.close()

    run(scenario())


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=list(BEGINNINGS))
def test_a_stream_is_told_whole_before_anything_is_said_of_the_next_request(tmp_path, beginning):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            house.gates["midstream"].shut()
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("some words to say", stream=True)) + beginning)
            await house.gates["midstream"].reached.wait()
            await time_is_up(house)
            house.gates["midstream"].open()
            assert (await head_of(reader))[0] == 200
            events = events_of(await chunks_of(reader))
            assert (events[0][0], events[-1][0]) == ("accepted", "done")
            assert b" 408 " in await reader.read()
            writer.close()

    run(scenario())


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=list(BEGINNINGS))
def test_a_next_request_that_comes_whole_in_the_end_is_answered(tmp_path, beginning):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            house.gates["ask"].shut()
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("first")) + beginning)
            await house.gates["ask"].reached.wait()
            await time_is_up(house)
            writer.write(NEXT.removeprefix(beginning[beginning.find(b"POST") :]))
            house.gates["ask"].open()
            answers = [await answer_of(reader) for _ in range(2 + (b"/healthz" in beginning))]
            assert [status for status, _ in answers] == [200] * len(answers)
            assert answers[-1][1]["sessionId"] == "s2"
            writer.close()

    run(scenario())


@pytest.mark.parametrize("is_stream", [False, True], ids=["JSON", "stream"])
@pytest.mark.parametrize(
    ("behind", "status"),
    [(b"NO HTTP\r\n\r\n", b" 400 "), (b"GET / HTTP/1.1\r\nX: " + b"x" * 600_000, b" 431 ")],
    ids=["garbage", "a head that never ends"],
)
def test_what_is_refused_behind_a_turn_is_told_after_the_turns_whole_answer(
    tmp_path, behind, status, is_stream
):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            gate = house.gates["midstream" if is_stream else "ask"]
            gate.shut()
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("first words", turnId="t1", stream=is_stream)))
            writer.write(behind)
            await gate.reached.wait()
            gate.open()
            if is_stream:
                assert (await head_of(reader))[0] == 200
                assert events_of(await chunks_of(reader))[-1][0] == "done"
            else:
                answered, told = await answer_of(reader)
                assert (answered, told["turnId"]) == (200, "t1")
            # Bytes still on their way when the server closes make the system reset the connection.
            with suppress(ConnectionResetError):
                assert status in await reader.read()
            await until(lambda: not house.connections)
            writer.close()

    run(scenario())


def test_a_long_body_before_half_a_head_is_not_taken_for_a_long_head(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            house.gates["ask"].shut()
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("m" * 60_000)) + NEXT[:20])
            await house.gates["ask"].reached.wait()
            for byte in NEXT[20:30]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            writer.write(NEXT[30:])
            house.gates["ask"].open()
            assert [(await answer_of(reader))[0] for _ in range(2)] == [200, 200]
            writer.close()

    run(scenario())


def test_who_was_refused_before_the_end_of_the_body_is_told_once(tmp_path):
    async def scenario():
        async with served(tmp_path, limits=LIMITS) as house:
            reader, writer = await house.connect()
            writer.write(turn_request(house.body("m" * 150_000))[:1_000])
            assert (await answer_of(reader))[0] == 413
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(scenario())
