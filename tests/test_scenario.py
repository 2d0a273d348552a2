"""Scenarios: what they ask is drawn once and for all, and what a run of one leaves behind."""

import json
import os
import random
import select
import subprocess
import sys
from concurrent.futures import CancelledError

import pytest

from kode_lab import lab
from kode_lab.check import GUARANTEES
from kode_lab.claude import Plan, Profile
from kode_lab.errors import InvalidScenario
from kode_lab.history.operation import NEMESIS
from kode_lab.lab.comparison import compare
from kode_lab.lab.live import Progress
from kode_lab.lab.records import Run
from kode_lab.lab.scenario import Client, Phase, Prompt, Scenario
from kode_lab.sessions import JsonStore, Lease

QUICK = Scenario(users=2, sessions=2, turns=2, profile=Profile(ttft_s=0.005))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def run(results):
    return lab.run(QUICK, results=results).result()


class Silent:
    """A card for tests that look at the progress themselves."""

    def draw(self, progress):
        pass

    def close(self):
        pass


# --- what is asked ---------------------------------------------------------------------------


def test_the_same_seed_asks_the_same_and_another_one_does_not():
    assert QUICK.script() == QUICK.script()
    assert QUICK.script() != QUICK.with_(seed=1).script()


def test_users_and_sessions_share_their_names_and_markers_are_never_shared():
    keys = {key.lock_name for key in QUICK.session_keys()}
    assert {"ada:bea", "bea:ada"} <= keys
    markers = [ask.marker for client in QUICK.script() for ask in client.asks]
    assert len(set(markers)) == len(markers) == QUICK.turns_total


def test_open_arrivals_come_at_their_rate_each_from_a_client_of_its_own():
    scenario = QUICK.with_(users=50, arrival="open", rate_per_s=100.0)
    clients = scenario.script()
    assert len(clients) == scenario.turns_total
    assert [c.start_s for c in clients] == sorted(c.start_s for c in clients)
    assert clients[-1].start_s == pytest.approx(scenario.turns_total / 100.0, rel=0.2)


def test_a_scenario_comes_back_from_its_json():
    profile = Profile(plans=(Plan("one", "query", (0.1, 0.2), ("word",)),), jitter=0.1)
    scenario = QUICK.with_(profile=profile, arrival="open", rate_per_s=7.0)
    given = scenario.with_(clients_given=scenario.script())
    for one in (scenario, given):
        assert Scenario.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_ramp_lets_users_come_one_by_one_and_a_smaller_phase_lets_them_go():
    ramp = Phase(name="up", for_s=10.0, users=4, ramp_s=4.0)
    scenario = QUICK.with_(
        sessions=1, clients=1, think="1 s", phases=(ramp, Phase(name="down", for_s=5.0, users=1))
    )
    clients = scenario.script()
    up = [client for client in clients if client.name.startswith("up/")]
    assert [client.start_s for client in up] == [1.0, 2.0, 3.0, 4.0]
    assert {client.end_s for client in up} == {10.0}
    down = [client for client in clients if client.name.startswith("down/")]
    assert [(client.start_s, client.end_s) for client in down] == [(10.0, 15.0)]
    assert {client.name.partition("/")[0] for client in clients} == {"up", "down"}
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json()))) == scenario


def test_prompts_come_by_their_weight_and_faults_by_their_share():
    often = Prompt(text="often", weight=9, model="10 ms", tools=({"name": "web"},))
    scenario = QUICK.with_(
        users=100, turns=5, prompts=(often, Prompt(text="seldom")), faults={"refused": 0.2},
        agents=("one", "two"),
    )  # fmt: skip
    asks = [ask for client in scenario.script() for ask in client.asks]
    assert sum("often" in ask.prompt for ask in asks) / len(asks) == pytest.approx(0.9, abs=0.05)
    assert sum(ask.is_refused for ask in asks) / len(asks) == pytest.approx(0.2, abs=0.05)
    assert {ask.key.agent_id for ask in asks} == {"one", "two"}
    assert all(ask.script.calls[0].tools[0].name == "web" for ask in asks if ask.script)


