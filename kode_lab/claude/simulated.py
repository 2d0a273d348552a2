"""Runs the simulated model: a real HTTP server on loopback, in the running event loop.

It owns the server's life and who may ask it, nothing of what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kode_lab.claude.api import CONTEXT_LIMIT_TOKENS, SimulatedApi
from kode_lab.claude.fault import Fault, FaultPlan
from kode_lab.claude.formats.seam import REQUEST_LIMIT_BYTES
from kode_lab.claude.profile import Profile, profile_of, report_profile
from kode_lab.claude.records import READS_LIMIT, Records, Witness
from kode_lab.http import ConnectionLimits, HttpServer

if TYPE_CHECKING:
    from argparse import Namespace
    from types import TracebackType

__all__ = ["LIMITS", "SimulatedClaude", "run_simulated", "serve_until_signal"]

# The application refuses a longer body in the words of the client's format; this is the last wall.
LIMITS = ConnectionLimits(body_limit_bytes=2 * REQUEST_LIMIT_BYTES)


class SimulatedClaude(Witness):
    """A simulated Claude: ``async with SimulatedClaude() as claude``, then ``claude.base_url``."""

    def __init__(
        self,
        profile: Profile | None = None,
        port: int = 0,
        *,
        speed: float | None = None,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        api_key: str | None = None,
        today: date | None = None,
        salt: str | None = None,
        reads_limit: int = READS_LIMIT,
        context_limit_tokens: int = CONTEXT_LIMIT_TOKENS,
    ) -> None:
        """Set it up; nothing is opened before ``async with``.

        Args:
            profile: how long it takes; None takes no time.
            port: 0 is any free one.
            speed: instead of the profile's own.
            faults: what goes wrong, first fitting first.
            seed: of the faults' shares.
            api_key: the only accepted key; None accepts any.
            today: what "today" means; None is the calendar's.
            salt: makes ids unique beyond this server; None is drawn anew each time.
            reads_limit: how many turns are remembered; older ones are forgotten.
            context_limit_tokens: a longer conversation is refused.
        """
        profile = profile or Profile()
        self._records = Records(reads_limit)
        self._faults = FaultPlan(faults, seed=seed)
        self._api = SimulatedApi(
            profile if speed is None else profile.at(speed),
            self._faults,
            self._records,
            salt=os.urandom(4).hex() if salt is None else salt,
            api_key=api_key,
            today=today,
            context_limit_tokens=context_limit_tokens,
        )
        self._server = HttpServer(self._api, port=port, limits=LIMITS)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            PortOccupied: another process listens on the port.
            InvalidScenario: the port is not valid, or may not be used.
        """
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop at once: clients that still wait for an answer lose their connection."""
        await self._server.__aexit__(kind, error, traceback)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def base_url(self) -> str:
        """What a client is given as ``base_url``."""
        return self._server.base_url

    @property
    def profile(self) -> Profile:
        """How long it takes."""
        return self._api.profile

    def arm(self, fault: Fault) -> None:
        """Let something go wrong from now on, after what is armed already."""
        self._faults.arm(fault)

    def disarm(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()


def run_simulated(args: Namespace) -> int:
    """Serve until interrupted or terminated: ``kode-lab simulate``.

    Args:
        args: ``port`` (0 is any), ``speed``, ``profile`` (``report``, ``instant`` or a TOML file),
            ``context_limit`` in tokens.

    Raises:
        PortOccupied: another process listens on the port.
        InvalidScenario: the profile or the port cannot be used.
    """
    choice = args.profile or "report"
    if choice == "report":
        profile = report_profile()
    else:
        profile = Profile() if choice == "instant" else profile_of(Path(choice))
    limit = getattr(args, "context_limit", None) or CONTEXT_LIMIT_TOKENS
    simulated = SimulatedClaude(profile, args.port, speed=args.speed, context_limit_tokens=limit)

    async def serve() -> None:
        async with simulated:
            url = simulated.base_url
            await serve_until_signal(
                f"simulated model on {url} at speed {simulated.profile.speed:g}; "
                f"clients: ANTHROPIC_BASE_URL={url}, OPENAI_BASE_URL={url}/v1 or "
                f"GOOGLE_GEMINI_BASE_URL={url}, and any key; Ctrl-C ends it\n"
            )

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())
    return 0


async def serve_until_signal(said: str) -> None:
    """Print a line, and wait until the process is interrupted or terminated."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, over.set)
    sys.stdout.write(said)
    sys.stdout.flush()
    await over.wait()


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - optional, and only here
    except ImportError:
        return None
    return uvloop.new_event_loop
