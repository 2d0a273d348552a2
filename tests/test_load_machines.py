"""Histories that come from other machines: nothing is lost, and no clock convicts by its error."""

from __future__ import annotations

import json

import pytest

from kode_lab.check import check
from kode_lab.history.operation import HistoryWriter, marker_of, read_of
from kode_lab.history.reader import read_operations
from kode_lab.key import SessionKey
from kode_lab.load.machines import ERROR, ClockSample, Inbox, Outbox, WorkerClock, merge

KEY = SessionKey.of("ada", "a", "hot")
MS = 10**6
# Two workers' clocks, in nanoseconds ahead of the master's: minutes, and behind.
AHEAD = {1: 600 * 10**9, 2: -3 * 10**9}
START = 10**12


def worker_of(marker):
    return int(marker.rpartition("-")[2], 16) % 1024


def written(path, worker, turns):
    """Write a worker's history by its own clock: (number, sent, answered, shown before it)."""
    history = HistoryWriter(path)
    for number, sent_ns, answered_ns, shown in turns:
        marker, process = marker_of(KEY, number), f"{worker}.{number}"
        at = START + AHEAD[worker]
        history.invoke(KEY, process, at + sent_ns, marker=marker, turn_id=marker[1:])
        if answered_ns is not None:
            read = read_of(marker, [marker_of(KEY, one) for one in shown])
            history.complete(process, at + answered_ns, "ok", read=read, answered=marker)
    history.close()
    return path


def received(tmp_path, worker, turns, bound_ns):
    """Send a worker's history as messages; return what the master has of it."""
    outbox = Outbox(written(tmp_path / f"of-{worker}", worker, turns))
    inbox = Inbox(tmp_path, worker)
    for round_ in (1, 2):
        sample = ClockSample(START + AHEAD[worker] + round_ * MS, AHEAD[worker], bound_ns)
        inbox.clock.note(round_, sample)
    while not outbox.is_empty:
        for piece in outbox.pieces():
            outbox.taken(inbox.take(piece))
    return inbox


def judged(tmp_path, turns, *, bound_ns, listed, lost=()):
    """Merge both workers' histories with a last read of the session, and judge them."""
    history = HistoryWriter(tmp_path / "history.jsonl")
    inboxes = [received(tmp_path, worker, turns[worker], bound_ns) for worker in turns]
    end = START + 10**9
    history.fault("quiet", end)
    history.invoke(KEY, "0.9", end + 1, f="read")
    markers = [marker_of(KEY, number) for number in listed]
    history.complete("0.9", end + 2, "ok", markers=markers)
    history.close()
    told = merge(
        tmp_path / "history.jsonl", inboxes, dict.fromkeys(lost, float(bound_ns)), worker_of
    )
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    return told, check(read_operations(lines)), [json.loads(line) for line in lines]


def test_a_sample_is_within_its_bound_however_long_each_way_took():
    for there, back in ((1, 9), (5, 5), (9, 1)):
        sample = ClockSample.of(0, 700 + there, 701 + there, there + 1 + back)
        assert abs(sample.offset_ns - 700) <= sample.bound_ns == 5


def test_between_two_rounds_a_clock_may_be_what_either_of_them_allows():
    clock = WorkerClock()
    for round_, sample in ((1, (100, 10, 9)), (1, (110, 10, 2)), (2, (200, 16, 1))):
        clock.note(round_, ClockSample(*sample))
    assert [one.at_ns for one in clock.rounds] == [110, 200]
    assert clock.offset_at(150) == (12.5, 4.5)
    assert clock.offset_at(300) == (16, 1)
    with pytest.raises(ValueError, match="never measured"):
        WorkerClock().offset_at(1)


def test_pieces_come_whole_once_and_compressed_and_the_window_is_bounded(tmp_path):
    line = json.dumps({"type": "info", "f": "x", "process": "nemesis", "time_ns": START}) + "\n"
    (tmp_path / "h").write_text(line * 100_000 + line[:20])
    outbox, inbox = Outbox(tmp_path / "h"), Inbox(tmp_path, 1)
    first = list(outbox.pieces())
    assert sum(piece["size"] for piece in first) < 5 * 2**20
    assert sum(len(piece["lines"]) for piece in first) < 2**20
    for piece in (*first, first[0]):  # the last one came twice
        outbox.taken(inbox.take(piece))
    while rest := list(outbox.pieces()):
        for piece in rest:
            outbox.taken(inbox.take(piece))
    assert inbox.path.read_text() == line * 100_000
    assert not outbox.is_empty  # half a line is on its way
    with pytest.raises(ValueError, match="unpacks to"):
        inbox.take(first[0] | {"at": inbox.size, "size": 3})


def test_two_clocks_apart_by_minutes_make_one_history_that_the_judge_finds_right(tmp_path):
    turns = {1: [(1, 0, 50 * MS, ()), (1025, 200 * MS, 250 * MS, (1, 2))],
             2: [(2, 100 * MS, 150 * MS, (1,))]}  # fmt: skip
    told, verdict, events = judged(tmp_path, turns, bound_ns=MS, listed=(1, 2, 1025))
    assert verdict.status != "invalid"
    assert (told.followed, told.undecided, told.unheard) == (2, 0, 0)
    times = [event["time_ns"] - START for event in events if event.get(ERROR)]
    assert times == pytest.approx([0, 50e6, 100e6, 150e6, 200e6, 250e6], abs=1.1e6)
    assert times == sorted(times)


@pytest.mark.parametrize(("bound_ns", "status"), [(MS // 10, "invalid"), (5 * MS, "other")])
def test_an_order_closer_than_the_clocks_can_tell_convicts_no_turn(tmp_path, bound_ns, status):
    # Turn 2 was sent 3 ms after turn 1 was answered, and yet stands before it.
    turns = {1: [(1, 0, 50 * MS, (2,))], 2: [(2, 53 * MS, 90 * MS, ())]}
    told, verdict, _ = judged(tmp_path, turns, bound_ns=bound_ns, listed=(2, 1))
    assert (verdict.status == "invalid") is (status == "invalid")
    assert (told.followed, told.undecided) == (1, int(status != "invalid"))


def test_what_a_dead_worker_could_not_tell_is_a_turn_of_unknown_outcome(tmp_path):
    turns = {1: [(1, 0, 50 * MS, ())], 2: [(3, 300 * MS, 350 * MS, (1, 1025))]}
    _, without, _ = judged(tmp_path, turns, bound_ns=MS, listed=(1, 1025, 3))
    assert without.counts["garbage read"]
    again = tmp_path / "again"
    again.mkdir()
    told, verdict, events = judged(again, turns, bound_ns=MS, listed=(1, 1025, 3), lost=(1,))
    assert (told.unheard, verdict.status) != (0, "invalid")
    (unheard,) = [event for event in events if "unheard" in event["process"]]
    assert (unheard["marker"], unheard["userId"]) == (marker_of(KEY, 1025), "ada")
    assert 40 * MS < unheard["time_ns"] - START < 50 * MS
