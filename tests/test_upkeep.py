"""A store's directory is copied while it runs, examined, repaired, and shared with the Kode SDK."""

import asyncio
import json
import shutil

import pytest
from house import ADA, BOB, Clerk, World, assert_legal, managing, prompts, run

from kode_lab.cli import main
from kode_lab.errors import ForeignHost, InvalidScenario, SessionDamaged, Superseded
from kode_lab.key import SessionKey
from kode_lab.message import assistant, user
from kode_lab.sessions import JsonStore
from kode_lab.sessions.files.upkeep import back_up, examine, foreign_sessions, repair

both = pytest.mark.parametrize("durability", ["process", "power"])


def files_of(root, key=ADA):
    place = root / key.user_part / key.instance_part / key.instance_part / "runtime"
    return place / "messages.json", place / "turns.jsonl"


async def three_turns(tmp_path, key=ADA):
    async with managing(tmp_path, Clerk(), World()) as manager:
        for number in range(3):
            await manager.turn(key, f"q{number}", turn_id=f"t{number}")


@both
def test_a_copy_of_a_running_store_is_merely_older_and_forgets_no_turn_id(tmp_path, durability):
    """A turn that is sent again to the copy is not done twice."""

    async def scenario():
        keys = [SessionKey.of(f"u{n}", "clerk") for n in range(4)]
        done = dict.fromkeys(keys, 0)
        stop = asyncio.Event()

        async def talk(manager, key):
            while not stop.is_set():
                number = done[key]
                await manager.turn(key, f"q{number}", turn_id=f"t{number}")
                done[key] += 1

        store = {"durability": durability, "journal_bytes": 60_000}
        store = store if durability == "power" else {"durability": durability}
        async with managing(tmp_path, store=store) as manager:
            talking = [asyncio.create_task(talk(manager, key)) for key in keys]
            copies = []
            for number in range(4):
                sure = dict(done)
                copy = tmp_path / f"copy{number}" / "store"
                assert await asyncio.to_thread(back_up, tmp_path / "store", copy) <= len(keys)
                copies.append((copy, sure, dict(done)))
            stop.set()
            await asyncio.gather(*talking)
        for copy, sure, later in copies:
            async with managing(copy.parent, store={"durability": durability}) as manager:
                for key in keys:
                    there = prompts(await manager.history(key))
                    assert there == [f"q{n}" for n in range(len(there))]
                    assert sure[key] <= len(there) <= later[key] + 1
                    if there:
                        last = len(there) - 1
                        again = await manager.turn(key, f"q{last}", turn_id=f"t{last}")
                        assert again.is_replay

    run(scenario())


def test_a_copy_has_no_locks_and_says_where_it_cannot_go(tmp_path, capsys):
    run(three_turns(tmp_path))
    assert main(["backup", str(tmp_path / "store"), str(tmp_path / "copy")]) == 0
    assert "1 sessions" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"ada"}
    with pytest.raises(InvalidScenario, match="exists: name a directory that does not"):
        back_up(tmp_path / "store", tmp_path / "copy")
    with pytest.raises(InvalidScenario, match="is no store"):
        back_up(tmp_path / "nothing", tmp_path / "other")


# ---- the doctor


def test_a_healthy_store_has_no_findings_and_is_not_changed(tmp_path, capsys):
    run(three_turns(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.json*")}
    assert main(["doctor", str(tmp_path / "store"), "--repair"]) == 0
    assert "0 damaged, 0 remarks" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.json*")}


def cut_in_the_middle(messages, _turns):
    data = messages.read_bytes()
    messages.write_bytes(data[: data.index(b"q1") + 1])


def invalid_block(messages, _turns):
    value = json.loads(messages.read_bytes())
    value[3]["content"].append({"type": "tool_use", "id": 7, "name": "note", "input": {}})
    messages.write_text(json.dumps(value))


def invalid_message(messages, _turns):
    value = json.loads(messages.read_bytes())
    value[2] = "what?"
    messages.write_text(json.dumps(value))


def header_lost(_messages, turns):
    turns.write_bytes(turns.read_bytes()[3:])


def middle_lost(_messages, turns):
    lines = turns.read_bytes().split(b"\n")
    lines[2] = b"{rubbish"
    turns.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        (cut_in_the_middle, ["q0"]),
        (invalid_block, ["q0", "q1", "q2"]),
        (invalid_message, ["q0", "q2"]),
        (header_lost, ["q0", "q1", "q2"]),
        (middle_lost, ["q0", "q1", "q2"]),
    ],
)
def test_a_damaged_session_is_named_and_repaired_and_the_original_is_kept(
    tmp_path, harm, left, capsys
):
    """Every turn id stays known: none of them is done again."""
    store = tmp_path / "store"
    run(three_turns(tmp_path))
    run(three_turns(tmp_path, BOB))
    harm(*files_of(store))
    damaged = [path.read_bytes() for path in files_of(store)]
    (found,) = [finding for finding in examine(store) if finding.is_damage]
    assert found.place.startswith("ada/")
    assert main(["doctor", str(store)]) == 1
    assert "DAMAGED" in capsys.readouterr().out
    assert [path.read_bytes() for path in files_of(store)] == damaged
    assert main(["doctor", str(store), "--repair"]) == 0
    kept = [path.with_name(f"{path.name}.before-1").read_bytes() for path in files_of(store)]
    assert kept == damaged

    async def scenario():
        world = World()
        async with managing(tmp_path, world=world) as manager:
            assert prompts(await manager.history(ADA)) == left
            for number in range(3):
                try:
                    reply = await manager.turn(ADA, f"q{number}", turn_id=f"t{number}")
                except Superseded:
                    continue
                assert reply.is_replay or harm is middle_lost
            await manager.turn(ADA, "on")
            assert prompts(await manager.history(BOB)) == ["q0", "q1", "q2"]

    run(scenario())


