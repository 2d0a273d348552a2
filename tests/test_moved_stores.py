"""A directory, its lock files or its lock layout that change below a running store are noticed."""

import asyncio
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from house import ADA, BOB, Clerk, managing, prompts, run, until

from kode_lab.errors import DeadlineExceeded, ForeignHost, StoreError, StoreMoved
from kode_lab.key import SessionKey
from kode_lab.sessions import JsonStore
from kode_lab.sessions.files.disk import PosixDisk
from kode_lab.sessions.files.file_lock import FileLocks, is_local

both = pytest.mark.parametrize("durability", ["process", "power"])


def moved_away(store):
    store.rename(store.with_name("elsewhere"))


def replaced(store):
    moved_away(store)
    store.mkdir()


def copied_over(store):
    moved_away(store)
    shutil.copytree(store.with_name("elsewhere"), store)


CHANGES = [moved_away, replaced, copied_over]


@both
@pytest.mark.parametrize("change", CHANGES)
def test_a_directory_that_moves_below_a_running_store_is_refused_with_a_sentence(
    tmp_path, change, durability
):
    """Instead of sessions that silently begin empty; put back, it is used again."""

    async def scenario():
        store = tmp_path / "store"
        async with managing(tmp_path, store={"durability": durability}) as manager:
            await manager.turn(ADA, "before")
            change(store)
            for call in (
                lambda: manager.turn(ADA, "lost?"),
                lambda: manager.turn(BOB, "new"),
                lambda: manager.history(ADA),
                lambda: manager.delete(ADA),
            ):
                with pytest.raises(StoreMoved, match="moved"):
                    await call()
            assert not list(store.glob("bob"))
            shutil.rmtree(store, ignore_errors=True)
            store.with_name("elsewhere").rename(store)
            await manager.turn(ADA, "after")
            assert prompts(await manager.history(ADA)) == ["before", "after"]

    run(scenario())


@both
def test_a_directory_that_moves_during_a_turn_gets_no_acknowledged_turn(tmp_path, durability):
    async def scenario():
        model = Clerk({"slow": asyncio.Event()})
        async with managing(tmp_path, model, store={"durability": durability}) as manager:
            turn = asyncio.create_task(manager.turn(ADA, "slow"))
            await until(lambda: model.requests)
            moved_away(tmp_path / "store")
            model.gates["slow"].set()
            with pytest.raises(StoreMoved):
                await turn
            (tmp_path / "elsewhere").rename(tmp_path / "store")

    run(scenario())


def one_lock_file(store):
    for path in (store / "+locks").iterdir():
        path.unlink()


def all_lock_files(store):
    shutil.rmtree(store / "+locks")


def moved_lock_files(store):
    (store / "+locks").rename(store / "locks")


@pytest.mark.parametrize("remove", [one_lock_file, all_lock_files, moved_lock_files])
def test_lock_files_that_are_removed_while_held_let_no_two_hold_one_session(tmp_path, remove):
    """The old holder is refused, and so is a process that comes in new where it can be told."""

    async def scenario():
        model = Clerk({"slow": asyncio.Event()})
        async with managing(tmp_path, model) as manager:
            turn = asyncio.create_task(manager.turn(ADA, "slow"))
            await until(lambda: model.requests)
            remove(tmp_path / "store")
            if remove is one_lock_file:
                async with managing(tmp_path) as other:
                    await other.turn(ADA, "other")
            else:
                with pytest.raises(StoreMoved, match=r"lock files .* were removed"):
                    JsonStore(tmp_path / "store")
            model.gates["slow"].set()
            with pytest.raises(StoreError, match="moved or removed"):
                await turn
            with pytest.raises(StoreMoved, match=r"the lock file \+locks/"):
                await manager.turn(ADA, "again")
        async with managing(tmp_path) as manager:
            there = ["other"] if remove is one_lock_file else []
            assert prompts(await manager.history(ADA)) == there

    run(scenario())


