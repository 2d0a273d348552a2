"""Gemini on the wire: ``generateContent``, ``streamGenerateContent``, ``countTokens``, models.

The model's name stands in the path. Call ids are optional: where a client strips them, results are
paired by the function's name, in order.

Source: https://ai.google.dev/api/generate-content, .../gemini-api/docs/function-calling,
.../thought-signatures, and the types of google-genai 3.6, whose client must not be able to tell.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from kode_lab.claude.conversation import Conversation, Incomplete
from kode_lab.claude.formats.options import problem_with_options
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationReply,
    GenerationRequest,
    StreamEvent,
    ToolOffer,
    WireFormat,
    bearer_of,
    is_signed,
    pieces_of,
    signature_of,
    size_of,
)
from kode_lab.claude.prefixes import Opened, Prefixes

__all__ = ["MODELS", "GeminiFormat"]

MODELS = ("gemini-3-pro", "gemini-3-flash", "gemini-3-flash-lite")
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
_FINISH = {
    "end_turn": "STOP",
    "stop_sequence": "STOP",
    "tool_use": "STOP",
    "max_tokens": "MAX_TOKENS",
    "refusal": "SAFETY",
}
# Placeholders that the API documents for calls that it did not make itself.
_UNCHECKED = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
# As the API limits it.
_CANDIDATES_LIMIT = 8
_METHODS = (":generateContent", ":streamGenerateContent", ":countTokens")
_ONE_TURN = (
    "Please ensure that function call turn comes immediately after a user turn or after a "
    "function response turn."
)
_ONE_EACH = (
    "Please ensure that the number of function response parts is equal to the number of function "
    "call parts of the function call turn."
)


class GeminiFormat(WireFormat):
    """``POST /v1beta/models/NAME:generateContent`` and what belongs to it.

    ``is_strict`` refuses what the API refuses.
    """

    name = "gemini"

    def __init__(self, *, is_strict: bool = True) -> None:
        self._is_strict = is_strict
        self._prefixes: Prefixes[Conversation] = Prefixes()

    def operation(self, method: str, path: str) -> str | None:
        """Return what a request is, or None when it is none of this API's."""
        if path.endswith(_METHODS) and method == "POST":
            return "count" if path.endswith(":countTokens") else "generate"
        if path.rstrip("/").endswith("/v1beta/models") or "/v1beta/models/" in path:
            return "models" if method == "GET" else None
        return None

    def key_problem(
        self, headers: Mapping[bytes, bytes], query: str, api_key: str | None
    ) -> ApiError | None:
        """Return the error for a missing or wrong key."""
        key = headers.get(b"x-goog-api-key", b"").decode("latin-1") or bearer_of(headers)
        key = key or parse_qs(query).get("key", [""])[-1]
        if not key:
            return ApiError(
                403,
                "Method doesn't allow unregistered callers (callers without established "
                "identity). Please use API Key or other form of API consumer identity.",
            )
        if api_key is not None and key != api_key:
            return ApiError(400, "API key not valid. Please pass a valid API key.")
        return None

    def receive(
        self, data: bytes, headers: Mapping[bytes, bytes], path: str, query: str = ""
    ) -> GenerationRequest | ApiError:
        """Return a request in neutral words, or the error that the API answers it with."""
        del headers
        is_stream = path.endswith(":streamGenerateContent")
        is_array = is_stream and parse_qs(query).get("alt", ["json"])[-1] != "sse"
        model = unquote(path.rpartition("/")[2].rpartition(":")[0])
        try:
            opened = self._prefixes.open(data, "contents")
            try:
                request = self._request(opened, model, is_stream=is_stream)
            except Incomplete:
                opened = self._prefixes.open(data, "contents", is_whole=True)
                request = self._request(opened, model, is_stream=is_stream)
        except ValueError as error:
            return ApiError(400, f"Invalid JSON payload received. {error}")
        if is_array and isinstance(request, GenerationRequest):
            return request._replace(is_array=True)
        return request

    def call_id(self, suffix: str, index: int) -> str:
        """Return the id of a reply's function call."""
        return f"fc-{suffix}{index:02d}"

    def whole(self, request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
        """Return the response object."""
        parts, finish = _parts(request, reply)
        return _chunk(request, reply, parts, finish)

    def events(self, request: GenerationRequest, reply: GenerationReply) -> Iterator[StreamEvent]:
        """Yield the chunks of a streamed response; a function call comes whole.

        They are events with ``alt=sse``; without it, all of them are one JSON array.
        """
        parts, finish = _parts(request, reply)
        chunks: list[tuple[dict[str, Any], bool]] = []
        for part in parts:
            pieces = pieces_of(part["text"]) if part.get("text") else []
            for piece in pieces[:-1]:
                small = {**part, "text": piece}
                small.pop("thoughtSignature", None)
                chunks.append((_chunk(request, reply, [small], None), True))
            whole = {**part, "text": pieces[-1]} if pieces else part
            ended = finish if part is parts[-1] else None
            chunks.append((_chunk(request, reply, [whole], ended), True))
        if not parts:
            chunks.append((_chunk(request, reply, [], finish), False))
        for at, (chunk, is_token) in enumerate(chunks):
            data = orjson.dumps(chunk)
            if request.is_array:
                end = b"]" if at == len(chunks) - 1 else b""
                yield StreamEvent(b"%s%s%s" % (b",\r\n" if at else b"[", data, end), is_token)
            else:
                yield StreamEvent(b"data: %s\r\n\r\n" % data, is_token)

    def other(
        self, operation: str, path: str, query: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        """Return a count of tokens, or the models."""
        del query
        if operation == "count":
            return self._count(path, data, headers)
        name = unquote(path.partition("/models")[2].strip("/"))
        if name:
            return _model(name)
        return {"models": [_model(one) for one in MODELS]}

    def error_body(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """Return the documented body of an error."""
        del request_id
        fallback = "INTERNAL" if error.status >= 500 else "INVALID_ARGUMENT"
        status = _STATUSES.get(error.status, fallback)
        told: dict[str, Any] = {"code": error.status, "message": error.message, "status": status}
        if error.retry_after is not None and error.retry_after.replace(".", "", 1).isdecimal():
            kind = "type.googleapis.com/google.rpc.RetryInfo"
            told["details"] = [{"@type": kind, "retryDelay": f"{error.retry_after}s"}]
        if error.message.startswith("API key not valid"):
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            told["details"] = [
                {"@type": kind, "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            ]
        return {"error": told}

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Return the event by which a stream that has begun says that it failed."""
        return b"data: %s\r\n\r\n" % orjson.dumps(self.error_body(error, request_id))

    def headers(self, request_id: str) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers that every answer of this API has."""
        return ((b"x-request-id", request_id.encode()), (b"vary", b"Origin"))

    def context_error(self, request: GenerationRequest, limit: int) -> ApiError:
        """Return the error for a conversation longer than the model's context."""
        return ApiError(
            400,
            f"The input token count ({request.input_tokens}) exceeds the maximum number of tokens "
            f"allowed ({limit}).",
        )

    def signature_error(self, request: GenerationRequest) -> ApiError:
        """Return the error for signed thinking that is refused."""
        del request
        return _bad_signature()

    def _request(
        self, opened: Opened[Conversation], model: str, *, is_stream: bool
    ) -> GenerationRequest | ApiError:
        body = opened.body
        if not isinstance(body, dict):
            return ApiError(400, "Invalid JSON payload received. The body must be an object.")
        problem = _option_problem(body) if self._is_strict else None
        if problem is not None:
            return problem
        contents = body.get("contents")
        if isinstance(contents, dict):
            contents = [contents]
        if not isinstance(contents, list) or not all(isinstance(one, dict) for one in contents):
            return ApiError(400, "* GenerateContentRequest.contents: contents is not specified")
        conversation = Conversation() if opened.fold is None else opened.fold.copy()
        if not contents and not conversation.count:
            return ApiError(400, "* GenerateContentRequest.contents: contents is not specified")
        is_strict = self._is_strict
        problem = self._prefixes.grow(
            opened,
            conversation,
            contents,
            lambda growing, some: _fold(growing, some, model, is_strict=is_strict),
        )
        if problem is None and conversation.pairs and is_strict:
            problem = ApiError(400, _ONE_TURN)
        if problem is not None:
            return problem
        system = _get(body, "systemInstruction")
        for part in _parts_of(system) if isinstance(system, dict) else ():
            conversation.mention(str(part.get("text") or ""))
        tools = body.get("tools") or ()
        offers = tuple(_offers([tools] if isinstance(tools, dict) else tools))
        choice, forced, allowed = _choice_of(_get(body, "toolConfig"))
        config = _get(body, "generationConfig") or {}
        thinking = _get(config, "thinkingConfig") or {}
        size = size_of((system, body.get("tools"))) + conversation.size_chars
        schema = _get(config, "responseJsonSchema") or _get(config, "responseSchema")
        if schema is None and _get(config, "responseMimeType") == "application/json":
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        return GenerationRequest(
            model,
            conversation,
            body,
            size // 4 + 4 * conversation.count,
            tuple(offer for offer in offers if not allowed or offer.name in allowed),
            choice,
            forced,
            schema=schema,
            max_tokens=_get(config, "maxOutputTokens"),
            stops=_get(config, "stopSequences") or (),
            thinks=bool(_get(thinking, "includeThoughts")),
            is_stream=is_stream,
            replies=_get(config, "candidateCount") or 1,
        )

    def _count(
        self, path: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return ApiError(400, f"Invalid JSON payload received. {error}")
        inner = _get(body, "generateContentRequest") if isinstance(body, dict) else None
        request = self.receive(orjson.dumps(inner or body), headers, path)
        if isinstance(request, ApiError):
            return request
        total = request.input_tokens
        details = [{"modality": "TEXT", "tokenCount": total}]
        return {"totalTokens": total, "promptTokensDetails": details}


def _get(value: Any, name: str) -> Any:
    """A field in either spelling that protocol buffers take: ``camelCase`` or ``snake_case``."""
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    return value.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name))


def _option_problem(body: Mapping[str, Any]) -> ApiError | None:
    problem = problem_with_options("gemini", body)
    if problem is None:
        count = _get(_get(body, "generationConfig") or {}, "candidateCount") or 1
        if count <= _CANDIDATES_LIMIT:
            return None
        return ApiError(400, f"candidateCount must be from 1 to {_CANDIDATES_LIMIT}")
    if problem.kind == "unknown":
        return ApiError(
            400,
            f'Invalid JSON payload received. Unknown name "{problem.name}": Cannot find field.',
        )
    return ApiError(400, f"* GenerateContentRequest: {problem.sentence}")


def _choice_of(config: Any) -> tuple[str, str, Sequence[str]]:
    calling = _get(config, "functionCallingConfig") or {}
    mode = str(calling.get("mode") or "AUTO").upper()
    allowed: list[str] = list(_get(calling, "allowedFunctionNames") or ())
    if mode == "ANY":
        is_one = len(allowed) == 1
        return ("tool" if is_one else "any"), (allowed[0] if is_one else ""), allowed
    return {"NONE": "none"}.get(mode, "auto"), "", allowed


def _offers(tools: Sequence[Any]) -> Iterator[ToolOffer]:
    for tool in tools:
        for one in _get(tool, "functionDeclarations") or ():
            schema = _get(one, "parametersJsonSchema") or one.get("parameters")
            yield ToolOffer(str(one.get("name")), schema or {"type": "object", "properties": {}})


def _parts_of(content: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    parts = content.get("parts") or ()
    return [parts] if isinstance(parts, dict) else [p for p in parts if isinstance(p, dict)]


def _fold(
    conversation: Conversation,
    contents: Sequence[Mapping[str, Any]],
    model: str,
    *,
    is_strict: bool,
) -> ApiError | None:
    """Add contents; a turn of function calls is followed by one of as many responses."""
    open_calls: tuple[tuple[str, str], ...] = conversation.pairs or ()
    for content in contents:
        role = content.get("role") or "user"
        if role not in ("user", "model", "function"):
            return ApiError(400, "Please use a valid role: user, model.")
        parts = _parts_of(content)
        if not parts:
            return ApiError(
                400,
                f"* GenerateContentRequest.contents[{conversation.count}].parts: contents.parts "
                "must not be empty.",
            )
        conversation.size_chars += size_of(content)
        texts = [
            str(part["text"]) for part in parts if part.get("text") and not part.get("thought")
        ]
        if role == "model":
            if open_calls and is_strict:
                return ApiError(400, _ONE_EACH)
            problem = _signature_problem(parts, model, conversation) if is_strict else None
            if problem is not None:
                return problem
            calls = [call for part in parts if (call := _get(part, "functionCall"))]
            known = [
                (str(call.get("id") or f"{conversation.count}/{at}"), str(call.get("name")))
                for at, call in enumerate(calls)
            ]
            conversation.add_assistant(texts, known)
            open_calls = tuple(known)
            continue
        answers = [one for part in parts if (one := _get(part, "functionResponse"))]
        if open_calls and not answers and is_strict:
            return ApiError(400, _ONE_TURN)
        results: list[tuple[str, str, bool]] = []
        for answer in answers:
            found = _call_for(answer, open_calls)
            if found is None and is_strict:
                return ApiError(400, _ONE_EACH)
            found = found or ("", str(answer.get("name")))
            open_calls = tuple([one for one in open_calls if one is not found])
            text, is_error = _result_text(answer.get("response"))
            results.append((found[0], text, is_error))
        conversation.add_user(texts, results)
    conversation.pairs = open_calls
    return None


def _call_for(
    answer: Mapping[str, Any], open_calls: Sequence[tuple[str, str]]
) -> tuple[str, str] | None:
    """The call that a response belongs to: by its id, else the first of its name."""
    by_id = next((call for call in open_calls if call[0] == answer.get("id")), None)
    return by_id or next((call for call in open_calls if call[1] == answer.get("name")), None)


def _result_text(response: Any) -> tuple[str, bool]:
    if not isinstance(response, dict):
        return str(response), False
    for name in ("result", "output", "error"):
        value = response.get(name)
        if value is not None and len(response) == 1:
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            return text, name == "error"
    return orjson.dumps(response).decode(), False


def _signature_problem(
    parts: Sequence[Mapping[str, Any]], model: str, conversation: Conversation
) -> ApiError | None:
    for part in parts:
        signature = _get(part, "thoughtSignature")
        if not signature or signature in _UNCHECKED:
            continue
        conversation.thoughts += 1
        try:
            raw = base64.b64decode(str(signature).replace("-", "+").replace("_", "/") + "==")
        except (binascii.Error, ValueError):
            return _bad_signature()
        text = raw.decode("latin-1")
        item, _, signed = text.partition(".")
        if text not in _UNCHECKED and not is_signed(model, item, signed):
            return _bad_signature()
    return None


def _bad_signature() -> ApiError:
    return ApiError(400, "Thought signature is not valid.")


def _parts(request: GenerationRequest, reply: GenerationReply) -> tuple[list[dict[str, Any]], str]:
    """The parts of a reply and why it ended."""
    parts: list[dict[str, Any]] = []
    if reply.thinking:
        parts.append({"text": reply.thinking, "thought": True})
    if reply.text:
        parts.append({"text": reply.text})
    finish = _FINISH.get(reply.stop, "OTHER")
    for call_id, name, arguments in reply.calls:
        try:
            args = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            # Arguments are an object here, so half of them cannot be sent.
            return parts, "MALFORMED_FUNCTION_CALL"
        parts.append({"functionCall": {"name": name, "args": args, "id": call_id}})
    if reply.thinking and len(parts) > 1:
        secret = f"{reply.suffix}.{signature_of(request.model, reply.suffix)}"
        first = next((part for part in parts if "functionCall" in part), parts[-1])
        first["thoughtSignature"] = base64.b64encode(secret.encode()).decode()
    return parts, finish


def _chunk(
    request: GenerationRequest,
    reply: GenerationReply,
    parts: Sequence[Mapping[str, Any]],
    finish: str | None,
) -> dict[str, Any]:
    ended = {} if finish is None else {"finishReason": finish}
    written = request.replies * reply.output_tokens
    return {
        "candidates": [
            {"content": {"parts": parts, "role": "model"}, "index": index, **ended}
            for index in range(request.replies)
        ],
        "usageMetadata": {
            "promptTokenCount": request.input_tokens,
            "candidatesTokenCount": written,
            "totalTokenCount": request.input_tokens + written,
        },
        "modelVersion": request.model,
        "responseId": reply.suffix,
    }


def _model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }
