"""Makes a value that fits a JSON schema: arguments for any tool, and answers in any shape.

The value is the same for the same schema and the same hints. Hints are values by the name of a
property; one is used where it fits. What a schema cannot say (a custom format) is not guessed. It
must never know what a tool does.

Source: JSON Schema 2020-12, the subset that the model APIs document, and Gemini's spelling of it
(upper-case types, ``nullable``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from re import _parser as regex_parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["fits", "fitting"]

# A schema that refers to itself ends here: below it only what is required is made.
_DEPTH_LIMIT = 6
_REPEAT_LIMIT = 64
_FORMATS = {
    "date": "2026-03-02",
    "date-time": "2026-03-02T09:00:00Z",
    "time": "09:00:00Z",
    "duration": "PT1H",
    "email": "ada@example.org",
    "idn-email": "ada@example.org",
    "hostname": "example.org",
    "uri": "https://example.org/",
    "uri-reference": "https://example.org/",
    "url": "https://example.org/",
    "uuid": "6f1b8f0e-3c5a-4d57-9a3e-2b6f0c1d4e5a",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "json-pointer": "/a",
    "regex": "a",
    "byte": "YQ==",
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def fitting(schema: Any, hints: Mapping[str, Any], *, text: str = "", is_full: bool = False) -> Any:
    """Return a value that fits the schema.

    Args:
        schema: a JSON schema; what is no schema fits an empty object.
        hints: values by the names of properties.
        text: what a free text says, where no hint has its name.
        is_full: make every property, not only those that are required or hinted at.
    """
    return _Maker(schema, hints, text, is_full).value(schema, "", 0)


def fits(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value fits a schema, as far as its type and its plain limits say."""
    root = schema if root is None else root
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping):
        return schema is not False
    if "const" in schema and value != schema["const"]:
        return False
    if schema.get("enum") is not None and value not in schema["enum"]:
        return False
    types = _types_of(schema)
    if types and not any(_is_a(value, name) for name in types):
        return False
    for name in ("anyOf", "oneOf"):
        if schema.get(name) and not any(fits(value, one, root) for one in schema[name]):
            return False
    if not all(fits(value, one, root) for one in schema.get("allOf") or ()):
        return False
    if isinstance(value, str):
        low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        pattern = schema.get("pattern")
        if not int(low) <= len(value) <= float(high):
            return False
        if schema.get("format") in _FORMATS and value != _FORMATS[schema["format"]]:
            return False
        return not isinstance(pattern, str) or _is_match(pattern, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _in_range(value, schema)
    return True


class _Maker:
    def __init__(self, root: Any, hints: Mapping[str, Any], text: str, is_full: bool) -> None:
        self._root, self._hints, self._text, self._is_full = root, hints, text, is_full

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = _resolved(schema, self._root)
        if not isinstance(schema, Mapping):
            return {} if not name else self._free(name)
        if "const" in schema:
            return schema["const"]
        if name in self._hints and fits(self._hints[name], schema, self._root):
            return self._hints[name]
        if schema.get("enum"):
            return schema["enum"][0]
        if schema.get("allOf"):
            return self.value(_merged(schema, self._root), name, depth)
        for several in ("anyOf", "oneOf"):
            if schema.get(several):
                return self._any_of(schema, schema[several], name, depth)
        if "default" in schema and name and fits(schema["default"], schema, self._root):
            return schema["default"]
        types = _types_of(schema)
        kind = next((t for t in types if t != "null"), types[0] if types else "")
        if not kind:
            kind = _kind_of(schema, is_root=not name)
        make = getattr(self, f"_{kind}") if kind in _TYPES else self._object
        return make(schema, name, depth)

    def _any_of(
        self, schema: Mapping[str, Any], branches: Sequence[Any], name: str, depth: int
    ) -> Any:
        plain = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}
        order = sorted(
            (_resolved(branch, self._root) for branch in branches),
            # Too deep: what ends soonest first. Otherwise what says most: null last.
            key=lambda b: _weight(b) if depth >= _DEPTH_LIMIT else _types_of(b) == ["null"],
        )
        return self.value(_joined(plain, order[0]), name, depth)

    def _object(self, schema: Mapping[str, Any], _: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = list(schema.get("required") or ())
        names = [
            name
            for name in properties
            if name in required
            or (depth < _DEPTH_LIMIT and (self._is_full or (depth == 0 and name in self._hints)))
        ]
        names += [name for name in required if name not in properties]
        made = {name: self.value(properties.get(name, {}), name, depth + 1) for name in names}
        missing = int(schema.get("minProperties", 0)) - len(made)
        rest = schema.get("additionalProperties")
        if missing > 0:
            spare = [name for name in properties if name not in made]
            spare += [f"key{number}" for number in range(missing)]
            for name in spare[:missing]:
                made[name] = self.value(properties.get(name, rest or {}), name, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        first = list(schema.get("prefixItems") or ())
        items = schema.get("items", {})
        low = int(schema.get("minItems", 0))
        high = schema.get("maxItems", math.inf)
        wanted = max(low, len(first), 1 if depth < _DEPTH_LIMIT and items is not False else 0)
        count = int(min(wanted, float(high), _REPEAT_LIMIT))
        made: list[Any] = []
        for at in range(count):
            part = first[at] if at < len(first) else items
            made.append(self._unlike(made, part, name, depth, is_unique=schema.get("uniqueItems")))
        return made

    def _unlike(
        self, made: list[Any], schema: Any, name: str, depth: int, *, is_unique: Any
    ) -> Any:
        value = self.value(schema, "" if isinstance(schema, bool) else name, depth + 1)
        if not is_unique or value not in made:
            return value
        schema = _resolved(schema, self._root)
        others = schema.get("enum") or [
            f"{value}{number}" if isinstance(value, str) else number for number in range(1, 66)
        ]
        return next((o for o in others if o not in made and fits(o, schema, self._root)), value)

    def _string(self, schema: Mapping[str, Any], name: str, _: int) -> str:
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            low = int(schema.get("minLength", 0))
            made = _matching(pattern, low)
            if made is not None:
                return made
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength")
        said = self._free(name).ljust(low, "x")
        return said if high is None else said[: int(high)]

    def _free(self, name: str) -> str:
        return self._text or name or "text"

    def _integer(self, schema: Mapping[str, Any], _: str, __: int) -> int:
        step = schema.get("multipleOf") or 1
        low = _low(schema, strictly=1)
        high = _high(schema, strictly=1)
        if low is not None:
            number = math.ceil(low / step) * step
        elif high is not None:
            number = math.floor(high / step) * step
        else:
            number = step
        return int(number)

    def _number(self, schema: Mapping[str, Any], name: str, depth: int) -> float:
        low, high = _low(schema, strictly=0), _high(schema, strictly=0)
        if schema.get("multipleOf") or low is None or high is None:
            return self._integer(schema, name, depth)
        return low if "minimum" in schema else low + (high - low) / 2

    def _boolean(self, *_: Any) -> bool:
        return True

    def _null(self, *_: Any) -> None:
        return None


def _low(schema: Mapping[str, Any], *, strictly: int) -> float | None:
    if isinstance(schema.get("exclusiveMinimum"), (int, float)):
        return float(schema["exclusiveMinimum"]) + strictly
    return float(schema["minimum"]) if "minimum" in schema else None


def _high(schema: Mapping[str, Any], *, strictly: int) -> float | None:
    if isinstance(schema.get("exclusiveMaximum"), (int, float)):
        return float(schema["exclusiveMaximum"]) - strictly
    return float(schema["maximum"]) if "maximum" in schema else None


def _in_range(value: float, schema: Mapping[str, Any]) -> bool:
    step = schema.get("multipleOf")
    return (
        value >= schema.get("minimum", -math.inf)
        and value <= schema.get("maximum", math.inf)
        and value > _number_or(schema.get("exclusiveMinimum"), -math.inf)
        and value < _number_or(schema.get("exclusiveMaximum"), math.inf)
        and (not step or math.isclose(value / step, round(value / step)))
    )


def _number_or(value: Any, other: float) -> float:
    return float(value) if isinstance(value, (int, float)) and value is not True else other


def _types_of(schema: Any) -> list[str]:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = kind if isinstance(kind, list) else [kind] if isinstance(kind, str) else []
    return [str(one).lower() for one in kinds]


def _kind_of(schema: Mapping[str, Any], *, is_root: bool) -> str:
    if "properties" in schema or "required" in schema or is_root:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "string"


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES.get(name, (object,)))


def _resolved(schema: Any, root: Any) -> Any:
    for _ in range(16):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        found: Any = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if name:
                found = found.get(name, {}) if isinstance(found, Mapping) else {}
        schema = _joined({k: v for k, v in schema.items() if k != "$ref"}, found)
    return {}


def _merged(schema: Mapping[str, Any], root: Any) -> Mapping[str, Any]:
    """One schema for ``allOf``: properties and what is required add up."""
    whole: Any = {k: v for k, v in schema.items() if k != "allOf"}
    for part in schema["allOf"]:
        whole = _joined(whole, _resolved(part, root))
    return whole  # type: ignore[no-any-return]


def _joined(one: Mapping[str, Any], other: Any) -> Mapping[str, Any]:
    if not isinstance(other, Mapping):
        return one
    both = {**other, **one}
    if "properties" in one and "properties" in other:
        both["properties"] = {**other["properties"], **one["properties"]}
    required = [*(other.get("required") or ()), *(one.get("required") or ())]
    if required:
        both["required"] = list(dict.fromkeys(required))
    return both


def _weight(schema: Any) -> int:
    if not isinstance(schema, Mapping):
        return 0
    return len(schema.get("required") or ()) + 8 * ("$ref" in repr(schema))


def _is_match(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return True


def _matching(pattern: str, low: int) -> str | None:
    """A text that the pattern matches, or None when it cannot be made."""
    try:
        made = _text_of(regex_parser.parse(pattern))
        if len(made) < low:
            made = _text_of(regex_parser.parse(pattern), repeats=low)
        return made if re.search(pattern, made) else None
    except (re.error, KeyError, ValueError, OverflowError, StopIteration):
        return None


def _text_of(parsed: Any, repeats: int = 1) -> str:
    made = ""
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL":
            made += chr(value)
        elif name in ("ANY", "NOT_LITERAL"):
            made += "a" if name == "ANY" or value != ord("a") else "b"
        elif name == "IN":
            made += _one_of(value)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = value
            count = min(max(int(low), repeats), int(high), _REPEAT_LIMIT)
            made += _text_of(inner, repeats) * count
        elif name == "SUBPATTERN":
            made += _text_of(value[-1], repeats)
        elif name == "BRANCH":
            made += _text_of(value[1][0], repeats)
        elif name not in ("AT", "ASSERT", "ASSERT_NOT"):
            raise ValueError(name)
    return made


def _one_of(choices: Sequence[tuple[Any, Any]]) -> str:
    """A character of a class: a common one, or else the first that the class names."""
    names = {
        "CATEGORY_DIGIT": r"\d",
        "CATEGORY_WORD": r"\w",
        "CATEGORY_SPACE": r"\s",
        "CATEGORY_NOT_DIGIT": r"\D",
        "CATEGORY_NOT_WORD": r"\W",
        "CATEGORY_NOT_SPACE": r"\S",
    }
    parts = ""
    for kind, value in choices:
        name = str(kind)
        if name == "NEGATE":
            parts += "^"
        elif name == "LITERAL":
            parts += re.escape(chr(value))
        elif name == "RANGE":
            parts += f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
        else:
            parts += names[str(value)]
    allowed = re.compile(f"[{parts}]")
    named = (
        v if str(k) == "LITERAL" else v[0] for k, v in choices if str(k) in ("LITERAL", "RANGE")
    )
    candidates = ("a", "0", "A", *map(chr, named), " ", "_", "-", ".")
    return next(one for one in candidates if allowed.fullmatch(one))
