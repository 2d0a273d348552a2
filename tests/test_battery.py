"""The standard battery against services with one mistake each, and against right ones."""

import asyncio
import time
from collections import defaultdict

import pytest

from kode_lab.check import check
from kode_lab.history.operation import HistoryWriter, echo_of, markers_in, read_of
from kode_lab.history.reader import read_operations
from kode_lab.lab.battery import Battery, Settings
from kode_lab.targets.target import Answer, Declaration

QUICK = Settings(rounds=2, timeout_s=0.3, limit_s=20.0, long_turns=13)


async def others():
    """Let every other task run a few times, as a model's latency would."""
    for _ in range(8):
        await asyncio.sleep(0)


class Service:
    """A right service: one turn of a session at a time, all kept, its model simulated."""

    declaration = Declaration("small", is_idempotent=True)
    is_serial = True

    def __init__(self):
        self.sessions = defaultdict(list)
        self.locks = defaultdict(asyncio.Lock)
        self.replies = {}
        self.prompts = {}
        self.turns = 0
        self.kills = 0

    def place(self, key):
        return key

    def shown(self, before):
        return before

    async def model(self, prompt, before):
        await others()
        own = markers_in(prompt)[-1]
        shown = [marker for one in self.shown(before) for marker in markers_in(one)]
        return f"Noted. {echo_of(own, read_of(own, [*shown, own]))}"

    async def turn(self, key, prompt, turn_id):
        self.turns += 1
        assert self.prompts.setdefault(turn_id, prompt) == prompt, "a turn sent again is the same"
        lock = self.locks[key] if self.is_serial else asyncio.Lock()
        async with lock:
            if turn_id in self.replies:
                return Answer("reply", self.replies[turn_id])
            session = self.sessions[self.place(key)]
            before = list(session)
            reply = await self.model(prompt, before)
            self.sessions[self.place(key)] = [*before, prompt]
            self.replies[turn_id] = reply
        return Answer("reply", reply)

    async def history(self, key):
        return self.sessions[self.place(key)]


def judged(service, path, settings=QUICK):
    history = HistoryWriter(path / "history.jsonl")
    battery = Battery(service, history, settings=settings)
    asyncio.run(battery.run())
    history.close()
    with (path / "history.jsonl").open() as lines:
        operations = list(read_operations(lines))
    verdict = check(operations, None, battery.target.declaration.promises)
    return verdict, battery


def statuses(verdict):
    return {f.name: f.status for f in verdict.findings if f.status != "not claimed"}


class NoLock(Service):
    is_serial = False


class SharedBetweenUsers(Service):
    def place(self, key):
        return key.session_id


class LostOnTheWay(Service):
    """Every ninth acknowledged turn is never saved."""

    async def turn(self, key, prompt, turn_id):
        answer = await super().turn(key, prompt, turn_id)
        if self.turns % 9 == 0:
            self.sessions[key] = [one for one in self.sessions[key] if one != prompt]
        return answer


class CrossedReplies(Service):
    """Two turns at once get each other's replies."""

    latest = ""

    async def turn(self, key, prompt, turn_id):
        answer = await super().turn(key, prompt, turn_id)
        other, self.latest = self.latest, answer.text
        return Answer("reply", other if self.turns % 7 == 0 and other else answer.text)


class Resends(Service):
    """The same turn delivered twice is taken twice, though it promises otherwise."""

    async def turn(self, key, prompt, turn_id):
        self.replies.pop(turn_id, None)
        return await super().turn(key, prompt, turn_id)


class Window(Service):
    """Keeps all, shows the model the last three, and does not say so."""

    def shown(self, before):
        return before[-3:]


class WindowWithoutLock(Window):
    is_serial = False


class Forgets(Service):
    """After five turns the model is shown none of them."""

    def shown(self, before):
        return before if len(before) < 5 else []


@pytest.mark.parametrize(
    ("service", "anomalies"),
    [
        (NoLock, {"lost update"}),
        (SharedBetweenUsers, {"cross-session leak"}),
        (LostOnTheWay, {"lost write"}),
        (CrossedReplies, {"foreign reply"}),
        (Resends, {"duplicate"}),
        (WindowWithoutLock, {"lost update"}),
        (Forgets, {"stale read"}),
    ],
)
def test_each_mistake_is_convicted_by_its_name(service, anomalies, tmp_path):
    verdict, _ = judged(service(), tmp_path)
    assert verdict.status == "invalid", str(verdict)
    assert anomalies <= {name for name, count in verdict.counts.items() if count}


# --- no false alarm --------------------------------------------------------------------------


class Rejects(Service):
    """One turn at a time; another is refused."""

    async def turn(self, key, prompt, turn_id):
        if self.locks[key].locked():
            return Answer("refused", error="409 busy", retry_after_s=0.002)
        return await super().turn(key, prompt, turn_id)


class Interrupts(Service):
    """A second turn cancels the first, which answers 200 with an empty object."""

    def __init__(self):
        super().__init__()
        self.running = {}

    async def turn(self, key, prompt, turn_id):
        if (running := self.running.get(key)) is not None:
            running.cancel()
        work = asyncio.ensure_future(super().turn(key, prompt, turn_id))
        self.running[key] = work
        await asyncio.wait((work,))
        return Answer("reply", "{}") if work.cancelled() else work.result()


class TellsErrorsAsText(Service):
    """Every fifth turn fails, with its error as the reply."""

    async def turn(self, key, prompt, turn_id):
        if self.turns % 5 == 4:
            self.turns += 1
            return Answer("reply", "The model is overloaded, please try again")
        return await super().turn(key, prompt, turn_id)


