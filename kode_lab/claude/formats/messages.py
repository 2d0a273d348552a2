"""The Messages API on the wire: requests, message objects, stream events, errors, models.

Source: https://docs.claude.com/en/api/errors, .../api/messages, .../api/messages-streaming,
.../build-with-claude/message-threads; and the types of anthropic 2.14 and @anthropic-ai/sdk 1.14,
whose clients must not be able to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from kode_lab.claude.conversation import Conversation, Incomplete, conversation_of
from kode_lab.claude.formats.edits import COMPACT_TRIGGER_TOKENS, edited, may_edit
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationReply,
    GenerationRequest,
    Held,
    StreamEvent,
    ToolOffer,
    WireFormat,
    bearer_of,
    is_signed,
    json_pieces,
    pieces_of,
    signature_of,
    size_of,
)
from kode_lab.claude.held import HeldStates
from kode_lab.claude.legality import VERSIONS, Pairing, is_callable, problem_of
from kode_lab.claude.prefixes import Opened, Prefixes
from kode_lab.message import Block

__all__ = [
    "MODELS",
    "THREAD_TTL_S",
    "MessagesFormat",
    "events_of",
    "model_of",
    "models_page",
    "sse",
]

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# The catalogue that ``GET /v1/models`` shows; any other name works too.
MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5", "opus"),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet"),
    ("claude-haiku-5-5", "Claude Haiku 5.5", "haiku"),
)
_PER_MESSAGE_TOKENS = 4
_PAGE_LIMIT = 1_000
_OFFERS_LIMIT = 1_000
_OFFERS_LIMIT_BYTES = 65_536
# As documented: a thread expires five minutes after its last request.
THREAD_TTL_S = 300.0
_BETA = re.compile(r"[a-z0-9-]+-20\d{2}-\d{2}-\d{2}|[a-z][a-z0-9-]{2,80}")
_COMMAND = {
    "type": "object",
    "properties": {"command": {"type": "string"}},
    "required": ["command"],
}
# What must stay the same across a thread; the first two may be left out when it is continued.
_FIXED = ("system", "tools", "model", "thinking", "output_config", "output_format")
# Claude Code puts one such block, different each time, before its system prompt.
_BILLING = "x-anthropic-billing-header:"


class MessagesFormat(WireFormat):
    """``POST /v1/messages`` and what belongs to it.

    ``is_strict`` refuses what the API refuses; a proxy, whose upstream does that, only reads.
    ``thread_ttl_s`` is how long a thread is held after its last request.
    """

    name = "messages"

    def __init__(self, *, is_strict: bool = True, thread_ttl_s: float = THREAD_TTL_S) -> None:
        self._is_strict = is_strict
        self._prefixes: Prefixes[Conversation] = Prefixes()
        self._threads: HeldStates[Held] = HeldStates(ttl_s=thread_ttl_s)
        self._continuing: set[str] = set()
        # Of tools that were checked: what can be called. Most clients send the same each time.
        self._offers: HeldStates[tuple[ToolOffer, ...]] = HeldStates(_OFFERS_LIMIT)
        self._continued: HeldStates[bool] = HeldStates(ttl_s=thread_ttl_s)

    def operation(self, method: str, path: str) -> str | None:
        """Return what a request is, or None when it is none of this API's."""
        if path.endswith("/messages"):
            return "generate" if method == "POST" else "405"
        if path.endswith("/messages/count_tokens"):
            return "count" if method == "POST" else "405"
        return None

    def key_problem(
        self, headers: Mapping[bytes, bytes], query: str, api_key: str | None
    ) -> ApiError | None:
        """Return the error for a missing or wrong key or version.

        Where both headers carry a key, the API takes ``x-api-key``.
        """
        del query
        key = headers.get(b"x-api-key", b"").decode("latin-1") or bearer_of(headers)
        if not key:
            return ApiError(401, "x-api-key header is required")
        if api_key is not None and key != api_key:
            return ApiError(401, "invalid x-api-key")
        version = headers.get(b"anthropic-version", b"").decode("latin-1")
        if not version:
            return ApiError(400, "anthropic-version: header is required")
        if version not in VERSIONS:
            return ApiError(400, f'anthropic-version: "{version}" is not a valid version')
        wrong = next((b for b in _betas(headers) if not _BETA.fullmatch(b)), None)
        if wrong is not None:
            return ApiError(400, f"Unexpected value(s) `{wrong}` for the `anthropic-beta` header.")
        return None

    def receive(
        self, data: bytes, headers: Mapping[bytes, bytes], path: str, query: str = ""
    ) -> GenerationRequest | ApiError:
        """Return a request in neutral words, or the error that the API answers it with."""
        del query
        is_count = path.endswith("/count_tokens")
        try:
            opened = self._prefixes.open(data, "messages")
            body = opened.body
            thread = body.get("thread") if isinstance(body, dict) else None
            held: Held | None = None
            if isinstance(thread, dict) and thread.get("type") == "continue":
                found = self._held_for(thread)
                if isinstance(found, Held):
                    held = found
                elif self._is_strict:
                    return found
            if held is not None:
                opened = self._prefixes.open(data, "messages", is_whole=True)._replace(
                    key=None, before=None
                )
            try:
                return self._request(opened, headers, held, is_count=is_count)
            except Incomplete:
                opened = self._prefixes.open(data, "messages", is_whole=True)
                return self._request(opened, headers, held, is_count=is_count)
        except ValueError as error:
            return ApiError(400, f"The request body is not valid JSON: {error}")

    def begin(self, request: GenerationRequest) -> ApiError | None:
        """Reserve the reply that a thread continues from: each can be continued only once."""
        parent = request.parent
        if parent in self._continuing:
            return _thread_error(
                "Another request is still continuing from this `previous_message_id`.",
                "thread_continue_in_flight",
            )
        if parent:
            self._continuing.add(parent)
        return None

    def finish(self, request: GenerationRequest, reply: GenerationReply | None) -> None:
        """Keep a thread's new state, if its reply was sent whole and was no refusal."""
        self._continuing.discard(request.parent)
        if reply is None or reply.stop == "refusal" or not request.body.get("thread"):
            return
        if request.parent:
            self._continued.put(request.parent, True)
            self._threads.drop(request.parent)
        self._threads.put(f"msg_{reply.suffix}", self.hold(request, reply))

    def learn(self, request: GenerationRequest, response_id: str) -> None:
        """Keep the state of a thread whose reply another server wrote."""
        if request.body.get("thread"):
            held = request.base
            conversation = request.conversation.copy()
            conversation.add_assistant(())
            root = held.root if held else response_id
            body = held.body if held else {}
            self._threads.put(response_id, Held(conversation, body, root))

    def other(
        self, operation: str, path: str, query: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        """Return a count of tokens, a page of the catalogue, or one model."""
        if operation == "405":
            return ApiError(405, "Method Not Allowed")
        if operation == "count":
            request = self.receive(data, headers, path)
            if isinstance(request, ApiError):
                return request
            counted: dict[str, Any] = {"input_tokens": request.input_tokens}
            if "context_management" in request.body:
                cleared = sum(edit["cleared_input_tokens"] for edit in request.applied_edits)
                original = {"original_input_tokens": request.input_tokens + cleared}
                counted["context_management"] = original
            return counted
        name = path.partition("/models")[2].strip("/")
        if name:
            return model_of(unquote(name))
        asked = parse_qs(query)
        limit = asked.get("limit", ["20"])[-1]
        if not limit.isdecimal() or not 1 <= int(limit) <= _PAGE_LIMIT:
            return ApiError(400, f"limit: Input should be from 1 to {_PAGE_LIMIT}")
        return models_page(asked.get("after_id", [""])[-1], int(limit))

    def error_body(self, error: ApiError, request_id: str | None) -> dict[str, Any]:
        """Return the error object, as a response body or as the data of an ``error`` event."""
        fallback = "api_error" if error.status >= 500 else "invalid_request_error"
        kind = _ERROR_TYPES.get(error.status, fallback)
        told: dict[str, Any] = {"type": kind, "message": error.message}
        if error.details is not None:
            told["details"] = dict(error.details)
        body: dict[str, Any] = {"type": "error", "error": told}
        return body if request_id is None else body | {"request_id": request_id}

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Return the event by which a stream that has begun says that it failed."""
        return sse(self.error_body(error, request_id))

    def headers(self, request_id: str) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers that every answer of this API has."""
        return (
            (b"request-id", request_id.encode()),
            (b"anthropic-organization-id", b"simulated"),
        )

    def context_error(self, request: GenerationRequest, limit: int) -> ApiError:
        """Return the error for a conversation longer than the model's context."""
        tokens = request.input_tokens
        return ApiError(400, f"prompt is too long: {tokens} tokens > {limit} maximum")

    def signature_error(self, request: GenerationRequest) -> ApiError:
        """Return the error for signed thinking that is refused."""
        messages, first = request.body["messages"], request.conversation.count
        for at, message in enumerate(messages, first - len(messages)):
            blocks = message["content"] if isinstance(message["content"], list) else ()
            for place, block in enumerate(blocks):
                if block["type"] == "thinking":
                    return _bad_signature(at, place)
        return _bad_signature(1, 0)

    def call_id(self, suffix: str, index: int) -> str:
        """Return the id of a reply's tool call."""
        return f"toolu_{suffix}{index:02d}"

    def hold(self, request: GenerationRequest, reply: GenerationReply) -> Held:
        """Return what the server holds of a thread once this reply is sent."""
        held = request.base
        conversation = request.conversation.copy()
        conversation.add_assistant([reply.text], [(i, name) for i, name, _ in reply.calls])
        conversation.size_chars += size_of(reply.text)
        pairs = conversation.pairs.copy()
        pairs.replied([call_id for call_id, _, _ in reply.calls])
        conversation.pairs = pairs
        kept = {name: request.body[name] for name in _FIXED if name in request.body}
        root = held.root if held else f"msg_{reply.suffix}"
        return Held(conversation, held.body if held else kept, root)

    def _held_for(self, thread: Mapping[str, Any]) -> Held | ApiError:
        previous = thread.get("previous_message_id")
        held = self._threads.get(previous) if isinstance(previous, str) else None
        if held is not None:
            return held
        if isinstance(previous, str) and self._continued.get(previous):
            return _thread_error(
                f"{previous} has already been continued: each response can be continued only "
                "once. Continue from the most recent response of the thread.",
                "thread_already_continued",
            )
        if not isinstance(previous, str):
            return ApiError(400, "thread.continue.previous_message_id: Field required")
        return ApiError(
            404,
            f"No usable thread state was found for {previous}. Send the full conversation with "
            'thread: {"type": "create"}.',
            details={"error_code": "thread_not_found"},
        )

    def _request(
        self,
        opened: Opened[Conversation],
        headers: Mapping[bytes, bytes],
        held: Held | None,
        *,
        is_count: bool,
    ) -> GenerationRequest | ApiError:
        body, fold = opened.body, opened.fold
        if not isinstance(body, dict):
            return ApiError(400, "the request body must be an object")
        if fold is None and held is not None:
            fold = held.conversation
        before = fold.pairs if fold is not None else None
        pairs = Pairing() if before is None else before.copy()
        problem = _fingerprint_problem(body, held.body) if held and self._is_strict else None
        whole: Any = body
        if held is not None:
            whole = body | {name: held.body[name] for name in _FIXED[:2] if name in held.body}
        beside = orjson.dumps((whole.get("system"), whole.get("tools")))
        is_simple = not body.get("mcp_servers")
        known = self._offers.get(beside) if is_simple else None
        if problem is None and self._is_strict:
            version = headers.get(b"anthropic-version", b"").decode("latin-1")
            betas = frozenset(_betas(headers))
            problem = problem_of(
                whole,
                version,
                is_count=is_count,
                betas=betas,
                pairs=pairs,
                are_tools_known=known is not None,
            )
        if problem is not None and self._is_strict:
            return problem
        messages, model = body["messages"], body["model"]
        for at, message in enumerate(messages, pairs.index - len(messages)):
            problem = _signature_problem(model, at, message) if self._is_strict else None
            if problem is not None:
                return problem
        conversation = Conversation() if fold is None else fold.copy()

        def add(growing: Conversation, some: Sequence[Mapping[str, Any]]) -> ApiError | None:
            conversation_of(some, growing)
            growing.size_chars += sum(map(size_of, some))
            growing.pairs = pairs if growing.count == pairs.index else pairs.before_last()
            return None

        self._prefixes.grow(opened, conversation, messages, add)
        thread = body.get("thread") or {}
        if thread and body.get("context_management") is not None and self._is_strict:
            return _thread_error(
                "thread: context_management is not supported with threads",
                "thread_unsupported_request",
                unsupported=["context_management"],
            )
        count = conversation.count
        size = len(beside) + conversation.size_chars + count + 2
        tokens = size // 4 + _PER_MESSAGE_TOKENS * count
        applied: list[dict[str, Any]] = []
        edits = (body.get("context_management") or {}).get("edits") or ()
        if edits and self._is_strict:
            problem = _compact_problem(edits, tokens)
            if problem is not None:
                return problem
            if may_edit(edits, thoughts=conversation.thoughts, tokens=tokens):
                if opened.fold is not None:
                    raise Incomplete
                shown, applied = edited(messages, edits, tokens)
                conversation = conversation_of(shown)
                tokens -= sum(edit["cleared_input_tokens"] for edit in applied)
        servers = {server["name"]: server for server in body.get("mcp_servers") or ()}
        offers = known
        if offers is None:
            offers = tuple(_offers(whole.get("tools") or (), servers))
            if is_simple and len(beside) < _OFFERS_LIMIT_BYTES:
                self._offers.put(beside, offers)
        offers += tuple(_offers(conversation.added, {}))
        listed = {offer.server for offer in offers}
        choice = body.get("tool_choice") or {}
        shape = (body.get("output_config") or {}).get("format") or body.get("output_format")
        thinking = (body.get("thinking") or {}).get("type")
        kind = choice.get("type", "auto")
        return GenerationRequest(
            model,
            _with_system(conversation, whole.get("system")),
            body,
            tokens,
            offers,
            kind,
            choice.get("name", "") if kind == "tool" else "",
            not choice.get("disable_parallel_tool_use", False),
            shape.get("schema") if shape else None,
            body.get("max_tokens"),
            body.get("stop_sequences") or (),
            thinking in ("enabled", "adaptive") and kind not in ("any", "tool"),
            bool(body.get("stream")),
            held.root if held else _session_of(body.get("metadata") or {}),
            thread.get("previous_message_id", ""),
            held,
            servers=[name for name in servers if name not in listed],
            applied_edits=applied,
        )

    def whole(self, request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
        """Return the ``message`` object."""
        content: list[Block] = []
        if reply.thinking:
            thinking = request.body["thinking"]
            shown = "" if thinking.get("display") == "omitted" else reply.thinking
            signature = signature_of(request.model, shown)
            content.append({"type": "thinking", "thinking": shown, "signature": signature})
        for at, ran in enumerate(reply.server_calls):
            call: dict[str, Any] = {"id": f"mcptoolu_{reply.suffix}{at:02d}", "name": ran.name}
            call |= {"server_name": ran.server, "input": ran.arguments}
            content.append({"type": "mcp_tool_use", **call})
            told = {"tool_use_id": call["id"], "content": [{"type": "text", "text": ran.result}]}
            content.append({"type": "mcp_tool_result", **told, "is_error": False})
        if reply.stop == "compaction":
            content = [{"type": "compaction", "content": reply.text}]
        elif reply.text:
            content.append({"type": "text", "text": reply.text})
        for call_id, name, arguments in reply.calls:
            block = {"type": "tool_use", "name": name, "id": call_id}
            content.append(block | {"input": _parsed(arguments)})
        message = {
            "id": f"msg_{reply.suffix}",
            "type": "message",
            "role": "assistant",
            "model": request.model,
            "content": content,
            "stop_reason": reply.stop,
            "stop_sequence": reply.stop_sequence,
            "usage": {
                "input_tokens": request.input_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": reply.output_tokens,
                "service_tier": "standard",
            },
        }
        if "context_management" in request.body:
            message["context_management"] = {"applied_edits": list(request.applied_edits)}
        return message

    def events(self, request: GenerationRequest, reply: GenerationReply) -> Iterator[StreamEvent]:
        """Yield the events that stream the reply, in the documented order."""
        raw = [arguments for _, _, arguments in reply.calls]
        for event, is_token in events_of(self.whole(request, reply), raw):
            yield StreamEvent(sse(event), is_token)


def sse(data: Mapping[str, Any]) -> bytes:
    """Return the bytes of an event whose name is its data's ``type``."""
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), orjson.dumps(data))


