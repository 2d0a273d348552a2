"""What belongs to one session only: keys that look alike are different sessions."""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.testing.conformance.scene import Contract, Scene, demand

__all__ = ["APART"]

_LONG = "l" * 5_000
# (end of the user id, session id): each is another userId:sessionId than all others.
_ALIKE = (
    ("", "a"), ("", "A"), ("", "a "), ("", " a"), ("", "a."), ("", "a\0"), ("", "a%00"), ("", "á"),
    ("", "a\u0301"), ("", "ａ"), ("", "ä"), ("", "ae"), ("", "i"), ("", "I"), ("", "İ"), ("", "ı"),
    ("", "ß"), ("", "ss"), ("", "."), ("", ".."), ("", "../a"), ("", "a/b"), ("", "a%2fb"),
    ("", "a\\b"), ("", "*"), ("", "%"), ("", "_"), ("", "a'b"), ("", 'a"b'), ("", "b:c"),
    (":b", "c"), ("%3ab", "c"), (":", "b:c"), ("A", "a"), ("a", "a"), ("", "nul"), ("", "0"),
    ("", "00"), ("", "null"), ("", "\U0001f600"), ("", _LONG + "1"), ("", _LONG + "2"),
)  # fmt: skip


# Names that stores confuse: an id cut at a comma, a search that folds case or takes words apart,
# two texts with one MD5. Each is (end of the user id, session id, agent id).
_MD5 = "TEXTCOLLBYfGiJUETHQ4h{}cKSMd5zYpgqf1YRDhkmxHkhPWptrkoyz28wnI9V0aHeAuaKnak"
_NAMES = ("a", "A", "a,b", "a,c", "b,a", "a-b", "a-c", "b-a", "a b", "a c", "b a", "a_b", "a.b")
_CONFUSED = (
    *((f",{name}", "s", "a") for name in _NAMES),
    *((f"-{name}", "s", "a") for name in _NAMES),
    *((f" {name}", "s", "a") for name in _NAMES),
    *(("", name, "a") for name in _NAMES),
    *(("", "s", name) for name in _NAMES),
    *((_MD5.format(letter), "s", "a") for letter in "AE"),
    *(("", _MD5.format(letter), "a") for letter in "AE"),
)


async def _confused(scene: Scene) -> None:
    store = await scene.store()
    keys = [SessionKey.of(f"{scene.name}{u}", agent, session) for u, session, agent in _CONFUSED]
    for number, key in enumerate(keys):
        demand(await store.peek(key) == [], f"a session shows another one's messages: {key!r:.80}")
        await scene.append(store, key, f"t{number}")
    async with scene.held(store, keys[1]) as (lease, _):
        await store.delete(lease)
    store = await scene.reopened(store)
    for number, key in enumerate(keys):
        wanted = [] if number == 1 else [f"t{number}"]
        scene.expect((await scene.stored(store, key)).messages, wanted)
        scene.expect(await store.peek(key), wanted)
    held = [await scene.hold(store, key, 0) for key in keys[: 3 * len(_NAMES)]]
    for lease in held:
        store.release(lease)


async def _alike(scene: Scene) -> None:
    store = await scene.store()
    keys = [SessionKey.of(f"{scene.name}{user}", "a", session) for user, session in _ALIKE]
    leases = [await scene.hold(store, key, 0) for key in keys]  # their locks are apart
    for number, lease in enumerate(leases):
        await store.load(lease)
        await store.append(lease, *scene.turn(f"t{number}"))
        store.release(lease)
    store = await scene.reopened(store)
    for number, key in enumerate(keys):
        scene.expect((await scene.stored(store, key)).messages, [f"t{number}"])
        scene.expect(await store.peek(key), [f"t{number}"])


async def _agents(scene: Scene) -> None:
    store = await scene.store()
    keys = [scene.key("s", agent) for agent in ("a", "A", "a:s", "s", "s:a", "á", "a\u0301")]
    for number, key in enumerate(keys):
        await scene.append(store, key, f"t{number}")
    async with scene.held(store, keys[0]) as (lease, _):
        await store.delete(lease)
    other = await scene.perhaps_another(store)
    for number, key in enumerate(keys[1:], 1):
        scene.expect((await scene.stored(other, key)).messages, [f"t{number}"])
    gone = await scene.stored(other, keys[0])
    demand(gone.messages == [], "one agent's conversation was deleted and is still there")


APART = (
    Contract("Sessions whose ids look alike hold different locks and messages.", _alike),
    Contract("Names with commas, hyphens, blanks or another case are not confused.", _confused),
    Contract("Each agent of a session has a conversation of its own.", _agents),
)
