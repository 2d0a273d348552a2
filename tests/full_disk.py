"""Turns while the disk below PostgreSQL's tables fills up: a program that prints what came of it.

It mounts a small disk, so it needs root and a mount namespace of its own:
``unshare --mount python full_disk.py DIRECTORY``. The disk is gone with the namespace.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
from house import Clerk, managing, prompts

from kode_lab.errors import StoreError
from kode_lab.key import SessionKey
from kode_lab.sessions.postgres.store import PostgresStore
from kode_lab.testing.postgres import ThrowawayPostgres
from kode_lab.testing.postgres.binaries import server_account

BYTES = 20_000
TURNS_LIMIT = 300
QUIET, BUSY = (SessionKey("mia", name, "clerk") for name in ("quiet", "busy"))


def mount(*options):
    """Mount a disk, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", *options], check=True)


async def fill(directory, disk):
    """Fill the disk with turns, give it room again, and say what the clients were told."""
    account = server_account()
    owner = f",uid={account.uid},gid={account.gid}" if account is not None else ""
    mount(f"size=3m,mode=700{owner}", "kode-lab-test", disk)
    with ThrowawayPostgres(settings={"fsync": "off"}) as server:
        admin = await asyncpg.connect(server.dsn)
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        name = await admin.fetchval("SELECT current_database()")
        await admin.execute(f"ALTER DATABASE {name} SET default_tablespace = small")
        await admin.close()
        async with managing(
            directory, Clerk(), store=PostgresStore(server.dsn), agent={"deadline_s": 20}
        ) as manager:
            return await told(manager, lambda: mount("remount,size=64m", disk))


async def told(manager, make_room):
    """Take turns until one is refused, then make room and send that one again."""
    await manager.turn(QUIET, "hello", turn_id="quiet-1")
    acknowledged, refused, dice = [], None, random.Random(1)
    for number in range(TURNS_LIMIT):
        prompt = f"{number} {dice.randbytes(BYTES).hex()}"  # PostgreSQL compresses what repeats
        try:
            await manager.turn(BUSY, prompt, turn_id=f"busy-{number}")
        except StoreError as error:
            refused = (number, prompt, type(error).__name__, str(error))
            break
        acknowledged.append(prompt)
    if refused is None:
        raise RuntimeError(f"the disk took {TURNS_LIMIT} turns")
    number, prompt, kind, said = refused
    quiet, busy = prompts(await manager.history(QUIET)), prompts(await manager.history(BUSY))
    make_room()
    await manager.turn(BUSY, prompt, turn_id=f"busy-{number}")
    await manager.turn(QUIET, "and now?", turn_id="quiet-2")
    return {
        "acknowledged": len(acknowledged),
        "kind": kind,
        "said": said,
        "quiet": quiet,
        "nothing lost while it was full": busy == acknowledged,
        "there once afterwards": prompts(await manager.history(BUSY)) == [*acknowledged, prompt],
        "quiet afterwards": prompts(await manager.history(QUIET)),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:  # PostgreSQL's own account must reach it
        json.dump(asyncio.run(fill(Path(sys.argv[1]), place)), sys.stdout)
        subprocess.run(["umount", place], check=True)
