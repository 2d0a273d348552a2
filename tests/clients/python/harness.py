"""What every client script shares: markers, checks, and what the simulated model witnessed.

A script imports one client, unchanged, points it at ``MODEL_URL``, and registers checks. Each check
prints one JSON line. Only the standard library is used: a script runs in its client's environment.
"""

import asyncio
import inspect
import itertools
import json
import os
import sys
import traceback
import urllib.parse
import urllib.request
from importlib import metadata

URL = os.environ.get("MODEL_URL", "http://127.0.0.1:8765")
PROMPT = "Create a schedule: review on 2026-03-02 at 15:00."
_sessions = itertools.count(os.getpid() * 1000)
_checks = []


class Session:
    """Markers of one session: ``session()`` gives the next one."""

    def __init__(self):
        self._tag = f"{next(_sessions):010x}"[-10:]
        self._number = 0

    def __call__(self):
        self._number += 1
        return f"#m{self._tag}-{self._number:06x}"


def witnessed(marker):
    """Return what the simulated model says about the turn of a marker."""
    url = f"{URL}/lab/turns/{urllib.parse.quote(marker)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def positions(*markers):
    """Assert that each turn was shown all turns before it, and nothing else."""
    for at, marker in enumerate(markers):
        turn = witnessed(marker)
        read = turn["read"]
        assert read["position"] == at, f"{marker} was shown {read['position']} turns, not {at}"
        assert not read["foreign"], f"{marker} was shown {read['foreign']}"
        assert not read["half"], f"{marker} was shown half of {read['half']}"


def arm(**fault):
    """Arm a fault of the simulated model."""
    request = urllib.request.Request(
        f"{os.environ.get('FAULTS_URL', URL)}/lab/faults",
        json.dumps(fault).encode(),
        {"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def check(tried):
    """Register a function as a check of what ``tried`` says."""

    def register(function):
        _checks.append((tried, function))
        return function

    return register


def run(client, package):
    """Run all checks, print a JSON line each, and exit with the number of failures."""
    failures = 0
    for tried, function in _checks:
        note = ""
        try:
            answer = function()
            if inspect.isawaitable(answer):
                asyncio.run(asyncio.wait_for(answer, 60))
        except BaseException as error:  # noqa: BLE001 - what a client raises is the result
            failures += 1
            note = f"{type(error).__name__}: {error}"[:400]
            traceback.print_exc(file=sys.stderr)
        line = {
            "client": client,
            "version": metadata.version(package),
            "tried": tried,
            "result": "failed" if note else "passed",
            "note": note,
        }
        print(json.dumps(line), flush=True)
    sys.exit(min(failures, 100))