@pytest.mark.parametrize(
    ("told", "mean", "least", "most"),
    [
        (2, 2, 2, 2), ("2 s", 2, 2, 2), ([1, 3], 2, 1, 3), ({"mean": 2}, 2, 0, 40),
        ({"mean": 2, "spread": 1}, 2, 0, 40), ({"median": 2, "p95": 6, "max": 9}, 2.5, 1, 9),
        ({"min": 1, "median": 2, "max": 3}, 2, 1, 3),
    ],
)  # fmt: skip
def test_a_distribution_is_drawn_as_it_is_told(told, mean, least, most):
    of = QUICK.with_(think=told).think
    draw = random.Random(1)
    drawn = [of.draw(draw) for _ in range(4000)]
    assert least <= min(drawn) <= max(drawn) <= most
    assert sum(drawn) / len(drawn) == pytest.approx(of.mean, rel=0.1)
    assert of.mean == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"users": 0}, "users=0"),
        ({"turns": 1.5}, "turns=1.5"),
        ({"users": 10_000, "turns": 10_000}, "TURNS_LIMIT=1000000"),
        ({"think_s": (2, 1)}, "think_s"),
        ({"think_s": (float("nan"), 1)}, "think_s"),
        ({"arrival": "sometimes"}, "'closed' or 'open'"),
        ({"arrival": "open"}, "rate_per_s"),
        ({"strategy": "panic"}, "'rollback'"),
        ({"durability": "diamond"}, "'process' or 'power'"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"speed": float("inf")}, "speed=inf"),
        ({"kills": -1}, "kills=-1"),
        ({"prompts": ()}, "prompts"),
        ({"name": "../up"}, "name="),
        ({"colour": "red"}, "no 'colour'"),
        ({"name": 5}, "name=5"),
        ({"name": None}, "name=None"),
        ({"think_s": 0.5}, "think_s=0.5"),
        ({"think_s": None}, "think_s=None"),
        ({"think_s": (0,)}, "think_s"),
        ({"think_s": ("a", "b")}, "think_s"),
        ({"timeout_s": "60"}, "timeout_s='60'"),
        ({"timeout_s": None}, "timeout_s=None"),
        ({"speed": "fast"}, "speed='fast'"),
        ({"speed": None}, "speed=None"),
        ({"arrival": "open", "rate_per_s": "7"}, "rate_per_s='7'"),
        ({"arrival": "open", "rate_per_s": None}, "rate_per_s"),
        ({"rate_per_s": 7.0}, "rate_per_s=7.0 is for open arrivals"),
        ({"clients_given": (1,)}, r"clients_given\[0\]=1"),
        ({"clients_given": 1}, "clients_given=1"),
        ({"clients_given": (Client("a", 0.0, (1,)),)}, r"clients_given\[0\]\.asks\[0\]=1"),
        ({"clients_given": (Client("a", "now", ()),)}, "start_s='now'"),
        ({"profile": None}, "profile=None"),
        ({"prompts": (1,)}, r"prompts\[0\]=1"),
        ({"prompts": "Hello"}, "prompts='Hello'"),
        ({"prompts": ("half \ud800",)}, "prompts="),
        ({"is_http": "no"}, "is_http='no'"),
        ({"is_http": True, "kills": 1}, "is_http=True has no use with kills"),
        ({"seed": "one"}, "seed='one'"),
        ({"phases": ({"name": "up", "for": -1, "users": 1},)}, r"phases\[0\]\.for"),
        ({"phases": ({"name": "up", "for": 1},)}, "none of them has users"),
        ({"faults": {"flood": 0.1}}, "'refused', 'failed', 'cancelled' or 'tool'"),
        ({"faults": {"refused": 2}}, "refused"),
        ({"think": {"p50": 3, "p95": 1}}, "percentiles must rise"),
        ({"agents": ("other",), "kills": 1}, "kills has no use"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(changes, told):
    with pytest.raises(InvalidScenario, match=told):
        QUICK.with_(**changes)


def test_a_json_that_is_no_scenario_is_refused():
    for fields in (
        {},
        QUICK.to_json() | {"colour": "red"},
        QUICK.to_json() | {"prompts": "Hello"},
    ):
        with pytest.raises(InvalidScenario):
            Scenario.from_json(fields)


# --- what is left behind ---------------------------------------------------------------------


def test_a_run_is_judged_from_what_its_clients_wrote(run):
    verdict = run.verdict()
    assert verdict.status == "valid", str(verdict)
    held = {finding.name for finding in verdict.findings if finding.status == "valid"}
    assert held == {guarantee.name for guarantee in GUARANTEES} - {"durable"}
    assert verdict.evidence.turns == QUICK.turns_total + len(QUICK.session_keys())
    assert verdict.evidence.concurrent_pairs > 0
    assert verdict.to_json() == json.loads((run.path / "verdict.json").read_text())


def test_its_last_acts_are_quiet_then_a_probe_then_a_read_of_each_session(run):
    operations = run.operations()
    (quiet,) = (o for o in operations if o.process == NEMESIS)
    after = [o for o in operations if o.invoke_ns > quiet.invoke_ns]
    for key in QUICK.session_keys():
        kinds = [o.f for o in after if o.key == key and o.f != "effects"]
        assert kinds == ["turn", "read"]


def test_every_schedule_that_was_made_is_told_with_the_turn_that_asked_for_it(run):
    effects = [e for o in run.operations() if o.f == "effects" for e in o.effects]
    asked = {a.marker for c in QUICK.script() for a in c.asks if a.prompt.startswith("Create")}
    assert {effect.marker for effect in effects} == asked
    assert len({effect.id for effect in effects}) == len(effects)


def test_a_run_says_how_to_do_it_again_and_is_found_by_its_id(run, results):
    again = Run.load(run.id, results)
    assert Scenario.from_json(again.parameters) == QUICK
    assert "PASS" in repr(again)
    assert "PASS" in again._repr_html_()
    assert run.id in repr(lab.runs(results))


def test_the_latest_run_stays_itself_when_another_one_is_made(tmp_path):
    small = QUICK.with_(users=1, sessions=1, turns=1)
    first = lab.run(small, results=tmp_path).result()
    latest = Run.load("latest", str(tmp_path))
    lab.run(small.with_(seed=1), results=tmp_path).result()
    assert latest.operations() == first.operations()


def test_a_directory_that_is_no_run_is_listed_with_the_reason(tmp_path):
    newer = {"schema": 99, "id": "b", "status": "", "parameters": {}}
    for name, content in (("a", "{"), ("b", json.dumps(newer))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    found = lab.runs(tmp_path)
    assert len(found) == 0
    assert [name for name, _ in found.unreadable] == ["b", "a"]
    assert "schema 99" in found._repr_html_()


class Unlocked:
    """The real store whose sessions are held for a moment, not for a turn."""

    def __init__(self, root):
        self._store = JsonStore(root)
        self._shown = {}

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def hold(self, key, *, queue_limit):
        real = await self._store.hold(key, queue_limit=queue_limit)
        self._store.release(real)
        return Lease(key, real.fence)

    def release(self, lease):
        pass

    async def journal(self, lease, turn, entry):
        pass

    async def load(self, lease):
        real = await self._store.hold(lease.key, queue_limit=100)
        stored = await self._store.load(real)
        self._store.release(real)
        self._shown[lease] = len(stored.messages)
        return stored

    async def append(self, lease, turn, entries):
        real = await self._store.hold(lease.key, queue_limit=100)
        await self._store.load(real)
        done = await self._store.append(real, turn, entries)
        self._store.release(real)
        first = self._shown[lease]
        return done._replace(first=first, last=first + done.last - done.first)


def test_a_store_that_lets_two_in_at_once_is_convicted_of_lost_updates(results):
    run = lab.run(QUICK, make_store=Unlocked, results=results).result()
    verdict = run.verdict()
    assert verdict.status == "invalid"
    assert verdict.counts["lost update"] > 0
    assert verdict.counts["overlap"] > 0


class Unusable:
    """A store that fails at once, with an unplanned error."""

    def __init__(self, root):
        self._store = JsonStore(root)

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def hold(self, key, *, queue_limit):  # noqa: ARG002
        raise LookupError("nothing is here")


def test_a_service_that_only_fails_is_recorded_and_never_called_valid(results):
    run = lab.run(QUICK, make_store=Unusable, results=results).result()
    assert run.status == "complete"
    assert {o.type for o in run.operations() if o.f == "turn"} == {"info"}
    assert "LookupError" in run.operations()[0].error
    assert run.facts["summary"]["verdict"] == "invalid"  # stuck: no session ever answers


def test_kills_are_survived_and_told_and_a_store_of_ones_own_is_not_killed(results):
    scenario = QUICK.with_(users=1, turns=4, kills=1, profile=Profile(ttft_s=0.02))
    with pytest.raises(InvalidScenario, match="cannot be killed"):
        lab.run(scenario, make_store=JsonStore, results=results)
    run = lab.run(scenario, results=results).result()
    verdict = run.verdict()
    assert verdict.status == "valid", str(verdict)
    assert verdict.evidence.crashes == 1
    faults = [o.f for o in run.operations() if o.process == NEMESIS]
    assert faults == ["kill", "restart", "quiet"]


ABANDONED = """
import time
from kode_lab.child import PYTHON_MODULE, Child

module = Child((PYTHON_MODULE, "http.server", "0", "--bind", "127.0.0.1"))
command = Child(("sleep", "600"))
print(module.pid, command.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_laboratory_leaves_no_child_behind():
    words = [sys.executable, "-c", ABANDONED]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as laboratory:
        children = [os.pidfd_open(int(pid)) for pid in laboratory.stdout.readline().split()]
        laboratory.kill()
        for child in children:
            assert select.select([child], [], [], 30)[0], "it lives on"
            os.close(child)


def test_over_http_the_same_scenario_is_valid_by_what_the_simulated_api_received(results):
    scenario = QUICK.with_(users=1, turns=2, is_http=True)
    run = lab.run(scenario, results=results).result()
    assert run.verdict().status == "valid"
    assert all(o.read is not None for o in run.operations() if o.f == "turn")


def test_an_interrupted_run_keeps_what_there_is_and_can_still_be_judged(results):
    progress = Progress("")
    scenario = QUICK.with_(turns=50, profile=Profile(ttft_s=0.01))
    handle = lab.run(scenario, results=results, progress=progress, card=Silent())
    while not progress.rows[0].part:
        assert not handle.is_done
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result()
    run = Run.load(progress.where)
    assert run.status == "interrupted"
    assert 0 < run.verdict().evidence.acknowledged < scenario.turns_total
    assert run.facts["summary"]["verdict"] != "invalid"


def test_other_agents_scripted_tools_and_faults_run_against_our_sessions(results):
    prompt = Prompt(
        text="Look it up", model="5 ms", output_tokens=12,
        tools=({"name": "web_search", "took": "2 ms"}, {"name": "sum_up", "failed": True}),
    )  # fmt: skip
    scenario = QUICK.with_(
        turns=4, agents=("research-bot", "schedule-assistant"), prompts=(prompt,), seed=3,
        faults={"refused": 0.2, "failed": 0.1},
    )  # fmt: skip
    run = lab.run(scenario, results=results).result()
    verdict = run.verdict()
    assert verdict.status == "valid", str(verdict)
    turns = [o for o in run.operations() if o.f == "turn" and "probe" not in o.process]
    assert {o.type for o in turns} == {"ok", "fail", "info"}
    tools = {span.attributes["gen_ai.tool.name"] for span in run.spans() if span.step == "tool"}
    assert tools == {"web_search", "sum_up"}


# --- side by side ----------------------------------------------------------------------------


def test_a_comparison_counts_turns_and_not_the_probe(run):
    comparison = compare({"quick": run})
    (row,) = comparison.rows
    assert (row.verdict, row.sessions, row.turns, row.ok) == ("valid", 4, 16, 16)
    assert 0 < row.p50_s <= row.p99_s <= row.slowest_s
    assert "PASS" in repr(comparison)
    assert "#009E73" in comparison._repr_html_()
