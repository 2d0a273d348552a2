"""The pictures: what they claim, that a strict reader finds nothing wrong, that they repeat."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from figure_lint import contrast, figure_lint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from synthetic_runs import MS, ZERO_NS, Recording, S, the_report, turn

from kode_lab.errors import InvalidRecord
from kode_lab.history.operation import Operation
from kode_lab.key import SessionKey
from kode_lab.lab.turn_view import turns_of
from kode_lab.pictures import style as ink
from kode_lab.pictures import two_sessions
from kode_lab.pictures.finding import finding_of
from kode_lab.pictures.page import Page, between, nice_ticks, seconds

ADA, BOB = SessionKey.of("ada", "a", "s1"), SessionKey.of("bob", "a", "s2")


def of_tools(names, tool_s, prompts=None):
    slow = turn(BOB, "t2", (1.2,) * (len(names) + 1), names, tool_s=tool_s)
    return turn(ADA, "t1") + slow, {"prompts": prompts}


def without_answer() -> Recording:
    lost = Operation(BOB, "turn", "p", "info", ZERO_NS + 5, math.inf, "#m0000000000-000009", "t9")
    return turn(ADA, "t1") + Recording((), (lost,))


def without_trace() -> Recording:
    untold = Operation(BOB, "turn", "p", "ok", ZERO_NS, ZERO_NS + 3 * S, "#m0000000000-000009", "t")
    return turn(ADA, "t1") + Recording((), (untold,))


DIFFERENT = ("list_users", "find_user", "list_schedules", "get_schedule", "list_rooms", "summarise")
CHINESE = SessionKey.of("小明", "日程助手", "会议安排")
ENDLESS = SessionKey.of("測試用戶" * 40, "a" * 5_000, "independent" * 20)
GALLERY = {
    "the report": (the_report(), {"prompts": {"t1": "Create a schedule.", "t2": "What is on?"}}),
    "seen tools": of_tools(DIFFERENT, 0.6),
    "few tools": of_tools(DIFFERENT[:3], 0.4),
    "unseen tools": of_tools(DIFFERENT, 0.002),
    "forty tools": of_tools(DIFFERENT[:2] * 20, 0.001),
    "a tool's endless name": of_tools(("x" * 300,) * 2, 0.3),
    "Chinese": (
        turn(CHINESE, "t1", tools=("创建日程",), tool_s=0.3) + turn(ENDLESS, "t2", (4.0,), ()),
        {
            "prompts": {
                "t1": "创建一个日程：明天下午三点的项目评审会议，提前十五分钟提醒所有人",
                "t2": "🤔 \u202e\x00",
            }
        },
    ),
    "one waits": (
        turn(ADA, "t1") + turn(ADA, "t2", sent_s=0.3, waited_s=1.2) + turn(BOB, "t3"),
        {},
    ),
    "a short wait": (turn(ADA, "t1") + turn(ADA, "t2", sent_s=1.46, waited_s=0.04), {}),
    "one after the other": (turn(ADA, "t1") + turn(BOB, "t2", sent_s=9), {}),
    "one fails": (turn(ADA, "t1", outcome="fail", error="DeadlineExceeded: " + "z " * 200), {}),
    "no answer": (without_answer(), {}),
    "no trace": (without_trace(), {}),
    "only a trace": (the_report()._replace(history=()), {}),
    "milliseconds": (turn(ADA, "t1", (0.004,), ()) + turn(BOB, "t2", (0.05,), ()), {"speed": 100}),
    "nothing takes time": (turn(ADA, "t1", (0,), (), waited_s=0), {}),
}


@pytest.mark.parametrize("name", GALLERY)
def test_a_strict_reader_finds_nothing_wrong_with_the_picture(name, caplog):
    run, named = GALLERY[name]
    with caplog.at_level(logging.WARNING):
        picture = two_sessions(run, **named)
        assert figure_lint(picture.figure) == []
    # matplotlib tells of missing glyphs and fonts through its log.
    assert caplog.records == []


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
            st.floats(0, 20),
            st.lists(st.floats(1e-4, 9), min_size=1, max_size=9),
            st.lists(st.text(min_size=1, max_size=20), max_size=8),
            st.floats(0, 5),
            st.floats(0, 2),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_run_of_a_few_turns_makes_words_touch_or_leave_the_page(drawn):
    run = Recording((), ())
    for number, (user, sent_s, model_s, tools, waited_s, tool_s) in enumerate(drawn):
        key = SessionKey.of(user, "a", f"s{number % 3}")
        run += turn(
            key, f"t{number}", model_s, tools, sent_s=sent_s, waited_s=waited_s, tool_s=tool_s
        )
    picture = two_sessions(run, prompts={"t0": drawn[0][0]})
    assert figure_lint(picture.figure) == []


# ---------------------------------------------------------------- what the title claims


def title(run: Recording) -> str:
    return finding_of(turns_of(*run))


def test_the_title_tells_the_measured_times_and_that_no_turn_waited():
    assert title(the_report()) == (
        "Session 1 was answered in 2.19 s while session 2 worked for 16.72 s: neither waited"
    )


def test_the_title_claims_nothing_about_waiting_where_no_wait_was_recorded():
    run = the_report()
    unwaited = tuple(span for span in run.trace if span.step != "wait")
    assert "waited" not in title(run._replace(trace=unwaited))


def test_the_title_names_the_turn_that_waited_and_how_long():
    run = turn(ADA, "t1") + turn(BOB, "t2") + turn(ADA, "t3", sent_s=0.3, waited_s=1.2)
    assert title(run) == "Turn 2 of session 1 waited 1.20 s for its lock"


def test_the_title_names_a_failure_before_anything_else():
    run = turn(ADA, "t1") + turn(BOB, "t2", (3,), (), outcome="fail", error="DeadlineExceeded")
    assert title(run) == "A turn of session 2 failed after 3.00 s: DeadlineExceeded"
    assert title(without_answer()) == "A turn of session 2 has no answer"


def test_two_sessions_that_never_overlap_are_not_called_parallel():
    run = turn(ADA, "t1") + turn(BOB, "t2", sent_s=9)
    assert (
        title(run) == "The two sessions ran one after the other, 1.50 s and 1.50 s: neither waited"
    )


def test_of_several_turns_the_title_tells_how_many_were_in_flight_at_once():
    run = turn(ADA, "t1") + turn(BOB, "t2") + turn(ADA, "t3", (4,), (), sent_s=9)
    assert title(run) == ("3 turns of 2 sessions, 2 at once, the longest 4.00 s: none waited")


def test_the_picture_refuses_what_it_cannot_show_and_says_what_can():
    with pytest.raises(InvalidRecord, match="no turn to draw"):
        two_sessions(Recording((), ()))
    crowd = Recording((), ())
    for number in range(13):
        crowd += turn(ADA, f"t{number}", sent_s=number)
    with pytest.raises(InvalidRecord, match=r"many_sessions.*TURN_LIMIT=12"):
        two_sessions(crowd)
    assert two_sessions(crowd + turn(BOB, "b"), keys=[BOB]).title.startswith("One turn")


# ---------------------------------------------------------------- what is on the page


def dots(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB"))


def columns_of(picture, color: str) -> np.ndarray:
    """Which columns of dots have a bar of the colour: at least 24 dots high, so no words."""
    rgb = np.array([round(255 * part) for part in to_rgb(color)])
    return np.flatnonzero(
        (np.abs(dots(picture).astype(int) - rgb) < 12).all(axis=2).sum(axis=0) > 24
    )


def test_a_tool_call_of_milliseconds_is_seen_and_said_to_be_drawn_wider():
    picture = two_sessions(the_report())
    groups = np.split(
        columns := columns_of(picture, ink.WORK), np.flatnonzero(np.diff(columns) > 1) + 1
    )
    assert len(groups) == 1 + 8
    assert all(3 <= len(group) <= 6 for group in groups)
    assert "(3.0 ms each, drawn wider to be seen)" in picture.reading


def test_a_tool_call_of_half_a_second_is_drawn_to_scale_and_nothing_else_is_said():
    run, _ = of_tools(DIFFERENT[:1], 1.2)
    picture = two_sessions(run, keys=[BOB])
    work, model = columns_of(picture, ink.WORK), columns_of(picture, ink.MODEL)
    assert len(model) == pytest.approx(2 * len(work), rel=0.02)
    assert "wider" not in picture.reading


def test_a_wait_is_orange_and_the_subtitle_says_so():
    run, _ = GALLERY["one waits"]
    assert len(columns_of(two_sessions(run), ink.WAIT)) > 100
    assert "Orange" in two_sessions(run).reading
    calm = two_sessions(the_report())
    assert len(columns_of(calm, ink.WAIT)) == 0
    assert "Orange" not in calm.reading


def test_the_picture_is_wide_enough_for_two_dots_where_a_notebook_shows_one():
    picture = two_sessions(the_report())
    shown, how = picture._repr_mimebundle_()
    assert Image.open(io.BytesIO(shown["image/png"])).width == 1680 == 2 * how["image/png"]["width"]
    assert shown["text/plain"].startswith(picture.title)


def test_words_in_the_svg_are_paths(tmp_path):
    png, svg = two_sessions(the_report()).save(tmp_path / "figures" / "two-sessions")
    assert png.name == "two-sessions.png"
    assert png.stat().st_size > 10_000
    assert "<text" not in svg.read_text()
    assert "font-family" not in svg.read_text()


AGAIN = """
import hashlib, sys
from synthetic_runs import the_report
from kode_lab.pictures import two_sessions
picture = two_sessions(the_report())
print(hashlib.sha256(picture.png() + picture.svg()).hexdigest())
"""


def test_the_same_run_gives_the_same_bytes_under_any_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 30\naxes.grid: True\npath.sketch: 4, 100, 2\nsvg.fonttype: none\n"
        "text.hinting: force_autohint\nfigure.facecolor: black\n"
    )
    there = {
        "PYTHONPATH": str(Path(__file__).parent),
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
    }
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", AGAIN],
        env=os.environ | there,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    picture = two_sessions(the_report())
    assert made.strip() == hashlib.sha256(picture.png() + picture.svg()).hexdigest()


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were():
    before = dict(mpl.rcParams)
    two_sessions(the_report()).svg()
    assert dict(mpl.rcParams) == before


# ---------------------------------------------------------------- the lint catches bad pages


def page() -> Page:
    return Page("A finding", "How to read it")


def off_the_page(sheet):
    sheet.text(ink.WIDTH_PT - 20, 80, "leaving to the right")


def below_the_page(sheet):
    sheet.text(40, 128, "below")


def touching(sheet):
    sheet.text(40, 80, "these words")
    sheet.text(40 + ink.width_pt("these words", 9) + 1, 80, "touch these")


def overlapping_lines(sheet):
    sheet.text(40, 80, "a line with gypsy")
    sheet.text(40, 84, "A LINE WITH CAPITALS")


def too_small(sheet):
    sheet.text(40, 80, "fine print", 7.5)


def strange_colour(sheet):
    sheet.box(40, 60, 50, 10, "#ff00ff")


def strange_line(sheet):
    sheet.line([(40, 60), (90, 70)], "#00ff00")


def strange_marks(sheet):
    sheet.boxes([(40, 60, 2, 2), (50, 60, 2, 2)], "#123456")


def pale_on_pale(sheet):
    sheet.text(40, 80, "hardly there", color=ink.MODEL)


def under_a_bar(sheet):
    sheet.box(40, 60, 30, 30, ink.WORK)
    sheet.text(45, 80, "half of this", color=ink.SOFT)


def turned(sheet):
    sheet.text(40, 80, "sideways")
    sheet._marks.append(lambda axes: axes.texts[-1].set_rotation(90))


def foreign_font(sheet):
    sheet._marks.append(lambda axes: axes.text(40, 80, "foreign", fontsize=9, color=ink.INK))


BAD = {
    off_the_page: "leaves the page",
    below_the_page: "leaves the page",
    touching: "words touch",
    overlapping_lines: "words touch",
    too_small: "under 8",
    strange_colour: "not in the palette: #ff00ff",
    strange_line: "not in the palette: #00ff00",
    strange_marks: "not in the palette: #123456",
    pale_on_pale: "hard to read",
    under_a_bar: "hard to read",
    turned: "turned by 90",
    foreign_font: "not in the shipped font",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_the_lint_names_the_one_thing_that_is_wrong_with_a_page(spoil):
    sheet = page()
    spoil(sheet)
    [complaint] = figure_lint(sheet.finish(120).figure)
    assert BAD[spoil] in complaint


def test_the_lint_finds_nothing_wrong_with_a_plain_page():
    sheet = page()
    sheet.text(40, 80, "plain")
    assert figure_lint(sheet.finish(120).figure) == []


def test_the_lint_wants_the_width_and_the_paper_of_the_house():
    figure = Figure(figsize=(6, 2), facecolor="black")
    FigureCanvasAgg(figure)
    found = figure_lint(figure)
    assert any("6.00 inches wide" in complaint for complaint in found)
    assert any("opaque white" in complaint for complaint in found)


# ---------------------------------------------------------------- ink


def linear(color: str) -> np.ndarray:
    value = np.array(to_rgb(color))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


# What somebody without green cones sees. Source: Machado, Oliveira, Fernandes 2009, table 1.
DEUTERANOPE = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def lab(value: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(TO_XYZ @ np.clip(value, 0, 1), 1e-6, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_a_reader_without_green_cones_tells_the_marks_apart():
    marks = (ink.WORK, ink.MODEL, ink.WAIT, ink.VIOLATION, ink.FAINT, ink.PAPER)
    seen = {mark: lab(DEUTERANOPE @ linear(mark)) for mark in marks}
    for one, other in combinations(marks, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 9, (one, other)


def test_marks_that_meet_differ_in_grey_print():
    for one, other in ((ink.WORK, ink.MODEL), (ink.WORK, ink.WAIT), (ink.WORK, ink.BAND)):
        assert contrast(to_rgb(one), to_rgb(other)) > 2


def test_words_can_be_read_on_paper():
    for color in (ink.INK, ink.SOFT, ink.WORK, ink.WAIT_WORD, ink.VIOLATION_WORD):
        assert contrast(to_rgb(color), to_rgb(ink.PAPER)) > 4.5


def test_what_the_fonts_lack_is_spelled_out_and_what_they_have_stays():
    assert ink.legible("日程 schedule\n→ Ωμέγα") == "日程 schedule → Ωμέγα"
    assert ink.legible("a\u202eb 🤔 \x00") == r"a\u202eb \U0001f914 \x00"


def test_a_name_cut_in_the_middle_keeps_both_ends_and_fits():
    cut = ink.shortened("concurrent_create_1:schedule-assistant", 90, 9, keeps_end=True)
    assert cut.startswith("concurrent")
    assert cut.endswith("assistant")
    assert ink.width_pt(cut, 9) <= 90


def test_chinese_lines_break_between_characters_but_not_before_a_full_stop():
    lines = ink.wrapped("创建一个日程：明天下午三点的项目评审会议。" * 3, 100, 9)
    assert len(lines) > 3
    assert all(ink.width_pt(line, 9) <= 100 for line in lines)
    assert not any(line[0] in "：。" for line in lines)


def test_durations_are_told_in_the_unit_that_people_use():
    told = [seconds(value) for value in (16_730 * MS, 2_190 * MS, 219 * MS, 3.14 * MS, 40_000, 0)]
    assert told == ["16.73 s", "2.19 s", "219 ms", "3.1 ms", "40 µs", "0 s"]
    assert between([3 * MS, 4.9 * MS]) == "3.0 to 4.9 ms"


def test_round_ticks_begin_at_zero_and_stay_within_the_data():
    assert [tick.label for tick in nice_ticks(16.73)] == ["0", *map(str, range(2, 17, 2))]
    for high in (0.003, 0.7, 1.0, 2.4, 99.9, 1e6):
        ticks = nice_ticks(high)
        assert 3 <= len(ticks) <= 10
        assert ticks[-1].value <= high
        assert len({tick.label for tick in ticks}) == len(ticks)
