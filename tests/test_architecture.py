"""Imports go down only: the table of the architecture, held against every import there is."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent

WORDS = ("errors", "key", "message", "history", "child")
TOWERS = ("sessions", "check", "claude")
OUTSIDE = ("schedule_assistant", "server", "http", "targets")
LABORATORY = ("lab", "reports", "pictures", "faults", "storms", "load", "audit")
EVERYTHING = (*WORDS, *TOWERS, *OUTSIDE, *LABORATORY, "testing", "cli")

# What each package may import of ours. The longest name that fits a module counts.
MAY_IMPORT = {
    # floor 0: the words
    "errors": (),
    "key": ("errors",),
    "message": ("errors",),
    "history": ("errors", "key"),
    "child": (),
    # floor 1: three towers that never meet
    "sessions": WORDS,
    "check": WORDS,
    "claude": (*WORDS, "http"),
    # floor 2: the outside
    "http": WORDS,
    "schedule_assistant": (*WORDS, "sessions"),
    "server": (*WORDS, "sessions", "claude", "http", "schedule_assistant"),
    "targets": (*WORDS, "sessions", "claude", "schedule_assistant"),
    # floor 3: the laboratory
    "lab": (*WORDS, *TOWERS, *OUTSIDE),
    "pictures": (*WORDS, *TOWERS, *OUTSIDE, "lab"),
    "reports": (*WORDS, *TOWERS, *OUTSIDE, "lab", "pictures"),
    "faults": (*WORDS, *TOWERS, *OUTSIDE, "lab"),
    "storms": (*WORDS, *TOWERS, *OUTSIDE, "lab", "faults", "testing"),
    "audit": (*WORDS, "http", "lab", "pictures"),
    # Imported by locustfiles; what starts Locust as a child belongs to the laboratory.
    "load": (*WORDS, "targets", "lab.client", "lab.records", "lab.times"),
    "load.command": (*WORDS, *TOWERS, *OUTSIDE, *LABORATORY),
    "load.fault_table": (*WORDS, *TOWERS, *OUTSIDE, *LABORATORY),
    "load.services": (*WORDS, *TOWERS, *OUTSIDE, *LABORATORY),
    # floor 4: the door
    "pytest_plugin": (*WORDS, "lab"),
    "testing": (*WORDS, "sessions", "targets", "check"),
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
    "": EVERYTHING,
}

# Which places may import what is heavy, patches things, or would tie a package to a vendor.
MAY_USE = {
    "anthropic": ("claude",),
    "pandas": ("lab.tables",),
    "matplotlib": ("pictures",),
    "numpy": ("lab", "pictures", "check"),
    "starlette": (),
    "uvicorn": (),
    "httptools": ("http",),
    "nest_asyncio": ("lab.nested",),
    "pydantic": ("sessions.tool", "server", "targets.description", "lab", "reports"),
    "docstring_parser": ("sessions.tool",),
    "sqlite3": ("schedule_assistant.book", "targets.frameworks"),
    "IPython": ("lab", "pictures"),
    "rich": ("lab", "reports", "cli", "load.command", "load.fault_table", "faults", "storms"),
    "asyncpg": ("sessions.postgres.connection",),
    "psycopg": (),
    # These patch the process that imports them, or are for one way in only.
    "locust": ("load",),
    "gevent": ("load",),
    "requests": (),
    "httpx": (),
    "fastapi": ("targets",),
    "langgraph": ("targets",),
}


def name_of(path, package):
    """``sessions.tool`` for ``<package>/sessions/tool.py``; "" for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, package):
    """Each import of a module: (line, whole dotted name, whether it runs when it is imported)."""
    own = f"{package.name}.{name_of(path, package)}".rstrip(".")
    return imports_in(path.read_text(encoding="utf-8"), own, path.name == "__init__.py")


@cache
def imports_in(text, module, is_package):
    return list(_imports(ast.parse(text), module.split("."), is_package))


