"""The interactive timeline: one page that needs no network, and shows in a browser what was run."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
from synthetic_runs import ZERO_NS, Recording, a_crowd, the_report, turn

from kode_lab.history.operation import Operation
from kode_lab.key import SessionKey
from kode_lab.lab.timeline import STEP_NAMES, timeline

ADA = SessionKey.of("ada", "a", "s1")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# A browser that asks for nothing outside, and needs no display.
CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def packed(page: str):
    return json.loads(re.search(r"const RUN = (\{.*\});\n", page)[1])


def unpacked(data, row):
    """One turn as the page reads it: (step, start, duration, tool) in microseconds."""
    steps, at, rest = [], row[1], list(row[6:])
    while rest:
        kind, gap, took = rest.pop(0), rest.pop(0), rest.pop(0)
        tool = data["tools"][rest.pop(0)] if STEP_NAMES[kind] == "tool" else ""
        steps.append((STEP_NAMES[kind], at + gap, took, tool))
        at += gap + took
    return steps


def test_the_page_holds_every_step_of_every_turn_to_the_microsecond():
    run = the_report()
    data = packed(timeline(run).html)
    assert data["sessions"] == ["yeya:schedule-assistant", "test_user:independent_session"]
    assert data["tools"] == ["create_schedule", "query_schedules"]
    for row, turn_id in zip(data["turns"], ("t1", "t2"), strict=True):
        spans = [s for s in run.trace if s.turn_id == turn_id and s.step != "turn"]
        shown = unpacked(data, row)
        assert [step[0] for step in shown] == [span.step for span in spans]
        for (_, start, took, _), span in zip(shown, spans, strict=True):
            assert start == pytest.approx((span.start_ns - ZERO_NS) / 1e3, abs=2)
            assert took == pytest.approx((span.end_ns - span.start_ns) / 1e3, abs=2)


def test_a_turn_without_an_answer_is_told_apart():
    lost = Operation(ADA, "turn", "p", "info", ZERO_NS, math.inf, "#m0000000000-1", "t9")
    [row] = packed(timeline(Recording((), (lost,))).html)["turns"]
    assert row[2] == -1


def test_names_cannot_break_out_of_the_page():
    key = SessionKey.of("</script><b>\u2028", "a", "<!--")
    page = timeline(turn(key, "]]></script>", tools=("<script>",))).html
    assert page.count("</script>") == 1
    assert packed(page)["tools"] == ["<script>"]


def test_the_page_asks_for_nothing_from_outside():
    page = timeline(the_report()).html
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_two_thousand_turns_make_about_two_hundred_kilobytes():
    assert len(timeline(a_crowd(200, 2_000, 60)).html) < 0.3e6


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(tmp_path):
    shown = timeline(the_report(), title='"quoted" & <named>')
    frame = shown._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert frame.count("<") == 4  # the frame and a sentence: the page itself is escaped
    assert shown.save(tmp_path / "a" / "timeline.html").read_text() == shown.html


WHERE_TEXTS_BEGIN = """() => {
  const begins = {}, real = ctx.fillText.bind(ctx);
  ctx.fillText = (words, x, y) => {
    begins[words] = ctx.textAlign === "right" ? x - ctx.measureText(words).width : x;
    real(words, x, y);
  };
  paint();
  return begins;
}"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_draws_the_page_from_disk_and_tells_what_is_under_the_pointer(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    run = turn(ADA, "t1", (2.0,), ()) + turn(ADA, "t2", (1.0, 2.0), sent_s=0.5, waited_s=1.5)
    page_file = timeline(run).save(tmp_path / "timeline.html")
    complaints: list[str] = []
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            args=CHROMIUM_ARGUMENTS,
            viewport={"width": 1_000, "height": 500},
        ) as browser,
    ):
        page = browser.pages[0]
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        assert page.title() == "2 turns of 1 session"
        box = page.locator("#canvas").bounding_box()
        # The second lane of the only row, in the first half of the run: the second turn waits.
        page.mouse.move(box["x"] + page.evaluate("X(1e6)"), box["y"] + 64 + 3 + 22 + 8)
        tip = page.locator("#tip").inner_text()
        assert "t2: answered after 4.50 s" in tip
        assert "here: wait, 1.50 s" in tip
        span_us = page.evaluate("to - from")
        page.click("#in")
        page.keyboard.press("+")
        assert page.evaluate("to - from") < span_us / 2
        page.keyboard.press("0")
        assert page.evaluate("to - from") == span_us
        page.fill("#find", "stranger")
        assert page.evaluate("rows.length") == 0
        page.fill("#find", "T2")
        assert page.evaluate("rows.length") == 1
        # On a phone, no label is cut off at the left.
        page.set_viewport_size({"width": 375, "height": 667})
        page.goto(timeline(the_report()).save(tmp_path / "phone.html").as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        begins = page.evaluate(WHERE_TEXTS_BEGIN)
    assert complaints == []
    assert {"turns", "at once"} <= begins.keys() or "turns at once" in begins
    assert all(x >= 0 for x in begins.values()), begins


def test_a_run_without_turns_still_makes_a_page():
    assert packed(timeline(Recording((), ())).html)["turns"] == []
    assert timeline(Recording((), ())).title == "0 turns of 0 sessions"
