"""Texts with holes and paths into JSON: the two small languages of a target's description.

    "/api/threads/{session}?user={user}"      a template: ``{name}`` is filled in
    "$.messages[*].content", "$.a['b c'][-1]"  a path: names, indices, ``[*]`` for all elements

Both are read once, when a description is loaded, and complain then. They know no HTTP.

Source: the paths are the plain part of JSONPath (RFC 9535), without filters and ``..``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote

from kode_lab.errors import InvalidScenario

__all__ = ["JsonPath", "Template", "filled", "in_json", "in_url", "text_in"]

_HOLE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_STEP = re.compile(r"""\.([A-Za-z_$@][\w$@-]*)|\[(-?\d+|\*)\]|\[(?:'([^']*)'|"([^"]*)")\]""")
_SHOWN_CHARS = 300
_TOOL_BLOCKS = frozenset({
    "tool_result", "tool_use", "tool_call", "tool-result", "tool-call", "tool-invocation",
    "function_call", "function_call_output", "thinking", "reasoning",
})  # fmt: skip


def in_url(value: str) -> str:
    """Return a value as one part of a path or query."""
    return quote(value, safe="")


def in_json(value: str) -> str:
    """Return a value as it stands inside a JSON string."""
    return json.dumps(value)[1:-1]


class Template:
    """A text with named holes.

    Attributes:
        text: as it was written.
        names: the holes that it has.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = _HOLE.split(text)
        self.names = frozenset(self._parts[1::2])

    def check(self, known: Collection[str]) -> None:
        """Check the names of its holes.

        Raises:
            InvalidScenario: a hole has a name that is not known.
        """
        for name in sorted(self.names - set(known)):
            near = difflib.get_close_matches(name, known, 1)
            meant = f": did you mean {{{near[0]}}}?" if near else ""
            listed = ", ".join(f"{{{one}}}" for one in sorted(known))
            raise InvalidScenario(f"{{{name}}} is not known{meant} There are {listed}")

    def fill(self, values: Mapping[str, str], write: Callable[[str], str] = str) -> str:
        """Return the text with its holes filled, each value written by ``write``."""
        parts = self._parts
        if len(parts) == 1:
            return parts[0]
        return "".join(write(values[part]) if at % 2 else part for at, part in enumerate(parts))

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """Return a JSON value whose templates are filled in."""
    if isinstance(value, Template):
        return value.fill(values)
    if isinstance(value, dict):
        return {name: filled(one, values) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, values) for one in value]
    return value


class JsonPath:
    """A path into a JSON value."""

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            InvalidScenario: it is not a path.
        """
        self.text = text
        rest = text.removeprefix("$")
        if rest and rest[0] not in ".[":
            rest = f".{rest}"
        self._steps: list[str | int | None] = []
        while rest:
            step = _STEP.match(rest)
            if step is None:
                raise InvalidScenario(
                    f"path {text!r:.80} cannot be read at {rest!r:.40}: write names and indices, "
                    'as in "$.choices[0].message.content" or "$.messages[*]"'
                )
            name, index, single, double = step.groups()
            if index is not None:
                self._steps.append(None if index == "*" else int(index))
            else:
                self._steps.append(next(n for n in (name, single, double) if n is not None))
            rest = rest[step.end() :]

    def all(self, value: Any) -> list[Any]:
        """Return everything that the path leads to; an empty list when it finds nothing."""
        found = [value]
        for step in self._steps:
            following: list[Any] = []
            for one in found:
                if step is None and isinstance(one, list):
                    following += one
                elif step is None and isinstance(one, dict):
                    following += one.values()
                elif isinstance(step, int) and isinstance(one, list):
                    if -len(one) <= step < len(one):
                        following.append(one[step])
                elif isinstance(step, str) and isinstance(one, dict) and step in one:
                    following.append(one[step])
            found = following
        return found

    def first(self, value: Any) -> Any:
        """Return the first thing that it leads to, or None."""
        found = self.all(value)
        return found[0] if found else None

    def missing(self, value: Any) -> str:
        """Return the sentence for a path that found nothing, with what it was tried on."""
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        cut = "..." if len(shown) > _SHOWN_CHARS else ""
        return f"path {self.text!r} finds nothing in {shown[:_SHOWN_CHARS]}{cut}"


def text_in(value: Any) -> str:
    """Return the text of a message's content: a string, or a list of strings and text blocks.

    What tools were asked and answered stands in messages too, and quotes prompts: it is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(filter(None, map(text_in, value)))
    if isinstance(value, dict):
        if str(value.get("type", "")).lower() in _TOOL_BLOCKS:
            return ""
        for name in ("text", "content", "value", "parts"):
            if name in value:
                return text_in(value[name])
        return ""
    return "" if value is None else str(value)
