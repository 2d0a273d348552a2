"""The simulated API: what it remembers, how long it takes, what goes wrong, its life."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from urllib.parse import quote

import pytest
from simulated_http import HEADERS, TOOL, answer_to, asked, http, serving, until

from kode_lab.claude import Fault, Plan, Profile, SimulatedClaude, report_profile
from kode_lab.errors import InvalidScenario, PortOccupied
from kode_lab.history.operation import Read, digest_of, echo_in, marker_of
from kode_lab.key import SessionKey
from kode_lab.message import ToolResult, assistant, tool_results, user


def test_what_was_shown_is_remembered_for_the_first_request_of_each_prompt():
    ada, bob = SessionKey.of("ada", "agent"), SessionKey.of("bob", "agent")
    a1, a2, b1 = marker_of(ada, 1), marker_of(ada, 2), marker_of(bob, 1)

    async def scenario(simulated):
        first = [user(f"hello {a1}")]
        await http(simulated, "POST", "/v1/messages", asked(*first))
        second = [*first, assistant(f"as {b1} said"), user(f"and {b1}"), user(f"hello {a2}")]
        _, _, body = await http(simulated, "POST", "/v1/messages", asked(*second))
        # Later requests of the same prompt change nothing.
        await http(simulated, "POST", "/v1/messages", asked(user(f"hello {a2}")))
        over_http = await http(simulated, "GET", f"/lab/reads/{quote(a2)}", headers={})
        assert (await http(simulated, "GET", "/lab/reads/m0-0", headers={}))[0] == 404
        return simulated, json.loads(body), json.loads(over_http[2])

    simulated, body, over_http = serving(scenario)
    read = Read(1, digest_of([a1]), (a1,), (b1,))
    assert simulated.read(a1) == Read(0, 0)
    assert simulated.read(a2) == read
    assert simulated.read(b1) is None
    assert echo_in(body["content"][0]["text"]) == (a2, read)
    told = {"position": 1, "digest": f"{read.digest:016x}", "tail": [a1], "foreign": [b1]}
    assert {name: over_http[name] for name in told} == told


def test_a_refused_request_showed_the_model_nothing():
    marker = marker_of(SessionKey.of("ada", "agent"), 1)

    async def scenario(simulated):
        await http(simulated, "POST", "/v1/messages", asked(user(marker), assistant("x")))
        return simulated

    simulated = serving(scenario)
    assert simulated.read(marker) is None
    assert simulated.statistics().refused == 1
    assert "end with a user message" in simulated.records()[0].error


def test_only_a_limited_number_of_reads_is_kept_and_the_loss_is_told():
    key = SessionKey.of("ada", "agent")

    async def scenario(simulated):
        for number in range(5):
            body = asked(user(marker_of(key, number)))
            await http(simulated, "POST", "/v1/messages", body)
        return simulated

    simulated = serving(scenario, reads_limit=3)
    kept = [number for number in range(5) if simulated.read(marker_of(key, number))]
    assert kept == [2, 3, 4]
    assert simulated.statistics().reads == 3
    assert simulated.statistics().reads_forgotten == 2


def test_ids_are_the_same_again_only_where_a_salt_is_given():
    def ids(**options):
        return answer_to(asked(user("create x"), tools=[TOOL]), **options)[2]["content"][1]["id"]

    assert ids(salt="a") == ids(salt="a")
    assert len({ids(salt=None) for _ in range(3)}) == 3


def test_the_same_seed_draws_the_same_latencies_in_any_order():
    profile = Profile(ttft_s=1.0, token_s=0.01, jitter=0.5, seed=3)
    prompts = [f"prompt {number}" for number in range(20)]
    drawn = {prompt: profile.latency("chat", prompt, 0, 10) for prompt in prompts}
    again = {prompt: profile.latency("chat", prompt, 0, 10) for prompt in reversed(prompts)}
    assert drawn == again
    assert len(set(drawn.values())) == 20
    assert profile.latency("chat", "prompt 1", 0, 10) != profile.latency("chat", "prompt 1", 1, 10)
    other = Profile(ttft_s=1.0, token_s=0.01, jitter=0.5, seed=4)
    assert other.latency("chat", "prompt 1", 0, 10) != drawn["prompt 1"]


def test_the_report_profile_takes_the_reported_seconds_in_the_reported_number_of_calls():
    plans = {plan.name: plan for plan in report_profile().plans}
    assert sum(plans["query"].calls_s) == pytest.approx(16.73)
    assert len(plans["query"].calls_s) == 9
    assert sum(plans["create"].calls_s) == pytest.approx(2.19)
    assert len(plans["create"].calls_s) == 2


def test_a_plan_is_chosen_by_intent_and_words_and_scaled_by_speed():
    profile = Profile(
        speed=10.0,
        plans=(
            Plan("study", "create", (4.0,), ("study",)),
            Plan("any", "create", (2.0, 1.0)),
        ),
    )
    assert profile.latency("create", "Create STUDY time", 0, 5).total_s == pytest.approx(0.4)
    assert profile.latency("create", "create lunch", 1, 5).total_s == pytest.approx(0.1)
    assert profile.latency("create", "create lunch", 2, 5).total_s == 0
    assert profile.latency("query", "query study", 0, 5).total_s == 0


def test_a_fault_strikes_as_often_and_where_it_was_told_to():
    async def scenario(simulated):
        async def status(prompt):
            return (await http(simulated, "POST", "/v1/messages", asked(user(prompt))))[0]

        return [await status(prompt) for prompt in ("a", "bad b", "c", "bad d", "bad e")]

    faults = [Fault("status", status=529, word="bad", times=2)]
    assert serving(scenario, faults=faults) == [200, 529, 200, 529, 200]


def test_a_share_of_faults_is_drawn_by_the_seed():
    async def scenario(simulated):
        return [
            (await http(simulated, "POST", "/v1/messages", asked(user("a"))))[0] for _ in range(40)
        ]

    faults = [Fault("status", share=0.5, times=None)]
    drawn = serving(scenario, faults=faults, seed=1)
    assert drawn == serving(scenario, faults=faults, seed=1)
    assert drawn != serving(scenario, faults=faults, seed=2)
    assert 5 < drawn.count(500) < 35


def test_faults_can_be_armed_and_disarmed_over_http():
    async def scenario(simulated):
        async def status(method, path, body=None):
            return (await http(simulated, method, path, body, headers=None))[0]

        prompt = asked(user("a"))
        armed = await status("POST", "/lab/faults", {"kind": "status", "times": None})
        struck = await status("POST", "/v1/messages", prompt)
        await status("DELETE", "/lab/faults")
        healed = await status("POST", "/v1/messages", prompt)
        wrong = await status("POST", "/lab/faults", {"kind": "unheard of"})
        _, _, told = await http(simulated, "GET", "/lab/statistics")
        return armed, struck, healed, wrong, json.loads(told)

    *statuses, told = serving(scenario)
    assert statuses == [200, 500, 200, 400]
    assert told["requests"] == 2
    assert told["faults"] == 1
    assert told["in_flight"] == 0


def test_a_tool_loop_asks_for_a_tool_for_every_prompt():
    async def scenario(simulated):
        messages = [user("hello")]
        for _ in range(5):
            body = asked(*messages, tools=[TOOL])
            _, _, content = await http(simulated, "POST", "/v1/messages", body)
            message = json.loads(content)
            assert message["stop_reason"] == "tool_use"
            call_id = message["content"][0]["id"]
            messages += [
                assistant(message["content"]),
                tool_results([ToolResult(call_id, "done")]),
            ]

    serving(scenario, faults=[Fault("tool_loop", times=None)])


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "x"},
        {"kind": "status", "status": 200},
        {"kind": "cut", "share": 2},
        {"kind": "slow", "delay_s": -1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fields):
    with pytest.raises(InvalidScenario):
        Fault(**fields)


@pytest.mark.parametrize("fields", [{"speed": 0}, {"ttft_s": -1}, {"jitter": float("nan")}])
def test_a_profile_that_makes_no_sense_is_refused(fields):
    with pytest.raises(InvalidScenario):
        Profile(**fields)


def test_an_occupied_port_is_named_with_what_to_do():
    async def scenario(simulated):
        with pytest.raises(PortOccupied, match=f"port {simulated.port}.*another port"):
            async with SimulatedClaude(port=simulated.port):
                pass

    serving(scenario)


def test_a_port_that_is_none_is_refused():
    async def scenario():
        async with SimulatedClaude(port=65_536):
            pass

    with pytest.raises(InvalidScenario, match="65536"):
        asyncio.run(scenario())


def test_a_port_is_free_again_at_once_even_if_a_call_was_under_way():
    async def scenario():
        async with SimulatedClaude(faults=[Fault("hang")]) as simulated:
            _, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
            body = json.dumps(asked(user("hello"))).encode()
            lines = ["POST /v1/messages HTTP/1.1", "host: localhost"]
            lines.append(f"content-length: {len(body)}")
            head = "\r\n".join([*lines, ""])
            keys = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
            writer.write(f"{head}{keys}\r\n".encode() + body)
            await until(lambda: simulated.statistics().in_flight == 1)
        assert simulated.statistics().in_flight == 0
        async with SimulatedClaude(port=simulated.port) as again:
            assert (await http(again, "POST", "/v1/messages", asked(user("hi"))))[0] == 200
        writer.close()

    asyncio.run(scenario())


PROGRAM = """
import sys
from argparse import Namespace
from kode_lab.claude import run_simulated
from kode_lab.errors import KodeLabError
try:
    code = run_simulated(Namespace(port=int(sys.argv[1]), speed=10.0, profile="instant"))
except KodeLabError as error:
    sys.exit(f"{type(error).__name__}: {error}")
sys.exit(code)
"""


def test_as_a_command_it_says_where_it_listens_serves_and_ends_on_a_signal():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "0"], stdout=subprocess.PIPE, text=True
    ) as running:
        line = running.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET /lab/statistics HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 0


def test_as_a_command_it_refuses_an_occupied_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert told.returncode == 1
    assert "PortOccupied" in told.stderr
