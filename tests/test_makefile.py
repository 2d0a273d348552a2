"""What make does from a bare clone, as far as it can be seen without installing anything."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.fixture
def clone(tmp_path):
    """A directory with spaces in its name, and in it what make needs."""
    clone = tmp_path / "a bare clone"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(HOUSE / name, clone)
    return clone


def make(clone, *arguments):
    # Without the flags of the make that may be running these tests.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=clone, capture_output=True, text=True, check=False, env=bare
    )


def stamp(clone, name):
    """Mark as installed, after the last change of pyproject.toml."""
    changed_s = (clone / "pyproject.toml").stat().st_mtime
    path = clone / ".venv" / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (changed_s + 10, changed_s + 10))


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_a_python_too_old_or_missing_is_refused_by_name_before_anything_is_made(clone, python):
    ended = make(clone, "reproduce", f"PYTHON={python}")
    assert ended.returncode != 0
    assert f"kode_lab needs Python 3.11 or newer, which '{python}' is not" in ended.stderr
    assert "name one, as in  make reproduce PYTHON=" in ended.stderr
    assert not (clone / ".venv").exists()


def test_what_is_installed_is_not_installed_again(clone):
    stamp(clone, ".installed")
    assert make(clone, "-n", "reproduce", "SPEED=10").stdout == (
        ".venv/bin/python -m kode_lab reproduce --speed 10\n"
    )
    stamp(clone, ".installed-dev")
    assert make(clone, "-n", "test", "ARGS=-k key").stdout.endswith(
        "-m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -k key\n"
    )


def test_a_changed_pyproject_is_installed_anew(clone):
    stamp(clone, ".installed")
    stamp(clone, ".installed-dev")
    changed_s = (clone / "pyproject.toml").stat().st_mtime + 20
    os.utime(clone / "pyproject.toml", (changed_s, changed_s))
    for target, what in (("reproduce", "-e ."), ("test", '-e ".[dev]"'), ("lint", '-e ".[dev]"')):
        assert f" {what}\n" in make(clone, "-n", target).stdout


def test_the_job_s_failure_is_make_s_failure(clone):
    stamp(clone, ".installed")
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho ran: $*\nexit 1\n")
    python.chmod(0o755)
    ended = make(clone, "reproduce")
    assert ended.stdout.startswith("ran: -m kode_lab reproduce --speed 1\n")
    assert ended.returncode != 0


def test_make_alone_tells_what_it_can(clone):
    makefile = (HOUSE / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: help (.*)$", makefile, re.MULTILINE)
    assert [line.split()[1] for line in make(clone).stdout.splitlines()] == targets.split()


def test_the_ci_script_is_sound_and_runs_the_suite():
    script = HOUSE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", script], check=True)
