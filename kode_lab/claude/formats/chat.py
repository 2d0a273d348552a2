"""Chat Completions on the wire: requests, completions, chunks, errors.

Source: https://platform.openai.com/docs/api-reference/chat and the types of openai 3.57, whose
client must not be able to tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from kode_lab.claude.conversation import Conversation, Incomplete
from kode_lab.claude.formats import openai_words as words
from kode_lab.claude.formats.seam import (
    ApiError,
    GenerationReply,
    GenerationRequest,
    StreamEvent,
    json_pieces,
    pieces_of,
    size_of,
)
from kode_lab.claude.prefixes import Opened, Prefixes

__all__ = ["ChatFormat"]

_ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
# As the API limits it.
_CHOICES_LIMIT = 128
_DONE = StreamEvent(b"data: [DONE]\n\n")


class ChatFormat(words.OpenAiFormat):
    """``POST /v1/chat/completions``; ``is_strict`` refuses what the API refuses."""

    name = "chat"

    def __init__(self, *, is_strict: bool = True) -> None:
        self._is_strict = is_strict
        self._prefixes: Prefixes[Conversation] = Prefixes()

    def operation(self, method: str, path: str) -> str | None:
        """Return what a request is, or None when it is none of this API's."""
        if path.endswith("/chat/completions"):
            return "generate" if method == "POST" else "405"
        return None

    def receive(
        self, data: bytes, headers: Mapping[bytes, bytes], path: str, query: str = ""
    ) -> GenerationRequest | ApiError:
        """Return a request in neutral words, or the error that the API answers it with."""
        del headers, path, query
        try:
            opened = self._prefixes.open(data, "messages")
            try:
                return _request(opened, self._prefixes, is_strict=self._is_strict)
            except Incomplete:
                opened = self._prefixes.open(data, "messages", is_whole=True)
                return _request(opened, self._prefixes, is_strict=self._is_strict)
        except ValueError as error:
            return ApiError(400, f"We could not parse the JSON body of your request. ({error})")

    def whole(self, request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
        """Return the ``chat.completion`` object."""
        choices = []
        for index in range(request.replies):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": reply.text or None,
                "refusal": None,
                "annotations": [],
            }
            if reply.calls:
                message["tool_calls"] = [
                    {
                        "id": _id_in_choice(call_id, index),
                        "type": "function",
                        "function": {"name": name, "arguments": arguments},
                    }
                    for call_id, name, arguments in reply.calls
                ]
            finish = _FINISH.get(reply.stop, "stop")
            choices.append(
                {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            )
        head = _head(request, reply, "chat.completion")
        return {**head, "choices": choices, "usage": _usage(request, reply)}

    def events(self, request: GenerationRequest, reply: GenerationReply) -> Iterator[StreamEvent]:
        """Yield the chunks of a streamed completion."""
        head = _head(request, reply, "chat.completion.chunk")
        options = request.body.get("stream_options") or {}
        has_usage = bool(options.get("include_usage"))
        # Only the choices differ from chunk to chunk: the rest is written once.
        before = orjson.dumps(head)[:-1] + b',"choices":'
        after = b',"usage":null}\n\n' if has_usage else b"}\n\n"

        def chunk(
            choice: int,
            delta: Mapping[str, Any],
            finish: str | None = None,
            *,
            is_token: bool = False,
        ) -> StreamEvent:
            told = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
            data = b"data: %s[%s]%s" % (before, orjson.dumps(told), after)
            return StreamEvent(data, is_token)

        begun = {"role": "assistant", "content": "" if reply.text else None, "refusal": None}
        for choice in range(request.replies):
            yield chunk(choice, begun)
            for piece in pieces_of(reply.text):
                yield chunk(choice, {"content": piece}, is_token=True)
            for index, (call_id, name, arguments) in enumerate(reply.calls):
                named = _id_in_choice(call_id, choice)
                function = {"name": name, "arguments": ""}
                first = {"index": index, "id": named, "type": "function", "function": function}
                yield chunk(choice, {"tool_calls": [first]})
                for piece in json_pieces(arguments):
                    more = {"index": index, "function": {"arguments": piece}}
                    yield chunk(choice, {"tool_calls": [more]}, is_token=True)
            yield chunk(choice, {}, _FINISH.get(reply.stop, "stop"))
        if has_usage:
            last = {**head, "choices": [], "usage": _usage(request, reply)}
            yield StreamEvent(b"data: %s\n\n" % orjson.dumps(last))
        yield _DONE

    def other(
        self, operation: str, path: str, query: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        """Return the models."""
        del query, data, headers
        if operation == "models":
            return words.model_answer(path)
        return ApiError(405, "Method not allowed")

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Return the event by which a stream that has begun says that it failed."""
        return b"data: %s\n\n" % orjson.dumps(self.error_body(error, request_id))

    def context_error(self, request: GenerationRequest, limit: int) -> ApiError:
        """Return the error for a conversation longer than the model's context."""
        return words.context_error(request, limit, "messages")

    def signature_error(self, request: GenerationRequest) -> ApiError:
        """Return the error for signed thinking that is refused."""
        del request
        return words.wrong("messages", "The reasoning of an assistant message is not valid.")


def _request(
    opened: Opened[Conversation], prefixes: Prefixes[Conversation], *, is_strict: bool
) -> GenerationRequest | ApiError:
    body = opened.body
    problem = _plain_problem(body) if is_strict else None
    if problem is not None:
        return problem
    conversation = Conversation() if opened.fold is None else opened.fold.copy()
    if not body["messages"] and not conversation.count:
        return words.wrong("messages", "[] is too short - 'messages'", "array_below_min_length")
    problem = prefixes.grow(
        opened,
        conversation,
        body["messages"],
        lambda growing, some: _fold(growing, some, is_strict=is_strict),
    )
    if problem is None and conversation.pairs and is_strict:
        problem = _unanswered(conversation.count, conversation.pairs)
    if problem is not None:
        return problem
    for text in _texts_beside(body):
        conversation.mention(text)
    choice = body.get("tool_choice") or "auto"
    forced = ""
    if isinstance(choice, dict):
        forced = (choice.get("function") or choice.get("custom") or {}).get("name", "")
        allowed = choice.get("allowed_tools") or {}
        choice = "tool" if forced else ("any" if allowed.get("mode") == "required" else "auto")
    choice = {"required": "any"}.get(choice, choice)
    tools = tuple(words.offers_of(body.get("tools")))
    if forced and forced not in {tool.name for tool in tools}:
        return words.wrong("tool_choice", f"tool_choice: no tool {forced!r} is in 'tools'")
    shape = body.get("response_format") or {}
    stop = body.get("stop") or ()
    tokens = (size_of(body.get("tools")) + conversation.size_chars) // 4 + 4 * conversation.count
    return GenerationRequest(
        body["model"],
        conversation,
        body,
        tokens,
        tools,
        choice,
        forced,
        body.get("parallel_tool_calls") is not False,
        _schema_of(shape),
        body.get("max_completion_tokens") or body.get("max_tokens"),
        [stop] if isinstance(stop, str) else stop,
        is_stream=bool(body.get("stream")),
        session=str(body.get("prompt_cache_key") or body.get("user") or ""),
        replies=body.get("n") or 1,
    )


def _plain_problem(body: Any) -> ApiError | None:
    problem = words.option_problem("chat", body)
    if problem is not None:
        return problem
    messages = body.get("messages")
    if messages is None:
        return words.wrong("messages", "Missing required parameter: 'messages'.")
    if not all(isinstance(m, dict) for m in messages):
        return words.wrong("messages", "Invalid type for 'messages': expected an array of objects")
    tools = body.get("tools")
    if tools is not None and not all(isinstance(t, dict) and _is_tool(t) for t in tools):
        return words.wrong("tools", "Invalid 'tools': each needs a type and a function with a name")
    if tools == []:
        return words.wrong("tools", "[] is too short - 'tools'", "array_below_min_length")
    if body.get("tool_choice") not in (None, "auto", "none") and not tools:
        return words.wrong(
            "tool_choice", "'tool_choice' is only allowed when 'tools' are specified."
        )
    if body.get("stream_options") is not None and not body.get("stream"):
        return words.wrong(
            "stream_options", "The 'stream_options' parameter is only allowed when 'stream' is set."
        )
    if (body.get("n") or 1) > _CHOICES_LIMIT:
        return words.wrong("n", f"Invalid 'n': expected a value <= {_CHOICES_LIMIT}.")
    return None


def _is_tool(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        return isinstance(tool.get("type"), str)
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _fold(
    conversation: Conversation, messages: Sequence[Mapping[str, Any]], *, is_strict: bool
) -> ApiError | None:
    """Add messages; each tool call of one must be answered before any other message."""
    open_calls: tuple[str, ...] = conversation.pairs or ()
    for at, message in enumerate(messages, conversation.count):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            return words.wrong(
                f"messages[{at}].role", f"Invalid value: {role!r}. Supported: {', '.join(_ROLES)}."
            )
        if not isinstance(content, (str, list, type(None))):
            return words.wrong(
                f"messages[{at}].content", "Invalid type: expected a string or an array of parts"
            )
        if role == "tool":
            call_id = message.get("tool_call_id")
            if call_id not in open_calls and is_strict:
                return words.wrong(
                    f"messages.[{at}].role",
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                )
            open_calls = tuple(one for one in open_calls if one != call_id)
            conversation.count += 1
            text = "\n".join(words.text_of_parts(content))
            conversation.add_result(conversation.calls.get(str(call_id), ""), text)
        elif open_calls and is_strict:
            return _unanswered(at, open_calls)
        elif role == "assistant":
            calls = [
                (str(call.get("id")), str((call.get("function") or {}).get("name")))
                for call in message.get("tool_calls") or ()
            ]
            if content is None and not calls and not message.get("refusal") and is_strict:
                return words.wrong(
                    f"messages[{at}].content",
                    f"Invalid value for 'content': expected a string, got null. (messages[{at}])",
                )
            open_calls = tuple(call_id for call_id, _ in calls)
            conversation.add_assistant(words.text_of_parts(content), calls)
        elif content is None and is_strict:
            return words.wrong(f"messages[{at}].content", "Invalid value for 'content': got null.")
        elif role == "user":
            conversation.add_user(words.text_of_parts(content))
        else:
            conversation.add_system(words.text_of_parts(content))
        conversation.size_chars += size_of(message)
    conversation.pairs = open_calls
    return None


def _unanswered(at: int, open_calls: Sequence[str]) -> ApiError:
    return words.wrong(
        f"messages.[{at}].role",
        "An assistant message with 'tool_calls' must be followed by tool messages responding to "
        "each 'tool_call_id'. The following tool_call_ids did not have response messages: "
        + ", ".join(open_calls),
    )


def _texts_beside(body: Mapping[str, Any]) -> Iterator[str]:
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        yield from (str(value) for value in metadata.values())


def _schema_of(shape: Mapping[str, Any]) -> Any:
    if shape.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return (shape.get("json_schema") or {}).get("schema") if shape else None


def _head(request: GenerationRequest, reply: GenerationReply, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{reply.suffix}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }


def _id_in_choice(call_id: str, choice: int) -> str:
    return f"{call_id}n{choice}" if choice else call_id


def _usage(request: GenerationRequest, reply: GenerationReply) -> dict[str, Any]:
    written = request.replies * reply.output_tokens
    return {
        "prompt_tokens": request.input_tokens,
        "completion_tokens": written,
        "total_tokens": request.input_tokens + written,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
