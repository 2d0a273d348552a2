"""kode_lab: do LLM-agent sessions stay apart and in order under concurrent load, and how fast?

The door: the public names, each loaded when it is first used, so that ``import kode_lab`` costs
nothing of pandas, matplotlib, pydantic or anthropic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kode_lab import lab
    from kode_lab.check import Verdict
    from kode_lab.claude import Claude, Profile, SimulatedClaude
    from kode_lab.errors import KodeLabError
    from kode_lab.key import SessionKey
    from kode_lab.lab.comparison import Comparison
    from kode_lab.lab.records import Run
    from kode_lab.lab.scenario import Scenario
    from kode_lab.sessions import (
        AgentShelf,
        JsonStore,
        PostgresStore,
        SessionManager,
        Toolbox,
        ToolContext,
        TurnReply,
    )

__all__ = [
    "AgentShelf",
    "Claude",
    "Comparison",
    "JsonStore",
    "KodeLabError",
    "PostgresStore",
    "Profile",
    "Run",
    "Scenario",
    "SessionKey",
    "SessionManager",
    "SimulatedClaude",
    "ToolContext",
    "Toolbox",
    "TurnReply",
    "Verdict",
    "__version__",
    "lab",
]

__version__ = "0.1.0"

_ROOMS = {
    "kode_lab.check": ("Verdict",),
    "kode_lab.claude": ("Claude", "Profile", "SimulatedClaude"),
    "kode_lab.errors": ("KodeLabError",),
    "kode_lab.lab.comparison": ("Comparison",),
    "kode_lab.lab": ("lab",),
    "kode_lab.lab.records": ("Run",),
    "kode_lab.lab.scenario": ("Scenario",),
    "kode_lab.key": ("SessionKey",),
    "kode_lab.sessions": (
        "AgentShelf",
        "JsonStore",
        "PostgresStore",
        "SessionManager",
        "ToolContext",
        "Toolbox",
        "TurnReply",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"kode_lab has no {name!r}; it has {', '.join(__all__)}")
    module = import_module(room)
    # A room can be offered whole.
    value = module if room.endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
