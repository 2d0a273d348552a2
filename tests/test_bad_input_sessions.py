"""Bad input and bad luck: a clear error that names the key and says what to do, and no harm.

No harm means, each time: nothing acknowledged is lost, the other sessions go on, and so does this
one as soon as the cause is gone.
"""

import ast
import asyncio
import contextlib
import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from house import (
    ADA,
    BOB,
    Clerk,
    FaultyDisk,
    World,
    assert_idle,
    assert_legal,
    managing,
    prompts,
    run,
    shelf,
)

import kode_lab.sessions
from kode_lab.errors import (
    CallerError,
    ForeignHost,
    InvalidPrompt,
    ModelGarbage,
    NewerFormat,
    SessionDamaged,
    StepLimitReached,
    StoreError,
    StoreUnwritable,
    UnknownAgent,
    WrongOwner,
)
from kode_lab.key import SessionKey
from kode_lab.message import Reply, Usage, assistant, user
from kode_lab.sessions import AgentShelf, JsonStore, Toolbox
from kode_lab.sessions.files.disk import PosixDisk
from kode_lab.sessions.files.file_lock import Occupancy

SAID = ["one", "note:1 two", "three"]


def files_of(path, key=ADA):
    """Return messages.json and turns.jsonl of the session."""
    directory = next((Path(path) / "store" / key.user_id).rglob("runtime"))
    return directory / "messages.json", directory / "turns.jsonl"


async def with_history(path, keys=(ADA, BOB), **store):
    """Leave a store with some turns behind."""
    async with managing(path, world=World(), store=store) as manager:
        for key in keys:
            for number, prompt in enumerate(SAID):
                await manager.turn(key, prompt, turn_id=f"t{number}")


async def assert_undisturbed(manager, key=BOB):
    """The other session has all it had, and takes a turn."""
    assert prompts(await manager.history(key))[:3] == SAID
    assert (await manager.turn(key, "still here?")).text == "re: still here?"


# ---- the disk


@pytest.mark.parametrize(("durability", "code"), [("process", errno.ENOSPC), ("power", errno.EIO)])
def test_a_disk_that_fails_once_at_any_call_of_a_turn_loses_nothing(tmp_path, durability, code):
    """The failing write has written a part of itself; the client sends its turn again."""

    async def scenario():
        world, prompt = World(), "note:2"
        there = tmp_path / "once"
        disk = FaultyDisk(there / "store")
        store = {"durability": durability, "disk": disk}
        for number in itertools.count():
            key = SessionKey.of(f"u{number}", "clerk")
            async with managing(there, world=world, store=store) as manager:
                await manager.turn(key, "first", turn_id="t0")
                await manager.turn(BOB, f"b{number}")
                disk.torn_bytes = 7 * number % 90
                counter = disk.fail_at(number, code)
                try:
                    await manager.turn(key, prompt, turn_id="t")
                except StoreUnwritable as error:
                    has_failed = f"u{number}:clerk" in str(error) or "start again" in str(error)
                else:
                    has_failed = next(counter) > number  # a failure behind the acknowledgement
                disk.hook = None
                assert_idle(manager)
                if durability == "process":
                    await assert_goes_on(manager, key, prompt, world)
                    assert prompts(await manager.history(BOB))[-1] == f"b{number}"
            async with managing(there, world=world, store=store) as manager:
                await assert_goes_on(manager, key, prompt, world)
                assert prompts(await manager.history(BOB))[-1] == f"b{number}"
            if not has_failed:
                break
        assert number >= 5, "there were calls that could fail"

    async def assert_goes_on(manager, key, prompt, world):
        assert prompts(await manager.history(key))[0] == "first"
        reply = await manager.turn(key, prompt, turn_id="t")
        assert reply.text == f"re: {prompt}"
        messages = await manager.history(key)
        assert prompts(messages) == ["first", prompt]
        assert_legal(messages)
        runs = [c.idempotency_key for _, c in world.runs if c.key == key]
        assert len(set(runs)) == 2, "the same two effects, however often they were asked for"

    run(scenario())


