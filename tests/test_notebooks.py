"""The notebooks: committed without outputs, shaped alike, and true when they are run."""

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from kode_lab.lab.records import Run

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
CELLS_LIMIT = 20


# Beside the speed: less of everything.
SMALLER = {
    "02-two-creates": "USERS = 10",
    "03-same-session": "SPEED = 5.0",  # the second click must meet the first
    "06-how-many": "SESSIONS = [4, 16, 64]",
    "07-kill-9": "KILLS = 2",
    "08-locust": "USERS, SECONDS, FAULT = 30, 4, ''",
    "09-two-servers": "SPEED = 1.0",  # a pause must meet a turn
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


def executed(notebook, parameters, directory):
    """Return the outputs of the notebook run to its end with other parameters."""
    return asyncio.run(ran(notebook, parameters, directory))


async def ran(notebook, parameters, directory):
    """Run it to its end, its parameters set anew after their cell; stderr must stay clean."""
    at = next(n for n, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ()))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(parameters))
    resources = {"metadata": {"path": directory}}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources)
    await client.async_execute()
    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    return outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean_and_in_shape(path):
    assert problems_of(nbformat.read(path, as_version=4)) == []


@pytest.fixture(scope="module")
def all_ran(tmp_path_factory):
    """What came of every notebook, by its path; two run at a time, for a kernel mostly waits."""
    two = asyncio.Semaphore(2)

    async def run(path):
        async with two:
            here = tmp_path_factory.mktemp(path.stem)
            notebook = nbformat.read(path, as_version=4)
            return await ran(notebook, quick(here / "results", path.stem), here)

    async def run_all():
        return await asyncio.gather(*map(run, NOTEBOOKS), return_exceptions=True)

    return dict(zip(NOTEBOOKS, asyncio.run(run_all()), strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_with_clean_stderr(path, all_ran):
    outputs = all_ran[path]
    if isinstance(outputs, CellExecutionError) and "PostgresMissing" in str(outputs):
        pytest.skip("needs PostgreSQL: there is none here")
    if isinstance(outputs, BaseException):
        raise outputs
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds


def test_there_are_notebooks_to_test():
    numbers = [path.stem[:2] for path in NOTEBOOKS[:-1]]
    assert numbers == [f"{number:02d}" for number in range(len(numbers))]
    assert len(numbers) >= 8
    assert NOTEBOOKS[-1].stem == "template"


def test_the_checks_see_a_notebook_that_is_out_of_shape():
    cells = [nbformat.v4.new_code_cell("asyncio.run(main())") for _ in range(CELLS_LIMIT + 1)]
    cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="1")]
    found = " ".join(problems_of(nbformat.v4.new_notebook(cells=cells)))
    for word in ("outputs", "CELLS_LIMIT", "question", "parameters", "Now try", "assert", "await"):
        assert word in found


def test_the_driver_sees_a_notebook_that_fails_or_complains(tmp_path):
    def notebook(source):
        parameters = nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]})
        return nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])

    with pytest.raises(CellExecutionError, match="the reason"):
        executed(notebook("raise ValueError('the reason')"), "", tmp_path)
    with pytest.raises(AssertionError, match="careful"):
        executed(notebook("import sys; print('careful', file=sys.stderr)"), "", tmp_path)


WORK = """
import asyncio
from kode_lab.lab import start

async def work():
    await asyncio.sleep(0)
    return "came back"

start(work)
"""


def test_a_forgotten_await_and_an_awaited_run_show_themselves_in_a_cell(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("", WORK, "await start(work)")]
    cells[0].metadata["tags"] = ["parameters"]
    outputs = executed(nbformat.v4.new_notebook(cells=cells), "", tmp_path)
    shown, result = (output["data"] for output in outputs)
    assert "<code>await</code>" in shown["text/html"]
    assert result["text/plain"] == "'came back'"


REPRODUCE = """
from kode_lab.reports.reproduce import reproduce
reproduction = await reproduce(results="results")
"""


def test_interrupting_a_cell_stops_the_run_and_keeps_what_there_is(tmp_path):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
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