def events_of(
    message: Mapping[str, Any], raw_inputs: Sequence[str] = ()
) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield the data of the events that stream a message, and whether each is a token.

    Args:
        message: the ``message`` object.
        raw_inputs: the tool calls' inputs as JSON text, where they are not those of the message.
    """
    opening = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    opening["usage"] = {**message["usage"], "output_tokens": 1}
    yield {"type": "message_start", "message": opening}, False
    inputs = iter(raw_inputs)
    for index, block in enumerate(message["content"]):
        hollow, deltas = _deltas_of(block, inputs)
        yield {"type": "content_block_start", "index": index, "content_block": hollow}, False
        if index == 0:
            yield {"type": "ping"}, False
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}, True
        yield {"type": "content_block_stop", "index": index}, False
    ending = {
        "stop_reason": message["stop_reason"],
        "stop_sequence": message["stop_sequence"],
    }
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    last: dict[str, Any] = {"type": "message_delta", "delta": ending, "usage": usage}
    if "context_management" in message:
        last["context_management"] = message["context_management"]
    yield last, False
    yield {"type": "message_stop"}, False


def _deltas_of(block: Block, inputs: Iterator[str]) -> tuple[Block, list[Block]]:
    kind = block["type"]
    if kind == "mcp_tool_result":
        return block, []
    if kind in ("tool_use", "mcp_tool_use"):
        text = next(inputs, None) if kind == "tool_use" else None
        pieces = json_pieces(orjson.dumps(block["input"]).decode() if text is None else text)
        deltas = [{"type": "input_json_delta", "partial_json": p} for p in ("", *pieces)]
        return {**block, "input": {}}, deltas
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": p} for p in pieces_of(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {**block, "thinking": "", "signature": ""}, deltas
    if kind == "compaction":
        return {**block, "content": None}, [
            {"type": "compaction_delta", "content": block["content"]}
        ]
    return {**block, "text": ""}, [
        {"type": "text_delta", "text": piece} for piece in pieces_of(block["text"])
    ]


def model_of(name: str) -> dict[str, Any]:
    """Return a model's entry; one that the catalogue does not list has an entry, too."""
    known = next((model for model in MODELS if model[0] == name), (name, name, None))
    return {
        "type": "model",
        "id": known[0],
        "display_name": known[1],
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "line": known[2],
    }


