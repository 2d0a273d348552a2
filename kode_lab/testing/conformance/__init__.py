"""What every store promises, as sentences that can be tested on yours.

    from functools import partial
    from kode_lab.testing.conformance import conform

    report = await conform(partial(MyStore, "where/it/rests"))
    assert report.is_conformant, str(report)

``make_store()`` returns a new handle on the *same* storage each time: two handles stand for two
processes. Where it can be pickled, real processes are started too, killed and paused. It needs no
test framework, and writes only to users of its own, whose names begin with ``conformance-``.

    scene         a contract, what it works with, and the report
    holding       who holds a session, and when
    persistence   what is written, and what of it is found again
    apart         what belongs to one session only
    late          writes that arrive late, and storage that is set back, moved or copied
    dying         holders that are killed or paused

Source: claude-agent-sdk offers such a suite for session stores of one's own.
"""

from kode_lab.testing.conformance.apart import APART
from kode_lab.testing.conformance.dying import DYING
from kode_lab.testing.conformance.holding import HOLDING
from kode_lab.testing.conformance.late import LATE
from kode_lab.testing.conformance.persistence import PERSISTENCE
from kode_lab.testing.conformance.scene import (
    Claims,
    ConformanceReport,
    Contract,
    ContractResult,
    MakeStore,
)

__all__ = [
    "Claims",
    "ConformanceReport",
    "Contract",
    "ContractResult",
    "MakeStore",
    "conform",
    "contracts",
]


def contracts() -> list[Contract]:
    """Return every contract of a store."""
    return [*HOLDING, *PERSISTENCE, *APART, *LATE, *DYING]


async def conform(make_store: MakeStore, claims: Claims | None = None) -> ConformanceReport:
    """Test every contract on the store, one after the other.

    Args:
        make_store: returns a new handle on the same storage each time, by itself or awaited. One
            that can be pickled (a class with ``functools.partial``, a function of a module) is also
            tested in processes that are killed and paused.
        claims: what the store says of itself.
    """
    results = [await contract.check(make_store, claims) for contract in contracts()]
    return ConformanceReport(tuple(results))
