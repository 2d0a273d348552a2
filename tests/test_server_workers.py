"""``kode-lab serve --workers``: several processes behind one port, as their clients see them."""

import asyncio
import io
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from house import PATIENCE_S, prompts, run
from served import JSON, events_of, serving

from kode_lab.check import check
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import HistoryWriter, echo_in, marker_of, markers_in
from kode_lab.history.reader import read_operations
from kode_lab.http import listening_at
from kode_lab.key import SessionKey
from kode_lab.server import Limits
from kode_lab.server.live_state import merged_live, merged_statistics
from kode_lab.server.peers import Peers, WorkerSlot

WORKERS = ("--workers", "2")


def key_of(session):
    return SessionKey.of("ada", "schedule-assistant", session)


def workers_of(child):
    """Return the pids of the workers that run now."""
    pid = child.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def figures(child, client, name):
    """Return each worker's figure of that name, all its labels added."""
    async with client.get(f"{child.url}/metrics") as answer:
        text = await answer.text()
    found = {}
    for line in re.findall(rf"^{name}{{.*$", text, re.MULTILINE):
        worker = re.search(r'worker="(\d)"', line)[1]
        found[worker] = found.get(worker, 0) + float(line.rpartition(" ")[2])
    return found


def strangers():
    """Return a client that makes a new connection for each request, to land anywhere."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(PATIENCE_S),
    )


async def gone(pids):
    """Wait until none of these processes runs."""
    until_s = time.monotonic() + PATIENCE_S
    while any(map(is_running, pids)):
        assert time.monotonic() < until_s, "a worker outlived its parent"
        await asyncio.sleep(0.01)


def is_running(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ---- two workers on one directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two workers on a directory of JSON files, with a model that takes no time."""
    with serving(tmp_path_factory.mktemp("pair"), *WORKERS) as child:
        yield child


def test_the_turns_of_a_session_are_taken_by_one_worker_wherever_they_land(pair):
    async def scenario():
        async with strangers() as client:
            before = await figures(pair, client, "kode_lab_turns_total")
            turns = [pair.post(client, f"hello {n}", "one-home") for n in range(12)]
            assert {status for status, _ in await asyncio.gather(*turns)} == {200}
            after = await figures(pair, client, "kode_lab_turns_total")
            grown = [after.get(name, 0) - before.get(name, 0) for name in ("0", "1")]
            assert sorted(grown) == [0, 12]
            found = prompts(await pair.messages(client, "one-home"))
            assert sorted(found) == sorted(f"hello {n}" for n in range(12))

    run(scenario())


def test_many_sessions_are_spread_and_each_answer_is_as_if_there_were_one_process(pair):
    async def scenario():
        async with strangers() as client:
            names = [f"spread {number}" for number in range(16)]
            turns = [pair.post(client, "hello", name, turnId="t1") for name in names]
            assert [told["sessionId"] for _, told in await asyncio.gather(*turns)] == names
            # The figures are those of both: of turns, and of requests that went to the other one.
            taken = await figures(pair, client, "kode_lab_turns_total")
            assert min(taken[number] for number in "01") > 0
            assert sum((await figures(pair, client, "kode_lab_carried_total")).values()) > 0
            told = await pair.get(client, "/v1/statistics")
            assert (told["workers"], told["outcomes"]["ok"]) == (2, sum(taken.values()))
            live = await pair.get(client, "/v1/live")
            assert len(live["recent"]) == sum(taken.values())
            ages = [turn["agoS"] for turn in live["recent"]]
            assert ages == sorted(ages, reverse=True)
            for name in names:
                path = f"/v1/sessions/ada/{name.replace(' ', '%20')}/schedule-assistant"
                state = await pair.get(client, f"{path}/state")
                assert state["lastTurn"]["turnId"] == "t1"
                async with client.delete(pair.url + path) as answer:
                    assert (answer.status, await answer.read()) == (204, b"")
                assert await pair.messages(client, name) == []
            listed = await pair.get(client, "/v1/users/ada/sessions")
            assert not {key["sessionId"] for key in listed["sessions"]} & set(names)

    run(scenario())


