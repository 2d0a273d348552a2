"""Everything but turns: histories, states, lists, deletions, figures, health, the page.

Each view is a few lines: check who asks, ask the part that knows, give JSON. Paths are matched as
they were sent, so an id may hold any character, percent-encoded; here they are decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kode_lab.errors import UnknownAgent
from kode_lab.key import SessionKey
from kode_lab.server import openapi, page
from kode_lab.server.auth import Visitor
from kode_lab.server.exchange import Lost
from kode_lab.server.live_state import Ended, Ticket
from kode_lab.server.merged_stats import joint_live, joint_statistics
from kode_lab.server.metrics import CONTENT_TYPE, exposition, labelled
from kode_lab.server.peers import LOST, Carried
from kode_lab.server.refusal import Rejected
from kode_lab.server.service import Service

__all__ = ["Views"]

SHOWN_SESSIONS_LIMIT = 200
SHOWN_WAITING_LIMIT = 20
_NO_STORE = {"cache-control": "no-store"}
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


class Views:
    """The views of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def messages(self, request: Request) -> Response:
        """The conversation as it is saved; it does not wait for turns in flight."""
        key = _own_key(request)
        messages = await self._service.manager.history(key)
        return _json({**key.to_json(), "messages": messages})

    async def state(self, request: Request) -> Response:
        """Who holds the session, who waits, and how its latest turn ended."""
        key = _own_key(request)
        if (answer := await self._at_home(key, request)) is not None:
            return answer
        line = self._service.board.line(key)
        last = self._service.board.last(key)
        return _json(
            {
                **key.to_json(),
                "isHeld": any(ticket.held_s is not None for ticket in line),
                "waiting": sum(ticket.held_s is None for ticket in line),
                # The lock is the session's; its other agents' turns are counted, not named.
                "turns": [_shown(ticket) for ticket in line if ticket.key == key],
                "lastTurn": None if last is None else _told(last),
            }
        )

    async def delete(self, request: Request) -> Response:
        """Forget the conversation, after the turns that came before; forgetting nothing is fine."""
        key = _own_key(request)
        if (answer := await self._at_home(key, request)) is not None:
            return answer
        service = self._service
        # On its own: half a deletion helps nobody, whoever leaves.
        with contextlib.suppress(UnknownAgent):
            await asyncio.shield(service.start(service.manager.delete(key)))
        service.forget(key)
        return Response(status_code=204, headers=_NO_STORE)

    async def sessions(self, request: Request) -> Response:
        """The sessions of a user that rest here."""
        user_id = SessionKey.of(_decoded(request.path_params, "userId"), "-").user_id
        _visitor(request).check_user(user_id)
        census = self._service.census
        keys = [] if census is None else await census.sessions(user_id)
        return _json({"userId": user_id, "sessions": [key.to_json() for key in keys]})

    async def statistics(self, request: Request) -> Response:
        """How much goes on, of the whole server: figures without names."""
        _visitor(request)
        manager = self._service.manager.statistics()
        board = self._service.board
        own = {
            "workers": 1,
            "uptimeS": round(time.monotonic() - board.started_s, 3),
            "isDraining": self._service.is_draining,
            "turnsInFlight": self._service.turns_in_flight,
            "sessionsInFlight": manager.sessions,
            "residents": manager.residents,
            "lock": {
                "held": manager.lock.held,
                "waiting": manager.lock.waiting,
                "longestQueue": manager.lock.longest_queue,
                "handedOver": manager.lock.handed_over,
            },
            "outcomes": board.outcomes,
            "refusals": board.refusals,
        }
        others = await self._others(request)
        return _json(joint_statistics([own, *map(orjson.loads, others.values())]))

    async def live(self, request: Request) -> Response:
        """What the page shows: the busiest sessions by name, and the latest turns."""
        _visitor(request).check_operator()
        board, now_s = self._service.board, time.monotonic()
        lines = sorted(board.lines(), key=len, reverse=True)
        own = {
            "sessions": [_line_shown(line, now_s) for line in lines[:SHOWN_SESSIONS_LIMIT]],
            "notShown": max(0, len(lines) - SHOWN_SESSIONS_LIMIT),
            "recent": [
                {
                    "agoS": round(now_s - ended.ended_s, 3),
                    "waitedS": round(ended.waited_s, 4),
                    "tookS": round(ended.took_s, 4),
                    "outcome": ended.outcome,
                }
                for ended in board.recent
            ],
        }
        others = await self._others(request)
        told = [own, *map(orjson.loads, others.values())]
        return _json(joint_live(told, limit=SHOWN_SESSIONS_LIMIT))

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - Starlette gives it
        """Whether the process answers at all."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002 - Starlette gives it
        """Whether new turns are taken: not while the server drains, or its database is away."""
        if self._service.is_draining:
            raise Rejected(503, "Draining", "the server is shutting down", retry_after_s=5.0)
        if not self._service.is_ready():
            said = "the database does not answer: come again"
            raise Rejected(503, "StoreUnreachable", said, retry_after_s=2.0)
        return _json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """The figures for Prometheus."""
        _visitor(request).check_operator()
        peers = self._service.peers
        carried = 0 if peers is None else peers.carried
        body = exposition(self._service.board, self._service.manager, carried=carried)
        if peers is not None and not request.scope["state"].get("is_inside"):
            others = await self._others(request)
            body = labelled({peers.number: body, **others})
        return Response(body, headers={"content-type": CONTENT_TYPE, **_NO_STORE})

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002 - Starlette gives it
        """What this API takes and gives."""
        document = openapi.document(
            self._service.limits, needs_token=self._service.tokens is not None
        )
        return _json(document)

    async def page(self, request: Request) -> Response:  # noqa: ARG002 - Starlette gives it
        """The live page, without any data: it asks for these itself, with the visitor's token."""
        return Response(page.html(), headers=page.headers())

    async def _at_home(self, key: SessionKey, request: Request) -> Response | None:
        """Return the answer of the worker whose session it is; None where that is this one."""
        peers = self._service.peers
        if peers is None or request.scope["state"].get("is_inside"):
            return None
        carried = Carried(request.method.encode(), request.scope["raw_path"])
        try:
            answer = await peers.ask(key, carried)
        except Lost:
            raise Rejected(*LOST[:3], retry_after_s=LOST.retry_after_s) from None
        if answer is None:
            return None
        response = Response(answer.body, answer.status)
        response.raw_headers = answer.headers
        return response

    async def _others(self, request: Request) -> dict[int, bytes]:
        """Return what the other workers answer to the same question, by their numbers."""
        peers = self._service.peers
        if peers is None or request.scope["state"].get("is_inside"):
            return {}
        return await peers.figures(request.scope["raw_path"])


