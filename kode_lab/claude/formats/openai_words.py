"""What Chat Completions and Responses share: keys, error bodies, ids, limits, tools, errors.

Source: https://platform.openai.com/docs/guides/error-codes and the types of openai 3.57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kode_lab.claude.formats.options import problem_with_options
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationRequest,
    ToolOffer,
    WireFormat,
    bearer_of,
)

__all__ = [
    "MODELS",
    "OpenAiFormat",
    "context_error",
    "model_answer",
    "offers_of",
    "option_problem",
    "text_of_parts",
    "wrong",
]

MODELS = ("gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano")
_TYPES = {
    401: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    529: "server_error",
}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class OpenAiFormat(WireFormat, Protocol):
    """What both APIs of OpenAI do alike."""

    def key_problem(
        self, headers: Mapping[bytes, bytes], query: str, api_key: str | None
    ) -> ApiError | None:
        """Return the error for a missing or wrong key."""
        del query
        key = bearer_of(headers) or headers.get(b"api-key", b"").decode("latin-1")
        if not key:
            return ApiError(
                401, "You didn't provide an API key. Provide it in an Authorization header."
            )
        if api_key is not None and key != api_key:
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return None

    def call_id(self, suffix: str, index: int) -> str:
        """Return the id of a reply's tool call."""
        return f"call_{suffix}{index:02d}"

    def error_body(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """Return the documented body of an error."""
        del request_id
        fallback = "server_error" if error.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": error.message,
                "type": _TYPES.get(error.status, fallback),
                "param": error.param,
                "code": error.code or _CODES.get(error.status),
            }
        }

    def headers(self, request_id: str) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers that every answer of this API has."""
        return ((b"x-request-id", request_id.encode()), (b"openai-version", b"2020-10-01"))


def wrong(param: str, sentence: str, code: str | None = None) -> ApiError:
    """Return the error for a field that is wrong."""
    return ApiError(400, sentence, code=code, param=param)


def option_problem(api: str, body: Any) -> ApiError | None:
    """Return the error for the first option that is unknown, not simulated or of a wrong type."""
    if not isinstance(body, dict):
        return ApiError(400, "The request body must be a JSON object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        return wrong("model", "Missing required parameter: 'model'.", "missing_required_parameter")
    problem = problem_with_options(api, body)
    if problem is None:
        return None
    name = problem.name
    sentence, code = {
        "unknown": (f"Unknown parameter: '{name}'.", "unknown_parameter"),
        "refused": (problem.sentence, "unsupported_parameter"),
        "type": (f"Invalid type for '{name}': expected {problem.expected}.", "invalid_type"),
        "range": (f"Invalid '{name}': expected a value >= 1.", "integer_below_min_value"),
    }[problem.kind]
    return wrong(name, sentence, code)


def context_error(request: GenerationRequest, limit: int, param: str) -> ApiError:
    """Return the error for a conversation longer than the model's context."""
    return wrong(
        param,
        f"This model's maximum context length is {limit} tokens. However, your messages resulted "
        f"in {request.input_tokens} tokens. Please reduce the length of the messages.",
        "context_length_exceeded",
    )


def model_answer(path: str) -> dict[str, Any]:
    """Return the list of models, or one of them; any name has an entry."""
    name = path.partition("/models")[2].strip("/")
    if name:
        return _model(name)
    return {"object": "list", "data": [_model(one) for one in MODELS]}


def offers_of(tools: Any) -> Iterator[ToolOffer]:
    """Yield the functions among the tools, in the spelling of either API."""
    for tool in tools or ():
        kind = tool.get("type", "function")
        if kind == "function":
            function = tool.get("function", tool)
            yield ToolOffer(function["name"], function.get("parameters"))
        elif kind == "namespace":
            yield from offers_of(tool.get("tools"))


def text_of_parts(content: Any) -> list[str]:
    """Return the texts of a content: a string, parts, or nothing."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    return [
        str(part.get("text") or part.get("refusal") or "")
        for part in content
        if isinstance(part, dict) and ("text" in part or "refusal" in part)
    ]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "simulated"}
