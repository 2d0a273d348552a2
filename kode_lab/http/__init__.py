"""HTTP/1.1: the session server, the simulated model API, and the way to a model.

    client       connections to one service: model calls, requests between workers
    server       the listening socket, the open connections, the end in good order
    connection   one connection: parsing, limits, time-outs, pipelining
    exchange     one request and its answer: the receive and send of an ASGI call
    access       the Host and Origin checks of a server without tokens

The seam to the applications is ASGI 3, so any ASGI application can be served. The parser is
httptools (llhttp, the parser of Node.js); everything around it is ours, because each limit here
(head, body, trailers, time, requests sent ahead) would need the internals of uvicorn's protocol.
Nothing here knows sessions, models or the shape of their errors.
"""

from __future__ import annotations

from kode_lab.http.access import check_local_access
from kode_lab.http.exchange import (
    ConnectionLimits,
    DropConnection,
    Receive,
    Refusal,
    Scope,
    Send,
    read_body,
)
from kode_lab.http.server import HttpServer, is_loopback, listening_at, listening_on

__all__ = [
    "ConnectionLimits",
    "DropConnection",
    "HttpServer",
    "Receive",
    "Refusal",
    "Scope",
    "Send",
    "check_local_access",
    "is_loopback",
    "listening_at",
    "listening_on",
    "read_body",
]
