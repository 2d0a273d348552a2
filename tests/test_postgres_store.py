"""The store in PostgreSQL: who holds, who waits, what is saved when connections break."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import ADA, Clerk, managing, prompts

from kode_lab.errors import (
    InvalidConfig,
    NewerFormat,
    StaleLease,
    StoreError,
    StoreUnreachable,
    Superseded,
    WaitingRoomFull,
)
from kode_lab.key import SessionKey
from kode_lab.message import Usage, assistant, user
from kode_lab.sessions.open_turn import OpenTurn
from kode_lab.sessions.postgres.connection import PostgresConnection
from kode_lab.sessions.postgres.group_commit import GroupCommit
from kode_lab.sessions.postgres.schema import FENCES
from kode_lab.sessions.postgres.store import PostgresStore

KEY = SessionKey("mia", "work", "planner")


def turn_of(turn_id, *, words="Hello", reply="Good day"):
    turn = OpenTurn(turn_id, user(words), "v1")
    turn.add_reply(assistant(reply), Usage(3, 4))
    return turn


@contextlib.asynccontextmanager
async def stores(dsn, schema, count=2, **options):
    """Return that many workers of one schema."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(PostgresStore(dsn, schema=schema, **options))
            for _ in range(count)
        ]
        yield opened


async def take(store, turn_id, key=KEY, **words):
    lease = await store.hold(key, queue_limit=100)
    try:
        await store.load(lease)
        return lease, await store.append(lease, turn_of(turn_id, **words), [])
    finally:
        store.release(lease)


async def until(claim):
    """Wait until the claim is true; a test that waits too long says so."""
    async with asyncio.timeout(20):
        while not claim():  # noqa: ASYNC110 - it is another worker's state
            await asyncio.sleep(0.005)


