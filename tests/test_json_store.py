"""The store: leases, the fence, files that only grow at their end, readers that hold nothing."""

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest
from house import ADA, BOB, FaultyDisk, assert_legal, managing, prompts, run

from kode_lab.errors import SessionDamaged, StaleLease, WaitingRoomFull
from kode_lab.key import SessionKey
from kode_lab.message import Usage, assistant, user
from kode_lab.sessions import JsonStore
from kode_lab.sessions.open_turn import OpenTurn


def answered(turn_id, text="hello"):
    """Return a turn that the model has answered, and the entry of its reply."""
    turn = OpenTurn(turn_id, user(text), "v1")
    message = assistant(f"re: {text}")
    turn.add_reply(message, Usage(3, 2))
    return turn, [turn.reply_entry(message, Usage(3, 2))]


async def append(store, key, turn_id, text="hello"):
    lease = await store.hold(key, queue_limit=9)
    try:
        turn, entries = answered(turn_id, text)
        return await store.append(lease, turn, entries)
    finally:
        store.release(lease)


async def stored(store, key):
    lease = await store.hold(key, queue_limit=9)
    try:
        return await store.load(lease)
    finally:
        store.release(lease)


@pytest.fixture(params=["process", "power"])
def store_at(request, tmp_path):
    """Open stores of either durability on one directory."""

    def opened(**options):
        return JsonStore(tmp_path / "store", durability=request.param, **options)

    return opened


def test_what_was_appended_is_loaded_as_it_was_by_this_store_and_by_the_next(store_at):
    async def scenario():
        store = store_at()
        ends = [await append(store, ADA, f"t{n}", f"{n}") for n in range(3)]
        for _ in range(2):
            found = await stored(store, ADA)
            assert prompts(found.messages) == ["0", "1", "2"]
            assert list(found.finished.values()) == ends
            assert found.finished["t1"][:6] == ("t1", 2, 3, False, Usage(3, 2), "v1")
            assert found.open is None
            await store.aclose()
            store = store_at()
        await store.aclose()

    run(scenario())


def test_the_fence_grows_with_every_hold_also_over_restarts_and_deletions(store_at):
    async def scenario():
        fences = []
        for _ in range(3):
            store = store_at()
            for _ in range(2):
                lease = await store.hold(ADA, queue_limit=0)
                fences.append(lease.fence)
                await store.load(lease)
                await store.delete(lease)
                store.release(lease)
            await store.aclose()
        assert fences == sorted(set(fences))

    run(scenario())


def test_a_lease_is_for_its_session_and_its_time_only(store_at):
    async def scenario():
        store = store_at()
        turn, entries = answered("t")
        lease = await store.hold(ADA, queue_limit=0)
        await store.append(lease, turn, entries)
        store.release(lease)
        newer = await store.hold(ADA, queue_limit=0)
        for call in (
            store.load(lease),
            store.journal(lease, turn, entries[0]),
            store.append(lease, turn, entries),
            store.discard(lease),
            store.delete(lease),
        ):
            with pytest.raises(StaleLease, match="ada:s1: the lease was released"):
                await call
        assert prompts((await store.load(newer)).messages) == ["hello"]
        await store.aclose()

    run(scenario())


def test_an_append_writes_the_same_bytes_for_any_history(tmp_path):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        store = JsonStore(tmp_path / "store", disk=disk)
        written = []
        sizes = []
        disk.hook = lambda call, path, change: (
            call == "write"
            and "runtime" in path
            and sizes.append((Path(path).name, len(change[2])))
        )
        for number in range(100, 400):
            sizes.clear()
            await append(store, ADA, f"t{number}", f"{number}")
            written.append(list(sizes))
        # But for the fence, which is written once for many leases, and for growing digits.
        [extra] = [one for one in written[1:] if len(one) != 2]
        assert extra[0] == ("turns.jsonl", 20)
        written.remove(extra)
        totals = [sum(size for _, size in one) for one in written[5:]]
        assert max(totals) - min(totals) <= 3 * 2 * 4
        payload = len(json.dumps([user("100"), assistant("re: 100")], separators=(",", ":")))
        [messages] = [size for name, size in written[200] if name == "messages.json"]
        assert messages <= payload + 6
        await store.aclose()

    run(scenario())


