"""What a wire format has to do, and the neutral words between it and the script.

A format reads a request into a ``GenerationRequest``, and writes a ``GenerationReply`` as a whole
body or as the events of a stream. It knows shapes, order, error bodies and what its API refuses. It
must never know sockets, clocks, latencies, faults, or what is said.

Source of the idea: a codec, as in a compiler's front ends: four languages, one program.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from kode_lab.claude.conversation import Conversation

__all__ = [
    "REQUEST_LIMIT_BYTES",
    "ApiError",
    "GenerationReply",
    "GenerationRequest",
    "Held",
    "ServerCall",
    "StreamEvent",
    "ToolOffer",
    "WireFormat",
    "bearer_of",
    "cut",
    "is_signed",
    "json_pieces",
    "pieces_of",
    "signature_of",
    "size_of",
]

REQUEST_LIMIT_BYTES = 32 * 1024 * 1024
# About what a tokenizer makes of text: a short word with its space, or two signs of Chinese.
_PIECE = re.compile(r"\s*[\u2e80-\uffff]{1,2}|\s*[^\s\u2e80-\uffff]{1,8}|\s+")
# The same for every simulator, so that a conversation outlives the one that signed its thinking.
_SIGNING_KEY = b"kode-lab simulated thinking"


class ApiError(NamedTuple):
    """An error that an API answers with, before a format gives it its shape.

    Attributes:
        message: the sentence.
        retry_after: the value of a ``retry-after`` header, as it is sent.
        code: the error's own name, where the format has one (``conversation_locked``).
        param: the field that is wrong, where the format says so.
        details: further facts, where the format has a place for them.
        headers: more headers of the answer.
    """

    status: int
    message: str
    retry_after: str | None = None
    code: str | None = None
    param: str | None = None
    details: Mapping[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()


class ToolOffer(NamedTuple):
    """A tool that the model may call.

    Attributes:
        schema: the JSON schema of its arguments.
        server: the tool server that the API would ask; "" is a tool that the client runs.
    """

    name: str
    schema: Any
    server: str = ""


class Held(NamedTuple):
    """What a server keeps for a client that sends only its news.

    Attributes:
        conversation: the fold up to and including the reply.
        body: the fields of the request that hold for later ones (``system``, ``tools``).
        root: the id of the first response.
    """

    conversation: Conversation
    body: Mapping[str, Any]
    root: str


class GenerationRequest(NamedTuple):
    """One request for a reply, in the words of no format.

    Attributes:
        conversation: all messages, sent or held by the server.
        choice: ``auto``, ``none``, ``any`` (some tool), or ``tool`` (the one named ``forced``).
        schema: a JSON schema that the reply's text must fit; None for free text.
        max_tokens: of the reply; None is no limit.
        thinks: whether the reply begins with thinking.
        input_tokens: about how many the request has.
        session: what the request names as its conversation, or "".
        parent: the earlier response that it continues, or "".
        body: the parsed body, for what only the format needs.
        base: what the server holds of the conversation that the request continues.
        replies: how many are asked for, all alike.
        servers: tool servers whose tools are not listed: any tool may be asked of them.
        applied_edits: what context editing cleared, as the reply lists it.
        is_array: whether a stream is one JSON array instead of events.
    """

    model: str
    conversation: Conversation
    body: Mapping[str, Any]
    input_tokens: int = 0
    tools: Sequence[ToolOffer] = ()
    choice: str = "auto"
    forced: str = ""
    is_parallel: bool = True
    schema: Any = None
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    thinks: bool = False
    is_stream: bool = False
    session: str = ""
    parent: str = ""
    base: Held | None = None
    replies: int = 1
    servers: Sequence[str] = ()
    applied_edits: Sequence[Mapping[str, Any]] = ()
    is_array: bool = False


class ServerCall(NamedTuple):
    """A call of a tool that the API runs itself, and its result."""

    server: str
    name: str
    arguments: Mapping[str, Any]
    result: str


class GenerationReply(NamedTuple):
    """One reply, in the words of no format.

    Attributes:
        suffix: makes the ids of the reply and its parts unique.
        calls: of each tool call its id's suffix, the tool's name, and the arguments as JSON text.
        stop: ``end_turn``, ``tool_use``, ``max_tokens``, ``stop_sequence``, ``refusal``, ...: the
            words of the Messages API, which has the most of them.
        server_calls: tools that were called and answered before the text.
    """

    suffix: str
    text: str
    calls: Sequence[tuple[str, str, str]]
    stop: str
    output_tokens: int
    stop_sequence: str | None = None
    thinking: str = ""
    server_calls: Sequence[ServerCall] = ()


class StreamEvent(NamedTuple):
    """One server-sent event as bytes; a token takes the model its time."""

    data: bytes
    is_token: bool = False


class WireFormat(Protocol):
    """One API, with the state that its server keeps: what it refuses, reads and writes.

    A format inherits from it, and defines again what it does in another way.
    """

    name: str

    def operation(self, method: str, path: str) -> str | None:
        """Return what a request is: ``generate``, another word of the format, or None."""
        ...

    def key_problem(
        self, headers: Mapping[bytes, bytes], query: str, api_key: str | None
    ) -> ApiError | None:
        """Return the error for a missing or wrong key or version; None accepts any key."""
        ...

    def receive(
        self, data: bytes, headers: Mapping[bytes, bytes], path: str, query: str = ""
    ) -> GenerationRequest | ApiError:
        """Return a request for a reply in neutral words, or the error it is answered with."""
        ...

    def begin(self, request: GenerationRequest) -> ApiError | None:
        """Reserve what only one request at a time may use, or return the error."""
        del request
        return None

    def finish(self, request: GenerationRequest, reply: GenerationReply | None) -> None:
        """Release what was reserved; keep the reply, if it was sent whole."""
        del request, reply

    def learn(self, request: GenerationRequest, response_id: str) -> None:
        """Keep what a later request may refer to, when another server wrote the reply."""
        del request, response_id

    def call_id(self, suffix: str, index: int) -> str:
        """Return the id of a reply's tool call."""
        ...

    def whole(self, request: GenerationRequest, reply: GenerationReply) -> Mapping[str, Any]:
        """Return the body of a reply that is not streamed."""
        ...

    def events(self, request: GenerationRequest, reply: GenerationReply) -> Iterator[StreamEvent]:
        """Yield the events of a streamed reply."""
        ...

    def other(
        self, operation: str, path: str, query: str, data: bytes, headers: Mapping[bytes, bytes]
    ) -> Mapping[str, Any] | ApiError:
        """Return the answer to an operation that asks for no reply."""
        ...

    def error_body(self, error: ApiError, request_id: str) -> Any:
        """Return the documented body of an error."""
        ...

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Return the event by which a stream that has begun says that it failed."""
        ...

    def headers(self, request_id: str) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers that every answer of this API has."""
        ...

    def context_error(self, request: GenerationRequest, limit: int) -> ApiError:
        """Return the error for a conversation longer than the model's context."""
        ...

    def signature_error(self, request: GenerationRequest) -> ApiError:
        """Return the error for signed thinking that is refused."""
        ...


