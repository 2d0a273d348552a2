"""Load tests: Locust users that talk to sessions, record what they saw, and end with a verdict.

    from kode_lab.load import SessionUser

    class Mine(SessionUser):
        def session(self):
            return self.key("ada", "hot")

``SessionUser`` and ``ToolUser`` import Locust, which patches this process's sockets; so they are
loaded when they are first used, by a locustfile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kode_lab.load.session_user import SessionUser
    from kode_lab.load.tool_user import ToolUser

__all__ = ["SessionUser", "ToolUser"]


def __getattr__(name: str) -> Any:
    if name == "SessionUser":
        from kode_lab.load.session_user import SessionUser  # noqa: PLC0415 - patches sockets

        return SessionUser
    if name == "ToolUser":
        from kode_lab.load.tool_user import ToolUser  # noqa: PLC0415 - as above

        return ToolUser
    raise AttributeError(f"kode_lab.load has no {name!r}; it has {', '.join(__all__)}")