def _own_key(request: Request) -> SessionKey:
    """Return the session that the path names, if it is the visitor's."""
    ids = request.path_params
    user_id, session_id, agent_id = (
        _decoded(ids, name) for name in ("userId", "sessionId", "agentId")
    )
    key = SessionKey.of(user_id, agent_id, session_id)
    _visitor(request).check_user(key.user_id)
    return key


def _decoded(ids: Mapping[str, str], name: str) -> str:
    text = ids[name]
    if "%" not in text:
        return text
    if _BROKEN_ESCAPE.search(text):
        raise Rejected(400, "BadPath", f"{name} has a % that escapes nothing: write it as %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Rejected(400, "BadPath", f"{name} is not UTF-8, percent-encoded") from None


def _visitor(request: Request) -> Visitor:
    visitor: Visitor = request.scope["state"]["visitor"]
    return visitor


def _shown(ticket: Ticket) -> dict[str, Any]:
    now_s = time.monotonic()
    since_s = ticket.accepted_s if ticket.held_s is None else ticket.held_s
    return {
        "turnId": ticket.turn_id,
        "state": "waiting" if ticket.held_s is None else "running",
        "sinceS": round(now_s - since_s, 3),
        "modelCalls": ticket.asks,
        "toolCalls": ticket.tools,
    }


def _told(ended: Ended) -> dict[str, Any]:
    return {
        "turnId": ended.turn_id,
        "outcome": ended.outcome,
        "agoS": round(time.monotonic() - ended.ended_s, 3),
        "waitedS": round(ended.waited_s, 4),
        "tookS": round(ended.took_s, 4),
    }


def _line_shown(line: tuple[Ticket, ...], now_s: float) -> dict[str, Any]:
    waiting = [ticket for ticket in line if ticket.held_s is None]
    holder = next((ticket for ticket in line if ticket.held_s is not None), None)
    key = line[0].key
    return {
        "userId": key.user_id[:80],
        "sessionId": key.session_id[:80],
        "agentId": (holder or line[0]).key.agent_id[:80],
        "holder": None if holder is None else _shown(holder),
        "waiting": len(waiting),
        "waitedS": [round(now_s - t.accepted_s, 3) for t in waiting[:SHOWN_WAITING_LIMIT]],
    }


def _json(data: object) -> Response:
    return Response(orjson.dumps(data), headers={"content-type": "application/json", **_NO_STORE})
