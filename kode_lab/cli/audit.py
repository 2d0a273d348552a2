"""``kode-lab audit``: a verdict from traces, request logs or transcripts."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kode_lab.errors import InvalidScenario

if TYPE_CHECKING:
    from kode_lab.audit.rules import Finding
    from kode_lab.audit.verdict import AuditVerdict

__all__ = ["add"]

# Judging takes at most this share of the time.
_JUDGING_SHARE = 0.1
_STATUS = {"valid": 0, "invalid": 1, "unknown": 2}


def add(commands: Any) -> None:
    """Add the command ``audit``."""
    command = commands.add_parser(
        "audit", help="judge the model calls in traces or request logs, without a load test"
    )
    option = command.add_argument
    option("files", nargs="*", type=Path, metavar="FILE", help="see docs/audit.md; gzip is fine")
    option("--sessions-per-user", action="store_true", help="two users never share a session here")
    option("--show-words", action="store_true", help="print what users asked in the witnesses")
    option("--json", action="store_true", help="print the verdict as JSON, without words of users")
    option("--page", type=Path, metavar="FILE.html", help="write the verdict as an HTML page, too")
    option("--picture", type=Path, metavar="STEM", help="write STEM.png and STEM.svg, too")
    live = command.add_argument_group("live, until Ctrl-C or SIGTERM")
    live.add_argument("--follow", type=Path, metavar="FILE", help="read on what is appended to it")
    live.add_argument(
        "--listen", type=int, metavar="PORT",
        help="take OTLP over HTTP on loopback (the usual port is 4318); page, /metrics, /summary",
    )  # fmt: skip
    live.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS", help="judge so often (10)"
    )
    command.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> int:
    from kode_lab.audit import audit  # noqa: PLC0415 - --help needs none of it

    is_live = options.follow is not None or options.listen is not None
    if not (options.files or is_live):
        raise InvalidScenario("nothing to audit: name a file, or use --follow or --listen")
    if not options.every >= 0.1:
        raise InvalidScenario(f"--every {options.every} is not valid: choose 0.1 or more seconds")
    if is_live:
        verdict = _watched(options)
    else:
        verdict = audit(*options.files, sessions_per_user=options.sessions_per_user)
    if options.page is not None:
        options.page.write_text(verdict.page(), encoding="utf-8")
    if options.picture is not None:
        verdict.picture().save(options.picture)
    if options.json:
        print(json.dumps(verdict.to_json(), ensure_ascii=False, indent=1))
    else:
        print(verdict.text(show_words=options.show_words))
    return _STATUS[verdict.status]


def _watched(options: argparse.Namespace) -> AuditVerdict:
    """Watch until Ctrl-C or SIGTERM, print each finding once, and return the last verdict."""
    import asyncio  # noqa: PLC0415 - --help of any command would load it

    from kode_lab.audit.live import Receiver, Watch, follow  # noqa: PLC0415
    from kode_lab.audit.verdict import finding_lines  # noqa: PLC0415

    shown = sys.stderr if options.json else sys.stdout

    def tell(finding: Finding) -> None:
        print("\n".join(finding_lines(finding, None)), file=shown, flush=True)

    watch = Watch(sessions_per_user=options.sessions_per_user, on_finding=tell)
    for file in options.files:
        watch.log.read(file)

    async def watched() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        async with AsyncExitStack() as stack:
            if options.listen is not None:
                receiver = await stack.enter_async_context(Receiver(watch, port=options.listen))
                print(
                    f"OTLP/HTTP on {receiver.base_url}; page and metrics there",
                    file=shown,
                    flush=True,
                )
            tasks = []
            if options.follow is not None:
                tasks.append(asyncio.create_task(follow(options.follow, watch, ended)))
            while not ended.is_set():
                began_s = time.monotonic()
                watch.verdict()
                pause_s = max(options.every, (time.monotonic() - began_s) / _JUDGING_SHARE)
                waits = [asyncio.create_task(ended.wait()), *tasks]
                done, _ = await asyncio.wait(
                    waits, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
                )
                waits[0].cancel()
                for task in done & set(tasks):
                    task.result()  # a file that cannot be read ends the watch
            await asyncio.gather(*tasks)

    asyncio.run(watched())
    return watch.verdict(is_last=True)
