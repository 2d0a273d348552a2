"""What every store promises, as sentences that can be tried on yours.

    from functools import partial
    from kode_lab.testing.conformance import conform

    report = await conform(partial(MyStore, "where/it/rests"))
    assert report.is_conformant, str(report)

``make_store()`` gives a new handle on the *same* storage each time: two handles stand for two
processes. Where it can be pickled, real processes are started too, killed and paused. It needs no
test framework, and writes only to users of its own, whose names begin with ``conformance-``.

    contract    what a contract is, how it is tried, and the report
    scene       what a contract works with: handles, keys, turns
    holding     who holds a session, and when
    keeping     what is written, and what of it is found again
    apart       what belongs to one session only
    dying       holders that are killed, paused, or gone
    child       the process that is killed or paused

Source: claude-agent-sdk lets anyone try their own session store in this way.
"""

from kode_lab.testing.conformance.contract import Contract, Outcome, Report
from kode_lab.testing.conformance.scene import Claims
from kode_lab.testing.conformance.suite import conform, contracts

__all__ = ["Claims", "Contract", "Outcome", "Report", "conform", "contracts"]