async def passes(number):
    """Let the others run that many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def rows(dsn, schema, query, *arguments):
    link = PostgresConnection(dsn, schema=schema)
    try:
        return [tuple(row) for row in await link.fetch(query, *arguments)]
    finally:
        await link.aclose()


# ---- leases


def test_who_takes_a_place_comes_next_and_has_room_in_a_full_waiting_room(
    postgres, postgres_schema, tmp_path
):
    async def scenario():
        model, store = Clerk(), PostgresStore(postgres, schema=postgres_schema)
        model.gates["busy"] = asyncio.Event()
        async with managing(tmp_path, model, store=store, agent={"queue_limit": 2}) as manager:
            busy = asyncio.create_task(manager.turn(ADA, "busy"))
            await model.asked.wait()
            ahead = [asyncio.create_task(manager.turn(ADA, f"w{n}")) for n in range(2)]
            await until(lambda: manager.statistics().lock.waiting == 2)
            next_one = asyncio.create_task(manager.turn(ADA, "next", strategy="interrupt"))
            later = asyncio.create_task(manager.turn(ADA, "later"))
            ended = await asyncio.gather(busy, *ahead, return_exceptions=True)
            assert {type(error) for error in ended} == {Superseded}
            assert [(await task).text for task in (next_one, later)] == ["re: next", "re: later"]
            assert prompts(await manager.history(ADA)) == ["busy", "next", "later"]

    asyncio.run(scenario())


def test_a_warm_session_stays_with_its_worker_and_moves_when_another_wants_it(
    postgres, postgres_schema
):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            first, _ = await take(one, "t1")
            second, _ = await take(one, "t2")
            third, finished = await take(two, "t3")
            fourth, _ = await take(one, "t4")
            assert second.fence == first.fence + 1, "it was not taken anew"
            assert first.fence < second.fence < third.fence < fourth.fence
            assert third.fence // FENCES > second.fence // FENCES
            assert (finished.first, finished.last) == (4, 5)
            assert len(await two.peek(KEY)) == 8

    asyncio.run(scenario())


def test_a_session_that_comes_back_brings_only_the_turns_since_then(postgres, postgres_schema):
    """What was changed among the turns that are known here makes it bring all of them."""

    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):

            async def news(since):
                lease = await one.hold(KEY, queue_limit=1)
                try:
                    stored, is_news = await one.load_since(lease, since.fence)
                    assert list(stored.finished)[-1] in ("b", "d", "back")
                    await one.append(lease, turn_of(f"{lease.fence}", words="mine"), [])
                    return lease, is_news, prompts(stored.messages)
                finally:
                    one.release(lease)

            lease, _ = await take(one, "a", words="a")
            await take(two, "b", words="b")
            lease, is_news, said = await news(lease)
            assert (is_news, said) == (True, ["b"])
            other = await two.hold(KEY, queue_limit=1)
            await two.load(other)
            await two.amend(other, 0, user("edited"))
            two.release(other)
            await take(two, "d", words="d")
            lease, is_news, said = await news(lease)
            assert (is_news, said) == (False, ["edited", "b", "mine", "d"])
            other = await two.hold(KEY, queue_limit=1)
            await two.load(other)
            await two.rewind(other, 2, "back", ["b"])
            two.release(other)
            lease, is_news, said = await news(lease)
            assert (is_news, said) == (False, ["edited"])

    asyncio.run(scenario())


def test_two_managers_hand_a_session_to_and_fro(tmp_path, postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as both:
            models = [Clerk(), Clerk()]
            async with contextlib.AsyncExitStack() as stack:
                managers = [
                    await stack.enter_async_context(managing(tmp_path, model, store=store))
                    for model, store in zip(models, both, strict=True)
                ]
                for number in range(6):
                    await managers[number % 2].turn(ADA, f"{number}", turn_id=f"t{number}")
                    asked = models[number % 2].requests[-1].messages
                    assert prompts(asked) == [f"{n}" for n in range(number + 1)]
                assert (await managers[0].turn(ADA, "5", turn_id="t5")).is_replay

    asyncio.run(scenario())


def test_workers_take_turns_in_the_order_of_their_tickets(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 3) as workers:
            holder = await workers[0].hold(KEY, queue_limit=0)
            order, waiting = [], []

            async def wait(number):
                lease = await workers[number % 3].hold(KEY, queue_limit=100)
                order.append(number)
                workers[number % 3].release(lease)

            for number in range(1, 13):
                waiting.append(asyncio.create_task(wait(number)))
                # The next one comes when this one stands in the line.
                query = "SELECT count(*) FROM ticket"
                while await rows(postgres, postgres_schema, query) != [(number,)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            workers[0].release(holder)
            await asyncio.gather(*waiting)
            assert order == list(range(1, 13))

    # Worker 0 knows of the wish only with the first ticket, so that all of them draw one.
    asyncio.run(scenario())


def test_those_who_waited_here_go_before_a_worker_that_came_later(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            lease = await one.hold(KEY, queue_limit=0)
            order = []

            async def wait(store, name):
                mine = await store.hold(KEY, queue_limit=100)
                order.append(name)
                store.release(mine)

            here = [asyncio.create_task(wait(one, f"here {n}")) for n in range(3)]
            await until(lambda: one.statistics().waiting == 3)
            there = asyncio.create_task(wait(two, "there"))
            line = one._leases._sessions[KEY[:2]]
            await until(lambda: line.wishes)
            late = asyncio.create_task(wait(one, "here, late"))
            await until(lambda: len(line.tickets) == 1)
            await until(lambda: one._leases._queued)
            one.release(lease)
            await asyncio.gather(*here, there, late)
            assert order == ["here 0", "here 1", "here 2", "there", "here, late"]

    asyncio.run(scenario())


def test_who_does_not_wait_gets_an_idle_session_and_not_a_busy_one(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            lease = await one.hold(KEY, queue_limit=0)
            with pytest.raises(WaitingRoomFull, match="send it again later"):
                await two.hold(KEY, queue_limit=0)
            one.release(lease)
            two.release(await two.hold(KEY, queue_limit=0))
            one.release(await one.hold(KEY, queue_limit=0))

    asyncio.run(scenario())


def test_at_most_so_many_wait_whichever_worker_they_came_to(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            lease = await one.hold(KEY, queue_limit=0)
            waiting = [asyncio.create_task(two.hold(KEY, queue_limit=2)) for _ in range(2)]
            await until(lambda: len(two._leases._queued) == 2)
            for store in (one, two):
                with pytest.raises(WaitingRoomFull):
                    await store.hold(KEY, queue_limit=2)
            one.release(lease)
            for task in waiting:
                two.release(await task)

    asyncio.run(scenario())


def test_a_worker_that_leaves_leaves_its_sessions_to_the_others(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            await one.hold(KEY, queue_limit=0)
            waiting = asyncio.create_task(two.hold(KEY, queue_limit=5))
            await until(lambda: two._leases._queued)
            await one.aclose()
            two.release(await waiting)

    asyncio.run(scenario())


def test_no_more_sessions_stay_than_the_limit_says(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1, warm_sessions_limit=3) as (store,):
            for number in range(20):
                await take(store, f"t{number}", SessionKey("mia", f"s{number}", "planner"))
            await until(lambda: len(store._leases._sessions) <= 3)
            query = "SELECT count(*) FROM session WHERE holder IS NOT NULL"
            assert await rows(postgres, postgres_schema, query) == [(3,)]

    asyncio.run(scenario())


@pytest.mark.parametrize("are_connections_cut", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_in_any_order_of_events_one_holds_and_every_wait_ends(
    postgres, postgres_schema, seed, are_connections_cut
):
    """Three workers, cancelled waiters, full lines, sessions that do not stay; and broken links."""

    async def scenario():
        dice = random.Random(seed)
        limit = dice.choice([0, 2, 100])
        async with stores(
            postgres, postgres_schema, 3, warm_sessions_limit=limit, ttl_s=2.0
        ) as workers:
            crowd = _Crowd(workers, is_calm=not are_connections_cut)
            cutting = asyncio.create_task(_cut(workers, dice)) if are_connections_cut else None
            actors = [asyncio.create_task(crowd.act(f"{seed} {n}")) for n in range(16)]
            _, stuck = await asyncio.wait(actors, timeout=40)
            assert not stuck, [worker._leases._sessions for worker in workers]
            if cutting is not None:
                cutting.cancel()
            for actor in actors:
                actor.result()
            await until(lambda: not any(worker.statistics().held for worker in workers))
            await until(lambda: not any(worker.statistics().waiting for worker in workers))
            for worker in workers:
                await worker._leases._requests.settled()
        assert crowd.held > 100
        assert await rows(postgres, postgres_schema, "SELECT number FROM ticket") == []

    asyncio.run(scenario())


class _Crowd:
    """Actors who hold a few sessions on any worker, wait, change their minds, and count."""

    def __init__(self, workers, *, is_calm):
        self.workers, self.is_calm = workers, is_calm
        self.keys = [SessionKey("mia", f"s{n}", "planner") for n in range(4)]
        self.inside = dict.fromkeys(self.keys, 0)
        self.fences = dict.fromkeys(self.keys, 0)
        self.held = 0

    async def act(self, seed):
        dice = random.Random(seed)
        for _ in range(25):
            worker, key = dice.choice(self.workers), dice.choice(self.keys)
            holding = asyncio.create_task(self.hold(worker, key, dice))
            if dice.random() < 0.3:
                await passes(dice.randrange(60))
                holding.cancel()
            with contextlib.suppress(asyncio.CancelledError, WaitingRoomFull):
                await holding

    async def hold(self, worker, key, dice):
        lease = await worker.hold(key, queue_limit=dice.choice([0, 3, 1000, 1000]))
        self.held += 1
        try:
            if self.is_calm:  # else it may be overtaken, which its writes would tell
                self.inside[key] += 1
                assert self.inside[key] == 1
                assert lease.fence > self.fences[key]
                self.fences[key] = lease.fence
            await passes(dice.randrange(40))
        finally:
            self.inside[key] -= self.is_calm
            worker.release(lease)


async def _cut(workers, dice):
    while True:
        await passes(dice.randrange(2_000))
        worker = dice.choice(workers)
        dice.choice([worker._worker.connection, worker._work, worker._saving]).cut()


# ---- what is saved


def test_a_turn_goes_on_from_its_journal_in_another_worker(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            lease = await one.hold(KEY, queue_limit=0)
            turn = OpenTurn("t1", user("Nine o'clock?"), "v1")
            blocks = [
                {"type": "tool_use", "id": name, "name": "look", "input": {}} for name in ("a", "b")
            ]
            turn.add_reply(assistant(blocks), Usage(1, 2))
            await one.journal(lease, turn, turn.reply_entry(turn.messages[-1], Usage(1, 2)))
            await one.aclose()
            again = await two.hold(KEY, queue_limit=5)
            stored = await two.load(again)
            assert stored.messages == []
            assert stored.open.turn_id == "t1"
            assert [call.id for call in stored.open.calls] == ["a", "b"]
            await two.discard(again)
            assert (await two.load(again)).open is None

    asyncio.run(scenario())


def test_an_overtaken_holder_saves_nothing_and_says_so(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema) as (one, two):
            old = await one.hold(KEY, queue_limit=0)
            await one.load(old)
            # As if it had been paused past its time: the database takes it for gone.
            await rows(
                postgres,
                postgres_schema,
                "UPDATE worker SET alive_until = now() - interval '1 s' WHERE id = $1",
                one.worker_id,
            )
            new = await two.hold(KEY, queue_limit=5)
            turn = turn_of("late")
            entry = turn.reply_entry(turn.messages[-1], Usage(3, 4))
            for attempt in (
                lambda: one.journal(old, turn, entry),
                lambda: one.append(old, turn, []),
                lambda: one.discard(old),
                lambda: one.delete(old),
            ):
                with pytest.raises(StaleLease, match="held the session since"):
                    await attempt()
            assert await two.peek(KEY) == []
            await two.load(new)
            await two.append(new, turn_of("good"), [])
            assert len(await one.peek(KEY)) == 2

    asyncio.run(scenario())


def test_each_write_is_refused_by_the_database_itself(postgres, postgres_schema):
    """The holder believes in its lease; only the fence in the row knows better."""

    async def scenario():
        turn = turn_of("late")
        entry = turn.reply_entry(turn.messages[-1], Usage(3, 4))
        for number, write in enumerate(
            (
                lambda store, lease: store.journal(lease, turn, entry),
                lambda store, lease: store.append(lease, turn, []),
                lambda store, lease: store.discard(lease),
                lambda store, lease: store.delete(lease),
            )
        ):
            async with stores(postgres, postgres_schema, 1) as (store,):
                key = SessionKey("mia", f"work {number}", "planner")
                await take(store, "t1", key)
                lease = await store.hold(key, queue_limit=0)
                query = "UPDATE session SET fence = fence + $1 WHERE session_id = $2"
                await rows(postgres, postgres_schema, query, FENCES, key.session_id)
                with pytest.raises(StaleLease):
                    await write(store, lease)
                assert len(await store.peek(key)) == 2

    asyncio.run(scenario())


def test_a_turn_that_was_saved_when_the_answer_got_lost_is_saved_once(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            lease = await store.hold(KEY, queue_limit=0)
            await store.load(lease)
            known = store._leases.local(lease).known
            before = known[KEY.agent_id].copy()
            await store.append(lease, turn_of("t1"), [])
            known[KEY.agent_id] = before.copy()  # as if the answer had not come
            finished = await store.append(lease, turn_of("t1"), [])
            assert (finished.first, finished.last) == (0, 1)
            assert len(await store.peek(KEY)) == 2
            # And when another one came between the two sendings, it is still known as saved.
            known[KEY.agent_id] = before.copy()
            await rows(postgres, postgres_schema, "UPDATE session SET fence = fence + $1", FENCES)
            await store.append(lease, turn_of("t1"), [])
            assert len(await store.peek(KEY)) == 2

    asyncio.run(scenario())


def test_one_bad_turn_harms_no_other_of_its_batch(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            keys = [SessionKey("mia", f"s{n}", "planner") for n in range(5)]
            leases = [await store.hold(key, queue_limit=0) for key in keys]
            for lease in leases:
                await store.load(lease)
            store._leases.local(leases[2]).known["planner"].messages = 2**31  # no int of PostgreSQL
            saved = await asyncio.gather(
                *(store.append(lease, turn_of("t1"), []) for lease in leases),
                return_exceptions=True,
            )
            assert [isinstance(one, StoreError) for one in saved] == [
                False,
                False,
                True,
                False,
                False,
            ]
            assert [len(await store.peek(key)) for key in keys] == [2, 2, 0, 2, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize("word", ["a\0b", "a\\0b", "\\", "\0", "ü" * 9_000, "x" * 10_000, "'; --"])
def test_any_id_and_any_word_can_be_kept(postgres, postgres_schema, word):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            key = SessionKey(word, word, word)
            await take(store, word[:200], key, words=f"<{word}>", reply="\ud800 \0")
            lease = await store.hold(key, queue_limit=0)
            stored = await store.load(lease)
            said = [message["content"][0]["text"] for message in stored.messages]
            assert said == [f"<{word}>", "\ud800 \0"]
            assert list(stored.finished) == [word[:200]]
            assert await store.sessions(word) == [key]
            assert await store.peek(key) == stored.messages

    asyncio.run(scenario())


# ---- bad input


def test_workers_must_agree_on_the_time_to_live(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1, ttl_s=5.0):
            with pytest.raises(InvalidConfig, match=r"ttl_s=7 here, but .* ttl_s=5"):
                await PostgresStore(postgres, schema=postgres_schema, ttl_s=7.0).open()
            other = await PostgresStore(postgres, schema=postgres_schema).open()
            await other.aclose()

    asyncio.run(scenario())


def test_settings_that_change_under_a_worker_are_the_stores_fault_and_not_the_callers(
    postgres, postgres_schema
):
    async def until_it_notices(store):
        for number in range(1_000):
            await take(store, f"again{number}")

    async def scenario():
        async with stores(postgres, postgres_schema, 1, ttl_s=5.0, patience_s=0.5) as (store,):
            await take(store, "t1")
            await rows(postgres, postgres_schema, """UPDATE meta SET settings = '{"ttl_s": 7}'""")
            await rows(
                postgres,
                postgres_schema,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'kode-lab' AND pid <> pg_backend_pid()",
            )
            with pytest.raises(StoreError, match=r"share ttl_s=7.*then restart this server"):
                await until_it_notices(store)

    asyncio.run(scenario())


def test_a_schema_of_a_newer_kode_lab_is_left_alone(postgres, postgres_schema):
    async def scenario():
        async with stores(postgres, postgres_schema, 1) as (store,):
            await take(store, "t1")
        await rows(postgres, postgres_schema, "UPDATE meta SET format = 99")
        with pytest.raises(NewerFormat, match="format 99"):
            await PostgresStore(postgres, schema=postgres_schema).open()

    asyncio.run(scenario())


def test_a_database_that_does_not_answer_is_named_and_tried_again(tmp_path):
    async def scenario():
        dsn = f"postgresql://stranger@/none?host={tmp_path}"
        store = PostgresStore(dsn, patience_s=0.2)
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match="PostgreSQL does not answer"):
                await store.hold(KEY, queue_limit=0)
        await store.aclose()

    asyncio.run(scenario())


@pytest.mark.usefixtures("postgres")  # or it is skipped for want of one
def test_a_full_disk_refuses_turns_by_name_loses_none_and_goes_on_when_there_is_room(tmp_path):
    apart = ("unshare", "--mount")
    if shutil.which(apart[0]) is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("the disk that fills up is mounted: needs unshare, and root that may mount")
    ran = subprocess.run(
        [*apart, sys.executable, str(Path(__file__).with_name("full_disk.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["acknowledged"] > 5
    assert found["kind"] == "StoreUnwritable"
    assert "No space left on device" in found["said"]
    assert "free some space on the database's disk, then send it again" in found["said"]
    assert found["nothing lost while it was full"]
    assert found["there once afterwards"]
    assert (found["quiet"], found["quiet afterwards"]) == (["hello"], ["hello", "and now?"])


def test_a_bad_name_of_a_schema_is_refused_before_anything_is_made(postgres):
    async def scenario():
        with pytest.raises(InvalidConfig, match="schema"):
            await PostgresStore(postgres, schema='x"; DROP').open()

    asyncio.run(scenario())


# ---- group commit


def test_what_comes_while_a_batch_is_on_its_way_goes_as_one():
    async def scenario():
        batches, gate = [], asyncio.Event()

        async def send(orders):
            batches.append(list(orders))
            await gate.wait()
            return [order * 2 for order in orders]

        group = GroupCommit(send)
        answers = [asyncio.create_task(group.do(number)) for number in range(3)]
        await until(lambda: batches)
        answers += [asyncio.create_task(group.do(number)) for number in range(3, 6)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*answers) == [0, 2, 4, 6, 8, 10]
        assert batches == [[0, 1, 2], [3, 4, 5]]

    asyncio.run(scenario())


def test_who_is_cancelled_hears_of_it_when_the_order_is_done():
    async def scenario():
        done, gate = [], asyncio.Event()

        async def send(orders):
            await gate.wait()
            done.extend(orders)
            return [None] * len(orders)

        group = GroupCommit(send)
        task = asyncio.create_task(group.do("save"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["save"]

    asyncio.run(scenario())


def test_the_environment_of_this_process_is_no_secret_channel(postgres, postgres_schema):
    """libpq's variables are asyncpg's too: a DSN that says all is not changed by them."""

    async def scenario():
        os.environ["PGDATABASE"] = "another"
        try:
            async with stores(postgres, postgres_schema, 1) as (store,):
                await take(store, "t1")
        finally:
            del os.environ["PGDATABASE"]

    asyncio.run(scenario())