def test_a_repair_waits_for_no_process_and_disturbs_none(tmp_path):
    async def scenario():
        async with managing(tmp_path) as manager:
            await manager.turn(ADA, "q0")
            invalid = files_of(tmp_path / "store")[0]
            invalid.write_text("[1]")
            with pytest.raises(ForeignHost):
                await asyncio.to_thread(repair, tmp_path / "store")
            assert invalid.read_text() == "[1]"

    run(scenario())


def test_a_file_that_is_not_one_message_a_line_can_be_rewound_once_it_is_repaired(tmp_path):
    async def scenario():
        await three_turns(tmp_path)
        path = files_of(tmp_path / "store")[0]
        path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
        async with managing(tmp_path) as manager:
            with pytest.raises(SessionDamaged, match="kode-lab doctor"):
                await manager.rewind(ADA, "t0")
            assert prompts(await manager.history(ADA)) == ["q0", "q1", "q2"]
        repair(tmp_path / "store")
        async with managing(tmp_path) as manager:
            await manager.rewind(ADA, "t0")
            assert prompts(await manager.history(ADA)) == ["q0"]

    run(scenario())


# ---- the Kode SDK


def sdk_session(base, name, messages, **meta):
    directory = base / name
    (directory / "runtime").mkdir(parents=True)
    (directory / "runtime" / "messages.json").write_text(json.dumps(messages, indent=2))
    if meta:
        (directory / "meta.json").write_text(json.dumps({"agentId": name, **meta}))


def test_sessions_of_the_kode_sdk_are_adopted_go_on_and_go_back(tmp_path, capsys):
    call = {"type": "tool_use", "id": "c1", "name": "note", "input": {"text": "1"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": {"ok": True, "data": 7}}
    theirs = [
        {**user("q"), "metadata": {"k": 1}},
        {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "hm"}, call]},
        {"role": "user", "content": [result]},
        assistant("a"),
    ]
    base = tmp_path / "kode"
    sdk_session(base, "s1:clerk", theirs)
    tools = [{"source": "registered", "name": "note"}]
    template = {"templateId": "clerk", "metadata": {"templateId": "clerk", "tools": tools}}
    sdk_session(base, "other", [user("x"), assistant("y")], **template)
    data = tmp_path / "store"
    adopt = ["adopt", str(base), "--user", "ada", "--data", str(data)]
    for _ in range(2):
        assert main(adopt) == 0
    assert "ada:s1: 4 messages" in capsys.readouterr().out
    meta = json.loads((data / "ada" / "other:clerk" / "other:clerk" / "meta.json").read_bytes())
    assert meta["metadata"]["tools"] == tools
    assert meta["agentId"] == "other:clerk"

    async def go_on(*said):
        model = Clerk()
        async with managing(tmp_path, model, World()) as manager:
            assert await manager.history(ADA) == theirs
            await manager.turn(ADA, said[-1], turn_id=said[-1])
            assert_legal(list(model.requests[0].messages)[:-1])
            theirs[:] = await manager.history(ADA)
            assert prompts([m for m in theirs if m["content"][0]["type"] == "text"])[-1] == said[-1]

    run(go_on("here"))
    # The SDK resumes it in place: it writes the whole file anew, and knows no turns.jsonl.
    theirs += [{**user("there"), "metadata": {}}, assistant("re: there")]
    path = data / "ada" / "s1:clerk" / "s1:clerk" / "runtime" / "messages.json"
    path.write_text(json.dumps(theirs, indent=2))
    run(go_on("there", "back"))

    async def replay():
        async with managing(tmp_path) as manager:
            assert (await manager.turn(ADA, "here", turn_id="here")).is_replay

    run(replay())
    with pytest.raises(InvalidScenario, match="name the directory"):
        list(foreign_sessions(tmp_path / "agents"))


def test_a_session_of_ours_gets_what_the_kode_sdk_needs_to_resume_it(tmp_path, capsys):
    run(three_turns(tmp_path))
    store = tmp_path / "store"
    assert main(["doctor", str(store), "--kode-sdk", "claude-x", "--tools", "note"]) == 0
    assert "wrote meta.json" in capsys.readouterr().out
    meta = json.loads((store / "ada" / "s1:clerk" / "s1:clerk" / "meta.json").read_bytes())
    assert meta["agentId"] == "s1:clerk"
    assert meta["messageCount"] == 6
    assert meta["metadata"] == {
        "templateId": "clerk",
        "tools": [{"source": "registered", "name": "note"}],
        "modelConfig": {"provider": "anthropic", "model": "claude-x"},
    }


def test_an_adoption_without_an_agent_or_over_another_conversation_changes_nothing(
    tmp_path, capsys
):
    base = tmp_path / "kode"
    sdk_session(base, "alone", [user("q"), assistant("a")])
    data = tmp_path / "store"
    adopt = ["adopt", str(base), "--user", "ada", "--data", str(data)]
    assert main(adopt) == 3
    assert "pass --agent" in capsys.readouterr().err
    assert not data.exists()
    assert main([*adopt, "--agent", "clerk"]) == 0
    shutil.rmtree(base)
    sdk_session(base, "alone", [user("other"), assistant("a")])
    assert main([*adopt, "--agent", "clerk"]) == 3
    assert "another conversation" in capsys.readouterr().err

    async def scenario():
        store = JsonStore(data)
        there = await store.peek(SessionKey.of("ada", "clerk", "alone"))
        assert prompts(there) == ["q"]
        await store.aclose()

    run(scenario())
