"""``kode-lab adopt``: take over sessions of the Kode SDK, and let it resume ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kode_lab.errors import InvalidScenario

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command ``adopt``."""
    command = commands.add_parser(
        "adopt",
        help="take over sessions of the Kode SDK",
        description="Copies each conversation below DIR into a store, for one user. An agent id "
        "SESSION:AGENT names both; else the agent is --agent, or the template of its meta.json. "
        "The copies get a meta.json, with which the Kode SDK can resume them.",
    )
    command.add_argument("source", metavar="DIR", type=Path, help="a directory of the Kode SDK")
    command.add_argument("--user", required=True, help="whose sessions they become")
    command.add_argument("--data", type=Path, required=True, help="the store's directory")
    command.add_argument("--agent", help="the agent of all of them")
    command.set_defaults(run=_adopt)


def _adopt(options: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415

    return asyncio.run(_adopted(options))


async def _adopted(options: argparse.Namespace) -> int:
    from kode_lab.key import SessionKey  # noqa: PLC0415
    from kode_lab.sessions import JsonStore  # noqa: PLC0415
    from kode_lab.sessions.files.upkeep import foreign_sessions, write_meta  # noqa: PLC0415

    found = []
    for name, directory, messages, meta in foreign_sessions(options.source):
        session, _, agent = name.rpartition(":")
        agent = options.agent or (agent if session else str(meta.get("templateId") or ""))
        if not agent:
            raise InvalidScenario(f"{directory} does not say which agent it is: pass --agent")
        found.append((SessionKey.of(options.user, agent, session or name), messages, meta))
    store = JsonStore(options.data)
    try:
        for key, messages, meta in found:
            lease = await store.hold(key, queue_limit=0)
            try:
                there = (await store.load(lease)).messages
                if not there and messages:
                    await store.fill(lease, messages, ())
                elif there[: len(messages)] != messages:
                    raise InvalidScenario(
                        f"{key}: it has another conversation: delete it, or adopt for another user"
                    )
            finally:
                store.release(lease)
            write_meta(store.directory_of(key), original=meta)
            print(f"{key}: {len(messages)} messages")
    finally:
        await store.aclose()
    return 0
