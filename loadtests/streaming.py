"""Turns as streams of events: time to the first word, time between words, and every stream whole.

A stream that ends without its last event was cut: it is not known whether its turn was saved.
"""

from __future__ import annotations

from kode_lab.key import SessionKey
from kode_lab.load import SessionUser

__all__ = ["Streaming"]


class Streaming(SessionUser):
    """One who reads while it is written."""

    rate_per_s = 0.5
    double_share = 0.2
    is_streaming = True

    def session(self) -> SessionKey:
        """Return one of this user's two sessions."""
        return self.key(f"reader-{self.recorder.worker}-{self.number}", f"{self.draw.randrange(2)}")