class LeavesOpenWhatHappened(Service):
    """Some turns are kept, but their answers are lost."""

    async def turn(self, key, prompt, turn_id):
        answer = await super().turn(key, prompt, turn_id)
        if self.turns % 6 == 0:
            raise ConnectionResetError
        return answer


@pytest.mark.parametrize(
    "service", [Service, Window, Rejects, Interrupts, TellsErrorsAsText, LeavesOpenWhatHappened]
)
def test_a_right_service_is_never_convicted(service, tmp_path):
    verdict, battery = judged(service(), tmp_path)
    assert verdict.status != "invalid", str(verdict)
    assert not verdict.anomalies
    assert verdict.evidence.acknowledged > 20
    if service is Service:
        assert verdict.status == "valid", str(verdict)
        assert set(battery.not_done) == {"processes", "crash", "tools"}


class NoWitness(Service):
    """Its own model, which quotes the prompt and tells nothing of what it was shown."""

    async def model(self, prompt, before):  # noqa: ARG002 - its model is elsewhere
        await others()
        return f"You said: {prompt}"


class NoHistory(Service):
    declaration = Declaration("small", has_history=False)

    async def history(self, _key):
        return None


@pytest.mark.parametrize(("service", "known"), [(NoWitness, {"kept", "whole", "service"})])
def test_what_cannot_be_judged_is_told_and_the_rest_is_judged(service, known, tmp_path):
    verdict, _ = judged(service(), tmp_path)
    found = statuses(verdict)
    assert {name for name, status in found.items() if status == "valid"} >= known, str(verdict)
    assert "invalid" not in found.values()
    reasons = [f.reason for f in verdict.findings if f.status == "unknown"]
    assert all(reasons)


def test_without_a_history_the_models_own_account_is_the_evidence(tmp_path):
    verdict, _ = judged(NoHistory(), tmp_path)
    assert "invalid" not in statuses(verdict).values(), str(verdict)
    assert verdict.evidence.observed > 20


# --- targets that misbehave ------------------------------------------------------------------


class Hangs(Service):
    async def turn(self, key, prompt, turn_id):
        if self.turns > 4:
            await asyncio.Event().wait()
        return await super().turn(key, prompt, turn_id)


class HangsAtOnce(Service):
    async def turn(self, _key, _prompt, _turn_id):
        await asyncio.Event().wait()


class Nonsense(Service):
    async def turn(self, _key, _prompt, _turn_id):
        return Answer("reply", "\x00\ud800 {]")


class Explodes(Service):
    async def turn(self, _key, _prompt, _turn_id):
        raise RecursionError


class ChangesThePrompt(Service):
    async def turn(self, key, prompt, turn_id):
        await super().turn(key, prompt, turn_id)
        return Answer("reply", "You said something")


class RepeatsMarkers(Service):
    """Its replies quote the whole conversation, oldest last."""

    async def turn(self, key, prompt, turn_id):
        answer = await super().turn(key, prompt, turn_id)
        return answer._replace(text=f"{answer.text}\n{' '.join(reversed(self.sessions[key]))}")


@pytest.mark.parametrize("service", [HangsAtOnce, Nonsense, Explodes, ChangesThePrompt])
def test_a_service_that_never_acknowledges_is_unknown_with_its_first_answer(service, tmp_path):
    verdict, battery = judged(service(), tmp_path)
    assert verdict.status == "unknown"
    assert battery.first_error
    assert set(battery.not_done) >= {"together", "same name", "long"}
    assert all(f.reason for f in verdict.findings if f.status == "unknown")


def test_a_service_that_stops_answering_ends_the_battery(tmp_path):
    began_s = time.monotonic()
    verdict, battery = judged(Hangs(), tmp_path)
    assert time.monotonic() - began_s < 60
    assert "no answer in time" in " ".join(battery.not_done.values())
    assert verdict.status in ("unknown", "invalid")
    assert set(verdict.counts) <= {"stuck session"}


def test_a_service_that_quotes_everything_is_judged_like_any_other(tmp_path):
    verdict, _ = judged(RepeatsMarkers(), tmp_path)
    assert verdict.status == "valid", str(verdict)


class Dies(Service):
    """Ends by itself once, and is started again on what it kept."""

    is_up = True
    has_died = False

    async def turn(self, key, prompt, turn_id):
        if not self.is_up:
            return Answer("refused", error="connection refused")
        answer = await super().turn(key, prompt, turn_id)
        if self.turns > 9 and not self.has_died:
            self.is_up, self.has_died = False, True
            raise ConnectionResetError
        return answer

    def lost(self):
        return "" if self.is_up else "it ended by itself with status 1: out of memory"

    async def kill(self):
        self.is_up = False

    async def restart(self):
        self.is_up = True


class DiesForgetting(Dies):
    """Ends by itself once, and keeps nothing: it does not promise to."""

    async def restart(self):
        raise AssertionError


def test_a_service_that_ends_by_itself_and_promises_no_memory_is_judged_up_to_there(tmp_path):
    verdict, battery = judged(DiesForgetting(), tmp_path)
    assert battery.lost == ["it ended by itself with status 1: out of memory"]
    assert verdict.status == "unknown", str(verdict)
    assert "ended by itself" in battery.not_done["probe"]


def test_a_service_that_ends_by_itself_is_noted_and_started_again(tmp_path):
    service = Dies()
    promises = (*Dies.declaration.promises, "durable")
    service.declaration = Dies.declaration._replace(promises=promises)
    verdict, battery = judged(service, tmp_path)
    assert battery.lost == ["it ended by itself with status 1: out of memory"]
    assert verdict.evidence.crashes == 3, "two by the battery, one by itself"
    assert verdict.status == "valid", str(verdict)
