"""kode_lab: do LLM-agent sessions stay apart and in order under concurrent load, and how fast?

The door: the public names, loaded when they are first used, so that ``import kode_lab`` costs
nothing of pandas, matplotlib or anthropic.
"""

from __future__ import annotations

__version__ = "0.1.0"
