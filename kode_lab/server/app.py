"""Puts the parts together to one ASGI application: routes, the door, errors in their one shape.

The door stands before every route: the length of the head, whom the request was meant for, who
sent it. It decides nothing about sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kode_lab.errors import KodeLabError
from kode_lab.http import Receive, Scope, Send, check_local_access
from kode_lab.server.auth import ANYBODY, Tokens
from kode_lab.server.live_state import Board
from kode_lab.server.peers import Peers
from kode_lab.server.refusal import Problem, Rejected, problem_of
from kode_lab.server.service import LOG, Limits, Service
from kode_lab.server.session_limit import SessionsOf
from kode_lab.server.turns import Turns
from kode_lab.server.views import Views
from kode_lab.sessions import SessionManager

__all__ = ["app_of"]

_OPEN = ("/", "/healthz", "/readyz", "/openapi.json")
_STATUS_KINDS = {404: "NotFound", 405: "MethodNotAllowed"}
_STATUS_WORDS = {
    404: "there is nothing at this path: /openapi.json tells what there is",
    405: "this path does not take that method: the Allow header tells which",
}


def app_of(
    manager: SessionManager,
    *,
    board: Board | None = None,
    sessions_of: SessionsOf | None = None,
    tokens: Tokens | None = None,
    limits: Limits | None = None,
    is_ready: Callable[[], bool] = lambda: True,
    peers: Peers | None = None,
) -> Starlette:
    """Return the application that serves this manager's sessions.

    Its ``Service`` is ``app.state.service``.

    Args:
        board: where the manager's trace goes, as ``board.see``; without it there are no waits,
            holders and steps to see.
        sessions_of: lists a user's sessions, as ``PostgresStore.sessions`` does; a store that
            blocks is asked ``in_thread``.
        tokens: who may come; None is everybody, by a loopback name.
        limits: what it bears.
        is_ready: whether the store can take turns now.
        peers: the other workers behind the same port.
    """
    service = Service(
        manager,
        board=board,
        sessions_of=sessions_of,
        tokens=tokens,
        limits=limits,
        is_ready=is_ready,
        peers=peers,
    )
    refusal = _Refusal(service)
    app = Starlette(
        routes=_routes(service),
        middleware=[Middleware(_Door, service=service)],
        exception_handlers={
            HTTPException: refusal,
            KodeLabError: refusal,
            Rejected: refusal,
            Exception: refusal,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _routes(service: Service) -> list[Route]:
    views = Views(service)
    session = "/v1/sessions/{userId}/{sessionId}/{agentId}"
    return [
        Route("/v1/turns", Turns(service), methods=["POST"]),
        Route(f"{session}/messages", views.messages),
        Route(f"{session}/state", views.state),
        Route(session, views.delete, methods=["DELETE"]),
        Route("/v1/users/{userId}/sessions", views.sessions),
        Route("/v1/statistics", views.statistics),
        Route("/v1/live", views.live),
        Route("/healthz", views.health),
        Route("/readyz", views.ready),
        Route("/metrics", views.metrics),
        Route("/openapi.json", views.openapi),
        Route("/", views.page),
    ]


class _Door:
    """Checks what every request has to bring."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # As it was sent: an encoded slash is part of an id, not of the path.
        scope["path"] = scope["raw_path"].decode("ascii")
        try:
            # Another worker has measured it already, and asked who comes.
            is_inside = scope["state"].get("is_inside", False)
            if not is_inside:
                has_tokens = self._service.tokens is not None
                refusal = check_local_access(scope["headers"], any_host=has_tokens)
                if refusal is not None:
                    raise Rejected(*refusal[:3])  # noqa: TRY301 - one place to answer
            is_open = is_inside or scope["path"] in _OPEN
            visitor = ANYBODY if is_open else self._service.visitor_of(scope["headers"])
        except Rejected as error:
            await _response(self._service, problem_of(error))(scope, receive, send)
        else:
            scope["state"]["visitor"] = visitor
            await self._app(scope, receive, send)


class _Refusal:
    """What Starlette calls with an exception."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request, error: Exception) -> Response:  # noqa: ARG002
        """Return the answer; the connection discards the rest of the request's body."""
        if isinstance(error, HTTPException):
            status = error.status_code
            problem = Problem(
                status,
                _STATUS_KINDS.get(status, "BadRequest"),
                _STATUS_WORDS.get(status, "the request cannot be used"),
                headers=error.headers or {},
            )
        else:
            problem = problem_of(error)
            if problem.status >= 500 and problem.kind not in ("InternalError", "Draining"):
                LOG.warning("%s: %s", problem.kind, error)
        return _response(self._service, problem)


def _response(service: Service, problem: Problem) -> Response:
    service.board.refuse(problem.kind)
    body = problem.body()
    response = Response(body, status_code=problem.status)
    response.raw_headers = problem.raw_headers(len(body))
    return response