@pytest.mark.parametrize("durability", ["process", "power"])
def test_on_a_disk_that_stays_full_turns_fail_by_name_and_history_can_be_read(tmp_path, durability):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        await with_history(tmp_path, durability=durability, disk=disk)
        store = {"durability": durability, "disk": disk}
        async with managing(tmp_path, world=World(), store=store) as manager:
            await manager.turn(ADA, "warm")
            disk.fail_at(0, errno.ENOSPC, calls=("write",), once=False)
            for _ in range(3):
                with pytest.raises(StoreUnwritable, match=r"space|start again"):
                    await manager.turn(ADA, "four", turn_id="t4")
            disk.hook = None
            assert prompts(await manager.history(ADA)) == [*SAID, "warm"]
            if durability == "process":
                await manager.turn(ADA, "four", turn_id="t4")
                await assert_undisturbed(manager)
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "four", turn_id="t4")
            assert prompts(await manager.history(ADA)) == [*SAID, "warm", "four"]
            await assert_undisturbed(manager)

    run(scenario())


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EACCES, "allow this process to write"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "open_sessions_limit"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "look at the disk"),
    ],
)
def test_a_directory_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path, code, hint):
    async def scenario():
        disk = FaultyDisk(tmp_path / "store")
        async with managing(tmp_path, store={"disk": disk}) as manager:
            disk.fail_at(0, code, calls=("open", "make_directory"), once=False)
            with pytest.raises(StoreUnwritable, match=rf"ada:s1 cannot be stored: .*{hint}"):
                await manager.turn(ADA, "hello")
            assert_idle(manager)
            disk.hook = None
            assert (await manager.turn(ADA, "hello")).text == "re: hello"

    run(scenario())


@pytest.mark.parametrize("where", ["/proc/kode", "a file/store"])
def test_a_store_that_cannot_be_made_says_so(tmp_path, where):
    (tmp_path / "a file").write_text("no directory")
    with pytest.raises(StoreUnwritable, match=r"the store at '.*' cannot be stored"):
        JsonStore(tmp_path / where)


def test_a_directory_in_the_place_of_a_file_is_an_error_and_no_crash(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        messages, _ = files_of(tmp_path)
        messages.unlink()
        messages.mkdir()
        async with managing(tmp_path) as manager:
            for _ in range(2):
                with pytest.raises(StoreUnwritable, match="ada:s1"):
                    await manager.turn(ADA, "four")
            with pytest.raises(StoreUnwritable, match="ada:s1"):
                await manager.history(ADA)
            await assert_undisturbed(manager)

    run(scenario())


# ---- damaged files


@pytest.mark.parametrize("which", [0, 1], ids=["messages.json", "turns.jsonl"])
def test_a_file_cut_short_at_any_byte_is_mended_or_refused_and_never_shortens_the_conversation(
    tmp_path, which
):
    async def scenario():
        await with_history(tmp_path)
        files = files_of(tmp_path)
        saved = [path.read_bytes() for path in files]
        cut, whole = files[which], saved[which]
        mended = 0
        async with managing(tmp_path) as manager:
            # Every kind of place is met: the sizes step through the lines.
            for size in range(0, len(whole), 3):
                cut.write_bytes(whole[:size])
                if await is_refused(manager, looks=size % 300 == 150):
                    assert cut.read_bytes() == whole[:size], "left as it was"
                    cut.write_bytes(whole)  # restored, as the error says
                    await manager.turn(ADA, "four")
                else:
                    mended += 1
                messages = await manager.history(ADA)
                assert messages[:-2] == json.loads(saved[0])
                assert prompts(messages) == [*SAID, "four"]
                assert_legal(messages)
                await manager.delete(ADA)
                for path, content in zip(files, saved, strict=True):
                    path.write_bytes(content)
            await assert_undisturbed(manager)
        assert mended >= (1 if which == 0 else len(whole) // 6)

    async def is_refused(manager, *, looks):
        if looks:
            with contextlib.suppress(SessionDamaged):
                assert prompts(await manager.history(ADA)) == SAID
        try:
            await manager.turn(ADA, "four")
        except SessionDamaged as error:
            return "ada:s1" in str(error) and "restore" in str(error)
        return False

    run(scenario(), patience_s=60)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"null", b'"text"', b"[1]", b'[{"role":"owner","content":"x"}]', b"\0" * 500],
)
def test_a_messages_file_that_is_no_conversation_is_refused_and_left_as_it_is(tmp_path, content):
    async def scenario():
        await with_history(tmp_path)
        path = files_of(tmp_path)[0]
        whole = path.read_bytes()
        path.write_bytes(content)
        async with managing(tmp_path) as manager:
            with pytest.raises(
                SessionDamaged, match=r"ada:s1.*messages\.json.*nothing was changed"
            ):
                await manager.turn(ADA, "four")
            with pytest.raises(SessionDamaged, match="ada:s1"):
                await manager.history(ADA)
            assert path.read_bytes() == content
            await assert_undisturbed(manager)
            # What the error says to do works without a restart: restore it ...
            path.write_bytes(whole)
            await manager.turn(ADA, "four")
            assert prompts(await manager.history(ADA)) == [*SAID, "four"]

    run(scenario())


