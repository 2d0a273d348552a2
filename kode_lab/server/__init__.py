"""Sessions over HTTP: turns as JSON or as a stream of events, histories, states, figures, a page.

    app          the application: routes and the door before them
    turns        POST /v1/turns;  events  its stream
    views        everything else that is asked for
    body         what a client sent;  refusal  what it is told when there is no reply
    service      what all endpoints share; turns as tasks of their own
    visitor      who asks;  census  how many sessions they have;  board  what goes on
    listener     the socket and the end in good order;  connection  its patience
    ranges       what its options may be
    storage      what sessions rest in;  trace_file  what their steps are written to
    run          ``kode-lab serve``
    workers      several processes behind one port;  place  what one of them is told
    peers        the way to the one whose session it is;  exchange  a connection on that way
    joint        the figures of all of them

The only place that imports a web framework.
"""

from __future__ import annotations

from kode_lab.http import HttpServer
from kode_lab.server.app import app_of
from kode_lab.server.auth import Tokens, tokens_of
from kode_lab.server.live_state import Board
from kode_lab.server.service import Limits, Service
from kode_lab.server.session_limit import in_thread

__all__ = [
    "Board",
    "HttpServer",
    "Limits",
    "Service",
    "Tokens",
    "app_of",
    "in_thread",
    "tokens_of",
]
