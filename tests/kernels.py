"""Runs notebooks in a Jupyter kernel, for the tests of the notebooks.

Import it inside a fixture: nbformat takes seconds of CPU to import, and each worker of the suite
imports every file of tests.
"""

from jupyter_client.manager import AsyncKernelManager, start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import read, v4

__all__ = ["CellExecutionError", "in_one_kernel", "notebook_of", "opened", "start_new_kernel", "v4"]

CELL_LIMIT_S = 120


def opened(path):
    return read(path, as_version=4)


def notebook_of(*sources):
    """Return a notebook of code cells, the first of which holds the parameters."""
    cells = [v4.new_code_cell(source) for source in ("", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    return v4.new_notebook(cells=cells)


async def in_one_kernel(jobs):
    """Run notebooks one after another in one kernel; return the outputs of each, or its error.

    A job is a notebook, its parameters and its directory. Each begins with an empty namespace; what
    is imported stays loaded, because importing it costs more than running most notebooks.
    """
    kernel = AsyncKernelManager(kernel_name="python3")
    await kernel.start_kernel()
    try:
        return [await _outcome(kernel, *job) for job in jobs]
    finally:
        await kernel.shutdown_kernel(now=True)


async def _outcome(kernel, notebook, parameters, directory):
    at = next(n for n, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ()))
    notebook.cells.insert(at + 1, v4.new_code_cell(parameters))
    notebook.cells.insert(
        0, v4.new_code_cell(f"import gc; gc.freeze()\n%reset -f\n%cd -q {directory}")
    )
    client = NotebookClient(notebook, km=kernel, timeout=CELL_LIMIT_S)
    try:
        await client.async_execute()
    except (CellExecutionError, CellTimeoutError) as error:
        return error
    finally:
        client.kc.stop_channels()
    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    said = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return outputs if not said else AssertionError(f"wrote to stderr: {said}")
