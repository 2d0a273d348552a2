"""The README: its programs run, and its figures are those of the committed reference run."""

import io
import re
from pathlib import Path

from rich.console import Console

from kode_lab.cli import main
from kode_lab.lab.records import Run
from kode_lab.reports.claims import claims_of
from kode_lab.reports.evidence import evidence_of
from kode_lab.reports.summary import finding, print_summary

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROGRAMS = [body for language, body in BLOCKS if language == "python"]
SHOWN = [body for language, body in BLOCKS if not language]


def judged_reference():
    run = Run.load(ROOT / "results" / "reference")
    return run, [claim for evidence in evidence_of(run) for claim in claims_of(evidence)]


def test_the_ten_lines_run_and_print_what_the_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(PROGRAMS[0], {"__name__": "__main__"})
    out, err = capsys.readouterr()
    assert f"It prints `{out.strip()}`" in README
    assert err == ""


def test_the_run_that_fails_prints_the_witness_that_the_readme_shows(capsys):
    assert main(["faults", "no-lock", "--shrink"]) == 0
    (shown,) = (block for block in SHOWN if block.startswith("FAIL"))
    assert set(shown.splitlines()) <= set(capsys.readouterr().out.splitlines())


def test_the_reference_run_holds_and_prints_the_readmes_table():
    run, claims = judged_reference()
    assert finding(claims).startswith("PASS")
    page = io.StringIO()
    print_summary(run, claims, Console(file=page, width=100, highlight=False))
    printed = {line.rstrip() for line in page.getvalue().splitlines()}
    (table,) = (block for block in SHOWN if block.startswith("claim"))
    assert set(table.splitlines()) <= printed


def test_the_reference_run_was_made_at_the_reports_speed_by_a_known_commit():
    run, _ = judged_reference()
    assert run.parameters["speed"] == 1
    assert run.facts["command"] == "kode-lab reproduce"
    assert run.facts["commit"]["is_dirty"] is False


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
