"""The live page's file, read once, and the headers that let it ask nobody but this server."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from pathlib import Path

__all__ = ["headers", "html"]


@cache
def html() -> bytes:
    """Return the page."""
    return Path(__file__).with_name("page.html").read_bytes()


@cache
def headers() -> dict[str, str]:
    """Return its headers: the page's own script and style are named by their hashes."""
    page = html().decode()
    sources = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found is not None
        digest = b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        sources[tag] = f"'sha256-{digest}'"
    return {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": (
            f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "referrer-policy": "no-referrer",
    }
