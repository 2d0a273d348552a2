"""What tests share: their order, signals that arrive, and one PostgreSQL for each worker."""

import gc
import itertools
import signal

import pytest

from kode_lab.errors import PostgresMissing
from kode_lab.testing.postgres import ThrowawayPostgres

_schemas = itertools.count(1)
# These files take longest. They start first, so that no worker is left with one at the end.
_LONGEST = (
    "test_notebooks", "test_loadtests", "test_static", "test_browser", "test_postgres_failures",
    "test_bench", "test_postgres_launcher", "test_target_gates", "test_conformance", "test_cli",
    "test_server_process", "test_server_workers",
)  # fmt: skip

# A shell's background job, and all that it starts, ignores interrupts: then no child of the tests
# could be interrupted either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres():
    """The DSN of a throwaway PostgreSQL server; without its binaries the test is skipped."""
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put the longest files first; the workers take whole files in this order."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish():
    """Keep the collector away from the tests themselves: benches collect before each sample."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    """Print as the very last line how many tests were skipped because there is no PostgreSQL."""
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
