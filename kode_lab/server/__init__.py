"""Sessions over HTTP: turns as JSON or as a stream of events, histories, states, figures, a page.

routes       the ASGI application: who may ask, the table of routes, all routes but the turns
turns        POST /v1/turns, as JSON and as a stream that can be resumed
schemas      the JSON of requests and answers; checks of bodies
refusal      the answers without a reply
service      what all routes share; turns as tasks of their own
auth         tokens and the users they stand for
limits       turns, sessions of a user, open files
live_state   what goes on;  metrics  the same for Prometheus
serve        ``kode-lab serve``: opens, serves, drains
workers      several processes behind one port;  peers  the way from one to another
"""

from __future__ import annotations

from typing import Any

from kode_lab.server.auth import Tokens, tokens_of
from kode_lab.server.limits import Limits, in_thread
from kode_lab.server.live_state import LiveState
from kode_lab.server.routes import Application
from kode_lab.server.service import Service
from kode_lab.sessions import SessionManager

__all__ = [
    "Application",
    "Limits",
    "LiveState",
    "Service",
    "Tokens",
    "app_of",
    "in_thread",
    "tokens_of",
]


def app_of(manager: SessionManager, **options: Any) -> Application:
    """Return the application that serves this manager's sessions.

    Args:
        manager: takes the turns.
        options: as ``Service`` takes them. With ``live_state``, whose ``see`` must be the
            manager's trace, waits, holders and steps are shown.
    """
    return Application(Service(manager, **options))
