"""A PostgreSQL of one's own for an hour: for tests, failure runs, and a laptop.

It starts a real server from the binaries that are there and throws its data away at the end. It
knows nothing of sessions, and needs no driver: who talks to the server brings one.
"""

from __future__ import annotations

from kode_lab.testing.postgres.binaries import Binaries, find_binaries
from kode_lab.testing.postgres.throwaway import ThrowawayPostgres

__all__ = ["Binaries", "ThrowawayPostgres", "find_binaries"]
