"""The locks between processes exclude, hand over to who waits, and die with their process."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from house import ADA, PATIENCE_S, run, until

from kode_lab.errors import WaitingRoomFull
from kode_lab.sessions import JsonStore
from kode_lab.sessions.files.disk import PosixDisk
from kode_lab.sessions.files.file_lock import _PLACES, FileLocks, OwnedFile, _try_lock

# Says "held" when it holds the name, and holds it until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from kode_lab.sessions.files.disk import PosixDisk
from kode_lab.sessions.files.file_lock import FileLocks
locks = FileLocks(Path(sys.argv[1]), PosixDisk())
assert locks.try_hold(locks.place_of("ada:s1"))
print("held", flush=True)
sys.stdin.read()
"""


def free(locks, place):
    file, at = place
    locks.release(locks._ours[file][at])


@pytest.fixture
def two(tmp_path):
    """Two openings of one directory, as of two processes: the locks are not the process's."""
    locks = [FileLocks(tmp_path / "+locks", PosixDisk()) for _ in range(2)]
    yield locks
    for one in locks:
        one.close()


def test_one_opening_at_a_time_holds_a_name_and_different_names_are_held_together(two):
    first, second = two
    place, other = first.place_of("ada:s1"), first.place_of("ada:s2")
    assert first.try_hold(place)
    assert not second.try_hold(place)
    assert second.try_hold(other)
    free(first, place)
    assert second.try_hold(place)


def test_names_have_places_of_their_own_with_any_colons(two):
    names = [f"{user}:{session}" for user in range(100) for session in range(100)]
    names += ["a%3ab:c", "a:b%3ac", "a:b", "A:b", "a:B"]
    assert len({two[0].place_of(name) for name in names}) == len(names)
    assert all(0 <= file < 1024 and at % _PLACES == 0 for file, at in map(two[0].place_of, names))


def is_awaited(root, place):
    """Whether somebody waits for a name that somebody holds: then no other can pass."""
    fd = os.open(root / f"{place[0]:03x}", os.O_RDWR)
    try:
        return not _try_lock(fd, place[1] + 1, _PLACES - 1)
    finally:
        os.close(fd)


def test_who_releases_and_asks_again_at_once_stands_behind_the_one_who_waits(two):
    async def scenario():
        first, second = two
        place = first.place_of("ada:s1")
        assert first.try_hold(place)
        waiter = asyncio.create_task(second.hold(place))
        await until(lambda: is_awaited(Path(first._root), place))
        free(first, place)
        assert not first.try_hold(place), "somebody waits"
        await waiter
        assert not first.try_hold(place)
        free(second, place)
        assert first.try_hold(place)

    run(scenario())


def test_processes_that_wait_come_in_the_order_in_which_they_asked(tmp_path):
    async def scenario():
        lines = [FileLocks(tmp_path, PosixDisk()) for _ in range(_PLACES)]
        place = lines[0].place_of("ada:s1")
        order = []

        async def take(number):
            await lines[number].hold(place)
            order.append(number)
            free(lines[number], place)

        assert lines[0].try_hold(place)
        waiting = []
        for number in range(1, _PLACES):
            waiting.append(asyncio.create_task(take(number)))
            await asyncio.sleep(0)  # it walks forward as far as it can without waiting
        free(lines[0], place)
        await asyncio.gather(*waiting)
        assert order == list(range(1, _PLACES))
        for one in lines:
            one.close()

    run(scenario())


def test_a_cancelled_waiter_leaves_neither_the_lock_nor_its_place_behind(two):
    async def scenario():
        first, second = two
        place = first.place_of("ada:s1")
        assert first.try_hold(place)
        for _ in range(5):
            waiter = asyncio.create_task(second.hold(place))
            await until(lambda: is_awaited(Path(first._root), place))
            waiter.cancel()
            await asyncio.wait([waiter])
            assert waiter.cancelled()
            assert not is_awaited(Path(first._root), place)
        free(first, place)
        assert second.try_hold(place)

    run(scenario())


def test_three_that_hammer_one_name_come_to_it_equally_often(tmp_path):
    async def scenario():
        order = []

        async def hammer(name):
            locks = FileLocks(tmp_path, PosixDisk())
            place = locks.place_of("ada:s1")
            while len(order) < 300:
                if not locks.try_hold(place):
                    await locks.hold(place)
                order.append(name)
                await asyncio.sleep(0)
                free(locks, place)
            locks.close()

        await asyncio.gather(*(hammer(name) for name in "abc"))
        turns = Counter(order)
        assert min(turns.values()) > 80, turns

    run(scenario())