def _imports(tree, own, is_package):
    deferred = set()
    nodes = list(ast.walk(tree))
    for node in nodes:
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_typing or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            deferred.update(map(id, ast.walk(node)))
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parent = own if is_package else own[:-1]
                start = parent[: len(parent) - node.level + 1]
            else:
                start = []
            start = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                names = [node.args[0].value]
        for name in names:
            yield node.lineno, name, id(node) not in deferred


def is_in(name, place):
    return name == place or name.startswith(f"{place}.") or place == ""


def wrong_imports(package, may_import, may_use):
    """What breaks the tables, a sentence each."""
    rooms = sorted(may_import, key=len, reverse=True)
    for path in sorted(package.rglob("*.py")):
        here = name_of(path, package)
        room = next((room for room in rooms if room and is_in(here, room)), None)
        if room is None:
            if here != "":
                yield f"{here}: no room of the table: give it its place in MAY_IMPORT"
                continue
            room = ""
        for line, name, _ in imports_of(path, package):
            where = f"{path.relative_to(package.parent)}:{line}"
            top, _, rest = name.partition(".")
            if top == package.name:
                allowed = may_import[room]
                # A room may use itself, and anyone the door, for the version.
                is_own = room != "" and is_in(rest, room)
                if (
                    not is_own
                    and rest not in ("__version__", "")
                    and not any(is_in(rest, other) for other in allowed)
                ):
                    yield f"{where}: {room or 'the door'} must not import {rest}: imports go down"
            elif top in may_use and not any(is_in(here, place) for place in may_use[top]):
                places = ", ".join(may_use[top]) or "no module of this package"
                yield f"{where}: {here or 'the door'} must not import {top}: {places} may"


def knots(package):
    """Rings of modules that import each other when they are imported."""
    paths = {name_of(path, package): path for path in package.rglob("*.py")}
    graph = {}
    for name, path in paths.items():
        found = set()
        for _, whole, is_immediate in imports_of(path, package):
            top, _, rest = whole.partition(".")
            if top == package.name and is_immediate:
                target = rest if rest in paths else rest.rpartition(".")[0]
                found.add(target)
        graph[name] = found - {name}
    reached = {name: set() for name in graph}
    for name, found in reached.items():
        ahead = list(graph[name])
        while ahead:
            if (target := ahead.pop()) not in found:
                found.add(target)
                ahead += graph.get(target, ())
    rings = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in graph
        if name in reached[name]
    }
    return [f"these import each other in a ring: {', '.join(ring)}" for ring in sorted(rings)]


def test_every_import_goes_down_as_the_table_says():
    wrong = list(wrong_imports(HOUSE / "kode_lab", MAY_IMPORT, MAY_USE))
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_modules_import_each_other_in_a_ring():
    assert knots(HOUSE / "kode_lab") == []


def test_load_tests_import_only_keys_and_the_load_package():
    wrong = [
        f"{path.name}:{line}: {name}: load tests may import kode_lab.key and .load"
        for path in sorted((HOUSE / "loadtests").rglob("*.py"))
        for line, name, _ in imports_of(path, HOUSE / "loadtests")
        if name.startswith("kode_lab") and not name.startswith(("kode_lab.load", "kode_lab.key"))
    ]
    assert wrong == []


def test_the_table_names_only_packages_that_exist():
    places = {place for places in MAY_USE.values() for place in places} | set(MAY_IMPORT)
    package = HOUSE / "kode_lab"
    there = {name_of(path, package) for path in package.rglob("*.py")}
    assert places <= there, "take out of the table what is gone"


HEAVY = ("pandas", "matplotlib", "anthropic", "pydantic", "numpy", "uvicorn", "starlette", "rich")


@pytest.mark.parametrize(
    ("module", "light_of"),
    [
        ("kode_lab", (*HEAVY, "asyncio", "orjson", "kode_lab.errors")),
        ("kode_lab.history.operation", (*HEAVY, "asyncio", "orjson")),
        ("kode_lab.sessions", HEAVY),
        ("kode_lab.check", tuple(set(HEAVY) - {"numpy"})),
        ("kode_lab.claude", HEAVY),
        ("kode_lab.schedule_assistant", HEAVY),
        ("kode_lab.cli", HEAVY),
    ],
)
def test_importing_a_room_loads_nothing_heavy(module, light_of):
    script = (
        f"import sys, {module}\n"
        f"print(*[name for name in {light_of!r} if name in sys.modules])\n"
        "assert 'locust' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [], (
        f"import {module} loads these: import them where they are used"
    )