def test_at_rest_the_messages_are_an_ordinary_json_array_with_one_message_a_line(store_at):
    async def scenario():
        store = store_at()
        for number in range(3):
            await append(store, ADA, f"t{number}", "with\nlines, ümlauts and 🙂")
        await store.aclose()
        [path] = store.root.rglob("messages.json")
        lines = path.read_bytes().split(b"\n")
        assert (lines[0], lines[-2], lines[-1]) == (b"[", b"]", b"")
        messages = json.loads(path.read_bytes())
        assert [json.loads(line.rstrip(b",")) for line in lines[1:-2]] == messages
        assert set(messages[0]) == {"role", "content"}
        assert_legal(messages)

    run(scenario())


def test_a_reader_never_waits_and_never_sees_a_part_of_a_turn(tmp_path):
    """A thread appends while another store reads, until the reader has seen enough."""

    async def read():
        store = JsonStore(tmp_path / "store")
        lengths = [0]
        while len(set(lengths)) < 20:
            messages = await store.peek(ADA)
            assert len(messages) % 2 == 0
            assert_legal(messages)
            assert len(messages) >= lengths[-1], "what was seen once stays"
            lengths.append(len(messages))
            room.release(10)
        await store.aclose()

    def write():
        async def turns():
            store = JsonStore(tmp_path / "store")
            for number in range(20_000):
                room.acquire()  # no further ahead than this, or a look would take seconds
                if is_enough.is_set():
                    break
                await append(store, ADA, f"t{number}", "x" * 3_000)
            await store.aclose()

        asyncio.run(turns())

    is_enough, room = threading.Event(), threading.Semaphore(50)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        run(read())
    finally:
        is_enough.set()
        room.release()
        writer.join()


def test_a_reader_of_a_session_that_never_was_sees_an_empty_one_and_makes_no_file(store_at):
    async def scenario():
        store = store_at()
        before = sorted(store.root.rglob("*"))
        assert await store.peek(ADA) == []
        assert sorted(store.root.rglob("*")) == before
        await store.aclose()

    run(scenario())


def test_what_a_crash_left_half_written_is_mended_for_a_reader_where_it_is_not_held(tmp_path):
    async def scenario():
        store = JsonStore(tmp_path / "store")
        await append(store, ADA, "t0", "kept")
        lease = await store.hold(ADA, queue_limit=0)
        turn = OpenTurn("t1", user("open"), "v1")
        await store.journal(lease, turn, turn.reply_entry(assistant("x"), Usage()))
        [path] = store.root.rglob("messages.json")
        with path.open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b',\n{"role":"us')
        other = JsonStore(tmp_path / "store")
        with pytest.raises(SessionDamaged, match=r"ada:s1.*another process holds it"):
            await other.peek(ADA)
        store.release(lease)
        assert prompts(await other.peek(ADA)) == ["kept"]
        assert json.loads(path.read_bytes())
        await store.aclose()
        await other.aclose()

    run(scenario())


def test_files_are_kept_open_up_to_the_limit_and_no_session_notices(tmp_path):
    def open_files():
        paths = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        return [path for path in paths if str(tmp_path) in path and "runtime" in path]

    async def scenario():
        store = JsonStore(tmp_path / "store", open_sessions_limit=3)
        keys = [SessionKey.of(f"u{n}", "clerk") for n in range(10)]
        for turn in range(3):
            for key in keys:
                await append(store, key, f"t{turn}", f"{turn}")
                assert len(open_files()) <= 2 * 3
        for key in keys:
            assert prompts(await store.peek(key)) == ["0", "1", "2"]
        await store.aclose()
        assert open_files() == []

    run(scenario())


def test_the_sessions_of_all_users_and_of_one_are_found_without_being_opened(store_at):
    async def scenario():
        store = store_at()
        keys = {ADA, BOB, SessionKey.of("ada", "clerk"), SessionKey.of("a:da/..", "clerk", "*[x]?")}
        for key in keys:
            await append(store, key, "t")
        held = await store.hold(ADA, queue_limit=0)
        store.release(held)
        await store.aclose()
        store = store_at()
        assert set(store.sessions()) == keys
        assert set(store.sessions("ada")) == {ADA, SessionKey.of("ada", "clerk")}
        assert set(store.sessions("stranger")) == set()
        await store.aclose()

    run(scenario())


def test_two_openings_in_one_process_exclude_each_other_like_two_processes(tmp_path):
    async def scenario():
        one, two = JsonStore(tmp_path), JsonStore(tmp_path)
        lease = await one.hold(ADA, queue_limit=0)
        with pytest.raises(WaitingRoomFull, match="ada:s1: another process holds it"):
            await two.hold(ADA, queue_limit=0)
        assert (await two.hold(BOB, queue_limit=0)).key == BOB
        waiting = asyncio.create_task(two.hold(ADA, queue_limit=1))
        await asyncio.sleep(0)
        one.release(lease)
        assert (await waiting).fence > lease.fence
        await one.aclose()
        await two.aclose()

    run(scenario())