def test_a_stream_comes_whole_and_a_refusal_as_it_is_from_whichever_worker(pair):
    async def scenario():
        async with strangers() as client:
            for number in range(8):
                status, text = await pair.post(client, "hello", f"stream {number}", stream=True)
                events = events_of(text)
                names = [name for name, _ in events]
                assert (status, names[:2], names[-1]) == (200, ["accepted", "started"], "done")
                said = "".join(data["text"] for name, data in events if name == "text")
                assert said == events[-1][1]["text"]
                # Without one of the client's, the turn's id is the same in all that is told of it.
                assert events[0][1]["turnId"] == events[-1][1]["turnId"]
                fields = {"strategy": "no such", "turnId": "mine"}
                status, told = await pair.post(client, "hello", f"stream {number}", **fields)
                assert (status, told["error"]["turnId"]) == (422, "mine")

    run(scenario())


def test_a_cut_stream_goes_on_wherever_its_client_comes_back(pair):
    async def scenario():
        async with strangers() as client:
            fields = {"stream": True, "turnId": "t1"}
            _, whole = await pair.post(client, "hello", "resumed", **fields)
            blocks = whole.split("\n\n")
            for number in range(6):
                data = {"userId": "ada", "agentId": "schedule-assistant", "sessionId": "resumed"}
                async with client.post(
                    f"{pair.url}/v1/turns",
                    data=json.dumps(data | fields | {"message": "hello"}),
                    headers=JSON | {"Last-Event-ID": str(number % 3)},
                ) as answer:
                    assert (await answer.text()).split("\n\n") == blocks[number % 3 :]

    run(scenario())


def test_a_turn_is_stopped_wherever_the_request_lands(tmp_path):
    async def scenario():
        with serving(tmp_path, *WORKERS, ttft_s=PATIENCE_S) as child:
            async with strangers() as client:
                turns = [
                    asyncio.create_task(child.post(client, "hello", f"s{n}", turnId=f"t{n}"))
                    for n in range(4)
                ]
                await child.until(client, lambda told: told["lock"]["held"] == 4)
                for number in range(4):
                    path = f"/v1/sessions/ada/s{number}/schedule-assistant/stop"
                    async with client.post(child.url + path) as answer:
                        assert (await answer.json())["stopped"] == [f"t{number}"]
                assert {status for status, _ in await asyncio.gather(*turns)} == {410}

    run(scenario())


def test_a_deadline_is_kept_and_readiness_told_while_a_worker_is_stopped(tmp_path):
    async def scenario():
        with serving(tmp_path, *WORKERS) as child:
            async with strangers() as client:
                first, second = workers_of(child)
                os.kill(first, signal.SIGSTOP)
                try:
                    turns = [child.post(client, "hello", f"s{n}", deadlineS=1) for n in range(8)]
                    told = await asyncio.gather(*turns)
                    assert {status for status, _ in told} == {200, 504}
                    late = next(body["error"] for status, body in told if status == 504)
                    assert (late["type"], "turnId" in late) == ("DeadlineExceeded", True)
                    async with client.get(f"{child.url}/readyz") as answer:
                        assert answer.status == 503
                        assert (await answer.json())["error"]["type"] == "WorkerSilent"
                finally:
                    os.kill(first, signal.SIGCONT)
                assert second in workers_of(child)
                while True:
                    async with client.get(f"{child.url}/readyz") as answer:
                        if answer.status == 200:
                            break

    run(scenario())


# ---- leaving and stopping


def test_a_client_that_leaves_is_missed_at_the_other_worker_and_a_drain_answers_the_others(
    tmp_path,
):
    async def scenario():
        with serving(tmp_path, *WORKERS, ttft_s=2.0) as child:
            pids = workers_of(child)
            async with strangers() as client:
                leavers = [asyncio.create_task(leaver(client, child, n)) for n in range(12)]
                await child.until(client, lambda told: told["lock"]["held"] == 12)
                assert sum((await figures(child, client, "kode_lab_carried_total")).values()) > 0
                for task in leavers:
                    task.cancel()
                await child.until(client, lambda told: told["turnsInFlight"] == 0)
                told = await child.get(client, "/v1/statistics")
                assert told["outcomes"] == {"Superseded": 12}

                turns = [
                    asyncio.create_task(child.post(client, "hello", f"s{n}", stream=n % 2 > 0))
                    for n in range(10)
                ]
                await child.until(client, lambda told: told["turnsInFlight"] == 10)
                child.signal(signal.SIGTERM)
                for number, (status, told) in enumerate(await asyncio.gather(*turns)):
                    assert status == 200
                    assert "event: done" in told if number % 2 else told["text"]
                assert await child.ended() == 0
                assert not any(map(is_running, pids))
        assert "Traceback" not in (tmp_path / "stderr").read_text()

    async def leaver(client, child, number):
        fields = {"stream": number % 2 > 0, "onDisconnect": "rollback"}
        await child.post(client, "hello", f"left {number}", **fields)

    run(scenario())