def models_page(after_id: str, limit: int) -> dict[str, Any]:
    """Return one page of the catalogue."""
    ids = [model_id for model_id, _, _ in MODELS]
    begin = ids.index(after_id) + 1 if after_id in ids else 0
    page = [model_of(name) for name in ids[begin : begin + limit]]
    return {
        "data": page,
        "has_more": begin + limit < len(ids),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _fingerprint_problem(body: Mapping[str, Any], created: Mapping[str, Any]) -> ApiError | None:
    differing = [
        name
        for at, name in enumerate(_FIXED)
        if not (at < 2 and _fingerprint(body.get(name)) is None)
        and _fingerprint(body.get(name)) != _fingerprint(created.get(name))
    ]
    if not differing:
        return None
    return _thread_error(
        f"thread: the request differs from the thread in differing field(s): "
        f"{', '.join(differing)}. Send the stored values, or send the full conversation with "
        'thread: {"type": "create"} to change them.',
        "thread_fingerprint_mismatch",
    )


def _fingerprint(value: Any) -> Any:
    """What of a field must stay the same: not the cache marks, nor what is different each time."""
    if isinstance(value, list):
        kept = [_fingerprint(one) for one in value if not _is_billing(one)]
        return kept or None
    if isinstance(value, dict):
        return {name: _fingerprint(one) for name, one in value.items() if name != "cache_control"}
    return value or None


def _is_billing(block: Any) -> bool:
    return isinstance(block, dict) and str(block.get("text", "")).startswith(_BILLING)


def _compact_problem(edits: Sequence[Mapping[str, Any]], tokens: int) -> ApiError | None:
    for at, edit in enumerate(edits):
        trigger = (edit.get("trigger") or {}).get("value", COMPACT_TRIGGER_TOKENS)
        if edit["type"].startswith("compact_") and tokens > trigger:
            return ApiError(
                400,
                f"context_management.edits.{at}: the API would compact {tokens} tokens here, which "
                "is not simulated: raise the trigger, or ask for a summary with `compaction`",
            )
    return None


def _signature_problem(model: str, at: int, message: Mapping[str, Any]) -> ApiError | None:
    if message["role"] != "assistant" or isinstance(message["content"], str):
        return None
    for place, block in enumerate(message["content"]):
        if block["type"] == "thinking" and not is_signed(
            model, str(block.get("thinking", "")), str(block.get("signature", ""))
        ):
            return _bad_signature(at, place)
    return None


def _bad_signature(at: int, place: int) -> ApiError:
    return ApiError(400, f"messages.{at}.content.{place}: Invalid `signature` in `thinking` block")


def _session_of(metadata: Mapping[str, Any]) -> str:
    """The session that a client names: Claude Code puts a JSON object into the user's id."""
    named = str(metadata.get("user_id") or "")
    if named.startswith("{"):
        try:
            return str(orjson.loads(named)["session_id"])
        except (ValueError, KeyError, TypeError):
            return named
    return named


def _thread_error(sentence: str, code: str, **details: Any) -> ApiError:
    return ApiError(400, sentence, details={"error_code": code, **details})


def _betas(headers: Mapping[bytes, bytes]) -> list[str]:
    names = headers.get(b"anthropic-beta", b"").decode("latin-1").split(",")
    return [name.strip() for name in names if name.strip()]


def _offers(
    tools: Sequence[Mapping[str, Any]], servers: Mapping[str, Mapping[str, Any]]
) -> Iterator[ToolOffer]:
    """Yield the tools that can be called: the client's, and the listed ones of tool servers."""
    for tool in tools:
        if tool.get("type") == "mcp_toolset":
            enabled = (tool.get("default_config") or {}).get("enabled") is not False
            configs = tool.get("configs") or {}
            listed = {one["name"]: one.get("input_schema") for one in tool.get("tools") or ()}
            for name in dict.fromkeys((*listed, *configs)):
                if (configs.get(name) or {}).get("enabled", enabled):
                    yield ToolOffer(name, listed.get(name), tool["mcp_server_name"])
        elif is_callable(tool):
            schema = tool.get("input_schema") if "input_schema" in tool else None
            is_known = (tool.get("type") or "custom") == "custom" or schema is not None
            yield ToolOffer(tool["name"], schema if is_known else _COMMAND)
    for name, server in servers.items():
        for allowed in (server.get("tool_configuration") or {}).get("allowed_tools") or ():
            yield ToolOffer(allowed, None, name)


def _with_system(conversation: Conversation, system: Any) -> Conversation:
    if isinstance(system, str):
        conversation.mention(system)
    elif system:
        for block in system:
            conversation.mention(str(block.get("text", "")))
    return conversation


def _parsed(arguments: str) -> Any:
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        # A whole body cannot carry half a JSON text; what was complete of it is an empty object.
        return {}
