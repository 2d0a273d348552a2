"""Where a figure comes from: the machine, how busy it is, and the commit that made it."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = ["commit_name", "machine"]

_PACKAGES = ("uvloop", "orjson", "anthropic", "aiohttp")


def machine() -> str:
    """Say in one line on what the figures were measured, and how busy it is now."""
    versions = []
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    load = ", ".join(f"{figure:.2f}" for figure in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), load {load}; "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def commit_name() -> str:
    """Name the commit this code runs from; ``+`` says that the package differs from it."""
    here = str(Path(__file__).parent.parent)
    try:
        words = ("git", "-C", here, "describe", "--always", "--dirty=+", "--exclude=*")
        return subprocess.run(  # noqa: S603 - fixed words, no shell
            words, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
