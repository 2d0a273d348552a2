"""A turn that stops anywhere goes on where it stopped, and happens once.

``every moment`` here means: before each call to the disk, and in the middle of each write at each
of its bytes. What a kill leaves there is written to a new directory, a new manager opens it, and
the client sends its turn again.
"""

import pytest
from house import (
    ADA,
    Clerk,
    FaultyDisk,
    World,
    assert_legal,
    managing,
    prompts,
    run,
)

PLAIN = "hello"
TOOLS = "note:2 thread:1"


async def moments_of(path, prompt, turn_id, *, stride=1, before=("first",)):
    """Give every different state that a kill during the turn can leave, with the world's then."""
    world, found = World(), []
    disk = FaultyDisk(path / "store")

    def remember(*torn):
        image = disk.after_kill(*torn)
        if not found or found[-1][0] != image:
            found.append((image, dict(world.notes), len(world.runs)))

    def hook(call, at_path, change):
        remember()
        if call == "write":
            last = len(change[2]) - 1
            for torn in sorted({1, 2, 3, *range(disk.calls % stride, last, stride), last}):
                remember(at_path, change, torn)

    async with managing(path, world=world, store={"disk": disk}) as manager:
        for number, text in enumerate(before):
            await manager.turn(ADA, text, turn_id=f"before-{number}")
        disk.hook = hook
        reply = await manager.turn(ADA, prompt, turn_id=turn_id)
        disk.hook = None
        remember()
    return disk, found, reply


@pytest.mark.parametrize(("prompt", "stride"), [(PLAIN, 1), (TOOLS, 11)])
def test_a_turn_killed_at_every_moment_and_sent_again_is_there_once_with_its_tools_run_once(
    tmp_path, prompt, stride
):
    async def scenario():
        disk, found, _ = await moments_of(tmp_path, prompt, "t", stride=stride)
        assert len(found) > 100
        for number, (image, notes, _) in enumerate(found):
            world = World()
            world.notes = notes
            there = tmp_path / f"again-{number}"
            disk.restore(image, there / "store")
            async with managing(there, world=world) as manager:
                reply = await manager.turn(ADA, prompt, turn_id="t")
                assert reply.text == f"re: {prompt}"
                messages = await manager.history(ADA)
                assert prompts(messages) == ["first", prompt]
                assert_legal(messages)
                assert sorted(world.notes.values()) == sorted(
                    call.input["text"] for call in reply.tool_calls
                )
                again = await manager.turn(ADA, prompt, turn_id="t")
                assert again.is_replay
                assert again[:5] == reply[:5]
                assert await manager.history(ADA) == messages

    run(scenario(), patience_s=100)


def test_a_turn_killed_at_every_moment_and_never_sent_again_is_closed_and_the_next_one_goes_on(
    tmp_path,
):
    async def scenario():
        disk, found, _ = await moments_of(tmp_path, TOOLS, "t", stride=23)
        for number, (image, *_) in enumerate(found):
            there = tmp_path / f"again-{number}"
            disk.restore(image, there / "store")
            model = Clerk()
            async with managing(there, model, World()) as manager:
                await manager.turn(ADA, "next", turn_id="u")
                messages = await manager.history(ADA)
                assert prompts(messages) in (["first", "next"], ["first", TOOLS, "next"])
                assert_legal(messages)
                assert_legal(model.requests[0].messages[:-1])

    run(scenario(), patience_s=100)
