"""Every store keeps the contracts; and each contract convicts a store that breaks it."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from random import Random

import asyncpg
import broken_stores as broken
import pytest

from kode_lab.sessions import JsonStore
from kode_lab.sessions.postgres.store import PostgresStore
from kode_lab.storms.proxy import Proxy
from kode_lab.testing.conformance import (
    Claims,
    ConformanceReport,
    ContractResult,
    conform,
    contracts,
)
from kode_lab.testing.conformance.late import LATE

TTL_S = 1.0
IMPATIENT = Claims(patience_s=1.0)

# Store, the promise that it breaks, and how that is told.
BROKEN = [
    (broken.without_lock, "In one handle, a userId", "came in while"),
    (broken.without_file_lock, "In two handles too", "came in while"),
    (broken.OneLockForAll, "Different sessions", "WaitingRoomFull"),
    (broken.last_comes_first, "In one handle, the session is handed", "came in the order [5, "),
    (broken.LastComesFirstOfAll, "Across handles", "came in the order [5, "),
    (broken.Looking, "A handle that takes", "did not end"),
    (broken.EndlessRoom, "At most queue_limit", "did not end"),
    (broken.AlwaysWaiting, "A queue_limit of 0", "did not end"),
    (broken.losing_lock, "A caller that gives up", "did not end"),
    (broken.SameFenceTwice, "The fence grows", "the fences of one session were ["),
    (broken.NeverVoid, "A lease that was released", "append took a lease although"),
    (broken.WritingOn, "A lease of a handle that was closed", "a closed handle appended"),
    (broken.NeverIdle, "statistics() counts", "no holder"),
    (broken.ForgettingEnds, "What was appended is loaded", "load says that the turns ended as []"),
    (broken.TornAppend, "An append that is cancelled", "the conversation should be"),
    (broken.PeekingEarly, "peek shows", "the conversation should be"),
    (broken.PeekingLate, "peek does not wait", "did not end"),
    (broken.WithoutJournal, "The journalled steps", "are gone"),
    (broken.NeverDiscarding, "A turn that was discarded", "is open again"),
    (broken.NeverDeleting, "delete forgets", "after delete there is"),
    (broken.LosingNul, "Any text comes back", "the conversation should be"),
    (broken.SmallOnly, "Messages of two megabytes", "too big"),
    (broken.OneList, "What a caller changes", "the conversation should be"),
    (broken.ForgettingWhatIsGone, "A rewind keeps", "is_rewound is"),
    (broken.ForgettingFacts, "The journalled steps", "the open turn came back"),
    (broken.ForgettingPrompts, "The journalled steps", "the open turn came back"),
    (broken.RewindingInSteps, "A rewind or copy", "left []"),
    (broken.NeverAmending, "A message that is replaced", "other messages are [6]"),
    (broken.AmendingForReaders, "A message that is replaced", "changed the open turn"),
    (broken.WritingMemoryBackWhole, "A user's memory", "another version was accepted"),
    (broken.OneMemory, "A user's memory", "another user's memory holds"),
    (broken.CopyingMessagesOnly, "A conversation that is copied", "its turns are"),
    (broken.FewOnly, "A hundred sessions", "too many"),
    (broken.FoldingCase, "Sessions whose ids look alike", "WaitingRoomFull"),
    (broken.CuttingAtCommas, "Names with commas", "the conversation should be|another one's"),
    (broken.SearchingWords, "Names with commas", "the conversation should be|another one's"),
    (broken.FoldingCase, "Names with commas", "the conversation should be|another one's"),
    (broken.KeepingObjects, "What a caller changes", "the conversation should be"),
    (broken.WritingAfterAll, "A write that was given up", "the conversation should be"),
    (broken.Numbering, "A write that arrives after", "the conversation should be"),
    (broken.Numbering, "Storage that is set back", "it raised SessionDamaged"),
    (broken.BeginningAnew, "A directory that is moved", "that had been moved away"),
    (broken.ForgettingInCopies, "A copy of a directory", "the copy has the turns"),
    (broken.OneAgent, "Each agent of a session", "the conversation should be"),
    (broken.ForgettingSteps, "When its holder is killed", "had journalled is gone"),
    (broken.WritingLater, "What was acknowledged survives", "was acknowledged before the kill"),
    (broken.WithoutFence, "A holder paused past its time", "by the overtaken holder gave leave"),
    (JsonStore, "A holder paused past its time", "the next one waits"),
]


def contract_of(beginning):
    [found] = [one for one in contracts() if one.sentence.startswith(beginning)]
    return found


@pytest.mark.parametrize(
    ("store", "sentence", "why"), BROKEN, ids=[getattr(row[0], "__name__", "") for row in BROKEN]
)
def test_a_store_that_breaks_a_promise_is_convicted_of_it(store, sentence, why, tmp_path):
    claims = Claims(apart_s=0.01, ttl_s=0.1, patience_s=1.0)
    if hasattr(store, "behind"):
        delayed, copied = partial(store.behind, tmp_path), partial(store.copied, tmp_path)
        claims = claims._replace(delayed=delayed, copied=copied)
    if "directory" in sentence:
        claims = claims._replace(at=store)
    if "killed" in sentence or "paused" in sentence or "survives" in sentence:
        claims = claims._replace(patience_s=5.0)  # in which a process starts
    outcome = asyncio.run(contract_of(sentence).check(partial(store, tmp_path), claims))
    assert outcome.status == "broken", outcome
    assert any(part in outcome.why for part in why.split("|")), outcome


def test_each_contract_convicts_somebody():
    convicting = {contract_of(sentence) for _, sentence, _ in BROKEN}
    assert [one.sentence for one in contracts() if one not in convicting] == []


def names(report, status):
    return [one.sentence for one in report.outcomes if one.status == status]


@pytest.mark.parametrize("contract", [c for c in LATE if "directory" in c.sentence])
def test_the_json_store_keeps_the_contracts_of_directories(tmp_path, contract):
    """The others it keeps on the page of stores, whose code runs below."""
    outcome = asyncio.run(contract.check(partial(JsonStore, tmp_path), Claims(at=JsonStore)))
    assert outcome.status == "kept", outcome


def test_the_json_store_for_power_keeps_every_contract_of_one_handle(tmp_path):
    make_store = partial(JsonStore, tmp_path, durability="power")
    report = asyncio.run(conform(make_store, Claims(is_shared=False)))
    assert report.is_conformant, str(report)
    assert len(names(report, "kept")) == 30


def test_the_postgres_store_keeps_every_contract_but_those_of_directories(
    postgres, postgres_schema
):
    """None is skipped that is not about a directory: writes are delayed, tables are set back."""
    tables = ("session", "conversation", "turn", "step", "memory")
    make_store = partial(PostgresStore, postgres, schema=postgres_schema, ttl_s=TTL_S)

    @contextlib.asynccontextmanager
    async def delayed():
        with tempfile.TemporaryDirectory(prefix="kode-") as home:
            async with Proxy(postgres, Path(home), random=Random(0)) as proxy:
                dsn, door = await proxy.open("w"), proxy.doors["w"]
                async with PostgresStore(dsn, schema=postgres_schema, patience_s=0.05) as store:
                    yield DelayedByDoor(store, door)

    async def copied():
        connection = await asyncpg.connect(
            postgres, server_settings={"search_path": postgres_schema}
        )
        for table in tables:
            await connection.execute(f"CREATE TABLE IF NOT EXISTS old_{table} (LIKE {table})")
            await connection.execute(f"INSERT INTO old_{table} SELECT * FROM {table}")

        async def put_back():
            async with connection.transaction():
                for table in tables:
                    await connection.execute(f"DELETE FROM {table}")
                    overriding = "OVERRIDING SYSTEM VALUE"
                    await connection.execute(
                        f"INSERT INTO {table} {overriding} SELECT * FROM old_{table}"
                    )
            await connection.close()

        return put_back

    claims = Claims(apart_s=0.25, ttl_s=TTL_S, delayed=delayed, copied=copied)
    report = asyncio.run(conform(make_store, claims))
    assert report.is_conformant, str(report)
    assert len(names(report, "skipped")) == 2, str(report)


class DelayedByDoor:
    """A handle behind the storms' proxy."""

    def __init__(self, store, door):
        self.store, self.door = store, door

    def hold_back(self):
        self.door.is_refusing = True
        self.door.hold_next(b"__asyncpg_stmt")

    def let_pass(self):
        assert self.door.has_held.is_set()
        self.door.is_refusing = False

    async def deliver(self):
        self.door.deliver()
        await self.door.was_delivered.wait()


