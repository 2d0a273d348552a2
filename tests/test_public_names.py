"""The public door: every listed name exists, is documented, and is loaded only when it is used."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kode_lab

NAMES = sorted(
    module.name
    for module in pkgutil.walk_packages(kode_lab.__path__, "kode_lab.")
    # Targets of frameworks are imported where these are installed.
    if not module.name.endswith("__main__") and ".frameworks." not in module.name
)
# Importing Locust patches the sockets of the whole process: these are imported in a child.
LOCUST = [name for name in NAMES if name.startswith("kode_lab.load")]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LOCUST])
def test_every_listed_name_exists_once_and_is_documented(name):
    check_names(importlib.import_module(name))


def test_every_name_that_needs_locust_exists_and_is_documented():
    here = str(Path(__file__).parent)
    script = (
        f"import sys; sys.path.insert(0, {here!r})\n"
        "from importlib import import_module\nfrom test_public_names import LOCUST, check_names\n"
        "for name in LOCUST: check_names(import_module(name))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def check_names(module):
    name = module.__name__
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    for public in listed:
        assert hasattr(module, public), f"{name}.__all__ lists {public}, which is not there"
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{public}: say in one sentence what it gives"


def test_every_name_of_the_door_opens():
    assert len(kode_lab.__all__) > 10
    for name in kode_lab.__all__:
        assert getattr(kode_lab, name) is not None
    assert set(kode_lab.__all__) <= set(dir(kode_lab))


def test_a_star_import_gives_exactly_the_listed_names():
    script = (
        "before = set(globals())\nfrom kode_lab import *\nimport kode_lab\n"
        "given = set(globals()) - before - {'before', 'kode_lab'}\n"
        "assert given == set(kode_lab.__all__), given ^ set(kode_lab.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match=r"kode_lab has no 'Sesion'; it has .*SessionManager"):
        _ = kode_lab.Sesion


def test_the_version_is_that_of_the_package():
    assert metadata.version("kode_lab") == kode_lab.__version__
