"""A run: the directory that holds all that came of doing an experiment once.

It owns the names and shapes of the files in ``results/<utc>-<name>-<4 hex>/``, the index beside
them, and nothing of what is measured: who runs what, who judges it and who draws it stand
elsewhere. ``run_list`` finds the runs below one directory. A run can be moved, mailed and read by a
stranger, so no file in it may hold an absolute path, a host's or a person's name, or a key.

    run.json      what was done, with what, on what machine, and how it ended; small
    history.jsonl what the clients saw (``history.operation``), each invoke before its request left
    trace.jsonl   what the system did (``kode_lab.history.span``)

The invoke line is written at once. Spans are collected and written in batches, because they are
handed over in the event loop that is being measured.

Idea: Jepsen's ``store/`` (one directory a test, ``latest`` beside them), with a small summary apart
from the large evidence so that nothing has to be read whole.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kode_lab.errors import InvalidRecord, KodeLabError, NewerFormat, StoreUnwritable
from kode_lab.history.operation import HistoryWriter, Operation
from kode_lab.history.reader import lines_of, read_operations
from kode_lab.history.span import Span, read_spans, span_line

if TYPE_CHECKING:
    from kode_lab.check import Verdict

__all__ = ["RESULTS", "SCHEMA", "Run", "RunList", "RunRecorder", "results_directory", "run_list"]

RESULTS = Path("results")
# Instead of the checkout's results/, for runs that Python starts.
RESULTS_VARIABLE = "KODE_LAB_RESULTS"
SCHEMA = 1
# A crash loses at most this many spans; history, the evidence, loses none.
_BATCH_SPANS = 256
# Two runs of one second meet with probability 1/65536; three times in a row they do not.
_NAME_TRIES = 3
# Records of files up to this size are kept: tables, pictures and the page ask for them each.
_KEPT_BYTES = 64 * 1024 * 1024
# These fields of run.json must be objects: displays of a run read them.
_OBJECTS = ("parameters", "summary", "commit", "machine", "versions", "scenario", "clock")
_PACKAGES = ("anthropic", "aiohttp", "uvloop", "httptools", "pandas", "matplotlib")


@lru_cache(maxsize=8)
def _parsed(
    path: Path, reader: Callable[[Iterable[str]], Iterable[Any]], _mtime_ns: int, _size_bytes: int
) -> tuple[Any, ...]:
    """Return the records of a file; once, as long as it does not change."""
    return tuple(reader(lines_of(path)))


def _not_found(which: str | Path, results: Path) -> str:
    for half in (Path(which), results / which):
        if (half / "history.jsonl").is_file():
            return (
                f"{half.name} has no run.json: it was never a run, or its making was cut "
                f"short. Its history can still be judged: kode-lab check {half}"
            )
    known = sorted(p.parent.name for p in results.glob("*/run.json"))[-5:]
    return (
        f"no run {str(which)!r}: neither a directory with a run.json nor an id below "
        f"{results.name}/ (the newest there: {', '.join(known) or 'none'})"
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One recorded run; what is large is read when it is asked for.

    Attributes:
        path: the run's directory.
        facts: the content of ``run.json``.
    """

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def load(cls, which: str | Path = "latest", results: Path | str | None = None) -> Run:
        """Return the run in directory ``which``, or the one of that id below ``results``.

        A history alone (a file of JSON Lines) is a run of which nothing else is known.

        Args:
            results: the directory of all runs; None is ``results_directory()``.

        Raises:
            InvalidRecord: there is no such run, or its ``run.json`` cannot be read.
            NewerFormat: a newer kode_lab wrote it.
        """
        results = results_directory() if results is None else Path(results)
        if Path(which).is_file():
            facts = {"id": Path(which).stem, "status": "complete", "parameters": {}}
            return cls(Path(which).parent, facts | {"history": Path(which).name})
        path = next((p for p in (Path(which), results / which) if (p / "run.json").is_file()), None)
        if path is None:
            raise InvalidRecord(_not_found(which, results))
        if path.is_symlink():  # "latest" is another run tomorrow; this one shall stay what it is
            path = path.parent / path.readlink()
        try:
            facts = json.loads((path / "run.json").read_bytes())
            schema, _ = facts["schema"], (facts["id"], facts["status"], facts["parameters"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidRecord(
                f"run.json of {path.name} cannot be read ({error!r}); history.jsonl and "
                "trace.jsonl beside it may still be good"
            ) from None
        if schema != SCHEMA:
            raise NewerFormat(
                f"run {path.name} has schema {schema}, this kode_lab reads {SCHEMA}: "
                "install the version that wrote it (run.json names it)"
            )
        for name in _OBJECTS:
            if facts.get(name, {}) is None:
                facts[name] = {}
            elif not isinstance(facts.get(name, {}), dict):
                raise InvalidRecord(
                    f"run.json of {path.name}: {name} is {facts[name]!r:.60} and must be an object"
                )
        return cls(path, facts)

    @property
    def id(self) -> str:
        """The name the run was given when it was made."""
        return str(self.facts["id"])

    @property
    def status(self) -> str:
        """``running``, ``complete``, ``interrupted`` or ``crashed``."""
        return str(self.facts["status"])

    @property
    def own_store(self) -> str:
        """The sentence that says why no command repeats it; "" where the store was ours."""
        store = self.facts.get("store")
        return f"this run used a store of its own, {store}: give it in Python" if store else ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What was asked for, as JSON values."""
        parameters: Mapping[str, Any] = self.facts["parameters"]
        return parameters

    @property
    def claimed(self) -> tuple[str, ...] | None:
        """The guarantees that a target under test promised; None claims what the run shows."""
        promises = (self.facts.get("summary") or {}).get("promises")
        return tuple(map(str, promises)) if isinstance(promises, list | tuple) else None

    def operations(self) -> tuple[Operation, ...]:
        """Return what the clients saw, in the order of completion.

        Raises:
            InvalidRecord: a line cannot be read; names it.
        """
        return self._read(self.facts.get("history", "history.jsonl"), read_operations)

    def spans(self) -> tuple[Span, ...]:
        """Return what the system did, in the order in which the steps ended.

        Raises:
            InvalidRecord: a line cannot be read; names it.
        """
        return () if "history" in self.facts else self._read("trace.jsonl", read_spans)

    def verdict(self) -> Verdict:
        """Judge it (again) from its records; needs nothing but the run's directory.

        Raises:
            InvalidRecord: a line cannot be read; names it.
        """
        from kode_lab.check import check_path  # noqa: PLC0415 - a run can be kept without a judge

        return check_path(self.path / self.facts.get("history", ""), self.claimed)

    def _read(self, name: str, reader: Callable[[Iterable[str]], Iterable[Any]]) -> tuple[Any, ...]:
        path = self.path / name
        try:
            status = path.stat()
            if status.st_size > _KEPT_BYTES:
                return _parsed.__wrapped__(path, reader, 0, 0)
            return _parsed(path, reader, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise InvalidRecord(f"{name} of {self.id} cannot be read: {error.strerror}") from None
        except InvalidRecord as error:
            raise InvalidRecord(f"{name} of {self.id}, {error}") from None

    def __repr__(self) -> str:
        found = self.facts.get("summary", {}).get("finding", "")
        return f"<Run {self.id}: {self.status}>" + (f" {found}" if found else "")

    def _repr_html_(self) -> str:
        asked = ", ".join(
            f"{name} {value}"
            for name, value in self.parameters.items()
            if isinstance(value, str | int | float)
        )
        found = str(self.facts.get("summary", {}).get("finding", ""))
        return (
            '<div style="border-left:3px solid var(--jp-border-color1,#999);padding:2px 10px">'
            f"<b>Run {escape(self.id)}</b>: {escape(self.status)}<br>"
            f"{escape(found)}{'<br>' if found else ''}"
            f'<span style="color:var(--jp-ui-font-color2,#666)">{escape(asked)}</span></div>'
        )


class RunRecorder:
    """Makes a run's directory and writes into it until ``finish``.

    Args:
        results: the directory of all runs; it is made where it is missing.
        name: what kind of run it is; part of the id.
        parameters: what was asked for, as JSON values.
        command: how to do it again; without machine paths.
        store: the name of a store of the caller's own, which no file can tell; "" is ours.
        now: the wall clock; a test may give another.

    Raises:
        StoreUnwritable: the directory cannot be made or written.
    """

    def __init__(
        self,
        results: Path,
        name: str,
        *,
        parameters: Mapping[str, Any],
        seed: int = 0,
        command: str = "",
        store: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._results = results
        self._started_ns = time.monotonic_ns()
        started_at = now()
        try:
            self.path = _made(results, f"{started_at:%Y%m%dT%H%M%SZ}-{name}")
            self.history = HistoryWriter(self.path / "history.jsonl")
            self._trace = (self.path / "trace.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise StoreUnwritable(
                f"cannot write a run below {results.name or results}/ ({error.strerror}): "
                "give a writable directory with --results (results=)"
            ) from error
        self._spans: list[Span] = []
        self._facts: dict[str, Any] = {
            "schema": SCHEMA,
            "id": self.path.name,
            "name": name,
            "status": "running",
            "started_at": _shown(started_at),
            "command": command,
            "parameters": dict(parameters),
            **({"store": store} if store else {}),
            "seed": seed,
            "commit": _commit(),
            "versions": _versions(),
            "machine": _machine(),
            # Any recorded time t_ns was at utc + (t_ns - monotonic_ns).
            "clock": {"monotonic_ns": self._started_ns, "utc": _shown(started_at)},
        }
        self._write_facts()

    def trace(self, span: Span) -> None:
        """Take a step; it is on disk after the batch, or after ``finish``."""
        self._spans.append(span)
        if len(self._spans) >= _BATCH_SPANS:
            self.flush()

    def flush(self) -> None:
        """Write the collected spans."""
        spans, self._spans = self._spans, []
        self._trace.write("".join(f"{span_line(span)}\n" for span in spans))
        self._trace.flush()

    def write_json(self, name: str, value: Any) -> None:
        """Write one more file of the run, whole or not at all."""
        _replace(
            self.path / name,
            lambda path: path.write_text(
                json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            ),
        )

    def close(self) -> Run:
        """Stop writing history and trace, and give the run as it stands; twice does no harm."""
        if not self._trace.closed:
            self.flush()
            self.history.close()
            self._trace.close()
        return Run(self.path, self._facts)

    def finish(self, status: str, **summary: Any) -> Run:
        """Say how it ended, note it in the index, and point ``latest`` at it.

        Args:
            status: ``complete``, ``interrupted`` or ``crashed``.
            summary: what a reader of the index wants to know first.
        """
        run = self.close()
        took_s = (time.monotonic_ns() - self._started_ns) / 1e9
        self._facts |= {"status": status, "took_s": round(took_s, 3), "summary": summary}
        self._write_facts()
        line = {name: self._facts[name] for name in ("id", "name", "status", "started_at")}
        with (self._results / "index.jsonl").open("a", encoding="utf-8") as index:
            index.write(json.dumps(line | summary, ensure_ascii=False) + "\n")
        # Where links do not exist (some Windows), the index still tells the newest run.
        with suppress(OSError, NotImplementedError):
            _replace(self._results / "latest", lambda path: path.symlink_to(self.path.name))
        return run

    def _write_facts(self) -> None:
        self.write_json("run.json", self._facts)


def results_directory() -> Path:
    """Return where runs go that are started from Python.

    It is ``$KODE_LAB_RESULTS`` if that is set; else ``results`` beside the ``pyproject.toml`` or
    ``.git`` of the directory that encloses this one; else ``results`` here. So a notebook writes
    where the command line does, and not beside itself.
    """
    if named := os.environ.get(RESULTS_VARIABLE):
        return Path(named)
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "pyproject.toml").exists() or (directory / ".git").exists():
            return Path(os.path.relpath(directory / "results", here))
    return RESULTS


def _made(results: Path, stem: str) -> Path:
    for remaining in reversed(range(_NAME_TRIES)):
        path = results / f"{stem}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            # A file where the results directory should be raises this too, and stays.
            if not remaining or not path.exists():
                raise
        else:
            return path
    raise AssertionError("unreachable")


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    make(fresh)
    fresh.replace(path)


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("kode-lab", *_PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _machine() -> dict[str, Any]:
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": cores,
        "load_at_start": load,
    }


def _commit() -> dict[str, Any] | None:
    """The checkout this code runs from, or None where it was installed without one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(  # noqa: S603 - fixed words, no shell
            ["git", "-C", str(here), *words],  # noqa: S607 - whichever git the user has
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed copy inside somebody else's checkout must not claim their commit.
        if not git("ls-files", "records.py"):
            return None
        commit = git("rev-parse", "HEAD")
        return {"id": commit, "is_dirty": bool(git("status", "--porcelain", "-uno", "--", ".."))}
    except (OSError, subprocess.SubprocessError):
        return None


_SHOWN_LIMIT = 50


@dataclass(frozen=True, slots=True)
class RunList:
    """Recorded runs, the newest first.

    Attributes:
        unreadable: directories with a ``run.json`` that is not one; names and reasons.
    """

    runs: tuple[Run, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, at: int) -> Run:
        return self.runs[at]

    def __repr__(self) -> str:
        lines = [f"{len(self.runs)} runs"]
        lines += [f"  {run.id}  {run.status}  {_said(run)}" for run in self.runs[:_SHOWN_LIMIT]]
        lines += [f"  {name}  unreadable: {why}" for name, why in self.unreadable]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(run.id)}</td><td>{escape(run.status)}</td>"
            f'<td style="text-align:left">{escape(_said(run))}</td></tr>'
            for run in self.runs[:_SHOWN_LIMIT]
        )
        rows += "".join(
            f'<tr><td>{escape(name)}</td><td>unreadable</td><td style="text-align:left">'
            f"{escape(why)}</td></tr>"
            for name, why in self.unreadable
        )
        return f"<table><caption>{len(self.runs)} runs</caption>{rows}</table>"


def run_list(results: Path) -> RunList:
    """Return the runs below ``results``, the newest first."""
    found: list[Run] = []
    unreadable: list[tuple[str, str]] = []
    for path in sorted((p.parent for p in results.glob("*/run.json")), reverse=True):
        if path.is_symlink():
            continue
        try:
            found.append(Run.load(path))
        except KodeLabError as error:
            unreadable.append((path.name, str(error)))
    found.sort(key=lambda run: str(run.facts.get("started_at", "")), reverse=True)
    return RunList(tuple(found), tuple(unreadable))


def _said(run: Run) -> str:
    summary = run.facts.get("summary", {})
    return str(summary.get("finding") or summary.get("verdict") or "")