@pytest.mark.parametrize("locks", ["ofd-256x1", None])
def test_a_version_that_locks_differently_is_refused_while_the_other_works(tmp_path, locks):
    """An older one says nothing about its locks."""

    async def scenario():
        path = tmp_path / "store"
        first = JsonStore(path)
        said = json.loads((path / "+store").read_bytes())
        if locks is None:
            del said["locks"]
        else:
            said["locks"] = locks
        (path / "+store").write_text(json.dumps(said))
        with pytest.raises(ForeignHost, match="another version of kode_lab works"):
            JsonStore(path)
        await first.aclose()
        await JsonStore(path).aclose()

    run(scenario())


def test_a_waiting_process_notices_that_its_lock_file_was_removed(tmp_path):
    async def scenario():
        holder, waiter = (FileLocks(tmp_path / "l", PosixDisk()) for _ in range(2))
        place = holder.place_of("ada:s1")
        lock = holder.try_hold(place)
        waiting = asyncio.create_task(waiter.hold(place))
        await asyncio.sleep(0)
        shutil.rmtree(tmp_path / "l")
        holder.release(lock)
        with pytest.raises(StoreMoved):
            await waiting
        holder.close()
        waiter.close()

    run(scenario())


def test_only_a_known_local_file_system_counts_as_local(tmp_path):
    assert not is_local(Path("/proc"))
    assert is_local(tmp_path) == is_local(tmp_path / "not" / "there")


@both
def test_a_store_takes_turns_of_many_sessions_with_few_open_files(tmp_path, durability):
    """It needs no limit of its own: it closes files when the process may open no more."""
    program = textwrap.dedent(
        """
        import asyncio, resource, sys
        from house import Clerk, managing, prompts, run
        from kode_lab.key import SessionKey

        async def scenario(path, durability):
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            store = {"durability": durability, "open_sessions_limit": 500}
            async with managing(path, store=store) as manager:
                keys = [SessionKey(f"u{n}", "clerk", "clerk") for n in range(100)]
                for part in range(0, 100, 20):
                    some = keys[part : part + 20]
                    await asyncio.gather(*(manager.turn(key, "q", turn_id="t") for key in some))
                for key in keys:
                    assert prompts(await manager.history(key)) == ["q"]
                    assert (await manager.turn(key, "q", turn_id="t")).is_replay
            print("done")

        run(scenario(sys.argv[1], sys.argv[2]))
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), durability],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert (found.stdout, found.returncode) == ("done\n", 0), found.stderr[-2000:]


def test_lock_files_count_among_the_files_that_a_store_may_open(tmp_path):
    def open_files():
        return len(list(Path("/proc/self/fd").iterdir()))

    async def scenario():
        async with managing(tmp_path, store={"open_sessions_limit": 8}) as manager:
            before = open_files()
            for number in range(60):
                await manager.turn(SessionKey(f"u{number}", "clerk", "clerk"), "q")
            assert open_files() - before <= 16

    run(scenario())


def test_a_deadline_is_kept_also_when_the_process_that_holds_the_session_is_stopped(tmp_path):
    """A process that is stopped keeps its locks; it is not dead, and may go on at any time."""
    program = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from kode_lab.sessions import JsonStore
        from kode_lab.key import SessionKey

        async def main():
            store = JsonStore(sys.argv[1])
            await store.hold(SessionKey.of("ada", "clerk", "s1"), queue_limit=0)
            print("held", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)

        asyncio.run(main())
        """
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"

        async def scenario():
            async with managing(tmp_path) as manager:
                with pytest.raises(DeadlineExceeded, match=r"deadline_s=0.1"):
                    await manager.turn(ADA, "hello", deadline_s=0.1)
                with pytest.raises(DeadlineExceeded, match=r"wait_s=0.1"):
                    await manager.delete(ADA, wait_s=0.1)
                with pytest.raises(DeadlineExceeded, match=r"wait_s=0.1"):
                    await manager.rewind(ADA, 0, wait_s=0.1)
                assert (await manager.turn(BOB, "hello")).text == "re: hello"
                assert manager.statistics().turns == 0

        run(scenario(), patience_s=10)
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()
