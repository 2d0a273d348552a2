"""A first description of a service, guessed from its OpenAPI document.

It owns the guesses: which operation takes a message, which field is the user's, the session's and
the prompt's, where the reply is, which operation reads a session. A guess is written as a TOML
file with its doubts as comments, for a person to correct. It asks the service for nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kode_lab.errors import InvalidScenario

__all__ = ["guessed"]

_PROMPT = (
    "message",
    "prompt",
    "input",
    "text",
    "query",
    "question",
    "content",
    "body",
    "msg",
    "user_input",
)
_SESSION = tuple(
    f"{name}{end}"
    for name in ("session", "thread", "conversation", "chat")
    for end in ("_id", "id", "")
)
_USER = ("user_id", "userid", "user", "username", "customer_id", "account")
_TURN = ("turn_id", "turnid", "message_id", "request_id", "idempotency_key")
_AGENT = ("agent_id", "agentid", "agent", "assistant_id")
_REPLY = ("reply", "answer", "response", "output", "text", "message", "content", "result")
_ITEMS = ("messages", "history", "items", "data", "turns")
_HOLES = (
    ("user", _USER),
    ("session", _SESSION),
    ("turn_id", _TURN),
    ("agent", _AGENT),
    ("prompt", _PROMPT),
)
_SCHEMA_DEPTH = 6


class _Operation(NamedTuple):
    method: str
    path: str
    fields: Mapping[str, Any]


def guessed(document: Mapping[str, Any], url: str) -> str:
    """Return a description as TOML.

    Raises:
        InvalidScenario: the document has no operation that takes a message.
    """
    if not isinstance(document.get("paths"), dict):
        raise InvalidScenario("this is no OpenAPI document: it has no paths")
    operations = list(_operations(document))
    asked = max(operations, key=lambda one: _score(document, one), default=None)
    if asked is None or _score(document, asked) < 4:
        listed = ", ".join(f"{one.method} {one.path}" for one in operations[:8])
        raise InvalidScenario(f"no operation takes a message; there are {listed or 'none'}")
    opening = _opening(document, operations, asked)
    lines = [
        f"name = {json.dumps(str(document.get('info', {}).get('title', 'service')))}",
        f"url = {json.dumps(url)}",
        "# How it is started, so that it can be killed; its model client asks {model_url}:",
        '# start = "python server.py"',
        '# env = { OPENAI_BASE_URL = "{model_url}/v1", ANTHROPIC_BASE_URL = "{model_url}" }',
    ]
    session = "session"
    if opening is not None:
        session = "sid"
        operation, path = opening
        lines += ["", "[setup.session]", *_request(document, operation, session)]
        lines += [f"capture = {{ sid = {json.dumps(path)} }}"]
    reply = _reply_path(document, asked)
    lines += ["", "[turn]", *_request(document, asked, session)]
    lines += [f"reply = {json.dumps(reply or '$.reply')}" + ("" if reply else "  # a guess")]
    if "202" in asked.fields.get("responses", {}):
        lines += [
            "# The answer is 202: if the reply comes later, say from where:",
            '# capture = { job = "$.id" }',
            '# later = { path = "/jobs/{job}", until = { path = "$.status", value = "done" } }',
        ]
    if (reading := _reading(document, operations)) is not None:
        operation, items = reading
        lines += ["", "[history]", *_request(document, operation, session)]
        lines += [f"items = {json.dumps(items)}"]
    else:
        lines += ["", "# No operation reads a session back; if there is one:", "# [history]"]
        lines += ['# path = "/sessions/{session}/messages"', '# items = "$.messages"']
    return "\n".join(lines) + "\n"


def _request(document: Mapping[str, Any], operation: _Operation, session: str) -> list[str]:
    """Return the lines that say how an operation is asked.

    Args:
        session: the hole for the session's name: ``session``, or one that was captured.
    """
    path = re.sub(r"\{([^}]+)\}", lambda hole: f"{{{_hole(hole[1]) or 'session'}}}", operation.path)
    query, headers = {}, {}
    for raw in operation.fields.get("parameters", ()):
        one = _schema(document, raw)
        name, hole = str(one.get("name", "")), _hole(str(one.get("name", "")))
        if one.get("in") == "query" and (hole or one.get("required")):
            query[name] = f"{{{hole}}}" if hole else ""
        elif one.get("in") == "header" and (hole or one.get("required")):
            headers[name] = f"{{{hole}}}" if hole else "TODO"
    content = operation.fields.get("requestBody", {}).get("content", {})
    is_form = bool(content) and not any("json" in kind for kind in content)
    body = _example(document, _schema(document, operation.fields.get("requestBody", {})))
    lines = [f"path = {json.dumps(path)}"]
    lines += [f"query = {_toml(query)}"] if query else []
    lines += [f"headers = {_toml(headers)}"] if headers else []
    lines += [f"{'form' if is_form else 'body'} = {_toml(body)}"] if content else []
    if operation.method != ("POST" if content else "GET"):
        lines.insert(1, f'method = "{operation.method}"')
    return [line.replace("{session}", f"{{{session}}}") for line in lines]


def _opening(
    document: Mapping[str, Any], operations: list[_Operation], asked: _Operation
) -> tuple[_Operation, str] | None:
    """Return the request that opens a session whose id the turn's path needs, and the id's path."""
    parent = re.split(r"/\{[^}]*\}", asked.path)[0]
    opening = next((o for o in operations if o.method == "POST" and o.path == parent), None)
    if opening is None or opening is asked or "{" not in asked.path:
        return None
    answers = opening.fields.get("responses", {})
    schema = _schema(document, answers.get("201") or answers.get("200", {}))
    names = [name for name in schema.get("properties", {}) if name.lower() in (*_SESSION, "id")]
    return (opening, f"$.{names[0]}") if names else None


def _hole(name: str) -> str:
    """Return the hole that a parameter's or field's name stands for, or ""."""
    bare = name.lower().replace("-", "_").removeprefix("x_")
    return next((hole for hole, names in _HOLES if bare in names), "")


def _operations(document: Mapping[str, Any]) -> Iterator[_Operation]:
    for path, methods in document["paths"].items():
        for method, fields in methods.items() if isinstance(methods, dict) else ():
            if method in ("get", "post", "put") and isinstance(fields, dict):
                yield _Operation(method.upper(), path, fields)


def _score(document: Mapping[str, Any], operation: _Operation) -> int:
    if operation.method == "GET":
        return 0
    names = _names(_schema(document, operation.fields.get("requestBody", {})))
    names |= {str(one.get("name", "")).lower() for one in operation.fields.get("parameters", ())}
    path = operation.path.lower()
    score = 4 * bool(names & set(_PROMPT))
    score += 2 * bool(names & set(_SESSION) or re.search(r"session|thread|conversation|chat", path))
    score += bool(names & set(_USER)) + 2 * bool(re.search(r"chat|turn|messages?$|run|ask", path))
    return score


def _names(schema: Mapping[str, Any]) -> set[str]:
    return {name.lower() for name in schema.get("properties", {})}


def _schema(document: Mapping[str, Any], body: Any, depth: int = 0) -> dict[str, Any]:
    """Return the JSON schema of a body or response, references followed."""
    if not isinstance(body, dict) or depth > _SCHEMA_DEPTH:
        return {}
    if "$ref" in body:
        found: Any = document
        for name in str(body["$ref"]).removeprefix("#/").split("/"):
            found = found.get(name, {}) if isinstance(found, dict) else {}
        return _schema(document, found, depth + 1)
    if "content" in body:
        media: Any = body["content"].get("application/json") or next(
            iter(body["content"].values()), {}
        )
        return _schema(document, media.get("schema", {}), depth + 1)
    for name in ("allOf", "anyOf", "oneOf"):
        for one in body.get(name, ()):
            if isinstance(one, dict) and one.get("type") != "null":
                return _schema(document, one, depth + 1)
    return body


def _example(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    needed = schema.get("required", ())
    found: dict[str, Any] = {}
    for name, raw in schema.get("properties", {}).items():
        hole = _hole(name)
        one = _schema(document, raw)
        if hole and one.get("type", "string") == "string":
            found[name] = f"{{{hole}}}"
        elif one.get("type") == "object" and depth < 2:
            found[name] = _example(document, one, depth + 1)
        elif name == "messages" or (one.get("type") == "array" and name in needed):
            found[name] = [{"role": "user", "content": "{prompt}"}]
        elif name in needed:
            first = (one.get("enum") or [one.get("default")])[0]
            found[name] = first if first is not None else _blank(one.get("type"))
    return found


def _blank(kind: Any) -> Any:
    return {"integer": 0, "number": 0, "boolean": False, "array": []}.get(kind, "")


def _reply_path(document: Mapping[str, Any], operation: _Operation) -> str:
    answers = operation.fields.get("responses", {})
    answer: Any = next((answers[s] for s in ("200", "201", "202", "default") if s in answers), {})
    schema = _schema(document, answer)
    if schema.get("type") == "string":
        return "$"
    for name in _REPLY:
        for field in schema.get("properties", {}):
            if field.lower() == name:
                inner = _schema(document, schema["properties"][field])
                deeper = _names(inner) & {"content", "text"}
                return f"$.{field}" + (f".{min(deeper)}" if deeper else "")
    if "choices" in schema.get("properties", {}):
        return "$.choices[0].message.content"
    return ""


def _reading(
    document: Mapping[str, Any], operations: list[_Operation]
) -> tuple[_Operation, str] | None:
    for operation in operations:
        named = [_hole(name) or "session" for name in re.findall(r"\{([^}]+)\}", operation.path)]
        asked = [_hole(str(p.get("name"))) for p in operation.fields.get("parameters", ())] + named
        if operation.method != "GET" or "session" not in asked or "turn_id" in named:
            continue
        schema = _schema(document, operation.fields.get("responses", {}).get("200", {}))
        if schema.get("type") == "array":
            return operation, "$"
        for name, raw in schema.get("properties", {}).items():
            if name.lower() in _ITEMS or _schema(document, raw).get("type") == "array":
                return operation, f"$.{name}"
        if not schema.get("properties"):
            return operation, "$.messages"
    return None


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(n)} = {_toml(v)}" for n, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name) else json.dumps(name)
