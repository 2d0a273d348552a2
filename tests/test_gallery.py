"""The gallery of executed notebooks: it shows what the notebooks say now."""

import json
import re
import shutil
from pathlib import Path

import pytest

from kode_lab.pictures.gallery import hash_in, source_hash

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GALLERY = ROOT / "docs" / "gallery"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_the_notebook_as_it_is(notebook):
    page = GALLERY / f"{notebook.stem}.html"
    assert page.exists(), "make it: python -m kode_lab.pictures.gallery"
    assert hash_in(page) == source_hash(notebook), (
        "the notebook has moved on: python -m kode_lab.pictures.gallery"
    )


def test_every_page_has_its_notebook_and_requests_nothing_from_elsewhere():
    pages = sorted(GALLERY.glob("*.html"))
    assert [page.stem for page in pages] == [notebook.stem for notebook in NOTEBOOKS]
    for page in pages:
        html = page.read_text("utf-8")
        assert not re.search(r"""<(script|link|iframe)[^>]+(src|href)=["']https?:""", html), page
        assert "Traceback" not in html
        assert "/tmp/" not in html, page
        assert "/root/" not in html, page


def test_a_changed_word_changes_the_hash_and_an_output_does_not(tmp_path):
    path = Path(shutil.copy(NOTEBOOKS[0], tmp_path))
    before = source_hash(path)
    notebook = json.loads(path.read_text("utf-8"))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    path.write_text(json.dumps(notebook), "utf-8")
    assert source_hash(path) == before
    code["source"] = [*code["source"], "\n", "more = 1"]
    path.write_text(json.dumps(notebook), "utf-8")
    assert source_hash(path) != before
