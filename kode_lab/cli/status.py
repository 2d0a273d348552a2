"""What the commands share: exit statuses, and how an argument names a run.

0    every claim, every guarantee holds
1    one is violated
2    unknown: there is not enough evidence
3    the input cannot be used; one line on stderr says why
4    valid, but the SLO was missed
130  interrupted; what was recorded so far is kept
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["INTERRUPTED", "STATUS_OF_VERDICT", "UNUSABLE", "found"]

STATUS_OF_VERDICT = {"holds": 0, "not applicable": 2, "violated": 1, "inconclusive": 2}
UNUSABLE, INTERRUPTED = 3, 130


def found(path: Path, results: Path) -> Path:
    """Return the path itself if it exists, else the run of that id below ``results``."""
    below = results / path
    return below if not path.exists() and below.exists() else path