def test_closing_gives_back_what_is_still_held_and_can_be_done_once_more(store_at):
    async def scenario():
        store = store_at()
        await store.hold(ADA, queue_limit=0)
        assert store.statistics().held == 1
        await store.aclose()
        await store.aclose()
        store = store_at()
        await store.hold(ADA, queue_limit=0)
        await store.aclose()

    run(scenario())


def test_a_session_that_was_only_looked_at_or_deleted_leaves_no_messages_file(store_at):
    async def scenario():
        store = store_at()
        assert (await stored(store, ADA)).messages == []
        await append(store, BOB, "t")
        lease = await store.hold(BOB, queue_limit=0)
        await store.delete(lease)
        store.release(lease)
        await store.aclose()
        assert list(store.root.rglob("messages.json")) == []

    run(scenario())


def test_a_conversation_edited_by_hand_between_two_lives_is_taken_as_it_is(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "one", turn_id="t1")
            await manager.turn(ADA, "two", turn_id="t2")
        [path] = tmp_path.rglob("messages.json")
        edited = [user("one"), assistant("edited")]
        for text in (
            json.dumps(edited),
            json.dumps(edited, indent=2),
            "  " + json.dumps(edited) + "\n\n  \n",
            "[\n" + ",\n".join(map(json.dumps, edited)) + "\n]\n",
        ):
            path.write_text(text)
            async with managing(tmp_path) as manager:
                assert await manager.history(ADA) == edited
                await manager.turn(ADA, "three")
                messages = await manager.history(ADA)
                assert messages[:2] == edited
                assert prompts(messages) == ["one", "three"]
                await manager.turn(ADA, "four")
            async with managing(tmp_path) as manager:
                assert prompts(await manager.history(ADA)) == ["one", "three", "four"]

    run(scenario())


EARLIER = {
    "turns.jsonl": b'{"kode_lab":1,"fence":"00000000000000000002","userId":"ada","sessionId":"s1",'
    b'"agentId":"clerk"}\n{"done":"t1","fence":1,"messages":[0,1],"end":123,"sealed":false,'
    b'"usage":[0,0],"version":"66808546a3e4"}\n{"done":"t2","fence":2,"messages":[2,3],"end":243,'
    b'"sealed":false,"usage":[0,0],"version":"66808546a3e4"}\n',
    "messages.json": b'[\n{"role":"user","content":[{"type":"text","text":"one"}]},\n'
    b'{"role":"assistant","content":[{"type":"text","text":"re"}]},\n'
    b'{"role":"user","content":[{"type":"text","text":"two"}]},\n'
    b'{"role":"assistant","content":[{"type":"text","text":"re"}]}\n]\n',
}


def test_a_directory_of_an_earlier_version_is_read_as_it_is(tmp_path):
    """Written by the version before locks were kept and limits of fences written."""

    async def scenario():
        place = tmp_path / "store" / "ada" / "s1:clerk" / "s1:clerk" / "runtime"
        place.mkdir(parents=True)
        for name, content in EARLIER.items():
            (place / name).write_bytes(content)
        async with managing(tmp_path) as manager:
            assert (await manager.turn(ADA, "two", turn_id="t2")).is_replay
            await manager.turn(ADA, "three")
            assert prompts(await manager.history(ADA)) == ["one", "two", "three"]
        header = (place / "turns.jsonl").read_bytes().partition(b"\n")[0]
        assert b'"fence":"00000000000000000004"' in header, "as earlier versions write it"

    run(scenario())


def test_an_edit_under_a_resident_agent_refuses_the_next_turn_which_sent_again_goes_on_from_it(
    tmp_path,
):
    async def scenario():
        edited = [user("one"), assistant("edited by hand")]
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "one")
            [path] = tmp_path.rglob("messages.json")
            path.write_text(json.dumps(edited))
            with pytest.raises(SessionDamaged, match="was changed from outside"):
                await manager.turn(ADA, "two", turn_id="t")
            assert await manager.history(ADA) == edited
            await manager.turn(ADA, "two", turn_id="t")
            messages = await manager.history(ADA)
            assert messages[:2] == edited
            assert prompts(messages) == ["one", "two"]

    run(scenario())
