"""All contracts, in the order in which they are best read, and one call that tries them."""

from __future__ import annotations

from kode_lab.testing.conformance.apart import APART
from kode_lab.testing.conformance.contract import Contract, Report
from kode_lab.testing.conformance.dying import DYING
from kode_lab.testing.conformance.holding import HOLDING
from kode_lab.testing.conformance.persistence import KEEPING
from kode_lab.testing.conformance.scene import Claims, MakeStore

__all__ = ["conform", "contracts"]


def contracts() -> list[Contract]:
    """Return every contract of a store."""
    return [*HOLDING, *KEEPING, *APART, *DYING]


async def conform(make_store: MakeStore, claims: Claims | None = None) -> Report:
    """Try every contract on the store, one after the other.

    Args:
        make_store: gives a new handle on the same storage each time, by itself or awaited. What can
            be pickled (a class with ``functools.partial``, a function of a module) is also tried in
            processes that are killed and paused.
        claims: what the store says of itself.
    """
    return Report(tuple([await contract.check(make_store, claims) for contract in contracts()]))
