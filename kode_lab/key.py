"""Names a session: its key, its lock, its directory. The only place that knows ``:``.

Two different ``userId:sessionId`` never share a lock name, and two different keys never share a
path, on any file system: a path part holds only ``a-z 0-9 _ - .`` and percent-encoded bytes, so
case folding, Unicode normalisation, ``/``, ``..``, NUL and reserved names have nothing to work on.
Ids are compared as they are: no folding, no normalising. What an id means is the caller's affair.

Source: the lock key and the directory layout are those of the concurrency report; the encoding is
RFC 3986's, stricter (upper case is encoded too, because file systems fold it).
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from typing import Any, NamedTuple

from kode_lab.errors import InvalidKey

__all__ = ["ID_LIMIT_CHARS", "SessionKey", "is_unicode", "shown"]

ID_LIMIT_CHARS = 10_000
# Windows has no ":" in names. "%3a" in its place would make one of the session "s:x" of agent "y"
# and the session "s" of agent "x:y"; no encoded part ever holds "%-".
_JOINER = ":" if os.name != "nt" else "%-"
# Two parts, the joiner and a suffix stay under the 255 bytes of a name.
_PART_LIMIT_BYTES = 120
_PREFIX_BYTES = 40
_SAFE = re.compile(r"[a-z0-9_-][a-z0-9_.-]*(?<!\.)")
# Names that Windows keeps for devices, with or without an extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


class SessionKey(NamedTuple):
    """One session of one user with one agent.

    Attributes:
        user_id: who speaks.
        session_id: which of the user's conversations.
        agent_id: with which agent (the name of its configuration).
    """

    user_id: str
    session_id: str
    agent_id: str

    @classmethod
    def of(cls, user_id: str, agent_id: str, session_id: str | None = None) -> SessionKey:
        """Return the checked key; ``session_id`` is ``agent_id`` if it is None.

        Raises:
            InvalidKey: an id is not a string, empty, longer than ``ID_LIMIT_CHARS``, or not
                encodable as UTF-8 (a lone surrogate).
        """
        key = cls(user_id, agent_id if session_id is None else session_id, agent_id)
        _check("userId", key.user_id)
        _check("agentId", key.agent_id)  # before the session's, which may be the same
        _check("sessionId", key.session_id)
        return key

    @classmethod
    def from_json(cls, fields: Any) -> SessionKey:
        """Return the key from the report's JSON: ``userId``, ``agentId``, optional ``sessionId``.

        Raises:
            InvalidKey: a field is missing or its value cannot be used.
        """
        if not isinstance(fields, dict):
            raise InvalidKey(
                f"a session key is an object with userId and agentId, not {fields!r:.60}"
            )
        for name in ("userId", "agentId"):
            if name not in fields:
                raise InvalidKey(
                    f"{name} is missing: send userId and agentId (sessionId is optional)"
                )
        return cls.of(fields["userId"], fields["agentId"], fields.get("sessionId"))

    def to_json(self) -> dict[str, str]:
        """Return the key in the report's JSON, with every field."""
        return {"userId": self.user_id, "sessionId": self.session_id, "agentId": self.agent_id}

    def child(self, agent_id: str) -> SessionKey:
        """Return the key of the session in which this one's agent uses another agent.

        It is ``parent/child``, where the parent is the session's id, with its agent's unless both
        are the same: no two parents share a child.

        Raises:
            InvalidKey: an id cannot be used, or the two together are too long.
        """
        is_default = self.session_id == self.agent_id
        parent = _escaped(self.session_id) if is_default else self.instance_id
        child = _escaped(agent_id).replace("/", "%2f")
        return SessionKey.of(self.user_id, agent_id, f"{parent}/{child}")

    @property
    def lock_name(self) -> str:
        """``userId:sessionId``, with ``%`` and ``:`` inside the ids escaped."""
        return f"{_escaped(self.user_id)}:{_escaped(self.session_id)}"

    @property
    def instance_id(self) -> str:
        """``sessionId:agentId``, the report's name of the agent instance."""
        return f"{_escaped(self.session_id)}:{_escaped(self.agent_id)}"

    @property
    def user_part(self) -> str:
        """The name of the user's root directory."""
        return _part(self.user_id)

    @property
    def instance_part(self) -> str:
        """The name of the instance's directory.

        It is ``agentId`` for the default session, as in the report, else ``sessionId:agentId``.
        """
        if self.session_id == self.agent_id:
            return _part(self.agent_id)
        return f"{_part(self.session_id)}{_JOINER}{_part(self.agent_id)}"

    def __str__(self) -> str:
        """What messages and pictures call the session: its lock name, printable and short."""
        return shown(self.lock_name)


def _check(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidKey(f"{name} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidKey(f"{name} is empty: use at least one character")
    if len(value) > ID_LIMIT_CHARS:
        raise InvalidKey(
            f"{name} has {len(value)} characters; shorten it to ID_LIMIT_CHARS={ID_LIMIT_CHARS}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"{name} {value!r:.60} is not valid Unicode: {error.reason}") from None


def _escaped(value: str) -> str:
    return value.replace("%", "%25").replace(":", "%3a")


def is_unicode(text: str) -> bool:
    """Whether a text can be written down: an escaped half of a surrogate pair is no character."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def shown(name: str) -> str:
    """Return a name as one line of a message can show it, whatever it holds."""
    name = name if name.isprintable() else name.encode("unicode_escape").decode()
    return name if len(name) <= 80 else f"{name[:77]}..."


def _part(value: str) -> str:
    """One id as one path part; injective, and still so after case folding and normalisation."""
    # Ids of 10,000 characters are computed anew each time: remembered, they could take a gigabyte.
    return _encoded(value) if len(value) > _PART_LIMIT_BYTES else _remembered(value)


def _encoded(value: str) -> str:
    if (
        len(value) <= _PART_LIMIT_BYTES
        and _SAFE.fullmatch(value)
        and not _RESERVED.fullmatch(value)
    ):
        return value
    raw = value.encode()
    letters = [chr(b) if _SAFE.fullmatch(chr(b)) else f"%{b:02x}" for b in raw]
    # Dots inside are harmless; "." and ".." and a dot at the end (lost on Windows) are not.
    for at in range(1, len(raw) - 1):
        if raw[at] == 0x2E:
            letters[at] = "."
    if _RESERVED.fullmatch(value):
        letters[0] = f"%{raw[0]:02x}"
    part = "".join(letters)
    if len(part) <= _PART_LIMIT_BYTES:
        return part
    # "%h" begins no encoded byte, so a shortened part never meets a spelled-out one.
    return f"{part[:_PREFIX_BYTES]}%h{hashlib.sha256(raw).hexdigest()}"


# A part takes 0.3 to 4 us to encode: remembering more of them would weigh more than it saves.
_remembered = lru_cache(maxsize=8_192)(_encoded)