def test_a_handle_may_be_awaited_and_what_cannot_be_sent_to_a_process_is_skipped(tmp_path):
    async def made():
        return JsonStore(tmp_path)

    report = [asyncio.run(one.check(made)) for one in contracts() if "killed" in one.sentence]
    assert [one.status for one in report] == ["skipped"]
    assert "cannot be sent to a process" in report[0].why
    assert asyncio.run(contract_of("Different sessions").check(made)).status == "kept"


def test_a_contract_leaves_nothing_behind_when_it_is_broken(tmp_path):
    """A lease that a conviction left out is given back with its handle."""

    async def scenario():
        make_store = partial(broken.EndlessRoom, tmp_path)
        outcome = await contract_of("At most queue_limit").check(make_store, IMPATIENT)
        assert outcome.status == "broken"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_the_report_is_data_first_and_prose_second():
    kept, skipped = (
        ContractResult("A is so.", "kept"),
        ContractResult("B is so.", "skipped", "no B"),
    )
    report = ConformanceReport((kept, ContractResult("C is so.", "broken", "it is not"), skipped))
    assert not report.is_conformant
    assert ConformanceReport((kept, skipped)).is_conformant
    assert not ConformanceReport((skipped,)).is_conformant
    assert report.to_json()[1] == {"sentence": "C is so.", "status": "broken", "why": "it is not"}
    assert str(report).splitlines() == [
        "kept     A is so.",
        "BROKEN   C is so.",
        "          it is not",
        "skipped  B is so.",
        "          no B",
        "1 kept, 1 broken, 1 skipped",
    ]


def test_the_suite_needs_no_test_framework():
    script = "import sys, kode_lab.testing.conformance; print('pytest' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"


def test_the_page_shows_code_that_runs(tmp_path):
    page = Path(__file__).parent.parent / "docs" / "stores.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "34 kept, 0 broken, 6 skipped"
