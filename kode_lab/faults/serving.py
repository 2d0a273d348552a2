"""``kode-lab serve-fault NAME``: a server that makes the mistake, for load tests to find.

It opens what ``kode-lab serve`` opens, in the same order, with the fault's parts wrapped around the
real ones, on loopback and in real time. Faults that live in the laboratory's own tools, disks or
conditions cannot be served, and say so.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from kode_lab.claude.client import Claude
from kode_lab.claude.in_process import InProcessClaude
from kode_lab.claude.profile import Profile, profile_of, report_profile
from kode_lab.errors import InvalidScenario
from kode_lab.faults.catalogue import CATALOGUE, Fault, fault_of
from kode_lab.faults.site import Altered, Parts, Site, slow
from kode_lab.faults.virtual_time import Delays
from kode_lab.http import HttpServer
from kode_lab.message import Model
from kode_lab.schedule_assistant import AGENTS, ScheduleBook, toolbox
from kode_lab.server import LiveState, app_of, in_thread
from kode_lab.sessions import AgentShelf, JsonStore, SessionManager, Toolbox

__all__ = ["SERVABLE", "serve_fault", "served"]

_MODEL_CONCURRENCY = 1_000


def _is_servable(fault: Fault) -> bool:
    scenario, parts = fault.scenario, fault.parts
    needs_clients = scenario.is_delegating or scenario.is_streaming or scenario.is_forking
    has_conditions = scenario.processes > 1 or scenario.crash or needs_clients
    return not has_conditions and parts.tools == "right" and parts.disk is Parts().disk


SERVABLE = tuple(name for name, fault in CATALOGUE.items() if _is_servable(fault))


def served(
    fault: Fault, data: Path, tools: Toolbox, model: Model, live_state: LiveState
) -> tuple[SessionManager, JsonStore, Site]:
    """Return a manager with the fault, its store, and the site whose tasks go with it.

    Raises:
        InvalidScenario: the fault needs more than a server.
    """
    if not _is_servable(fault):
        raise InvalidScenario(
            f"{fault.name} needs tools, disks, crashes or processes of the laboratory's own: "
            f"serve one of {', '.join(SERVABLE)}"
        )
    site = Site(0, data, Delays(0), {})
    store = JsonStore(data)
    site.store = fault.parts.store(slow(store, site.io, {}), site)
    manager = site.manager = SessionManager(
        store=site.store,
        agents=fault.parts.agents(AgentShelf(AGENTS, tools), site),
        model=fault.parts.model(model, site),
        trace=live_state.see,
    )
    front = fault.parts.front(manager, site)
    fronted = (
        manager if front is manager else cast("SessionManager", Altered(manager, turn=front.turn))
    )
    return fronted, store, site


def serve_fault(options: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status.

    Raises:
        InvalidScenario: not one fault was named, or it cannot be served.
        PortOccupied: the port is taken.
    """
    fault = fault_of(options.name)
    options.data.mkdir(parents=True, exist_ok=True)
    book = ScheduleBook(options.data / "+schedules.sqlite")
    try:
        asyncio.run(_serve(fault, options, toolbox(book)))
    finally:
        book.close()
    return 0


async def _serve(fault: Fault, options: Namespace, tools: Toolbox) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with AsyncExitStack() as stack:
        model: Model = InProcessClaude(_profile(options.profile))
        if options.model_url is not None:
            model = await stack.enter_async_context(
                Claude(options.model_url, concurrency=_MODEL_CONCURRENCY, retries=2)
            )
        live_state = LiveState(None)
        manager, store, site = served(fault, options.data, tools, model, live_state)
        stack.push_async_callback(site.end_tasks)
        stack.push_async_callback(manager.aclose)
        app = app_of(manager, live_state=live_state, sessions_of=in_thread(store.sessions))
        server = HttpServer(app, port=options.port)
        await stack.enter_async_context(server)
        sys.stdout.write(f"kode-lab serves {server.base_url}, WRONG on purpose: {fault.about}\n")
        sys.stdout.flush()
        await told.wait()
        server.stop_listening()
        await site.end_tasks()


def _profile(choice: str | None) -> Profile:
    if choice == "report":
        return report_profile()
    return Profile() if choice in (None, "instant") else profile_of(Path(str(choice)))
