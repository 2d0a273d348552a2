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
    from kode_lab.load.session_user import SessionUser, ToolUser

__all__ = ["SessionUser", "ToolUser"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kode_lab.load import session_user  # noqa: PLC0415 - patches sockets

        return getattr(session_user, name)
    raise AttributeError(f"kode_lab.load has no {name!r}; it has {', '.join(__all__)}")
