"""The live state in Prometheus's text format, made when it is asked for; turns pay nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.parser import text_string_to_metric_families

from kode_lab.server.live_state import BOUNDS_S, Histogram, LiveState
from kode_lab.sessions import SessionManager

__all__ = ["CONTENT_TYPE", "labelled", "metrics_text"]


def metrics_text(live_state: LiveState, manager: SessionManager, *, carried: int = 0) -> bytes:
    """Return all figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Figures(live_state, manager, carried))
    return generate_latest(registry)


def labelled(texts: Mapping[int, bytes]) -> bytes:
    """Return the figures of several workers as one text, with a label ``worker``."""
    families: dict[str, Metric] = {}
    for number, text in texts.items():
        for found in text_string_to_metric_families(text.decode()):
            family = families.setdefault(
                found.name, Metric(found.name, found.documentation, found.type)
            )
            for sample in found.samples:
                labels = {**sample.labels, "worker": str(number)}
                family.add_sample(sample.name, labels, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    """Families that are there already, as ``CollectorRegistry`` asks for them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


class _Figures:
    """What ``CollectorRegistry`` asks."""

    def __init__(self, live_state: LiveState, manager: SessionManager, carried: int) -> None:
        self._carried = carried
        self._live_state = live_state
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """Return every family once."""
        live_state, now = self._live_state, self._manager.statistics()
        for name, about, value in (
            ("turns_in_flight", "Turns accepted and not yet ended.", now.turns),
            ("sessions_in_flight", "Sessions that have turns in flight.", now.sessions),
            ("resident_agents", "Idle agents in memory.", now.residents),
            ("sessions_held", "Session locks that are held.", now.lock.held),
            ("turns_waiting", "Turns that wait for a session's lock.", now.lock.waiting),
            ("longest_queue", "The most that ever waited for one session.", now.lock.longest_queue),
        ):
            yield GaugeMetricFamily(f"kode_lab_{name}", about, value)
        yield CounterMetricFamily(
            "kode_lab_lock_handed_over", "Locks handed to a waiter.", now.lock.handed_over
        )
        yield CounterMetricFamily(
            "kode_lab_carried", "Requests passed on to another worker.", self._carried
        )
        blocked = CounterMetricFamily(
            "kode_lab_loop_blocked_seconds",
            "For which async tools blocked the event loop.",
            labels=["tool"],
        )
        for tool in now.blocked:
            blocked.add_metric([tool.tool], tool.total_s)
        yield blocked
        yield _counts("kode_lab_turns", "Turns that ended.", "outcome", live_state.outcomes)
        yield _counts("kode_lab_refusals", "Requests never accepted.", "type", live_state.refusals)
        yield _durations("turn", "From acceptance to the end of a turn.", live_state.turns)
        yield _durations("wait", "For the session's lock.", live_state.waits)
        yield _durations("ask", "Of one model call.", live_state.asks)
        yield _durations("tool", "Of one tool call.", live_state.tools)
        about = "How late the event loop ran a timer: what blocks it delays every turn."
        yield _durations("loop_lag", about, live_state.loop_lags)


def _counts(name: str, about: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _durations(name: str, about: str, histogram: Histogram) -> HistogramMetricFamily:
    total, buckets = 0, []
    for bound_s, count in zip((*map(str, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound_s, float(total)))
    return HistogramMetricFamily(
        f"kode_lab_{name}_seconds", about, buckets=buckets, sum_value=histogram.sum_s
    )