def test_a_damaged_session_that_is_moved_away_begins_anew_without_a_restart(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        path = files_of(tmp_path)[0]
        path.write_bytes(b"rubbish")
        async with managing(tmp_path) as manager:
            with pytest.raises(SessionDamaged, match="move the session's directory away"):
                await manager.turn(ADA, "four")
            path.parents[2].rename(tmp_path / "away")
            await manager.turn(ADA, "new")
            assert prompts(await manager.history(ADA)) == ["new"]
            assert (tmp_path / "away").is_dir()

    run(scenario())


def test_a_missing_messages_file_is_not_an_empty_conversation(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        files_of(tmp_path)[0].unlink()
        async with managing(tmp_path) as manager:
            with pytest.raises(SessionDamaged, match="ada:s1"):
                await manager.history(ADA)
            with pytest.raises(SessionDamaged, match="ada:s1"):
                await manager.turn(ADA, "four")
            await assert_undisturbed(manager)

    run(scenario())


def test_a_line_damaged_in_the_middle_of_the_turns_is_refused_because_no_crash_does_that(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        path = files_of(tmp_path)[1]
        lines = path.read_bytes().split(b"\n")
        for damaged in range(1, len(lines) - 2):
            broken = [*lines]
            broken[damaged] = broken[damaged][:-5]
            path.write_bytes(b"\n".join(broken))
            async with managing(tmp_path) as manager:
                with pytest.raises(SessionDamaged, match=r"ada:s1: a line in the middle.*restore"):
                    await manager.turn(ADA, "four")
                assert path.read_bytes()[60:] == b"\n".join(broken)[60:], "but for the fence"
                await assert_undisturbed(manager)

    run(scenario())


@pytest.mark.parametrize("fence", ["x" * 20, " " * 20, "-" + "1" * 19, "1" * 19])
def test_a_header_whose_fence_is_no_number_is_refused(tmp_path, fence):
    async def scenario():
        await with_history(tmp_path)
        path = files_of(tmp_path)[1]
        text = path.read_text()
        at = text.index('"fence":"') + 9
        path.write_text(text[:at] + fence + text[at + 20 :])
        async with managing(tmp_path) as manager:
            with pytest.raises(SessionDamaged, match=r"ada:s1: the first line of turns\.jsonl"):
                await manager.turn(ADA, "four")
            path.write_text(text)
            await manager.turn(ADA, "four")
            await assert_undisturbed(manager)

    run(scenario())


def test_a_messages_file_that_another_program_replaces_under_a_turn_is_not_written_over(tmp_path):
    async def scenario():
        model = Clerk()
        async with managing(tmp_path, model) as manager:
            await manager.turn(ADA, "one")
            path = files_of(tmp_path)[0]
            model.gates["two"] = asyncio.Event()
            model.asked.clear()
            turn = asyncio.create_task(manager.turn(ADA, "two", turn_id="t"))
            await model.asked.wait()
            edited = [user("one"), assistant("edited")]
            path.with_name("new").write_text(json.dumps(edited))
            path.with_name("new").replace(path)
            model.gates["two"].set()
            with pytest.raises(
                SessionDamaged, match=r"ada:s1: .* changed from outside.*same turnId"
            ):
                await turn
            assert json.loads(path.read_bytes()) == edited
            await manager.turn(ADA, "two", turn_id="t")
            messages = await manager.history(ADA)
            assert messages[:2] == edited
            assert prompts(messages) == ["one", "two"]
        async with managing(tmp_path) as manager:
            assert await manager.history(ADA) == messages

    run(scenario())


# ---- files of others


def test_a_directory_of_another_user_s_session_is_refused_in_the_report_s_layout(tmp_path):
    async def scenario():
        async with managing(tmp_path, store={"layout": "report"}) as manager:
            await manager.turn(ADA, "secret")
            for call in (
                lambda: manager.turn(BOB, "hello"),
                lambda: manager.history(BOB),
                lambda: manager.delete(BOB),
            ):
                with pytest.raises(WrongOwner, match=r"bob:s1.*another sessionId") as raised:
                    await call()
                assert "ada" not in str(raised.value)
                assert "secret" not in str(raised.value)
            assert (await manager.turn(ADA, "again")).text == "re: again"

    run(scenario())


def test_a_header_that_was_cut_off_gives_no_conversation_to_the_first_user(
    tmp_path,
):
    async def scenario():
        store = {"layout": "report"}
        async with managing(tmp_path, store=store) as manager:
            await manager.turn(ADA, "secret")
        path = next(tmp_path.rglob("turns.jsonl"))
        whole = path.read_bytes()
        header_bytes = whole.index(b"\n")
        for size in range(0, header_bytes + 1, 60):
            path.write_bytes(whole[:size])
            async with managing(tmp_path, store=store) as manager:
                for call in (lambda: manager.turn(BOB, "hello"), lambda: manager.history(BOB)):
                    with pytest.raises(SessionDamaged, match="bob:s1"):
                        await call()
        path.write_bytes(whole)
        async with managing(tmp_path, store=store) as manager:
            assert prompts(await manager.history(ADA)) == ["secret"]

    run(scenario())


def test_a_journal_of_another_session_is_refused(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        shutil.copy(files_of(tmp_path, BOB)[1], files_of(tmp_path, ADA)[1])
        async with managing(tmp_path) as manager:
            with pytest.raises(WrongOwner, match="ada:s1: its directory belongs to another"):
                await manager.turn(ADA, "hello")
            with pytest.raises(WrongOwner, match="ada:s1"):
                await manager.history(ADA)
            await assert_undisturbed(manager)

    run(scenario())


def test_files_of_a_newer_version_are_refused_and_left_as_they_are(tmp_path):
    async def scenario():
        await with_history(tmp_path)
        path = files_of(tmp_path)[1]
        newer = path.read_bytes().replace(b'{"kode_lab":1,', b'{"kode_lab":3,')
        path.write_bytes(newer)
        async with managing(tmp_path) as manager:
            for call in (lambda: manager.turn(ADA, "hello"), lambda: manager.history(ADA)):
                with pytest.raises(NewerFormat, match=r"ada:s1.*format 3.*up to 2: update"):
                    await call()
            assert path.read_bytes() == newer
            await assert_undisturbed(manager)

    run(scenario())


@pytest.mark.parametrize("alone", [False, True])
def test_on_a_network_file_system_a_directory_in_which_another_host_works_is_refused(
    tmp_path, alone
):
    """What is not known to be local counts as one."""

    def enter(**how):
        return Occupancy(tmp_path, PosixDisk(), alone=alone, wait_s=0, **how)

    mark = tmp_path / "+store"
    mark.write_text('{"kode_lab":1,"host":"0123456789abcdef"}\n')
    for _ in range(2):
        with pytest.raises(ForeignHost, match=r"another host.*remove the file \+store"):
            enter(sees_all_locks=lambda _: False)
    mark.unlink()
    inside = enter(sees_all_locks=lambda _: False)
    assert b'"host"' in mark.read_bytes()
    inside.leave()
    assert mark.read_bytes() == b"", "the last one to leave removes the name of the host"


@pytest.mark.parametrize("durability", ["process", "power"])
def test_on_a_local_file_system_a_container_made_anew_after_kill_9_starts(tmp_path, durability):
    """The lock proves that the host that left its name is gone, or is on the same kernel."""

    async def scenario():
        await with_history(tmp_path)
        mark = tmp_path / "store" / "+store"
        mark.write_text('{"kode_lab":1,"host":"0123456789abcdef","locks":"old","inode":7}\n')
        async with managing(tmp_path, store={"durability": durability}) as manager:
            await assert_undisturbed(manager)
            assert b"0123456789abcdef" not in mark.read_bytes()

    run(scenario())


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"host"', "\0\0\0"])
def test_a_mark_of_a_process_that_died_while_writing_it_keeps_no_other_out(tmp_path, mark):
    async def scenario():
        await with_history(tmp_path)
        (tmp_path / "store" / "+store").write_text(mark)
        async with managing(tmp_path) as manager:
            await assert_undisturbed(manager)

    run(scenario())


# ---- the clock


def test_no_wall_clock_decides_anything_about_sessions():
    """The one exception compares it with the stamps of files, and is given it as an argument."""
    found = set()
    for path in Path(kode_lab.sessions.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            is_wall_clock = name in ("time.time", "time.time_ns", "time.ctime", "time.localtime")
            if is_wall_clock or "datetime" in name:
                found.add((path.name, name))
    assert found <= {("agent.py", "time.time_ns")}


def test_a_clock_that_jumps_and_files_from_the_future_change_nothing(tmp_path):
    async def scenario():
        clock_ns = itertools.cycle([0, 10**18, 4 * 10**18, 5])
        for life in range(3):
            agents = shelf(tmp_path / "agents")
            agents = AgentShelf(agents.directory, Toolbox(), clock_ns=lambda: next(clock_ns))
            store = JsonStore(tmp_path / "store")
            async with kode_lab.sessions.SessionManager(
                store=store, agents=agents, model=Clerk()
            ) as manager:
                for turn in range(3):
                    await manager.turn(ADA, f"{life}{turn}", turn_id=f"{life}{turn}")
                    for path in tmp_path.rglob("*"):
                        os.utime(path, ns=(next(clock_ns), next(clock_ns)))
                assert len(prompts(await manager.history(ADA))) == 3 * (life + 1)

    run(scenario())


# ---- what is asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty or not text"),
        ({"prompt": 5}, "not text"),
        ({"prompt": "x" * 1_000_001}, "1000001 characters: shorten it to PROMPT_LIMIT_CHARS"),
        ({"prompt": "half a \ud83d"}, "prompt is not valid Unicode at 7"),
        ({"turn_id": ""}, "turnId must be text"),
        ({"turn_id": "x" * 201}, "TURN_ID_LIMIT_CHARS"),
        ({"turn_id": 7}, "turnId must be text"),
        ({"turn_id": "\udfff"}, "turnId is not valid Unicode"),
        ({"strategy": "hope"}, "'hope' is not valid: choose one of enqueue"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_anything_happens(tmp_path, arguments, words):
    async def scenario():
        model = Clerk()
        async with managing(tmp_path, model) as manager:
            with pytest.raises(InvalidPrompt, match=words):
                await manager.turn(ADA, **({"prompt": "hello"} | arguments))
            assert_idle(manager)
            assert model.requests == []
            assert not list((tmp_path / "store").glob("ada*"))

    run(scenario())


@pytest.mark.parametrize(
    "prompt", ["\0", "\x1b[31m", "𝕊🙂\u202e", "a\u2028b", '"}\n{"done":1}\n', "]\n", "\ufeff"]
)
def test_any_text_that_can_be_sent_is_stored_and_shown_as_it_is(tmp_path, prompt):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, prompt, turn_id=prompt * 3)
        async with managing(tmp_path) as manager:
            reply = await manager.turn(ADA, prompt, turn_id=prompt * 3)
            assert reply.is_replay
            assert prompts(await manager.history(ADA)) == [prompt]
            assert reply.text == f"re: {prompt}"

    run(scenario())


def test_an_agent_that_is_not_configured_is_refused_with_those_there_are(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            with pytest.raises(UnknownAgent, match=r"'stranger'.*has: clerk"):
                await manager.turn(ADA._replace(agent_id="stranger"), "hello")
            assert_idle(manager)

    run(scenario())


# ---- the model

TEXT = {"type": "text", "text": "hello"}
CALL = {"type": "tool_use", "id": "c1", "name": "note", "input": {"text": "x"}}


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "hello",
        {"content": [TEXT]},
        Reply(None, "end_turn"),
        Reply("hello", "end_turn"),
        Reply((None,), "end_turn"),
        Reply(("hello",), "end_turn"),
        Reply(({},), "end_turn"),
        Reply(({"type": 5},), "end_turn"),
        Reply(({"type": "text"},), "end_turn"),
        Reply(({"type": "text", "text": None},), "end_turn"),
        Reply((TEXT | {"citations": {1, 2}},), "end_turn"),
        Reply(({"type": "tool_result", "tool_use_id": "c", "content": ""},), "end_turn"),
        Reply((CALL | {"id": None},), "tool_use"),
        Reply((CALL | {"name": 5},), "tool_use"),
        Reply((CALL | {"input": "x"},), "tool_use"),
        Reply((CALL | {"input": {"text": b"bytes"}},), "tool_use"),
        Reply((CALL | {"id": ""},), "tool_use"),
        Reply((TEXT,), None),
        Reply((TEXT,), ""),
        Reply((TEXT,), "end_turn", None),
    ],
    ids=range(21),
)
def test_a_model_that_answers_garbage_fails_the_turn_and_leaves_the_conversation_legal(
    tmp_path, reply
):
    async def scenario():
        async def model(request, on_text=None):
            if prompts(request.messages)[-1] == "garbage":
                return reply
            return await Clerk()(request, on_text)

        async with managing(tmp_path, model, World()) as manager:
            await manager.turn(ADA, "before")
            with pytest.raises(ModelGarbage):
                await manager.turn(ADA, "garbage")
            assert_idle(manager)
            await manager.turn(ADA, "after")
            messages = await manager.history(ADA)
            assert prompts(messages) == ["before", "after"]
            assert_legal(messages)

    run(scenario())


@pytest.mark.parametrize("content", [(), ({"type": "text", "text": " "},)])
def test_an_empty_reply_is_stored_as_words_that_the_api_takes_back(tmp_path, content):
    async def scenario():
        async def model(_request, _on_text=None):
            return Reply(content, "end_turn", Usage(1, 0))

        async with managing(tmp_path, model) as manager:
            reply = await manager.turn(ADA, "hello")
            assert reply.text == "(The reply was empty.)"
            assert_legal(await manager.history(ADA))

    run(scenario())


def test_a_model_that_raises_what_it_likes_fails_its_turn_and_not_the_session(tmp_path):
    async def scenario():
        async def model(request, on_text=None):
            if prompts(request.messages)[-1] == "bad":
                raise ZeroDivisionError("the model's own fault")
            return await Clerk()(request, on_text)

        async with managing(tmp_path, model) as manager:
            for _ in range(3):
                with pytest.raises(ZeroDivisionError):
                    await manager.turn(ADA, "bad", turn_id="t")
            assert_idle(manager)
            await manager.turn(ADA, "good")
            assert prompts(await manager.history(ADA)) == ["good"]

    run(scenario())


def test_an_endless_tool_loop_ends_at_the_step_limit_and_can_go_on_when_it_is_raised(tmp_path):
    async def scenario():
        world, agent = World(), {"step_limit": 4}
        async with managing(tmp_path, world=world, agent=agent) as manager:
            for _ in range(2):
                with pytest.raises(StepLimitReached, match=r"ada:s1.*4 replies.*step_limit=4"):
                    await manager.turn(ADA, "forever note:1", turn_id="t")
            assert len(world.runs) == 4
            assert (await manager.turn(BOB, "hello")).text == "re: hello"
            await manager.turn(ADA, "enough")
            messages = await manager.history(ADA)
            assert prompts(messages) == ["forever note:1", "enough"]
            assert_legal(messages)

    run(scenario())


def test_a_hanging_tool_an_unknown_one_and_a_failing_one_become_results_for_the_model(tmp_path):
    async def scenario():
        world = World()
        world.gates["note:1 0.0"] = asyncio.Event()  # never set
        asked = []

        async def model(request, on_text=None):
            asked.append(request)
            if len(asked) == 2:
                calls = [CALL | {"id": "x", "name": "nothing"}, CALL | {"id": "y", "input": {}}]
                return Reply(tuple(calls), "tool_use")
            return await Clerk()(request, on_text)

        agent = {"tool_timeout_s": 0.05}
        async with managing(tmp_path, model, world, agent=agent) as manager:
            reply = await manager.turn(ADA, "note:1")
            assert reply.text == "re: note:1"
            messages = await manager.history(ADA)
            results = [b for m in messages for b in m["content"] if b["type"] == "tool_result"]
            assert "no result after 0.05 s" in results[0]["content"]
            assert "There is no tool 'nothing'" in results[1]["content"]
            assert "note was not run" in results[2]["content"]
            assert all(result["is_error"] for result in results)
            assert_legal(messages)
            failed = await manager.turn(BOB, "fail:1")
            assert failed.text == "re: fail:1"

    run(scenario())


def test_tools_cut_off_by_the_token_limit_are_not_run(tmp_path):
    async def scenario():
        world = World()

        async def model(request, _on_text=None):
            if request.messages[-1]["content"][0]["type"] == "tool_result":
                return Reply((TEXT,), "end_turn")
            return Reply((CALL,), "max_tokens")

        async with managing(tmp_path, model, world) as manager:
            assert (await manager.turn(ADA, "hello")).text == "hello"
            assert world.runs == []
            assert_legal(await manager.history(ADA))

    run(scenario())


def test_tools_cut_off_by_the_token_limit_are_not_run_after_a_kill_or_an_error_either(tmp_path):
    """The reply and the word that its calls are not to be run go down in one write."""

    async def scenario():
        async def model(request, _on_text=None):
            if request.messages[-1]["content"][0]["type"] == "tool_result":
                return Reply((TEXT,), "end_turn")
            return Reply((CALL, {**CALL, "id": "call_2"}), "max_tokens")

        world, images = World(), []
        there = tmp_path / "there"
        disk = FaultyDisk(there / "store")

        def hook(call, path, change):
            images.append(disk.after_kill())
            if call == "write" and "runtime" in path:
                images.append(disk.after_kill(path, change, len(change[2])))

        async with managing(there, model, world, store={"disk": disk}) as manager:
            disk.hook = hook
            await manager.turn(ADA, "hello", turn_id="t")
            for number in itertools.count():
                turn = SessionKey.of(f"u{number}", "clerk"), "hello"
                counter = disk.fail_at(number)
                with contextlib.suppress(StoreUnwritable):
                    await manager.turn(*turn, turn_id="t")
                disk.hook = None
                assert (await manager.turn(*turn, turn_id="t")).text == "hello"
                if next(counter) <= number:
                    break
            assert number > 3
        for number, image in enumerate(images):
            disk.restore(image, tmp_path / f"{number}" / "store")
            async with managing(tmp_path / f"{number}", model, world) as manager:
                assert (await manager.turn(ADA, "hello", turn_id="t")).text == "hello"
                assert_legal(await manager.history(ADA))
        assert world.runs == []

    run(scenario())


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**64, -(2**63) - 1, 10**400, 10**5000], ids=range(6)
)
def test_a_reply_with_a_number_that_would_be_read_as_another_is_refused(tmp_path, value):
    async def scenario():
        async def model(request, on_text=None):
            if prompts(request.messages)[-1] != "garbage":
                return await Clerk()(request, on_text)
            return Reply(({**CALL, "input": {"text": [{"deep": value}]}},), "tool_use")

        async with managing(tmp_path, model, World()) as manager:
            with pytest.raises(ModelGarbage, match="cannot be stored as JSON"):
                await manager.turn(ADA, "garbage")
            assert (await manager.turn(ADA, "hello")).text == "re: hello"
            assert prompts(await manager.history(ADA)) == ["hello"]

    run(scenario())


def test_the_largest_numbers_of_a_reply_are_read_as_they_were_given(tmp_path):
    numbers = {"n": [2**64 - 1, -(2**63), 1.7e308, 5e-324, None], "text": str(10**40)}

    async def scenario():
        async def model(request, _on_text=None):
            if request.messages[-1]["content"][0]["type"] == "tool_result":
                return Reply((TEXT,), "end_turn")
            return Reply(({**CALL, "input": numbers},), "tool_use")

        async with managing(tmp_path, model, World()) as manager:
            first = await manager.turn(ADA, "hello", turn_id="t")
        async with managing(tmp_path, model, World()) as manager:
            again = await manager.turn(ADA, "hello", turn_id="t")
            assert again.tool_calls == first.tool_calls
            assert again.tool_calls[0].input == numbers

    run(scenario())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"durability": "Power"}, r"durability 'Power' is not valid: choose process or power"),
        ({"durability": "fsync"}, r"durability 'fsync' is not valid: choose process or power"),
        ({"layout": "reprot"}, r"layout 'reprot' is not valid: choose user or report"),
        ({"layout": None}, r"layout None is not valid: choose user or report"),
        ({"root": ""}, r"root is empty"),
    ],
)
def test_a_store_with_an_option_that_is_none_is_refused_and_makes_nothing(
    tmp_path, monkeypatch, options, complaint
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallerError, match=complaint):
        JsonStore(**({"root": tmp_path / "store"} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_several_tools_end_is_the_store_s_error_and_no_group_of_errors(tmp_path):
    async def scenario():
        disk, world = FaultyDisk(tmp_path / "store"), World()
        async with managing(tmp_path, world=world, store={"disk": disk}) as manager:
            seen = []

            def hook(call, path, change):
                if call == "write" and b'"result"' in change[2]:
                    seen.append(path)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            disk.hook = hook
            with pytest.raises(StoreError, match=r"ada:s1.*free some space"):
                await manager.turn(ADA, "note:3", turn_id="t")
            disk.hook = None
            assert seen
            reply = await manager.turn(ADA, "note:3", turn_id="t")
            assert sorted(world.notes.values()) == sorted(c.input["text"] for c in reply.tool_calls)

    run(scenario())
