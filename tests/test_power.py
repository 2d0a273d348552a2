"""Durability ``power``: what was acknowledged survives a power cut, even if all else is lost.

The disk remembers what was synced. A power cut keeps that, and of everything else any part: bytes
dropped, torn at any byte or turned to zeros, names lost, all drawn by Hypothesis.
"""

import asyncio
import errno
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from house import (
    ADA,
    BOB,
    Clerk,
    FaultyDisk,
    World,
    assert_legal,
    managing,
    prompts,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kode_lab.errors import ForeignHost, ModelUnavailable, StoreUnwritable
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore

SMALL = 8 * 1024  # a journal that begins again after some ten turns
POWER = {"durability": "power", "journal_bytes": SMALL}


def open_files(root):
    """Return the sessions' files that this process has open below the root."""
    paths = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    return [path for path in paths if path.startswith(str(root)) and "runtime" in path]


def keys(count):
    return [SessionKey.of(f"user{n}", "clerk", "s") for n in range(count)]


async def converse(manager, key, turns, acknowledged, text="turn"):
    """Take turns one after the other, and note each as soon as it is acknowledged."""
    for number in range(turns):
        prompt = f"{text} {number} note:2" if number % 3 == 1 else f"{text} {number}"
        await manager.turn(key, prompt, turn_id=f"{text}{number}")
        acknowledged.setdefault(key, []).append(prompt)


async def assert_all_there(path, acknowledged, **store):
    """Each acknowledged turn is there once and in order, and each session takes another one."""
    store["disk"] = FaultyDisk(path / "store")  # for its quick syncs
    async with managing(path, world=World(), store=store) as manager:
        for key, said in acknowledged.items():
            assert_in_order_and_once(said, prompts(await manager.history(key)))
            await manager.turn(key, "after the cut")
            messages = await manager.history(key)
            assert_in_order_and_once([*said, "after the cut"], prompts(messages))
            assert_legal(messages)


def assert_in_order_and_once(said, found):
    """All that was said is found; between may be turns that were on their way at a cut."""
    assert [prompt for prompt in found if prompt in said] == said
    assert len(set(found)) == len(found)


class PowerCuts:
    """Takes what power cuts at some moments would leave, and what was acknowledged by then."""

    def __init__(self, disk, acknowledged, random):
        self.disk = disk
        self.acknowledged = acknowledged
        self.random = random
        self.left = []

    def at(self, moments):
        """Cut at these calls of the disk, counted from now."""
        calls = {self.disk.calls + moment for moment in moments}
        self.disk.hook = lambda *_: self.disk.calls in calls and self.now()

    def now(self):
        then = {key: list(said) for key, said in self.acknowledged.items()}
        self.left.append((self.disk.after_power_cut(self.random), then))


@settings(max_examples=25, deadline=None)
@given(
    random=st.integers(0, 2**32).map(Random),
    moments=st.sets(st.integers(1, 150), min_size=2, max_size=4),
    again=st.sampled_from(["power", "process"]),
)
def test_all_that_was_acknowledged_survives_a_power_cut_at_any_moment_and_nothing_is_torn(
    tmp_path_factory, random, moments, again
):
    path = tmp_path_factory.mktemp("cut")

    async def scenario():
        acknowledged = {}
        disk = FaultyDisk(path / "store")
        cuts = PowerCuts(disk, acknowledged, random)
        async with managing(path, world=World(), store={"disk": disk, **POWER}) as manager:
            cuts.at(moments)
            await asyncio.gather(*(converse(manager, key, 5, acknowledged) for key in keys(3)))
        cuts.now()
        for number, (image, then) in enumerate(cuts.left):
            there = path / f"cut-{number}"
            disk.restore(image, there / "store")
            store = {"durability": again} | ({"journal_bytes": SMALL} if again == "power" else {})
            await assert_all_there(there, then, **store)

    run(scenario())


@settings(max_examples=20, deadline=None)
@given(
    random=st.integers(0, 2**32).map(Random),
    moments=st.lists(st.integers(1, 60), min_size=3, max_size=3),
)
def test_cut_after_cut_the_sessions_only_grow(tmp_path_factory, random, moments):
    """Old frames lie behind new ones of the same size, and must never join them."""
    path = tmp_path_factory.mktemp("cuts")

    async def scenario():
        acknowledged = {key: [] for key in keys(2)}
        for life, moment in enumerate(moments):
            here = path / f"life-{life}"
            disk = FaultyDisk(here / "store")
            async with managing(here, store={"disk": disk, **POWER}) as manager:
                for key, said in acknowledged.items():
                    found = prompts(await manager.history(key))
                    assert_in_order_and_once(said, found)
                    said[:] = found
                cuts = PowerCuts(disk, acknowledged, random)
                cuts.at([moment])
                await asyncio.gather(
                    *(converse(manager, key, 4, acknowledged, f"life{life}") for key in keys(2))
                )
                disk.hook = None
                cuts.now()
            image, acknowledged = cuts.left[0]
            disk.restore(image, path / f"life-{life + 1}" / "store")
        await assert_all_there(path / f"life-{len(moments)}", acknowledged, **POWER)

    run(scenario())


@settings(max_examples=15, deadline=None)
@given(random=st.integers(0, 2**32).map(Random), moment=st.integers(0, 40))
def test_a_deleted_conversation_does_not_come_back_after_a_power_cut(
    tmp_path_factory, random, moment
):
    path = tmp_path_factory.mktemp("deleted")

    async def scenario():
        disk = FaultyDisk(path / "store")
        async with managing(path, store={"disk": disk, **POWER}) as manager:
            for number in range(random.randrange(1, 12)):
                await manager.turn(ADA, f"old {number}")
            await manager.delete(ADA)
            acknowledged = {BOB: []}
            cuts = PowerCuts(disk, acknowledged, random)
            cuts.at([moment])
            await converse(manager, BOB, 12, acknowledged)
            disk.hook = None
            cuts.now()
        image, then = cuts.left[0]
        disk.restore(image, path / "cut" / "store")
        store = POWER | {"disk": FaultyDisk(path / "cut" / "store")}
        async with managing(path / "cut", store=store) as manager:
            assert await manager.history(ADA) == []
            assert ADA not in set(manager._store.sessions())
            await manager.turn(ADA, "new")
            assert prompts(await manager.history(ADA)) == ["new"]
            assert_in_order_and_once(then[BOB], prompts(await manager.history(BOB)))

    run(scenario())


def test_a_journal_that_was_emptied_never_takes_frames_of_an_earlier_life_for_its_own(tmp_path):
    """The lives write frames of equal sizes, so that old ones stand exactly behind the new."""

    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        # All positions in the files have three digits, but for the first turn's.
        for said in (["0"], ["a", "b"], ["c"]):
            async with managing(tmp_path, store={"disk": disk, **POWER}) as manager:
                for prompt in said:
                    await manager.turn(ADA, prompt)
                image = disk.after_kill()
        there = tmp_path / "killed"
        disk.restore(image, there / "store")
        async with managing(there, store=POWER) as manager:
            assert prompts(await manager.history(ADA)) == ["0", "a", "b", "c"]

    run(scenario())


def test_sessions_that_wait_together_share_one_sync(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        store = {"disk": disk, "durability": "power"}
        async with managing(tmp_path, store=store) as manager:
            sync_counts = []

            def hook(call, path, _change):
                if call == "sync":
                    sync_counts.append(path)

            disk.hook = hook
            await asyncio.gather(*(manager.turn(key, "hello") for key in keys(64)))
            disk.hook = None
            assert set(sync_counts) == {str(tmp_path / "store" / "+journal")}
            # The first goes down alone; the others gather meanwhile.
            assert len(sync_counts) <= 6

    run(scenario())


def test_after_a_failed_sync_nothing_more_is_acknowledged_until_the_store_is_opened_again(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        store = {"disk": disk, "durability": "power"}
        async with managing(tmp_path, store=store) as manager:
            await manager.turn(ADA, "before", turn_id="t0")
            disk.fail_at(0, errno.EIO, calls=("sync",))
            with pytest.raises(StoreUnwritable, match=r"journal could not be written.*start again"):
                await manager.turn(ADA, "lost?", turn_id="t1")
            # The disk works again, but its content is not known.
            for key in (ADA, BOB):
                with pytest.raises(StoreUnwritable, match="start again"):
                    await manager.turn(key, "next", turn_id="t2")
            assert prompts(await manager.history(ADA)) == ["before"]
        async with managing(tmp_path, store={"durability": "power"}) as manager:
            assert prompts(await manager.history(ADA)) in (["before"], ["before", "lost?"])
            reply = await manager.turn(ADA, "lost?", turn_id="t1")
            assert reply.text == "re: lost?"
            assert prompts(await manager.history(ADA)) == ["before", "lost?"]

    run(scenario())


@pytest.mark.parametrize("again", ["power", "process"])
def test_what_a_killed_process_logged_is_recovered_first_by_the_next_that_opens(tmp_path, again):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        async with managing(tmp_path, store={"disk": disk, **POWER}) as manager:
            await manager.turn(ADA, "one")
            await manager.turn(ADA, "two")
            image = disk.after_kill()
        behind = [content for name, content in image.items() if name.endswith("messages.json")]
        assert all(b"two" not in content for content in behind), "its own files follow later"
        there = tmp_path / "killed"
        disk.restore(image, there / "store")
        async with managing(there, store={"durability": again}) as manager:
            assert prompts(await manager.history(ADA)) == ["one", "two"]
            assert (there / "store" / "+journal").exists() == (again == "power")

    run(scenario())


@pytest.mark.parametrize("second", ["power", "process"])
def test_a_second_process_is_refused_where_power_owns_the_directory(tmp_path, second):
    async def scenario():
        async with managing(tmp_path, store={"durability": "power"}) as manager:
            await manager.turn(ADA, "one")
            with pytest.raises(ForeignHost, match=r"'store' is in use.*stop the other"):
                JsonStore(tmp_path / "store", durability=second, move_in_s=0.05)
            await manager.turn(ADA, "two")
        JsonStore(tmp_path / "store", durability=second, move_in_s=0.05)

    run(scenario())


def test_tools_that_end_together_are_all_in_the_journal(tmp_path):
    """Two steps of one session in one batch: the second stands behind the first, not over it."""

    async def scenario():
        disk, world, model = FaultyDisk(tmp_path / "store"), World(), Clerk()
        answer = model.gates["note:3"] = asyncio.Event()
        answer.set()
        store = {"disk": disk, "durability": "power"}
        async with managing(tmp_path, model, world, store=store) as manager:
            turn = asyncio.create_task(manager.turn(ADA, "note:3", turn_id="t"))
            while len(model.requests) < 2:
                if world.runs:
                    answer.clear()
                await asyncio.sleep(0)
            image = disk.after_kill()
            answer.set()
            await turn
        there, world = tmp_path / "killed", World()
        disk.restore(image, there / "store")
        async with managing(there, world=world, store={"durability": "power"}) as manager:
            reply = await manager.turn(ADA, "note:3", turn_id="t")
            assert len(reply.tool_calls) == 3
            assert world.runs == [], "all three had finished and were saved"

    run(scenario())


def test_more_busy_sessions_than_open_files_lose_nothing_and_leak_no_descriptor(tmp_path):
    async def scenario():
        store = {"durability": "power", "open_sessions_limit": 2}
        async with managing(tmp_path, store=store) as manager:
            acknowledged = {}
            await asyncio.gather(*(converse(manager, key, 6, acknowledged) for key in keys(12)))
            for key, said in acknowledged.items():
                assert prompts(await manager.history(key)) == said
            await asyncio.gather(
                *(converse(manager, key, 3, acknowledged, "more") for key in keys(12))
            )
            assert len(open_files(tmp_path)) <= 2 * 2
        assert open_files(tmp_path) == []
        async with managing(tmp_path) as manager:
            for key, said in acknowledged.items():
                assert prompts(await manager.history(key)) == said

    run(scenario())


def test_a_session_moved_away_by_hand_disturbs_no_other(tmp_path):
    async def scenario():
        async with managing(tmp_path, store=POWER) as manager:
            await manager.turn(ADA, "one")
            await manager.turn(BOB, "one")
            directory = tmp_path / "store" / "ada"
            directory.rename(tmp_path / "away")
            for number in range(40):  # the journal begins again meanwhile
                await manager.turn(BOB, f"more {number}")
        async with managing(tmp_path, store=POWER) as manager:
            assert len(prompts(await manager.history(BOB))) == 41

    run(scenario())


@pytest.mark.parametrize("spelling", ["s", "./s", "s/", "x//s", "x/../s", "."])
def test_what_was_acknowledged_is_recovered_however_the_root_is_spelled_and_wherever_one_goes(
    tmp_path, monkeypatch, spelling
):
    home = tmp_path / "home"
    (home / "x").mkdir(parents=True)
    monkeypatch.chdir(home)
    killed = tmp_path / "killed"

    async def scenario():
        store = JsonStore(spelling, durability="power")
        monkeypatch.chdir(home / "x")
        async with managing(tmp_path / "one", store=store) as manager:
            await manager.turn(ADA, "one")
            await manager.turn(ADA, "two")
            shutil.copytree(home / spelling, killed / "store")
        async with managing(killed, store={"durability": "power"}) as manager:
            assert prompts(await manager.history(ADA)) == ["one", "two"]
        users = {path for path in tmp_path.rglob("ada") if path.is_dir()}
        assert users == {(home / spelling).resolve() / "ada", killed / "store" / "ada"}

    run(scenario())


def test_a_turn_larger_than_the_journal_makes_it_grow_and_survives_a_kill(tmp_path):
    """A frame holds all of a turn's messages; each of its steps alone would fit."""

    async def scenario():
        disk, acknowledged = FaultyDisk(tmp_path / "store"), {}
        store = {"disk": disk, **POWER}
        long = f"rounds:5 note:1 {'long ' * 300}"
        async with managing(tmp_path, world=World(), store=store) as manager:
            await converse(manager, BOB, 3, acknowledged)
            for number in range(2):
                await manager.turn(ADA, f"{number} {long}")
                acknowledged.setdefault(ADA, []).append(f"{number} {long}")
                await converse(manager, BOB, 3, acknowledged, f"more{number}")
            image = disk.after_kill()
        there = tmp_path / "killed"
        disk.restore(image, there / "store")
        await assert_all_there(there, acknowledged, **POWER)

    run(scenario())


def test_a_turn_larger_than_the_journal_that_was_left_is_sealed_and_the_session_goes_on(tmp_path):
    async def scenario():
        async def model(request, on_text=None):
            if len(request.messages) > 10:
                raise ModelUnavailable("overloaded")
            return await Clerk()(request, on_text)

        long = f"rounds:9 note:1 {'long ' * 300}"
        async with managing(tmp_path, model, World(), store=POWER) as manager:
            with pytest.raises(ModelUnavailable):
                await manager.turn(ADA, long)
            await manager.turn(BOB, "other")
        async with managing(tmp_path, world=World(), store=POWER) as manager:
            assert (await manager.turn(ADA, "short")).text == "re: short"
            messages = await manager.history(ADA)
            assert prompts(messages) == [long, "short"]
            assert_legal(messages)

    run(scenario())


def test_where_the_disk_has_no_room_for_a_larger_journal_only_that_step_is_refused(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        async with managing(tmp_path, store={"disk": disk, **POWER}) as manager:
            disk.hook = _full
            with pytest.raises(
                StoreUnwritable, match=r"ada:s1: a step of \d+ bytes.*free some space"
            ):
                await manager.turn(ADA, "long " * SMALL, turn_id="long")
            assert (await manager.turn(BOB, "other")).text == "re: other"
            assert (await manager.turn(ADA, "short")).text == "re: short"
            disk.hook = None
            assert (await manager.turn(ADA, "long " * SMALL, turn_id="long")).text

    def _full(call, path, change):
        if call == "write" and path.endswith("+journal") and change[1] >= SMALL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(scenario())


def test_a_session_whose_place_is_taken_is_named_by_the_recovery_that_it_stops(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        async with managing(tmp_path, store={"disk": disk, **POWER}) as manager:
            await manager.turn(ADA, "one")
            image = {n: c for n, c in disk.after_kill().items() if "runtime" not in n}
        there = tmp_path / "killed"
        disk.restore(image, there / "store")
        (there / "store" / "ada").write_text("in the way")
        with pytest.raises(StoreUnwritable, match=r"Not a directory: ada/s1:clerk.*move it away"):
            JsonStore(there / "store", durability="power")
        (there / "store" / "ada").unlink()
        async with managing(there, store=POWER) as manager:
            assert prompts(await manager.history(ADA)) == ["one"]

    run(scenario())


def test_a_disk_that_fills_up_while_the_files_follow_loses_nothing_acknowledged(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        async with managing(tmp_path, store={"disk": disk, "durability": "power"}) as manager:
            await manager.turn(ADA, "one")
            disk.hook = lambda call, path, _: _full(call, path)
            with pytest.raises(StoreUnwritable, match="ada:s1"):
                await manager.history(ADA)
            disk.hook = None
            disk.fail_at(0, calls=("sync",))
            with pytest.raises(StoreUnwritable):
                await manager.turn(ADA, "two")
        async with managing(tmp_path) as manager:
            assert prompts(await manager.history(ADA)) in (["one"], ["one", "two"])

    def _full(call, path):
        if call == "write" and Path(path).name in ("messages.json", "turns.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(scenario())
