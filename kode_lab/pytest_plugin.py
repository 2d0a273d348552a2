"""A gate for anybody's CI: ``pytest --kode-lab-target mine.toml``, or the fixture ``judge``.

    def test_sessions_stay_apart(judge):
        judge("mine.toml")                  # fails with the witness when a guarantee is violated

With the option, one more test does the standard battery. It owns pytest's side alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kode_lab.lab.judging import Judged

__all__ = ["judge", "pytest_addoption", "pytest_collection_modifyitems"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("kode-lab", "judge the sessions of agent services")
    group.addoption(
        "--kode-lab-target",
        action="append",
        default=[],
        metavar="TARGET",
        help="do the standard battery to this target: mine.toml, agent.py:chat, a shipped name",
    )
    group.addoption("--kode-lab-results", default="results", help="where its runs go")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each target of the command line."""
    for target in config.getoption("--kode-lab-target"):
        function = _battery_on(target)
        items.append(
            pytest.Function.from_parent(session, name=f"judge[{target}]", callobj=function)
        )


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[..., Judged]:
    """Return a function that does the standard battery to a target and fails on a violation."""
    results = Path(request.config.getoption("--kode-lab-results"))
    return lambda spec, **settings: _judged(spec, results, settings)


def _battery_on(target: str) -> Callable[[Any], None]:
    def test(request: pytest.FixtureRequest) -> None:
        _judged(target, Path(request.config.getoption("--kode-lab-results")), {})

    return test


def _judged(spec: str, results: Path, settings: dict[str, Any]) -> Judged:
    from kode_lab.lab.battery import Settings  # noqa: PLC0415 - only where it is used
    from kode_lab.lab.judging import judge_target  # noqa: PLC0415 - as above

    how = Settings(**settings)
    judged = asyncio.run(judge_target(spec, settings=how, results=results))
    if judged.verdict.status == "invalid":
        pytest.fail(f"{judged.verdict}\n{judged.run.path}", pytrace=False)
    if not judged.verdict.evidence.acknowledged:
        pytest.fail(f"no turn was acknowledged: {judged.first_error}", pytrace=False)
    return judged
