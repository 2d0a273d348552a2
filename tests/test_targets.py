"""What an answer proves, what a client records of it, and children that leave nothing behind."""

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kode_lab.child import PYTHON_MODULE, Child
from kode_lab.claude.records import ModelCall, WitnessedTurn
from kode_lab.errors import SessionBusy, Superseded
from kode_lab.history.operation import Details, ModelCalls, echo_of, marker_of, read_of
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client, OperationList
from kode_lab.targets.target import (
    DEFINITE,
    Answer,
    Declaration,
    History,
    outcome_of,
    refused_or_unknown,
)

ADA = SessionKey("ada", "x", "a")
BOB = SessionKey("bob", "x", "a")
OWN, EARLIER, OTHER = marker_of(ADA, 2), marker_of(ADA, 1), marker_of(BOB, 1)


def reply(text):
    return Answer("reply", text)


# --- what an answer proves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "answered"),
    [
        (f"done {OWN}", "ok", OWN),
        (f"of {EARLIER} and {OWN} and {OTHER}", "ok", OWN),
        (f"done {EARLIER}", "info", EARLIER),
        (f"done {OTHER}", "info", OTHER),
        ("", "info", ""),
        ("{}", "info", ""),
        ("Internal error: the model is overloaded", "info", ""),
        (f"x {echo_of(OWN, read_of(OWN, [EARLIER, OWN]))}", "ok", OWN),
        (f"{OWN} x {echo_of(OTHER, read_of(OTHER, [OTHER]))}", "info", OTHER),
    ],
)
def test_only_a_reply_that_quotes_its_own_marker_is_acknowledged(text, kind, answered):
    outcome = outcome_of(OWN, reply(text))
    assert (outcome.type, outcome.answered) == (kind, answered)
    assert (outcome.error == "") == (kind == "ok")


def test_an_echo_tells_what_the_model_was_shown_unless_it_is_of_another_prompt():
    read = read_of(OWN, [EARLIER, OWN])
    assert outcome_of(OWN, reply(echo_of(OWN, read))).read == read
    assert outcome_of(OWN, reply(echo_of(OTHER, read))).read is None


def test_a_service_with_another_proof_of_its_acknowledgement_needs_no_quote():
    assert outcome_of(OWN, reply("hello"), needs_quote=False).type == "ok"
    assert outcome_of(OWN, reply(f"hello {OTHER}"), needs_quote=False).type == "info"


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 423, 429])
def test_a_definite_status_is_a_refusal(status):
    assert status in DEFINITE
    assert outcome_of(OWN, refused_or_unknown(status, "no")).type == "fail"


@pytest.mark.parametrize("status", [408, 410, 425, 499, 500, 502, 503, 504, 599])
def test_every_other_error_leaves_open_what_happened(status):
    assert outcome_of(OWN, refused_or_unknown(status, "no")).type == "info"


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("-1", 0.0), ("soon", 0.0), (None, 0.0), ("0.5", 0.5)]
)
def test_a_refusal_tells_when_to_come_again(header, seconds):
    answer = refused_or_unknown(429, "later", header)
    assert answer.retry_after_s == seconds
    assert not answer.is_final
    assert refused_or_unknown(404, "no").is_final


# --- what a client records -------------------------------------------------------------------


class Scripted:
    """A target that does what its test says."""

    declaration = Declaration("scripted")

    def __init__(self, answer):
        self.answer = answer

    async def turn(self, _key, _prompt, _turn_id):
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        return self.answer

    async def history(self, _key):
        return self.answer


def asked(answer, **how):
    history = OperationList()
    target = Scripted(answer)
    outcome = asyncio.run(Client(target, history).turn("c0", ADA, OWN, f"hi {OWN}", **how))
    (operation,) = history.done
    return outcome, operation


@pytest.mark.parametrize(
    ("answer", "kind", "is_final"),
    [
        (reply(OWN), "ok", False),
        (Answer("refused", error="409 busy"), "fail", False),
        (Answer("unknown", error="500"), "info", False),
        (SessionBusy("busy"), "fail", False),
        (Superseded("closed"), "info", True),
        (ZeroDivisionError("a stranger's mistake"), "info", False),
        (ConnectionResetError(), "info", False),
    ],
)
def test_an_operation_says_what_its_client_can_know(answer, kind, is_final):
    outcome, operation = asked(answer)
    assert (outcome.type, outcome.is_final) == (kind, is_final)
    assert (operation.type, operation.marker, operation.turn_id) == (kind, OWN, OWN[1:])
    assert bool(operation.error) == (kind != "ok")


def test_a_client_that_waits_in_vain_knows_nothing():
    outcome, operation = asked(None, timeout_s=0.01)
    assert outcome.type == operation.type == "info"
    assert "timeout_s=0.01" in operation.error


