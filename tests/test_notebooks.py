"""The notebooks: committed without outputs, shaped alike, and true when they are run."""

import asyncio
import re
from itertools import chain
from pathlib import Path

import pytest

from kode_lab.lab.records import Run

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
CELLS_LIMIT = 20

# Beside the speed: less of everything.
SMALLER = {
    "02-two-creates": "USERS = 10",
    "03-same-session": "SPEED = 5.0",  # the second click must meet the first
    "06-how-many": "SESSIONS = [4, 16, 64]",
    "07-kill-9": "KILLS = 1",
    "08-locust": "USERS, SECONDS, FAULT = 20, 3, ''",
    "09-two-servers": "SPEED, TIMES = 1.0, 1",  # a pause must meet a turn
}


def quick(results, name=""):
    """What a notebook's parameters are in the tests."""
    return f"SPEED = 20.0\nRESULTS = {str(results)!r}\n{SMALLER.get(name, '')}"


def problems_of(notebook):
    """Return what is wrong with a notebook as it lies in the repository."""
    cells = notebook.cells
    found = [
        f"cell {cell.id} has outputs or a count: clear them before you commit"
        for cell in cells
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None)
    ]
    if len(cells) > CELLS_LIMIT:
        found.append(f"{len(cells)} cells: at most CELLS_LIMIT={CELLS_LIMIT}")
    if "?" not in cells[0].source or cells[0].cell_type != "markdown":
        found.append("the first cell asks no question")
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged parameters: one is")
    if not cells[-1].source.startswith("## Now try"):
        found.append("the last cell is not 'Now try'")
    if not any("assert " in cell.source for cell in cells[-3:]):
        found.append("it does not end with an assertion")
    if re.search(r"nest_asyncio|run_nested|asyncio\.run\(", "".join(c.source for c in cells)):
        found.append("it nests loops: write await")
    return found


@pytest.fixture(scope="module")
def kernels():
    import kernels  # noqa: PLC0415 - nbformat takes seconds of CPU

    return kernels


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean_and_in_shape(path, kernels):
    assert problems_of(kernels.opened(path)) == []


@pytest.fixture(scope="module")
def all_ran(tmp_path_factory, kernels):
    """What came of every notebook, by its path, from two kernels: a kernel mostly waits."""

    def job(path):
        here = tmp_path_factory.mktemp(path.stem)
        return kernels.opened(path), quick(here / "results", path.stem), here

    async def run_all():
        shares = NOTEBOOKS[::2], NOTEBOOKS[1::2]
        ran = await asyncio.gather(*(kernels.in_one_kernel(map(job, share)) for share in shares))
        return dict(zip(chain(*shares), chain(*ran), strict=True))

    return asyncio.run(run_all())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_with_clean_stderr(path, all_ran, kernels):
    outputs = all_ran[path]
    if isinstance(outputs, kernels.CellExecutionError) and "PostgresMissing" in str(outputs):
        pytest.skip("needs PostgreSQL: there is none here")
    if isinstance(outputs, Exception):
        raise outputs
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds


def test_there_are_notebooks_to_test():
    numbers = [path.stem[:2] for path in NOTEBOOKS[:-1]]
    assert numbers == [f"{number:02d}" for number in range(len(numbers))]
    assert len(numbers) >= 8
    assert NOTEBOOKS[-1].stem == "template"


def test_the_checks_see_a_notebook_that_is_out_of_shape(kernels):
    notebook = kernels.notebook_of(*["asyncio.run(main())"] * CELLS_LIMIT)
    notebook.cells[0].outputs = [kernels.v4.new_output("stream", name="stdout", text="1")]
    notebook.cells[0].metadata = {}
    found = " ".join(problems_of(notebook))
    for word in ("outputs", "CELLS_LIMIT", "question", "parameters", "Now try", "assert", "await"):
        assert word in found


WORK = """
import asyncio
from kode_lab.lab import start

async def work():
    await asyncio.sleep(0)
    return "came back"

start(work)
"""


def test_the_driver_sees_errors_stderr_and_a_forgotten_await(tmp_path, kernels):
    jobs = [
        (kernels.notebook_of(*sources), "", tmp_path)
        for sources in (
            ("mine = 1", "raise ValueError('the reason')"),
            ("import sys; print('careful', file=sys.stderr)",),
            ("mine",),
            (WORK, "await start(work)"),
        )
    ]
    failed, noisy, cleared, forgotten = asyncio.run(kernels.in_one_kernel(jobs))
    assert "the reason" in str(failed)
    assert "careful" in str(noisy)
    assert "NameError" in str(cleared)  # a notebook sees nothing of the one before it
    shown, result = (output["data"] for output in forgotten)
    assert "<code>await</code>" in shown["text/html"]
    assert result["text/plain"] == "'came back'"


REPRODUCE = """
from kode_lab.reports.reproduce import reproduce
reproduction = await reproduce(results="results")
"""


def test_interrupting_a_cell_stops_the_run_and_keeps_what_there_is(tmp_path, kernels):
    manager, client = kernels.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        asked = client.execute(REPRODUCE)
        html = ""
        while "thinking" not in html:
            content = client.get_iopub_msg(timeout=60)["content"]
            html = content.get("data", {}).get("text/html", "")
        manager.interrupt_kernel()
        # The run at this speed takes 20 s: an answer at all means that it was broken off.
        while (reply := client.get_shell_msg(timeout=15))["parent_header"]["msg_id"] != asked:
            pass
        assert reply["content"]["status"] == "error"
        run = Run.load("latest", tmp_path / "results")
        assert run.status == "interrupted"
        assert {operation.type for operation in run.operations()} == {"info"}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
