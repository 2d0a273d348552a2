"""docs/api.md names everything that is public, and examples print what their pages say."""

import re
from pathlib import Path

import pytest

import kode_lab

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "api.md").read_text("utf-8")


def test_every_public_name_is_on_the_page():
    named = set(re.findall(r"`(\w+)", PAGE))
    assert set(kode_lab.__all__) - {"__version__"} <= named


@pytest.mark.parametrize("page", ["api.md", "models-and-tools.md", "living-sessions.md"])
def test_every_example_prints_what_the_page_says(tmp_path, monkeypatch, capsys, page):
    pattern = r"(?ms)^```python\n(.*?)^```\n(?:\nIt prints `([^`]*)`)?"
    parts = re.findall(pattern, (DOCS / page).read_text("utf-8"))
    assert all(said for _, said in parts), "say after each example what it prints"
    monkeypatch.chdir(tmp_path)
    exec("\n".join(program for program, _ in parts), {"__name__": "__main__"})
    expected = [said for _, said in parts]
    # A run shows its progress between these lines.
    assert [line for line in capsys.readouterr().out.splitlines() if line in expected] == expected
