"""A tab of Locust's own web UI: the verdict so far, and the charts of the history.

While a test runs, the judge hears what there is again and again, in a process of its own and for at
most a small share of the time. Before the last read of every session its answer is "unknown" at
best; what is broken shows at once.

The page that draws (``verdict.html``) asks for ``/verdict/state`` and needs nothing from elsewhere.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from flask import Blueprint, Response, request

from kode_lab.load.summary import VERDICT, heard
from kode_lab.load.tail import percentiles_ms

__all__ = ["add_tab"]

_KEY, _TITLE = "verdict", "Verdict"
_PAGE = Path(__file__).with_name("verdict.html")
# Locust's page draws no more once a test has stopped, which is when the verdict comes: so the tab
# itself is empty, and this frame lies on it while the address names it.
_FRAME = """
<iframe id="kode-lab" src="./verdict" title="verdict" hidden
 style="position:absolute;left:0;width:100%;height:800px;border:0"></iframe>
<script>setInterval(() => {
  const frame = document.getElementById("kode-lab"), tabs = document.querySelector("[role=tablist]")
  frame.hidden = !tabs || !location.search.includes("tab=verdict")
  if (tabs) frame.style.top = `${tabs.getBoundingClientRect().bottom + scrollY + 16}px`
}, 250)</script>
"""
SHOWN_SECONDS_LIMIT = 300
# Between two hearings: at least this, and so many times what the last one took.
_PAUSE_S, _PAUSE_FACTOR = 5.0, 10


def add_tab(environment: Any, web_ui: Any) -> None:
    """Return the web UI its tab."""
    tab = _Tab(environment)
    gevent.spawn(tab.hear)
    web_ui.template_args["extended_tabs"] = [{"title": _TITLE, "key": _KEY}]
    pages = Blueprint("kode_lab", __name__)

    @pages.route("/verdict")
    def page() -> Response:
        return Response(_PAGE.read_text("utf-8"), mimetype="text/html")

    @pages.route("/verdict/state")
    def state() -> Response:
        return Response(json.dumps(tab.state()), mimetype="application/json")

    @web_ui.app.after_request
    def extend(response: Response) -> Response:
        if request.endpoint == "locust.index" and response.status_code == 200:
            html = response.get_data(as_text=True)
            response.set_data(html.replace("</body>", f"{_FRAME}</body>"))
        return response

    web_ui.app.register_blueprint(pages, url_prefix=environment.parsed_options.web_base_path)


class _Tab:
    """What the tab tells of the run that goes on, or of the last one."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._heard: dict[str, Any] = {}
        self._heard_of: Path | None = None

    def hear(self) -> None:
        """Let the judge hear the history for as long as a test runs."""
        while True:
            run, began_s = self._environment.load_run, time.monotonic()
            if run.state == "running" and not run.inboxes:
                self._heard = heard(run.recorder.run_dir)
                self._heard_of = run.recorder.run_dir
            gevent.sleep(max(_PAUSE_S, _PAUSE_FACTOR * (time.monotonic() - began_s)))

    def state(self) -> dict[str, Any]:
        """Return all that the page draws, as JSON values."""
        run = self._environment.load_run
        tail = run.tail.look() if run.tail is not None else None
        status, headline = self._verdict(run)
        found: dict[str, Any] = {"state": run.state, "status": status, "headline": headline}
        found |= {"run": str(run.recorder.run_dir) if run.recorder is not None else ""}
        found |= self._findings(run)
        if tail is None:
            empty: dict[str, Any] = {"counts": {}, "open": 0, "sessions": 0, "ms": {}}
            return found | empty | {"seconds": [], "faults": []}
        shown = sorted(tail.seconds.items())[-SHOWN_SECONDS_LIMIT:]
        seconds = []
        for at_s, (counts, took_ns) in shown:
            ms = percentiles_ms(took_ns)
            ends = [counts["ok"], counts["fail"], counts["info"]]
            seconds.append([at_s, *ends, ms.get("p50"), ms.get("p99")])
        return found | {
            "counts": dict(tail.counts),
            "open": len(tail.open),
            "sessions": len(tail.sessions),
            "ms": percentiles_ms(tail.took_ns),
            "seconds": seconds,
            "faults": tail.faults[-SHOWN_SECONDS_LIMIT:],
        }

    def _verdict(self, run: Any) -> tuple[str, str]:
        if run.verdict is not None:
            return ("valid", "invalid", "unknown")[min(run.verdict.status, 2)], run.verdict.headline
        if run.inboxes:
            return "unknown", "UNKNOWN: turns from several machines are judged at the end"
        if run.recorder is None or self._heard_of != run.recorder.run_dir or not self._heard:
            return "unknown", "UNKNOWN: not heard yet"
        return self._heard["status"], self._heard["headline"]

    def _findings(self, run: Any) -> dict[str, Any]:
        """Return what came of each guarantee, and the smallest proof of what was broken."""
        told: dict[str, Any] = {}
        if run.recorder is not None and run.verdict is not None:
            with suppress(OSError, ValueError):
                told = json.loads((run.recorder.run_dir / VERDICT).read_bytes())
        elif run.recorder is not None and self._heard_of == run.recorder.run_dir:
            told = self._heard
        names = ("code", "name", "status", "reason")
        rows = [[one[name] for name in names] for one in told.get("guarantees", ())]
        proof = [
            f"{one['name']}:\n" + "\n".join(one["because"]) for one in told.get("anomalies", ())
        ]
        return {"guarantees": rows, "proof": proof[0] if proof else ""}
