"""What tests share: signals that arrive, and, dear to start, one PostgreSQL for each process."""

import itertools
import signal

import pytest

from kode_lab.errors import PostgresMissing
from kode_lab.testing.postgres import ThrowawayPostgres

_schemas = itertools.count(1)

# A shell's background job, and all that it starts, ignores interrupts: then nobody that the tests
# start could be interrupted either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres():
    """The DSN of a PostgreSQL server that is thrown away; without binaries the test is skipped."""
    try:
        server = ThrowawayPostgres(settings={"fsync": "off"})
    except PostgresMissing as error:
        pytest.skip(f"needs PostgreSQL: {error}")
    with server:
        yield server.dsn


@pytest.fixture
def postgres_schema(postgres):  # noqa: ARG001 - no name without a server
    """The name of a schema in that server that no other test uses."""
    return f"test_{next(_schemas)}"


def pytest_unconfigure(config):
    """Say as the very last line what was not tried for want of a server: no dot among thousands."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = () if reporter is None else reporter.stats.get("skipped", ())
    number = sum("needs PostgreSQL" in str(report.longrepr) for report in skipped)
    if number:
        reporter.write_line(
            f"NOT TRIED: {number} of the tests need PostgreSQL, and there is none here: "
            "apt install postgresql, or pip install 'kode-lab[postgres-server]'",
            yellow=True,
            bold=True,
        )