def test_the_lock_of_a_killed_process_is_free_at_the_next_look(tmp_path):
    """The kernel frees it with the process: no time-out, so nothing to wait for but a look."""

    async def scenario():
        locks = FileLocks(tmp_path, PosixDisk())
        place = locks.place_of("ada:s1")
        with subprocess.Popen(  # noqa: ASYNC220 - started once
            [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
            assert not locks.try_hold(place)
            waiter = asyncio.create_task(locks.hold(place))
            await until(lambda: is_awaited(tmp_path, place))
            os.kill(holder.pid, signal.SIGKILL)
            # Reaped: what the kernel frees with a process is free by now.
            await asyncio.to_thread(holder.wait, PATIENCE_S)
            probe = FileLocks(tmp_path, PosixDisk())
            looks = 0
            while not waiter.done():
                looks += 1
                await asyncio.sleep(0.010)
            # One look of at most 10 ms, and generous room for a machine that is slow to wake us.
            assert looks <= 20
            assert not probe.try_hold(place)
            free(locks, place)
            assert probe.try_hold(place)
            probe.close()
        locks.close()

    run(scenario())


def test_an_owned_file_is_shared_by_many_or_held_by_one_alone(tmp_path):
    first, second = (OwnedFile(tmp_path / "+store", PosixDisk()) for _ in range(2))
    assert first.try_own(alone=True)
    assert not second.try_own(alone=False)
    assert first.try_own(alone=False), "asking again changes the kind"
    assert second.try_own(alone=False)
    assert not first.try_own(alone=True)
    second.close()
    second.close()
    assert first.try_own(alone=True)
    first.close()


def test_closing_frees_what_is_held_and_opens_anew_when_it_is_needed(two):
    first, second = two
    places = [first.place_of(f"ada:{number}") for number in range(20)]
    assert all(first.try_hold(place) for place in places)
    first.close()
    assert all(second.try_hold(place) for place in places)
    second.close()
    assert first.try_hold(places[0])


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_process_that_may_open_few_files_closes_those_in_which_it_holds_nothing(tmp_path):
    few, other = FileLocks(tmp_path, PosixDisk(), open_limit=3), FileLocks(tmp_path, PosixDisk())
    places = [few.place_of(f"ada:{number}") for number in range(200)]
    held, passing = places[:5], [place for place in places[5:] if place[0] not in dict(places[:5])]
    assert all(map(few.try_hold, held))
    before = open_files()
    for place in passing:
        assert few.try_hold(place)
        free(few, place)
    assert open_files() <= before + 1
    assert not any(map(other.try_hold, held))
    for place in held:
        free(few, place)
    assert all(map(other.try_hold, held))
    few.close()
    other.close()


def test_the_lock_files_stay_empty(two, tmp_path):
    for number in range(100):
        place = two[0].place_of(f"ada:{number}")
        assert two[0].try_hold(place)
        free(two[0], place)
    files = list(Path(tmp_path / "+locks").iterdir())
    assert 1 < len(files) <= 800
    assert all(path.stat().st_size == 0 for path in files)


def test_a_server_soon_has_all_its_lock_files_open_and_then_opens_no_more(tmp_path):
    locks = FileLocks(tmp_path, PosixDisk(), open_limit=2_000)
    before = open_files()
    for number in range(8_000):
        assert locks.try_hold(locks.place_of(f"ada:{number}"))
    assert before + 1_000 < open_files() <= before + 1_024
    locks.close()
    assert open_files() == before


def test_a_lock_that_is_kept_goes_to_another_process_when_it_asks(tmp_path):
    """Its own loop does not run meanwhile: the process waits in a system call."""
    program = (
        "import asyncio, sys\n"
        "from kode_lab.key import SessionKey\n"
        "from kode_lab.sessions import JsonStore\n"
        "store = JsonStore(sys.argv[1])\n"
        "async def turn():\n"
        "    lease = await store.hold(SessionKey.of('ada', 'clerk', 's1'), queue_limit=0)\n"
        "    if sys.argv[2] == 'kept':\n"
        "        store.release(lease)\n"
        "asyncio.run(turn())\n"
        "print('here', flush=True)\n"
        "sys.stdin.read()\n"
    )

    async def scenario(state):
        with subprocess.Popen(  # noqa: ASYNC220 - started once
            [sys.executable, "-c", program, tmp_path, state],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert await asyncio.to_thread(other.stdout.readline) == b"here\n"
            store = JsonStore(tmp_path)
            if state == "kept":
                assert (await store.hold(ADA, queue_limit=0)).fence == 257
            else:
                with pytest.raises(WaitingRoomFull, match="another process holds it"):
                    await store.hold(ADA, queue_limit=0)
            await store.aclose()
            other.stdin.close()

    run(scenario("kept"))
    run(scenario("held"))


def test_a_fork_takes_nothing_of_what_its_parent_keeps(tmp_path):
    async def hold(store):
        lease = await store.hold(ADA, queue_limit=0)
        store.release(lease)
        return lease.fence

    store = JsonStore(tmp_path)
    assert run(hold(store)) == 1
    if (child := os.fork()) == 0:
        fence = 0
        with contextlib.suppress(BaseException):
            fence = run(hold(store))
        os._exit(fence - 250)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, "it had to ask the parent"
    assert run(hold(store)) > 257
    run(store.aclose())
