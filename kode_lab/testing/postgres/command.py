"""``kode-lab postgres``: a server for a laptop, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from kode_lab.errors import StoreUnreachable
from kode_lab.testing.postgres.throwaway import ThrowawayPostgres

__all__ = ["run_postgres"]

_LOOK_S = 0.5


def run_postgres(options: argparse.Namespace) -> int:
    """Start a server, print its DSN, and stop it with SIGINT or SIGTERM.

    Args:
        options: ``port`` or None; ``data`` or None.

    Raises:
        StoreUnreachable: it ended by itself.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with ThrowawayPostgres(port=options.port, data=options.data) as server:
        dsn = server.dsn if options.port is None else server.tcp_dsn()
        sys.stdout.write(f"{dsn}\n")
        sys.stdout.flush()
        fate = f"stays in {options.data}" if options.data else "is deleted at the end"
        sys.stderr.write(
            f"PostgreSQL {server.binaries.version} runs until Ctrl-C; what is stored {fate}.\n"
            f"Use it:  kode-lab serve --store '{dsn}'\n"
        )
        while not ended.wait(_LOOK_S):
            if not server.is_running:
                raise StoreUnreachable(f"PostgreSQL ended by itself: {server.log[-600:]}")
    return 0
