"""What can be made to go wrong at the simulated model: switches for tests and for the laboratory.

A fault is a value; which request it hits depends on what is asked and on a seed, never on a clock,
and never on the wire format. It must never know sockets: the server reads a fault and does it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from kode_lab.claude.formats.seam import ApiError
from kode_lab.errors import InvalidScenario

__all__ = ["FAULTS_LIMIT", "KINDS", "RETRY_FORMS", "Fault", "FaultPlan", "fault_of"]

FAULTS_LIMIT = 1_000
KINDS = {
    "status": "answer with the error status",
    "error_event": "begin the stream, send an error event of the status's type after some events",
    "cut": "drop the connection after some stream events, or in the middle of a plain body",
    "end_early": "end the stream politely after some events, without its last event",
    "reset": "drop the connection without an answer",
    "garbage": "answer 200 with something that is not a reply",
    "slow": "take delay_s longer",
    "hang": "never answer",
    "tool_loop": "ask for a tool in every reply",
    "tool_input": "cut the last tool call off within its arguments, stopped by max_tokens",
    "call_ids": "number the tool calls of every reply anew: call_0, call_1, ...",
    "signature": "refuse the signature of thinking that comes back",
    "context_limit": "refuse the conversation as longer than the model's context",
    "stop_reason": "end the reply with the given stop_reason (refusal, pause_turn, ...)",
}
# How an error answer says when to try again.
RETRY_FORMS = ("seconds", "date", "milliseconds", "both", "unreadable")
_SENTENCES = {
    429: "This request would exceed your account's rate limit. Please try again later.",
    500: "Internal server error",
    503: "Service unavailable",
    529: "Overloaded",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and for which requests.

    Attributes:
        kind: one of ``KINDS``.
        status: the error's status, for ``status`` and ``error_event``.
        times: for how many requests that it fits; None is for all.
        word: only requests whose last prompt contains it.
        share: the share of fitting requests that are hit, drawn by the seed.
        after_events: how many stream events come before it.
        retry_after_s: when to try again, in the headers of an error answer.
        retry_form: one of ``RETRY_FORMS``: the ``retry-after`` header in seconds (fractions, too)
            or as an HTTP date, ``retry-after-ms``, both of them, or a text that is neither.
        delay_s: for ``slow``, in seconds of the profile (scaled by its speed).
        stop_reason: for ``stop_reason``.
    """

    kind: str
    status: int = 500
    times: int | None = 1
    word: str = ""
    share: float = 1.0
    after_events: int = 3
    retry_after_s: float | None = None
    delay_s: float = 0.0
    stop_reason: str = "refusal"
    retry_form: str = "seconds"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidScenario(f"fault kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not 400 <= self.status <= 599:
            raise InvalidScenario(f"fault status={self.status} must be from 400 to 599")
        if self.retry_form not in RETRY_FORMS:
            raise InvalidScenario(
                f"fault retry_form {self.retry_form!r} is none of {', '.join(RETRY_FORMS)}"
            )
        if not 0 <= self.share <= 1 or self.delay_s < 0 or self.after_events < 0:
            raise InvalidScenario(
                f"fault share={self.share} must be from 0 to 1, delay_s={self.delay_s} and "
                f"after_events={self.after_events} not below 0"
            )

    def error(self) -> ApiError:
        """Return the error that a request it hits is answered with."""
        sentence = _SENTENCES.get(self.status, "This error was asked for.")
        wait_s = self.retry_after_s
        if wait_s is None:
            return ApiError(self.status, sentence)
        in_ms = (("retry-after-ms", f"{wait_s * 1_000:g}"),)
        header: str | None = f"{wait_s:g}"
        if self.retry_form == "date":
            header = formatdate(time.time() + wait_s, usegmt=True)
        elif self.retry_form == "unreadable":
            header = "in a moment"
        elif self.retry_form == "milliseconds":
            header = None
        has_ms = self.retry_form in ("milliseconds", "both")
        return ApiError(self.status, sentence, header, headers=in_ms if has_ms else ())


class FaultPlan:
    """The faults that are armed, in the order in which they are asked."""

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._drawn = 0
        self._armed: list[tuple[Fault, int | None]] = []
        for fault in faults:
            self.arm(fault)

    def arm(self, fault: Fault) -> None:
        """Add a fault after those that are armed.

        Raises:
            InvalidScenario: ``FAULTS_LIMIT`` are armed already.
        """
        if len(self._armed) >= FAULTS_LIMIT:
            raise InvalidScenario(f"too many faults are armed; FAULTS_LIMIT={FAULTS_LIMIT}")
        self._armed.append((fault, fault.times))

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    def hit(self, prompt: str, *, has_thinking: bool = False) -> Fault | None:
        """Return the fault that hits the request with this last prompt, and count it as used.

        Args:
            prompt: the last prompt.
            has_thinking: whether signed thinking came back with the request.
        """
        for index, (fault, left) in enumerate(self._armed):
            if fault.word not in prompt or (fault.kind == "signature" and not has_thinking):
                continue
            if fault.share < 1.0:
                self._drawn += 1
                if random.Random(f"{self._seed}/{self._drawn}").random() >= fault.share:
                    continue
            if left is not None:
                if left <= 1:
                    del self._armed[index]
                else:
                    self._armed[index] = (fault, left - 1)
            return fault
        return None


def fault_of(fields: Any) -> Fault:
    """Return the fault that a JSON object describes.

    Raises:
        InvalidScenario: it is not an object, or a field is unknown or makes no sense.
    """
    if not isinstance(fields, dict):
        raise InvalidScenario(f"a fault is a JSON object with a kind, not {fields!r:.60}")
    try:
        return Fault(**fields)
    except TypeError as error:
        raise InvalidScenario(f"not a fault: {error}") from None