def bearer_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the key in ``Authorization: Bearer``, or ""."""
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def pieces_of(text: str) -> list[str]:
    """Return the text in pieces of about one token; joined they are the text."""
    return _PIECE.findall(text)


def json_pieces(text: str) -> list[str]:
    """Return JSON text as it trickles in, some characters at a time."""
    return [text[at : at + 16] for at in range(0, len(text), 16)]


def cut(text: str, limit_tokens: int | None, stops: Sequence[str]) -> tuple[str, str, str | None]:
    """Return what a reply with this text says before a limit ends it.

    Returns:
        The text; ``end_turn``, ``stop_sequence`` or ``max_tokens``; the sequence that stopped it.
    """
    found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
    before = text if found is None else text[: found[0]]
    # A piece has a character at least, so a short text needs no counting.
    if limit_tokens is not None and len(before) > limit_tokens:
        pieces = pieces_of(before)
        if len(pieces) > limit_tokens:
            return "".join(pieces[:limit_tokens]), "max_tokens", None
    if found is not None:
        return before, "stop_sequence", found[1]
    return text, "end_turn", None


def size_of(value: Any) -> int:
    """Return the length of a value as JSON."""
    return len(orjson.dumps(value))


def signature_of(model: str, thinking: str) -> str:
    """Return the signature of thinking that a model wrote; another model's is not valid."""
    digest = hmac.digest(_SIGNING_KEY, f"{model}\0{thinking}".encode(), "sha256")
    return base64.b64encode(b"\x0asim" + digest).decode()


def is_signed(model: str, thinking: str, signature: str) -> bool:
    """Whether a signature that came back belongs to this thinking and this model."""
    return hmac.compare_digest(signature_of(model, thinking).encode(), signature.encode())