# ---- dying


class Judged:
    """Clients of some sessions that send what was not acknowledged again, and write it down."""

    def __init__(self, child, client, path):
        self.child = child
        self.client = client
        self.path = path
        self.history = HistoryWriter(path)
        self.numbers = iter(range(10**6))
        self.acknowledged = 0
        self.lives = iter(range(10**6))

    async def turn(self, key):
        """Take one turn, however often it has to be sent."""
        marker = marker_of(key, next(self.numbers))
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            process = f"client-{next(self.lives)}"
            self.history.invoke(
                key, process, time.monotonic_ns(), marker=marker, turn_id=marker[1:]
            )
            kind, facts = await self.attempt(key, marker)
            self.history.complete(process, time.monotonic_ns(), kind, **facts)
            if kind == "ok":
                self.acknowledged += 1
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{key}: not acknowledged within {PATIENCE_S} s")

    async def attempt(self, key, marker):
        body = key.to_json() | {"message": f"Hello {marker}", "turnId": marker[1:]}
        try:
            async with self.client.post(
                f"{self.child.url}/v1/turns", data=json.dumps(body), headers=JSON
            ) as answer:
                told = await answer.json()
        except (aiohttp.ClientError, OSError) as error:
            return "info", {"error": repr(error)}
        if answer.status == 200:
            answered, read = echo_in(told["text"])
            return "ok", {"answered": answered, "read": read}
        kind = "fail" if answer.status < 500 and answer.status != 410 else "info"
        return kind, {"error": told["error"]["type"]}

    async def read(self, key):
        """Read the session for the judge."""
        process = f"reader-{next(self.lives)}"
        self.history.invoke(key, process, time.monotonic_ns(), f="read")
        messages = await self.child.messages(self.client, key.session_id)
        markers = [marker for prompt in prompts(messages) for marker in markers_in(prompt)]
        self.history.complete(process, time.monotonic_ns(), "ok", markers=markers)

    def verdict(self):
        self.history.close()
        with self.path.open(encoding="utf-8") as lines:
            return check(read_operations(lines))


@pytest.mark.parametrize("where", ["a directory", "a database"])
def test_no_acknowledged_turn_is_lost_where_a_worker_is_killed_and_it_comes_back(
    tmp_path, request, where
):
    options, store = WORKERS, {}
    if where == "a database":
        options = (*options, "--schema", request.getfixturevalue("postgres_schema"))
        store = {"KODE_LAB_STORE": request.getfixturevalue("postgres")}

    async def scenario():
        with serving(tmp_path, *options, **store) as child:
            async with strangers() as client:
                judged = Judged(child, client, tmp_path / "history.jsonl")
                keys = [key_of(f"s{number}") for number in range(6)]
                # Of the first session several turns at a time.
                clients = [asyncio.create_task(ask(judged, key)) for key in keys + keys[:1] * 3]
                for number in (0, 1):
                    while judged.acknowledged < 60 * (number + 1):  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                    judged.history.fault("kill", time.monotonic_ns())
                    os.kill(workers_of(child)[0], signal.SIGKILL)
                    await child.until(client, lambda told: told["workers"] == 1)
                    await child.until(client, lambda told: told["workers"] == 2)
                    judged.history.fault("restart", time.monotonic_ns())
                await asyncio.gather(*clients)
                judged.history.fault("quiet", time.monotonic_ns())
                for key in keys:
                    await judged.turn(key)
                for key in keys:
                    await judged.read(key)
                verdict = judged.verdict()
                assert verdict.status == "valid", str(verdict)
                assert verdict.evidence.acknowledged >= 9 * 30 + 6
                # However the parent dies, the workers hear of it.
                pids = workers_of(child)
                assert len(pids) == 2
                child.signal(signal.SIGKILL)
                await gone(pids)
        said = (tmp_path / "stderr").read_text()
        assert "ended with status -9: it starts again" in said
        assert "Traceback" not in said

    async def ask(judged, key):
        for _ in range(30):
            await judged.turn(key)

    run(scenario())


