"""What a target lacks, for its author: each gap with what it costs and how it is closed.

    gaps = asyncio.run(target_gaps(open_target("mine.toml")))

It asks a few turns of two sessions and reads them back; it judges no concurrency. It owns the list
of what a target should be able to do, and must never know how a target is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_lab.history.operation import echo_in, marker_of, markers_in
from kode_lab.key import SessionKey
from kode_lab.targets.target import History, Killable, Startable, Target, outcome_of

__all__ = ["target_gaps"]

_NUMBER = 0xE00000


async def target_gaps(
    target: Target, *, model_url: str = "", is_started: bool = False
) -> list[str]:
    """Return a sentence for each thing that the target lacks; none when all can be judged.

    Args:
        model_url: where its service's model client is to ask, an origin.
        is_started: it was started already, and is not to be stopped.
    """
    if isinstance(target, Startable) and not is_started:
        await target.start(model_url)
        try:
            return await _gaps(target)
        finally:
            await target.stop()
    return await _gaps(target)


async def _gaps(target: Target) -> list[str]:
    declares = target.declaration
    gaps = [
        f"the service is not told the {part}: put {{{part}}} into its request"
        for part in ("user", "session")
        if part not in declares.parts
    ]
    if not isinstance(target, Killable) or not getattr(target, "can_start", True):
        gaps.append("it cannot be killed and started again: G5 (durable) is not judged; give start")
    elif "durable" not in declares.promises:
        gaps.append("it does not promise durable: G5 is not judged; declare durable = true")
    if not declares.is_idempotent:
        gaps.append("a second delivery is not promised to be harmless: declare idempotent = true")
    key = SessionKey("lint-ada", "main", "agent")
    asked: list[str] = []
    for number in range(2):
        marker = marker_of(key, _NUMBER + number)
        answer = await target.turn(key, f"Please remember {marker}", marker[1:])
        outcome = outcome_of(marker, answer, needs_quote=declares.needs_quote)
        if outcome.type != "ok":
            return [f"a turn is not acknowledged: {outcome.error}", *gaps]
        asked.append(marker)
        seen = outcome.read
        if seen is None and echo_in(answer.text) is None:
            told = (
                "its model is not the simulated one: what a turn was shown is not known, so G1 and"
            )
            gaps.append(f"{told} G4 are not judged; point its model URL at {{model_url}}")
            break
        if number and seen is not None and asked[0] not in seen.tail:
            gaps.append("its second turn was not shown the first: is the session's name passed on?")
    gaps += await _history_gaps(target, key, asked)
    return gaps


async def _history_gaps(target: Target, key: SessionKey, asked: Sequence[str]) -> list[str]:
    try:
        told: Any = await target.history(key)
    except Exception as error:  # noqa: BLE001 - it is what the author must see
        return [f"its history cannot be read: {error}"]
    if told is None:
        return ["sessions cannot be read back: G2 and G3 are not judged; describe history"]
    prompts = told.prompts if isinstance(told, History) else told
    found = [marker for prompt in prompts for marker in markers_in(prompt)]
    if [marker for marker in found if marker in asked] != list(asked):
        return [f"its history has {found or 'no markers'} where {list(asked)} were asked"]
    if len(found) > len(asked):
        return ["its history repeats markers: are replies taken for prompts? Give role or pattern"]
    return []
