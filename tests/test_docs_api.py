"""docs/api.md names everything that is public, and examples print what their pages say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kode_lab

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "api.md").read_text("utf-8")


def test_every_public_name_is_on_the_page():
    named = set(re.findall(r"`(\w+)", PAGE))
    assert set(kode_lab.__all__) - {"__version__"} <= named


@pytest.mark.parametrize("page", ["api.md", "models-and-tools.md"])
def test_every_example_prints_what_the_page_says(tmp_path, page):
    pattern = r"(?ms)^```python\n(.*?)^```\n(?:\nIt prints `([^`]*)`)?"
    parts = re.findall(pattern, (DOCS / page).read_text("utf-8"))
    assert all(said for _, said in parts), "say after each example what it prints"
    program = "\n".join(program for program, _ in parts)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [said for _, said in parts]
    # A run shows its progress between these lines.
    assert [line for line in done.stdout.splitlines() if line in expected] == expected