# --- the checker itself ----------------------------------------------------------------------


def small_house(root, files):
    for name, content in files.items():
        path = root / "kode_lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root / "kode_lab"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("sessions/a.py", "import kode_lab.claude", "sessions must not import claude"),
        ("sessions/a.py", "from kode_lab import claude", "sessions must not import claude"),
        ("sessions/a.py", "from kode_lab.claude.wire import x", "must not import claude.wire.x"),
        ("sessions/a.py", "from ..check import x", "sessions must not import check.x"),
        ("sessions/a.py", "from .. import check", "sessions must not import check"),
        ("sessions/__init__.py", "from ..check import x", "sessions must not import check.x"),
        ("sessions/a.py", "def f():\n    import kode_lab.check", "a.py:2: sessions must not"),
        ("sessions/a.py", "if TYPE_CHECKING:\n    import kode_lab.check", "sessions must not"),
        ("sessions/a.py", "import_module('kode_lab.check')", "sessions must not import check"),
        ("sessions/a.py", "importlib.import_module('pandas')", "sessions.a must not import pandas"),
        ("claude/a.py", "import kode_lab.sessions", "claude must not import sessions"),
        ("check/a.py", "import kode_lab.claude", "check must not import claude"),
        ("errors.py", "import kode_lab.key", "errors must not import key"),
        ("key.py", "import kode_lab.message", "key must not import message"),
        ("history/a.py", "import kode_lab.message", "history must not import message"),
        ("schedule_assistant/a.py", "import kode_lab.claude", "must not import claude"),
        ("server/a.py", "import kode_lab.lab", "server must not import lab"),
        ("lab/a.py", "import kode_lab.cli", "lab must not import cli"),
        ("lab/a.py", "import pandas as pd", "lab.tables may"),
        ("lab/a.py", "from matplotlib import pyplot", "pictures may"),
        ("sessions/a.py", "import anthropic.types", "sessions.a must not import anthropic"),
        ("lab/a.py", "import locust", "load may"),
        ("helpers/a.py", "", "helpers.a: no room of the table"),
    ],
)
def test_the_checker_sees_each_breach(tmp_path, name, content, told):
    (complaint,) = wrong_imports(small_house(tmp_path, {name: content}), MAY_IMPORT, MAY_USE)
    assert told in complaint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sessions/a.py", "from kode_lab.key import SessionKey\nfrom kode_lab.sessions.b import c"),
        ("sessions/a.py", "from .b import c\nfrom . import d\nfrom ..key import SessionKey"),
        ("sessions/a.py", "import json\nfrom kode_lab import __version__"),
        ("targets/in_process.py", "import kode_lab.sessions"),
        ("lab/tables.py", "import pandas"),
        ("pictures/lanes.py", "import matplotlib.pyplot"),
        ("cli/run.py", "import kode_lab.lab"),
        ("__init__.py", "import kode_lab.sessions"),
    ],
)
def test_the_checker_allows_what_the_table_allows(tmp_path, name, content):
    assert list(wrong_imports(small_house(tmp_path, {name: content}), MAY_IMPORT, MAY_USE)) == []


def test_the_checker_sees_a_ring_but_not_a_deferred_one(tmp_path):
    ring = {
        "a.py": "from kode_lab.b import x",
        "b.py": "import kode_lab.c",
        "c.py": "from kode_lab import a",
        "d.py": "import kode_lab.a",
    }
    assert knots(small_house(tmp_path, ring)) == ["these import each other in a ring: a, b, c"]
    deferred = ring | {"c.py": "def f():\n    from kode_lab import a"}
    assert knots(small_house(tmp_path, deferred)) == []