def test_a_cancelled_client_leaves_an_indeterminate_operation():
    history = OperationList()

    async def leave():
        turn = asyncio.ensure_future(Client(Scripted(None), history).turn("c", ADA, OWN, "hi"))
        await asyncio.sleep(0)
        turn.cancel()
        await asyncio.wait((turn,))

    asyncio.run(leave())
    assert [(o.type, o.error) for o in history.done] == [("info", "interrupted")]


def test_the_models_own_account_is_stronger_than_the_reply():
    seen = read_of(OWN, [EARLIER, OWN])
    first = ModelCall(1, "req_1", 10, "messages", OWN, read=seen, tools=1, status=200, config="v1")
    first.answered_ns, first.stop_reason = 20, "tool_use"
    last = replace(first, number=2, call=1, arrived_ns=30, answered_ns=40, stop_reason="max_tokens")
    turns = {OWN: WitnessedTurn(OWN, [first, last])}
    for config, told in (("", ()), ("v7", ("v1", "v1"))):
        history = OperationList()
        answer = Answer("reply", f"to {OWN}", config=config, tools=("book",))
        asyncio.run(Client(Scripted(answer), history, witness=turns.get).turn("c", ADA, OWN, "hi"))
        assert history.done[0].read == seen
        model = ModelCalls(((10, 20), (30, 40)), "max_tokens", told)
        assert history.done[0].details == Details(tools=("book",), model=model)


@pytest.mark.parametrize(
    ("told", "markers", "half"),
    [
        ([f"hi {EARLIER}", f"hi {OWN}"], (EARLIER, OWN), None),
        (History((f"hi {EARLIER}", f"hi {OWN}"), (f"hi {OWN}",)), (EARLIER, OWN), (OWN,)),
        ([], (), None),
        (None, None, None),
    ],
)
def test_a_read_is_recorded_as_markers_or_as_no_read(told, markers, half):
    history = OperationList()
    error = asyncio.run(Client(Scripted(told), history).read("r", ADA))
    (operation,) = history.done
    assert operation.markers == markers
    assert (operation.read.half if operation.read else None) == half
    assert (operation.type == "ok") == (error == "") == (told is not None)


# --- children --------------------------------------------------------------------------------


def is_alive(pid):
    try:
        # A zombie has ended: only its parent has not asked for its status.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, limit_s=30.0):
    due_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < due_s, "it never came"
        time.sleep(0.01)


def pids_in(path, count):
    until(lambda: path.exists() and len(path.read_text().split()) >= count)
    return list(map(int, path.read_text().split()))


FAMILY = "echo $$ >> {0}; (echo $BASHPID >> {0}; sleep 100) & wait"


def test_killing_a_child_kills_what_it_started(tmp_path):
    child = Child(["bash", "-c", FAMILY.format(tmp_path / "pids")], log=tmp_path / "log")
    pids = pids_in(tmp_path / "pids", 2)
    child.kill()
    until(lambda: not any(map(is_alive, pids)))
    assert child.status == -9


def test_what_outlives_a_stopped_leader_is_killed_too(tmp_path):
    script = (
        f"trap 'exit 3' TERM; (trap '' TERM; echo $BASHPID >> {tmp_path}/pids; sleep 100) & wait"
    )
    child = Child(["bash", "-c", script])
    (pid,) = pids_in(tmp_path / "pids", 1)
    child.stop(10)
    assert child.status == 3
    until(lambda: not is_alive(pid))


def test_a_child_dies_with_the_process_that_started_it(tmp_path):
    parent = (
        "import time; from kode_lab.child import Child\n"
        f"Child(['bash', '-c', {FAMILY.format(tmp_path / 'pids')!r}]); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        pids = pids_in(tmp_path / "pids", 2)
        process.kill()
    until(lambda: not any(map(is_alive, pids)))


def test_a_module_of_python_is_one_process_with_its_arguments(tmp_path):
    child = Child([PYTHON_MODULE, "kode_lab", "--version"], log=tmp_path / "log")
    assert child.wait(60)
    assert child.status == 0
    assert child.last_words().startswith("kode-lab ")
    child.kill()


def test_a_program_that_does_not_exist_says_so(tmp_path):
    child = Child(["no-such-program"], log=tmp_path / "log")
    assert asyncio.run(child.ended(60))
    assert child.status == 127
    assert "no-such-program: No such file" in child.last_words()
    child.kill()


def test_a_piped_child_is_spoken_to():
    child = Child(["cat"], is_piped=True)
    child.stdin.write(b"hello\n")
    child.stdin.flush()
    assert child.stdout.readline() == b"hello\n"
    child.kill()
    assert not is_alive(child.pid)
