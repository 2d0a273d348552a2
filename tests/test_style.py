"""The style page as a test: size, names, prologues, values, and honest tests."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
LINE_LIMIT_COLUMNS = 100
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core", "types"}
# What a class may be built on: values, protocols, and the generic form of either.
VALUE_BASES = {
    "Value",  # of lab.scenario: a frozen BaseModel
    *("Fields", "HttpRequest", "Condition"),  # of targets.description: the same
    *("_Wire", "SessionName"),  # of server.schemas: a BaseModel with names in camelCase
    *("WireFormat", "OpenAiFormat"),  # of claude.formats: a Protocol, with what formats share
    *("Witness",),  # of claude.records: a Protocol, with the questions that two servers answer
    "ModuleType",
    "BaseModel",
    "Struct",
    "MutableSequence",
    "NamedTuple",
    "Protocol",
    "Generic",
    "TypedDict",
    "Enum",
    "StrEnum",
    "IntEnum",
}
SIGNAL_BASES = {"Exception", "BaseException", "KeyboardInterrupt"}
# Locust finds its users and shapes by their class; there is no other way in.
LOCUST_BASES = {"User", "HttpUser", "FastHttpUser", "LoadTestShape", "SessionUser", "ToolUser"}


class Source:
    """A file of the house, read and parsed once."""

    def __init__(self, path, root):
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.all_nodes = list(ast.walk(self.tree))

    def nodes(self, *kinds):
        return (node for node in self.all_nodes if isinstance(node, kinds))


@cache
def sources(root, *places):
    return [Source(path, root) for place in places for path in sorted((root / place).rglob("*.py"))]


# --- rules: each gives its complaints about one file, with what to do ------------------------


def has_short_lines(source):
    """A line is not wider than the page."""
    for number, line in enumerate(source.text.split("\n"), 1):
        if len(line) <= LINE_LIMIT_COLUMNS:
            continue
        # As ruff: an address cannot be broken, and a word to a tool is not for reading.
        shown = re.sub(r"\s*# (noqa|type|fmt|pragma)\b.*", "", line)
        if len(shown) > LINE_LIMIT_COLUMNS and "://" not in shown:
            yield f"{source.name}:{number}: {len(line)} columns: break the line"


def is_named_by_a_noun(source):
    """A module is named for what it holds."""
    for part in Path(source.name).with_suffix("").parts:
        if part.strip("_") in BANNED_NAMES:
            yield f"{source.name}: {part!r} says nothing: name it for what it holds"


def has_a_prologue(source):
    """A file opens by saying what it owns."""
    prologue = ast.get_docstring(source.tree) or ""
    if len(prologue.split()) < 5:
        yield f"{source.name}: begin with a docstring that says what the file owns"


def names_its_door(source):
    """Public names are listed."""
    if source.name.endswith("__main__.py"):
        return
    public = [
        node.name
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    ]
    listed = [
        node
        for node in source.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" in ast.unparse(node)
    ]
    if public and not listed:
        yield f"{source.name}: list {', '.join(public)} in __all__, or make them private"


def inherits_nothing(source):
    """No inheritance but values, protocols and exceptions."""
    for node in source.nodes(ast.ClassDef):
        for keyword in node.keywords:
            if keyword.arg == "metaclass":
                yield f"{source.name}:{node.lineno}: {node.name}: no metaclasses: write a function"
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            if name in LOCUST_BASES and source.name.startswith(("loadtests/", "kode_lab/load/")):
                continue
            if name in VALUE_BASES | SIGNAL_BASES or source.name.endswith("kode_lab/errors.py"):
                continue
            yield (
                f"{source.name}:{node.lineno}: {node.name} inherits from {name}: hold one instead; "
                "an error belongs in errors.py"
            )


def slots_its_values(source):
    """A dataclass has slots: a misspelled field is an error, and a million of them fit."""
    for node in source.nodes(ast.ClassDef):
        for decorator in map(ast.unparse, node.decorator_list):
            is_dataclass = re.match(r"(dataclasses\.)?dataclass\b", decorator)
            if is_dataclass and "slots=True" not in decorator:
                yield f"{source.name}:{node.lineno}: {node.name}: write @dataclass(slots=True, ...)"


def never_mocks(source):
    """Tests use real parts."""
    for node in source.nodes(ast.Import, ast.ImportFrom):
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]:
            if name and re.search(r"\bmock\b|^pytest_mock", name):
                yield f"{source.name}:{node.lineno}: no mocks: use the real part or a working one"
    for node in source.nodes(ast.Attribute):
        if ast.unparse(node) in ("monkeypatch.setattr", "monkeypatch.setitem"):
            yield f"{source.name}:{node.lineno}: no patching of behaviour: hand the part in"
    for node in source.nodes(ast.arg):
        if node.arg == "mocker":
            yield f"{source.name}:{node.lineno}: no mocks: use the real part or a working one"


def waits_for_states(source):
    """Tests wait for a state, never for a time; a pause while asking again for one is fine."""
    polls = set()
    for loop in source.nodes(ast.While):
        if not isinstance(loop.test, ast.Constant):
            polls.update(map(id, ast.walk(loop)))
    for node in source.nodes(ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "sleep" and node.args and id(node) not in polls:
            duration = node.args[0]
            if not (isinstance(duration, ast.Constant) and duration.value == 0):
                yield f"{source.name}:{node.lineno}: a sleep proves nothing: wait for a state"


def has_sentences_for_names(source):
    """A test says by its name what is true when it passes."""
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        words = node.name.split("_")
        if words[0] == "test" and len(words) < 4 and not ast.get_docstring(node):
            yield f"{source.name}:{node.lineno}: {node.name}: say what is true when it passes"


OF_THE_PACKAGE = (
    has_short_lines,
    is_named_by_a_noun,
    has_a_prologue,
    names_its_door,
    inherits_nothing,
    slots_its_values,
)
OF_THE_TESTS = (
    has_short_lines,
    is_named_by_a_noun,
    has_a_prologue,
    never_mocks,
    waits_for_states,
    has_sentences_for_names,
)


def nothing_of(complaints):
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("rule", OF_THE_PACKAGE, ids=lambda rule: rule.__doc__)
def test_every_file_of_the_package_keeps(rule):
    files = sources(HOUSE, "kode_lab", "loadtests")
    assert len(files) > 20
    nothing_of([complaint for source in files for complaint in rule(source)])


@pytest.mark.parametrize("rule", OF_THE_TESTS, ids=lambda rule: rule.__doc__)
def test_every_test_file_keeps(rule):
    files = sources(HOUSE, "tests")
    assert len(files) > 10
    nothing_of([complaint for source in files for complaint in rule(source)])


# --- the text of every file ------------------------------------------------------------------

TEXT = (".py", ".md", ".toml", ".ipynb", ".html", ".json", ".jsonl", ".svg", ".cfg", ".txt", ".sql")
SKIPPED = {".git", ".venv", "__pycache__", ".hypothesis", "node_modules", "build", "dist"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|home|root|Users|mnt)/\w+|[A-Z]:\\\\?Users\\")
REGISTRY_HOST = re.compile(r"\b(?:artifactory|nexus|devpi|proxpi)\b|index-url", re.IGNORECASE)


def texts(root):
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint(parts) and not any(
            part.endswith(("_cache", ".egg-info")) for part in parts
        ):
            # Runs are not committed; what is in results/reference and its neighbours is.
            is_run = len(parts) > 2 and parts[0] == "results" and "-" in parts[1]
            is_text = path.suffix in TEXT or path.name in ("Makefile", "run")
            if path.is_file() and is_text and not is_run:
                yield path


def machine_traces(root):
    for path in texts(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for pattern in (MACHINE_PATH, REGISTRY_HOST):
                if found := pattern.search(line):
                    where = f"{path.relative_to(root)}:{number}"
                    yield f"{where}: {found[0]!r} is of one machine: write what is true anywhere"


def test_no_file_holds_the_trace_of_one_machine():
    own = f"tests/{Path(__file__).name}:"
    nothing_of([trace for trace in machine_traces(HOUSE) if not trace.startswith(own)])


# --- the rules themselves --------------------------------------------------------------------

PROLOGUE = '"""Owns what a good file owns."""\n'


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (has_short_lines, "#" * 101, "#" * 100),
        (has_short_lines, "x" * 101 + "  # noqa: E501", "x" * 100 + "  # noqa: E501 - so it is"),
        (has_short_lines, "#" * 101 + ":", "# https://" + "x" * 100),
        (has_a_prologue, "x = 1", PROLOGUE),
        (has_a_prologue, '"""."""', PROLOGUE),
        (names_its_door, "def f(): ...", "def _f(): ..."),
        (names_its_door, "class C: ...", "__all__ = ['C']\nclass C: ..."),
        (inherits_nothing, "class A(B): ...", "class A(Protocol): ..."),
        (inherits_nothing, "class A(kode.Manager[int]): ...", "class A(typing.Generic[T]): ..."),
        (inherits_nothing, "class A(ValueError): ...", "class _Signal(Exception): ..."),
        (inherits_nothing, "class A(metaclass=M): ...", "class A(NamedTuple): ..."),
        (slots_its_values, "@dataclass\nclass A: ...", "@dataclass(slots=True)\nclass A: ..."),
        (slots_its_values, "@dataclasses.dataclass(frozen=True)\nclass A: ...", "class A: ..."),
        (never_mocks, "from unittest import mock", "import json"),
        (never_mocks, "from unittest.mock import Mock", "from kode_lab.key import SessionKey"),
        (never_mocks, "def test_a(mocker): ...", "def test_a(tmp_path): ..."),
        (never_mocks, "monkeypatch.setattr(a, 'b', c)", "monkeypatch.setenv('A', 'b')"),
        (waits_for_states, "time.sleep(0.1)", "time.sleep(0)"),
        (waits_for_states, "await asyncio.sleep(DELAY_S)", "await asyncio.sleep(0)"),
        (waits_for_states, "while True:\n    sleep(1)", "while not done():\n    sleep(0.001)"),
        (has_sentences_for_names, "def test_turn(): ...", "def test_turns_are_kept(): ..."),
        (has_sentences_for_names, "def test_a_b(): ...", "def test_x():\n    'One is kept.'"),
    ],
)  # fmt: skip
def test_each_rule_sees_its_breach_and_spares_its_neighbour(tmp_path, rule, bad, good):
    for content, is_bad in ((bad, True), (good, False)):
        path = tmp_path / "room.py"
        path.write_text(content)
        assert bool(list(rule(Source(path, tmp_path)))) == is_bad


@pytest.mark.parametrize("name", ["utils.py", "core/a.py", "_helpers.py", "sessions/types.py"])
def test_a_name_that_says_nothing_is_seen_wherever_it_is(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert list(is_named_by_a_noun(Source(path, tmp_path)))


def test_the_trace_of_a_machine_is_seen_in_any_text(tmp_path):
    for name, line in {
        "a.py": "open('/" + "home/ada/x')",
        "b.md": "see /" + "root/notes",
        "c.ipynb": '"/' + 'work/main/x"',
        "Makefile": "pip install --index" + "-url x",
        "d.toml": "C:\\" + "Users\\ada",
    }.items():
        (tmp_path / name).write_text(line)
    (tmp_path / "fine.md").write_text("https://example.org/home/ada ~/x ./work/x")
    assert len(list(machine_traces(tmp_path))) == 5
