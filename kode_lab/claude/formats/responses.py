"""The Responses API on the wire, with the conversations and responses that its server holds.

A conversation takes one response at a time: a second one is refused with ``conversation_locked``.
Two responses on one ``previous_response_id`` are a fork that the client asked for.

Source: https://platform.openai.com/docs/api-reference/responses, .../conversations, and the types
of openai 3.57, whose client must not be able to tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from kode_lab.claude.conversation import Conversation, Incomplete
from kode_lab.claude.formats import openai_words as words
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationReply,
    GenerationRequest,
    Held,
    StreamEvent,
    is_signed,
    json_pieces,
    pieces_of,
    signature_of,
    size_of,
)
from kode_lab.claude.held import HeldStates
from kode_lab.claude.prefixes import Opened, Prefixes

__all__ = ["ITEMS_LIMIT", "ResponsesFormat"]

# Items of one conversation, and of one request to add some.
ITEMS_LIMIT = 10_000
_ADDED_LIMIT = 20
_PAGE_LIMIT = 100
# Responses and items that are kept whole, to be asked for again.
_KEPT_LIMIT = 20_000
_CALL_ITEMS = ("function_call", "custom_tool_call")
_OUTPUT_ITEMS = ("function_call_output", "custom_tool_call_output")


class _Stored(NamedTuple):
    """A response that was sent, as ``GET /v1/responses/{id}`` shows it."""

    body: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]


class _OpenConversation:
    """A conversation object: its items, and their fold."""

    __slots__ = ("created_at", "fold", "is_locked", "items", "metadata")

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.created_at = int(time.time())
        self.metadata = metadata
        self.items: list[Mapping[str, Any]] = []
        self.fold = Conversation()
        self.is_locked = False


class ResponsesFormat(words.OpenAiFormat):
    """``POST /v1/responses``, and ``/v1/conversations``.

    ``is_strict`` refuses what the API refuses; a proxy, whose upstream does that, only reads.
    """

    name = "responses"

    def __init__(self, *, is_strict: bool = True) -> None:
        self._is_strict = is_strict
        self._prefixes: Prefixes[Conversation] = Prefixes()
        self._held: HeldStates[Held] = HeldStates()
        self._stored: HeldStates[_Stored] = HeldStates(_KEPT_LIMIT)
        self._items: HeldStates[Mapping[str, Any]] = HeldStates(2 * _KEPT_LIMIT)
        self._conversations: HeldStates[_OpenConversation] = HeldStates(_KEPT_LIMIT)
        self._count = count(1)

    def operation(self, method: str, path: str) -> str | None:
        """Return what a request is, or None when it is none of this API's."""
        if path.endswith("/responses"):
            return "generate" if method == "POST" else "405"
        if "/responses/" in path:
            return f"{method} response"
        if path.endswith("/conversations") or "/conversations/" in path:
            return f"{method} conversation"
        return None

    def receive(
        self, data: bytes, headers: Mapping[bytes, bytes], path: str, query: str = ""
    ) -> GenerationRequest | ApiError:
        """Return a request in neutral words, or the error that the API answers it with."""
        del headers, path, query
        try:
            opened = self._prefixes.open(data, "input")
            body = opened.body
            base = self._base(body) if isinstance(body, dict) else None
            if isinstance(base, ApiError):
                return base
            if base is not None:
                opened = self._prefixes.open(data, "input", is_whole=True)._replace(
                    key=None, before=None
                )
            try:
                return self._request(opened, base)
            except Incomplete:
                return self._request(self._prefixes.open(data, "input", is_whole=True), base)
        except ValueError as error:
            return ApiError(400, f"We could not parse the JSON body of your request. ({error})")

    def begin(self, request: GenerationRequest) -> ApiError | None:
        """Lock the conversation, or return the error that it is locked."""
        conversation = self._conversation(request)
        if conversation is None:
            return None
        if conversation.is_locked:
            return words.wrong(
                "conversation",
                "Another process is currently operating on this conversation. Please retry in a "
                "few seconds.",
                "conversation_locked",
            )
        conversation.is_locked = True
        return None

    def finish(self, request: GenerationRequest, reply: GenerationReply | None) -> None:
        """Unlock the conversation; keep the response, if it was sent whole."""
        conversation = self._conversation(request)
        if conversation is not None:
            conversation.is_locked = False
        if reply is None:
            return
        body = self.whole(request, reply)
        given, made = _input_items(request.body, reply.suffix), body["output"]
        if request.body.get("store") is not False:
            base = request.base
            after = _after(request, reply)
            root = base.root if base is not None else body["id"]
            self._held.put(body["id"], Held(after, {}, root))
            self._stored.put(body["id"], _Stored(body, given))
            for item in made:
                self._items.put(item["id"], item)
        if conversation is not None:
            conversation.items += [*given, *made]
            conversation.fold = _after(request, reply)

    def learn(self, request: GenerationRequest, response_id: str) -> None:
        """Keep the fold of a response, or of its conversation, that another server wrote."""
        fold = request.conversation.copy()
        fold.add_assistant(())
        fold.pairs = {}
        root = request.base.root if request.base is not None else response_id
        if request.body.get("store") is not False:
            self._held.put(response_id, Held(fold, {}, root))
        conversation = self._conversation(request)
        if conversation is not None:
            conversation.fold = fold

    def learn_items(self, named: str, data: bytes) -> None:
        """Add the items that a client gave to a conversation of another server."""
        conversation = self._conversations.get(named)
        if conversation is None:
            conversation = _OpenConversation({})
            self._conversations.put(named, conversation)
        try:
            items = orjson.loads(data).get("items") or []
        except (orjson.JSONDecodeError, AttributeError):
            return
        _fold(conversation.fold, [item for item in items if isinstance(item, dict)], "", None)

    def whole(self, request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
        """Return the ``response`` object."""
        is_cut = reply.stop == "max_tokens"
        return _response(request, reply, _output(request, reply), "incomplete" if is_cut else "")

    def events(self, request: GenerationRequest, reply: GenerationReply) -> Iterator[StreamEvent]:
        """Yield the events of a streamed response."""
        numbers = count()

        def event(kind: str, *, is_token: bool = False, **fields: Any) -> StreamEvent:
            data = {"type": kind, "sequence_number": next(numbers), **fields}
            return StreamEvent(
                b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data)), is_token
            )

        begun = _response(request, reply, [], "in_progress")
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        for at, item in enumerate(_output(request, reply)):
            where = {"output_index": at, "item_id": item["id"]}
            if item["type"] == "reasoning":
                parts = _reasoning_events(item)
            elif item["type"] == "message":
                parts = _message_events(item)
            else:
                parts = _call_events(item)
            yield event("response.output_item.added", output_index=at, item=_hollow(item))
            for kind, is_token, fields in parts:
                yield event(kind, is_token=is_token, **where, **fields)
            yield event("response.output_item.done", output_index=at, item=item)
        whole = self.whole(request, reply)
        yield event(f"response.{whole['status']}", response=whole)

    def other(
        self, operation: str, path: str, query: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        """Return the answer about stored responses, conversations and their items."""
        del headers
        if operation == "models":
            return words.model_answer(path)
        method, _, kind = operation.partition(" ")
        if kind == "response":
            return self._response_answer(method, path.rpartition("/responses/")[2], query, data)
        if kind == "conversation":
            return self._conversation_answer(
                method, path.partition("/conversations")[2].strip("/"), query, data
            )
        return ApiError(405, "Method not allowed")

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Return the event by which a stream that has begun says that it failed."""
        told = self.error_body(error, request_id)["error"]
        data = {
            "type": "error",
            "code": told["code"] or told["type"],
            "message": told["message"],
            "param": told["param"],
            "sequence_number": 0,
        }
        return b"event: error\ndata: %s\n\n" % orjson.dumps(data)

    def context_error(self, request: GenerationRequest, limit: int) -> ApiError:
        """Return the error for a conversation longer than the model's context."""
        sentence = (
            "Your input exceeds the context window of this model. Please adjust your input and "
            "try again."
        )
        if request.body.get("truncation") == "auto":
            sentence = (
                f"{sentence} The API would drop items ('truncation'), which is not simulated "
                f"beyond {limit} tokens."
            )
        return words.wrong("input", sentence, "context_length_exceeded")

    def signature_error(self, request: GenerationRequest) -> ApiError:
        """Return the error for signed thinking that is refused."""
        items = request.body.get("input")
        found = (
            [i for i in items if i.get("type") == "reasoning"] if isinstance(items, list) else []
        )
        return _bad_reasoning(str(found[0].get("id")) if found else "rs_unknown")

    def _conversation(self, request: GenerationRequest) -> _OpenConversation | None:
        named = _conversation_id(request.body)
        return self._conversations.get(named) if named else None

    def _base(self, body: Mapping[str, Any]) -> Held | ApiError | None:
        """What the server holds of the conversation that a request goes on with."""
        previous, named = body.get("previous_response_id"), _conversation_id(body)
        if previous and named:
            return words.wrong(
                "previous_response_id",
                "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Only "
                "one of them can be provided.",
                "mutually_exclusive_parameters",
            )
        if named:
            conversation = self._conversations.get(named)
            if conversation is None:
                return ApiError(
                    404, f"Conversation with id '{named}' not found.", param="conversation"
                )
            return Held(conversation.fold, {}, named)
        if not previous:
            return None
        held = self._held.get(str(previous))
        if held is None and not self._is_strict:
            return None
        if held is None:
            return words.wrong(
                "previous_response_id",
                f"Previous response with id '{previous}' not found.",
                "previous_response_not_found",
            )
        return held

    def _request(
        self, opened: Opened[Conversation], base: Held | None
    ) -> GenerationRequest | ApiError:
        body = opened.body
        problem = _plain_problem(body) if self._is_strict else None
        if problem is not None:
            return problem
        fold = opened.fold if base is None else base.conversation
        conversation = Conversation() if fold is None else fold.copy()
        given = body.get("input") or []
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        items_known = self._items if self._is_strict else None
        problem = self._prefixes.grow(
            opened,
            conversation,
            items,
            lambda growing, some: _fold(growing, some, body["model"], items_known),
        )
        if problem is None and self._is_strict:
            problem = _open_calls_problem(conversation)
        if problem is not None:
            return problem
        conversation.mention(_instructions(body))
        tools = tuple(words.offers_of(body.get("tools")))
        choice, forced = _choice_of(body.get("tool_choice"))
        if forced and forced not in {tool.name for tool in tools}:
            return words.wrong("tool_choice", f"Tool choice '{forced}' not found in 'tools'.")
        shape = (body.get("text") or {}).get("format") or {}
        size = size_of((body.get("instructions"), body.get("tools"))) + conversation.size_chars
        reasoning = body.get("reasoning") or {}
        tokens = size // 4 + 4 * conversation.count
        problem = _compact_problem(body, tokens) if self._is_strict else None
        if problem is not None:
            return problem
        return GenerationRequest(
            body["model"],
            conversation,
            body,
            tokens,
            tools,
            choice,
            forced,
            body.get("parallel_tool_calls") is not False,
            {"type": "object", "properties": {"answer": {"type": "string"}}}
            if shape.get("type") == "json_object"
            else shape.get("schema"),
            body.get("max_output_tokens"),
            (),
            bool(reasoning) and reasoning.get("effort") != "none",
            bool(body.get("stream")),
            base.root if base else str(body.get("prompt_cache_key") or body.get("user") or ""),
            body.get("previous_response_id") or "",
            base,
        )

    def _response_answer(
        self, method: str, rest: str, query: str, data: bytes
    ) -> Mapping[str, Any] | ApiError:
        response_id, _, part = rest.partition("/")
        if response_id == "input_tokens":
            request = self.receive(data, {}, "")
            if isinstance(request, ApiError):
                return request
            return {"object": "response.input_tokens", "input_tokens": request.input_tokens}
        if response_id == "compact":
            return ApiError(404, "'/responses/compact' is not simulated")
        stored = self._stored.get(response_id)
        if stored is None:
            return ApiError(404, f"Response with id '{response_id}' not found.", param="id")
        if method == "DELETE":
            self._stored.drop(response_id)
            self._held.drop(response_id)
            return {"id": response_id, "object": "response", "deleted": True}
        if part == "input_items":
            return _page(stored.items, query)
        return stored.body if part in ("", "cancel") else ApiError(404, "Not found")

    def _conversation_answer(
        self, method: str, rest: str, query: str, data: bytes
    ) -> Mapping[str, Any] | ApiError:
        try:
            body = orjson.loads(data) if data else {}
        except orjson.JSONDecodeError as error:
            return ApiError(400, f"We could not parse the JSON body of your request. ({error})")
        named, _, part = rest.partition("/")
        if not named:
            return self._created(body) if method == "POST" else ApiError(405, "Method not allowed")
        conversation = self._conversations.get(named)
        if conversation is None:
            return ApiError(404, f"Conversation with id '{named}' not found.", param="id")
        if part.startswith("items"):
            item_id = part.partition("/")[2]
            return self._items_answer(method, named, conversation, item_id, query, body)
        if method == "DELETE":
            self._conversations.drop(named)
            return {"id": named, "object": "conversation.deleted", "deleted": True}
        if method == "POST":
            conversation.metadata = body.get("metadata") or {}
        return _conversation_body(named, conversation)

    def _created(self, body: Mapping[str, Any]) -> Mapping[str, Any] | ApiError:
        conversation = _OpenConversation(body.get("metadata") or {})
        problem = self._add(conversation, body.get("items") or [])
        if problem is not None:
            return problem
        named = f"conv_sim{next(self._count):08x}{time.time_ns():016x}"
        self._conversations.put(named, conversation)
        return _conversation_body(named, conversation)

    def _items_answer(
        self,
        method: str,
        named: str,
        conversation: _OpenConversation,
        item_id: str,
        query: str,
        body: Mapping[str, Any],
    ) -> Mapping[str, Any] | ApiError:
        if item_id:
            item = next((i for i in conversation.items if i.get("id") == item_id), None)
            if item is None:
                return ApiError(404, f"Item with id '{item_id}' not found in '{named}'.")
            if method != "DELETE":
                return item
            conversation.items.remove(item)
            conversation.fold = Conversation()
            _fold(conversation.fold, conversation.items, "", self._items)
            return _conversation_body(named, conversation)
        if method == "GET":
            return _page(conversation.items, query)
        before = len(conversation.items)
        problem = self._add(conversation, body.get("items"))
        return problem or _page(conversation.items[before:], "order=asc&limit=100")

    def _add(self, conversation: _OpenConversation, items: Any) -> ApiError | None:
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return words.wrong("items", "Invalid type for 'items': expected an array of objects")
        if len(items) > _ADDED_LIMIT:
            return words.wrong("items", f"'items' takes at most {_ADDED_LIMIT} at a time")
        if len(conversation.items) + len(items) > ITEMS_LIMIT:
            return words.wrong("items", f"the conversation is full: ITEMS_LIMIT={ITEMS_LIMIT}")
        fold = conversation.fold.copy()
        problem = _fold(fold, items, "", self._items)
        if problem is not None:
            return problem
        suffix = f"add{next(self._count):08x}"
        conversation.fold = fold
        conversation.items += _with_ids(items, suffix)
        return None


def _plain_problem(body: Any) -> ApiError | None:
    problem = words.option_problem("responses", body)
    if problem is not None:
        return problem
    given = body.get("input")
    if isinstance(given, list) and not all(isinstance(item, dict) for item in given):
        return words.wrong(
            "input", "Invalid type for 'input': expected a string or an array of items"
        )
    if given is None and not body.get("previous_response_id") and not _conversation_id(body):
        return words.wrong(
            "input", "Missing required parameter: 'input'.", "missing_required_parameter"
        )
    if not all(
        isinstance(tool, dict)
        and (tool.get("type") != "function" or isinstance(tool.get("name"), str))
        and isinstance(tool.get("type"), str)
        for tool in body.get("tools") or ()
    ):
        return words.wrong("tools", "Invalid 'tools': each needs a type, and a function a name")
    if "message.output_text.logprobs" in (body.get("include") or ()):
        return words.wrong(
            "include", "message.output_text.logprobs is not simulated", "unsupported_parameter"
        )
    return None


def _compact_problem(body: Mapping[str, Any], tokens: int) -> ApiError | None:
    for edit in body.get("context_management") or ():
        threshold = edit.get("compact_threshold")
        if threshold is not None and tokens > threshold:
            return words.wrong(
                "context_management",
                f"the API would compact {tokens} tokens here, which is not simulated: raise "
                "compact_threshold",
                "unsupported_parameter",
            )
    return None


def _conversation_id(body: Mapping[str, Any]) -> str:
    named = body.get("conversation")
    return str(named.get("id", "")) if isinstance(named, dict) else str(named or "")


def _instructions(body: Mapping[str, Any]) -> str:
    given = body.get("instructions")
    if isinstance(given, list):
        return "\n".join(
            text for item in given for text in words.text_of_parts(item.get("content"))
        )
    return str(given or "")


def _choice_of(choice: Any) -> tuple[str, str]:
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            return ("any" if choice.get("mode") == "required" else "auto"), ""
        named = str(choice.get("name") or "")
        return ("tool" if named else "any"), named
    return ({"required": "any"}.get(choice, choice) if choice else "auto"), ""


def _fold(
    conversation: Conversation,
    items: Sequence[Mapping[str, Any]],
    model: str,
    known: HeldStates[Mapping[str, Any]] | None,
) -> ApiError | None:
    """Add items; several of the assistant's in a row are one reply.

    Without ``known`` nothing is refused: what refers to an unknown item is left out.
    """
    open_calls: dict[str, str] = dict(conversation.pairs or {})
    texts: list[str] = []
    calls: list[tuple[str, str]] = []
    is_replying = False

    def reply() -> None:
        nonlocal is_replying
        if is_replying:
            conversation.add_assistant(texts, calls)
            conversation.count -= 1
            texts.clear()
            calls.clear()
            is_replying = False

    for at, given in enumerate(items):
        item: Mapping[str, Any] | None = given
        if given.get("type") == "item_reference" or (
            set(given) <= {"id", "type"} and "id" in given
        ):
            if known is None:
                continue
            item = known.get(str(given.get("id")))
            if item is None:
                return ApiError(404, f"Item with id '{given.get('id')}' not found.", param="input")
        assert item is not None, "checked above"
        kind = item.get("type") or ("message" if "role" in item else "")
        conversation.count += 1
        conversation.size_chars += size_of(item)
        if kind in _CALL_ITEMS:
            call_id, name = str(item.get("call_id")), str(item.get("name"))
            open_calls[call_id] = name
            calls.append((call_id, name))
            is_replying = True
        elif kind in _OUTPUT_ITEMS:
            reply()
            call_id = str(item.get("call_id"))
            if call_id not in open_calls and known is not None:
                return words.wrong(
                    "input", f"No tool call found for function call output with call_id {call_id}."
                )
            text = "\n".join(words.text_of_parts(item.get("output")))
            conversation.add_result(open_calls.pop(call_id, ""), text)
        elif kind == "message" and item.get("role") == "assistant":
            texts += words.text_of_parts(item.get("content"))
            is_replying = True
        elif kind == "message":
            reply()
            if item.get("role") not in ("user", "system", "developer") and known is not None:
                return words.wrong(
                    f"input[{at}].role",
                    f"Invalid value: {item.get('role')!r}. Supported values are: 'assistant', "
                    "'system', 'developer', and 'user'.",
                    "invalid_value",
                )
            conversation.count -= 1
            said = words.text_of_parts(item.get("content"))
            if item.get("role") == "user":
                conversation.add_user(said)
            else:
                conversation.add_system(said)
        elif kind == "reasoning":
            secret = item.get("encrypted_content")
            if secret is not None:
                conversation.thoughts += 1
                if model and known is not None and not _is_reasoning(model, str(secret)):
                    return _bad_reasoning(str(item.get("id")))
        elif not kind and known is not None:
            return words.wrong(f"input[{at}]", "Invalid value: an item needs a type or a role.")
    reply()
    conversation.pairs = open_calls
    return None


def _open_calls_problem(conversation: Conversation) -> ApiError | None:
    if conversation.pairs:
        return words.wrong(
            "input", f"No tool output found for function call {next(iter(conversation.pairs))}."
        )
    return None


def _after(request: GenerationRequest, reply: GenerationReply) -> Conversation:
    fold = request.conversation.copy()
    fold.add_assistant([reply.text], [(call_id, name) for call_id, name, _ in reply.calls])
    fold.size_chars += len(reply.text) + sum(len(text) for _, _, text in reply.calls)
    fold.pairs = {**(fold.pairs or {}), **{call_id: name for call_id, name, _ in reply.calls}}
    return fold


def _is_reasoning(model: str, secret: str) -> bool:
    item, _, signature = secret.partition(".")
    return is_signed(model, item, signature)


def _bad_reasoning(item_id: str) -> ApiError:
    return words.wrong(
        "input",
        f"The encrypted content for item {item_id} could not be verified.",
        "invalid_encrypted_content",
    )


def _output(request: GenerationRequest, reply: GenerationReply) -> list[dict[str, Any]]:
    """The items of a reply."""
    items: list[dict[str, Any]] = []
    status = "incomplete" if reply.stop == "max_tokens" else "completed"
    if reply.thinking:
        has_summary = (request.body.get("reasoning") or {}).get("summary")
        item: dict[str, Any] = {
            "id": f"rs_{reply.suffix}",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": reply.thinking}] if has_summary else [],
        }
        if "reasoning.encrypted_content" in (request.body.get("include") or ()):
            signature = signature_of(request.model, reply.suffix)
            item["encrypted_content"] = f"{reply.suffix}.{signature}"
        items.append(item)
    if reply.text or not reply.calls:
        part: dict[str, Any] = {
            "type": "output_text",
            "text": reply.text,
            "annotations": [],
            "logprobs": [],
        }
        if reply.stop == "refusal":
            part = {"type": "refusal", "refusal": reply.text}
        items.append(
            {
                "id": f"msg_{reply.suffix}",
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [part],
            }
        )
    for at, (call_id, name, arguments) in enumerate(reply.calls):
        is_last = at == len(reply.calls) - 1
        items.append(
            {
                "id": f"fc_{reply.suffix}{at:02d}",
                "type": "function_call",
                "status": status if is_last else "completed",
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
            }
        )
    return items


_Part = tuple[str, bool, Mapping[str, Any]]


def _message_events(item: Mapping[str, Any]) -> Iterator[_Part]:
    part = item["content"][0]
    is_refusal = part["type"] == "refusal"
    text = part["refusal" if is_refusal else "text"]
    empty = {"type": "refusal", "refusal": ""} if is_refusal else {**part, "text": ""}
    kind = "response.refusal" if is_refusal else "response.output_text"
    extra: Mapping[str, Any] = {} if is_refusal else {"logprobs": []}
    yield "response.content_part.added", False, {"content_index": 0, "part": empty}
    for piece in pieces_of(text):
        yield f"{kind}.delta", True, {"content_index": 0, "delta": piece, **extra}
    whole = {"refusal": text} if is_refusal else {"text": text}
    yield f"{kind}.done", False, {"content_index": 0, **whole, **extra}
    yield "response.content_part.done", False, {"content_index": 0, "part": part}


def _call_events(item: Mapping[str, Any]) -> Iterator[_Part]:
    for piece in json_pieces(item["arguments"]):
        yield "response.function_call_arguments.delta", True, {"delta": piece}
    done = {"arguments": item["arguments"], "name": item["name"]}
    yield "response.function_call_arguments.done", False, done


def _reasoning_events(item: Mapping[str, Any]) -> Iterator[_Part]:
    for at, part in enumerate(item["summary"]):
        where = {"summary_index": at}
        empty = {**part, "text": ""}
        yield "response.reasoning_summary_part.added", False, {**where, "part": empty}
        for piece in pieces_of(part["text"]):
            yield "response.reasoning_summary_text.delta", True, {**where, "delta": piece}
        yield "response.reasoning_summary_text.done", False, {**where, "text": part["text"]}
        yield "response.reasoning_summary_part.done", False, {**where, "part": part}


def _hollow(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as it is announced: nothing of its content is there yet."""
    empty: Mapping[str, Mapping[str, Any]] = {
        "message": {"content": []},
        "reasoning": {"summary": []},
    }
    status = {} if item["type"] == "reasoning" else {"status": "in_progress"}
    return {**item, **status, **empty.get(item["type"], {"arguments": ""})}


def _response(
    request: GenerationRequest,
    reply: GenerationReply,
    output: Sequence[Mapping[str, Any]],
    status: str,
) -> dict[str, Any]:
    body, now = request.body, int(time.time())
    named = _conversation_id(body)
    is_open = status == "in_progress"
    return {
        "id": f"resp_{reply.suffix}",
        "object": "response",
        "created_at": now,
        "completed_at": None if status else now,
        "status": status or "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "model": request.model,
        "output": list(output),
        "parallel_tool_calls": request.is_parallel,
        "previous_response_id": body.get("previous_response_id"),
        "conversation": {"id": named} if named else None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store") is not False,
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": None if is_open else _usage(request, reply),
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _usage(request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
    return {
        "input_tokens": request.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"reasoning_tokens": len(pieces_of(reply.thinking))},
        "total_tokens": request.input_tokens + reply.output_tokens,
    }


def _input_items(body: Mapping[str, Any], suffix: str) -> list[Mapping[str, Any]]:
    """The items of a request as they are listed: each with an id, a type and parts."""
    given = body.get("input") or []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return _with_ids(items, f"{suffix}in")


def _with_ids(items: Sequence[Mapping[str, Any]], suffix: str) -> list[Mapping[str, Any]]:
    made: list[Mapping[str, Any]] = []
    for at, item in enumerate(items):
        content = item.get("content")
        kind = str(item.get("type") or "message")
        whole = {"id": f"{kind[:3]}_{suffix}{at:03d}", "status": "completed", **item, "type": kind}
        if isinstance(content, str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            extra: Mapping[str, Any] = {"annotations": []} if part == "output_text" else {}
            whole["content"] = [{"type": part, "text": content, **extra}]
        made.append(whole)
    return made


def _page(items: Sequence[Mapping[str, Any]], query: str) -> Mapping[str, Any] | ApiError:
    """One page of items; the newest first, as the API lists them unless it is told otherwise."""
    asked = parse_qs(query)
    limit, order = asked.get("limit", ["20"])[-1], asked.get("order", ["desc"])[-1]
    if not limit.isdecimal() or not 1 <= int(limit) <= _PAGE_LIMIT:
        return words.wrong("limit", f"Invalid 'limit': expected 1 to {_PAGE_LIMIT}")
    listed = list(items) if order == "asc" else list(reversed(items))
    ids = [str(item.get("id")) for item in listed]
    after = asked.get("after", [""])[-1]
    begin = ids.index(after) + 1 if after in ids else 0
    page = listed[begin : begin + int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": begin + int(limit) < len(listed),
    }


def _conversation_body(named: str, conversation: _OpenConversation) -> dict[str, Any]:
    return {
        "id": named,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": dict(conversation.metadata),
    }