def test_a_body_of_just_the_limit_is_taken_wherever_it_lands(pair):
    async def scenario():
        async with strangers() as client:
            found = set()
            for number in range(3):
                # No agent has this name, so that nothing of it is kept.
                fields = {"userId": "ada", "agentId": "stranger", "sessionId": f"long {number}"}
                body = json.dumps(fields | {"message": ""}).encode()
                missing = Limits().connection.body_limit_bytes - len(body)
                body = body[:-2] + b"m" * missing + body[-2:]
                data = io.BytesIO(body)
                async with client.post(f"{pair.url}/v1/turns", data=data, headers=JSON) as answer:
                    told = await answer.json()
                found.add(told["error"]["type"])
            assert found == {"UnknownAgent"}

    run(scenario())


def test_a_head_of_just_the_limit_is_taken_wherever_it_lands(pair):
    async def scenario():
        port = int(pair.url.rpartition(":")[2])
        for number in range(8):
            path = f"/v1/sessions/ada/{number}%s/schedule-assistant/state"
            room = Limits().connection.head_limit_bytes - len(path % "") - len("Hostlocalhost")
            path %= "%F0%9F%98%80" * (room // 12) + "x" * (room % 12)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] == b"200", number
            writer.transport.abort()

    run(scenario())


# ---- the parts by themselves


def peers_of(number, count, directory="/nowhere"):
    return Peers(WorkerSlot(number, count, str(directory), -1))


def test_every_worker_finds_the_same_order_and_a_worker_more_moves_few_sessions():
    keys = [key_of(f"s{number}") for number in range(3_000)]
    homes = {}
    for count in (3, 4):
        orders = [[list(peers_of(n, count).order(key)) for key in keys] for n in range(count)]
        assert all(order == orders[0] for order in orders)
        assert all(sorted(order) == list(range(count)) for order in orders[0])
        homes[count] = [order[0] for order in orders[0]]
        share = len(keys) / count
        assert all(0.8 * share < homes[count].count(n) < 1.2 * share for n in range(count))
    moved = [new for old, new in zip(homes[3], homes[4], strict=True) if old != new]
    assert set(moved) == {3}
    assert len(moved) < 0.3 * len(keys)
    # All agents of a session share its lock, and so its home.
    one, other = (SessionKey.of("ada", agent, "s1") for agent in ("a", "b"))
    assert list(peers_of(0, 4).order(one)) == list(peers_of(0, 4).order(other))


def test_what_workers_tell_of_themselves_is_added():
    told = [
        {"workers": 1, "uptimeS": 5.0, "isDraining": False, "lock": {"held": 2, "longestQueue": 7}},
        {"workers": 1, "uptimeS": 9.0, "isDraining": True, "lock": {"held": 1, "longestQueue": 3}},
    ]
    told[0]["outcomes"], told[1]["outcomes"] = {"ok": 2}, {"ok": 3, "Superseded": 1}
    assert merged_statistics(told) == {
        "workers": 2,
        "uptimeS": 9.0,
        "isDraining": True,
        "lock": {"held": 3, "longestQueue": 7},
        "outcomes": {"ok": 5, "Superseded": 1},
    }
    lines = [{"waiting": number, "holder": None} for number in (1, 3, 2)]
    parts = [
        {"sessions": lines[:2], "notShown": 4, "recent": [{"agoS": 3}, {"agoS": 1}]},
        {"sessions": lines[2:], "notShown": 0, "recent": [{"agoS": 2}]},
    ]
    live = merged_live(parts, limit=2)
    assert [line["waiting"] for line in live["sessions"]] == [3, 2]
    assert live["notShown"] == 5
    assert [turn["agoS"] for turn in live["recent"]] == [3, 2, 1]


def test_where_no_socket_can_be_made_it_is_said(tmp_path):
    with pytest.raises(InvalidScenario, match="TMPDIR"):
        listening_at(tmp_path / ("x" * 120) / "0.sock")
