"""kode_lab: do LLM-agent sessions stay apart and in order under concurrent load, and how fast?

The public names, described with an example each in ``docs/api.md``. Each is loaded when it is first
used, so that ``import kode_lab`` costs nothing of pandas, matplotlib, pydantic or anthropic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kode_lab import lab
    from kode_lab.audit import AuditVerdict, audit
    from kode_lab.check import Verdict, check, check_path
    from kode_lab.claude import Claude, Profile, SimulatedClaude
    from kode_lab.errors import KodeLabError
    from kode_lab.key import SessionKey
    from kode_lab.lab.comparison import Comparison
    from kode_lab.lab.records import Run
    from kode_lab.lab.scenario import Scenario
    from kode_lab.message import Model, Reply, Request
    from kode_lab.sessions import (
        AgentConfig,
        AgentShelf,
        JsonStore,
        Lease,
        PostgresStore,
        SessionManager,
        Store,
        Toolbox,
        ToolContext,
        TurnReply,
    )
    from kode_lab.sessions.guard import hold

__all__ = [
    "AgentConfig",
    "AgentShelf",
    "AuditVerdict",
    "Claude",
    "Comparison",
    "JsonStore",
    "KodeLabError",
    "Lease",
    "Model",
    "PostgresStore",
    "Profile",
    "Reply",
    "Request",
    "Run",
    "Scenario",
    "SessionKey",
    "SessionManager",
    "SimulatedClaude",
    "Store",
    "ToolContext",
    "Toolbox",
    "TurnReply",
    "Verdict",
    "__version__",
    "audit",
    "check",
    "check_path",
    "hold",
    "lab",
]

__version__ = "0.1.0"

_NAMES_OF = {
    "kode_lab.audit": ("AuditVerdict", "audit"),
    "kode_lab.check": ("Verdict", "check", "check_path"),
    "kode_lab.claude": ("Claude", "Profile", "SimulatedClaude"),
    "kode_lab.errors": ("KodeLabError",),
    "kode_lab.key": ("SessionKey",),
    "kode_lab.lab": ("lab",),
    "kode_lab.lab.comparison": ("Comparison",),
    "kode_lab.lab.records": ("Run",),
    "kode_lab.lab.scenario": ("Scenario",),
    "kode_lab.message": ("Model", "Reply", "Request"),
    "kode_lab.sessions": (
        "AgentConfig",
        "AgentShelf",
        "JsonStore",
        "Lease",
        "PostgresStore",
        "SessionManager",
        "Store",
        "ToolContext",
        "Toolbox",
        "TurnReply",
    ),
    "kode_lab.sessions.guard": ("hold",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    where = _MODULE_OF.get(name)
    if where is None:
        raise AttributeError(f"kode_lab has no {name!r}; it has {', '.join(__all__)}")
    module = import_module(where)
    # ``lab`` is used as a module; ``check`` is one that can be called.
    value = module if where == f"kode_lab.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
