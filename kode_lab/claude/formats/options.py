"""Every documented option of the four APIs, and what each one does at the simulated model.

An option has an *effect*, is *harmless* (obeying it would not change a scripted answer), or is
*refused* with one clear error. No option is accepted and ignored in silence: what an API does not
document is refused, too. ``options_table`` writes the table in docs/simulated-model.md.

It must never know what a conversation means; the formats read the options that have an effect.

Source: the parameter types of anthropic 2.14, openai 3.57 and google-genai 3.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["OPTIONS", "OptionProblem", "options_table", "problem_with_options"]

EFFECT, HARMLESS, REFUSED = "effect", "harmless", "refused"
_NOT_SAMPLED = "nothing is sampled"
_NO_CACHE = "there is no prompt cache, and usage says so"
_NOT_BILLED = "nothing is billed or scheduled"
_ONLY_TEXT = "only text and tool calls are answered"

# Of each API: what the options do, and their names. A name with a dot stands inside an object.
OPTIONS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "messages": (
        (
            EFFECT,
            "decides the answer or its shape",
            (
                "model messages system max_tokens stop_sequences stream tools tool_choice thinking "
                "output_config output_format"
            ),
        ),
        (EFFECT, "names the session for the witness", "metadata"),
        (EFFECT, "the server holds the conversation; errors as documented", "thread"),
        (
            EFFECT,
            "tool results and thinking are cleared, and the reply says so",
            "context_management",
        ),
        (EFFECT, "answers with a summary", "compaction"),
        (EFFECT, "a tool that the prompt names is called and answered here", "mcp_servers"),
        (HARMLESS, _NOT_SAMPLED, "temperature top_k top_p"),
        (HARMLESS, _NO_CACHE, "cache_control diagnostics"),
        (HARMLESS, _NOT_BILLED, "service_tier speed inference_geo billing_policy"),
        (HARMLESS, "only an armed fault declines, whatever the model", "fallbacks"),
        (REFUSED, "no code runs here: leave it out", "container"),
        (REFUSED, "no token was issued here: send the request without it", "fallback_credit_token"),
    ),
    "chat": (
        (
            EFFECT,
            "decides the answer or its shape",
            (
                "model messages stream stream_options tools tool_choice parallel_tool_calls "
                "response_format stop max_tokens max_completion_tokens n"
            ),
        ),
        (EFFECT, "names the session for the witness", "prompt_cache_key user"),
        (EFFECT, "its markers are witnessed", "metadata"),
        (
            HARMLESS,
            _NOT_SAMPLED,
            "temperature top_p seed frequency_penalty presence_penalty logit_bias",
        ),
        (HARMLESS, "a scripted reply has one length", "verbosity reasoning_effort prediction"),
        (HARMLESS, _NO_CACHE, "prompt_cache_options prompt_cache_retention"),
        (HARMLESS, _NOT_BILLED, "service_tier safety_identifier"),
        (HARMLESS, "nothing can be read back: GET is answered with an error", "store"),
        (REFUSED, _ONLY_TEXT, "audio modalities logprobs top_logprobs"),
        (REFUSED, "send tools and tool_choice instead", "functions function_call"),
        (REFUSED, "nothing is searched or moderated here", "web_search_options moderation"),
    ),
    "responses": (
        (
            EFFECT,
            "decides the answer or its shape",
            (
                "model input instructions stream tools tool_choice parallel_tool_calls text "
                "reasoning include max_output_tokens metadata"
            ),
        ),
        (
            EFFECT,
            "the server holds the conversation; errors as documented",
            "store previous_response_id conversation",
        ),
        (EFFECT, "names the session for the witness", "prompt_cache_key user"),
        (EFFECT, "refused beyond the context limit, where it would drop items", "truncation"),
        (EFFECT, "refused beyond its threshold, where it would compact", "context_management"),
        (HARMLESS, _NOT_SAMPLED, "temperature top_p"),
        (HARMLESS, "no built-in tool is called", "max_tool_calls"),
        (HARMLESS, "events are not padded", "stream_options"),
        (HARMLESS, _NO_CACHE, "prompt_cache_options prompt_cache_retention"),
        (HARMLESS, _NOT_BILLED, "service_tier safety_identifier access_programs"),
        (REFUSED, "a response is answered at once", "background background_options"),
        (REFUSED, _ONLY_TEXT, "image top_logprobs"),
        (REFUSED, "no prompt is stored here: send instructions and input", "prompt"),
        (REFUSED, "nothing is moderated here", "moderation"),
    ),
    "gemini": (
        (
            EFFECT,
            "decides the answer or its shape",
            (
                "contents systemInstruction tools toolConfig generationConfig "
                "generationConfig.maxOutputTokens generationConfig.stopSequences "
                "generationConfig.responseMimeType generationConfig.responseSchema "
                "generationConfig.responseJsonSchema generationConfig.thinkingConfig "
                "generationConfig.candidateCount"
            ),
        ),
        (EFFECT, "as in the path, or ignored by the API", "model"),
        (
            HARMLESS,
            _NOT_SAMPLED,
            (
                "generationConfig.temperature generationConfig.topP generationConfig.topK "
                "generationConfig.seed generationConfig.presencePenalty "
                "generationConfig.frequencyPenalty"
            ),
        ),
        (
            HARMLESS,
            "says how media are read; they are not read here",
            "generationConfig.mediaResolution generationConfig.audioTimestamp",
        ),
        (
            HARMLESS,
            "any model answers alike",
            (
                "safetySettings generationConfig.enableEnhancedCivicAnswers "
                "generationConfig.routingConfig generationConfig.modelSelectionConfig"
            ),
        ),
        (HARMLESS, _NOT_BILLED, "labels serviceTier store"),
        (
            REFUSED,
            _ONLY_TEXT,
            (
                "generationConfig.responseModalities generationConfig.speechConfig "
                "generationConfig.imageConfig generationConfig.responseLogprobs "
                "generationConfig.logprobs generationConfig.responseFormat "
                "generationConfig.translationConfig generationConfig.audioTranscriptionConfig "
                "generationConfig.enableAffectiveDialog"
            ),
        ),
        (REFUSED, "nothing is cached here: send the contents", "cachedContent"),
        (REFUSED, "a reply is sent whole", "continuationToken"),
        (REFUSED, "nothing is filtered here", "modelArmorConfig"),
    ),
}
# What some refused options may be without asking for anything.
_NEUTRAL = {
    "modalities": (["text"],),
    "responseModalities": (["TEXT"], ["text"], ["Text"]),
    "function_call": ("none",),
}
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "integer": (
        (int,),
        (
            "max_tokens max_completion_tokens max_output_tokens n maxOutputTokens "
            "candidateCount top_k max_tool_calls"
        ),
    ),
    "number": (
        (int, float),
        (
            "temperature top_p frequency_penalty presence_penalty topP topK "
            "presencePenalty frequencyPenalty"
        ),
    ),
    "boolean": ((bool,), "stream store background parallel_tool_calls logprobs responseLogprobs"),
    "array": (
        (list,),
        "tools messages contents stop_sequences stopSequences mcp_servers include safetySettings",
    ),
    "object": (
        (dict,),
        (
            "metadata thinking output_config text reasoning stream_options "
            "response_format generationConfig toolConfig labels"
        ),
    ),
    "string or object": ((str, dict), "tool_choice conversation"),
    "string or array": ((str, list), "stop system input instructions"),
}
_KIND_OF = {
    name: (kind, types) for kind, (types, names) in _KINDS.items() for name in names.split()
}
# Kinds that an API takes beside the usual one.
_KIND_OF_API: Mapping[tuple[str, str], tuple[str, tuple[type, ...]]] = {
    ("gemini", "tools"): ("array or object", (list, dict)),
    ("gemini", "contents"): ("array or object", (list, dict)),
    ("messages", "tool_choice"): ("object", (dict,)),
}
_OF_STRINGS = ("stop", "stop_sequences", "stopSequences", "include")
_POSITIVE = frozenset(_KINDS["integer"][1].split()) - {"top_k", "max_tool_calls"}
_KNOWN = {
    api: {name: (verdict, why) for verdict, why, names in groups for name in names.split()}
    for api, groups in OPTIONS.items()
}


class OptionProblem(NamedTuple):
    """What is wrong with an option.

    Attributes:
        name: the option, as it was sent.
        kind: ``unknown``, ``refused``, ``type`` or ``range``.
        sentence: what is wrong, and what to do.
        expected: the kind of value that is allowed, for ``type``.
    """

    name: str
    kind: str
    sentence: str
    expected: str = ""


def problem_with_options(
    api: str, body: Mapping[str, Any], within: str = ""
) -> OptionProblem | None:
    """Return what is wrong with the first wrong option of a body, or None.

    Args:
        api: one of ``OPTIONS``.
        body: the parsed body, or an object in it; names may be camelCase or snake_case in Gemini.
        within: the name of that object, and a dot.
    """
    known = _KNOWN[api]
    for sent, value in body.items():
        name = sent
        if "_" in sent and api == "gemini":
            first, *rest = sent.split("_")
            name = first + "".join(map(str.capitalize, rest))
        option = known.get(within + name)
        if option is None:
            return OptionProblem(sent, "unknown", f"there is no option {sent!r:.80}")
        if value is None:
            continue
        if option[0] == REFUSED:
            if value and value not in _NEUTRAL.get(name, ()):
                return OptionProblem(sent, "refused", f"{sent} is not simulated: {option[1]}")
            continue
        kind, types = _KIND_OF_API.get((api, name)) or _KIND_OF.get(name, ("", ()))
        if types and (
            not isinstance(value, types)
            or ((value is True or value is False) and bool not in types)
        ):
            return OptionProblem(sent, "type", f"{sent} should be of type {kind}", kind)
        strings = value if name in _OF_STRINGS and isinstance(value, list) else ()
        if not all(isinstance(one, str) for one in strings):
            return OptionProblem(sent, "type", f"{sent} should hold strings", "strings")
        if name in _POSITIVE and value < 1 and api != "messages":
            return OptionProblem(sent, "range", f"{sent} should be 1 or more")
        if name == "generationConfig":
            problem = problem_with_options(api, value, "generationConfig.")
            if problem is not None:
                return problem
    return None


def options_table() -> Iterator[str]:
    """Yield the lines of the table of all options, as Markdown."""
    yield "| API | what happens | options |"
    yield "|---|---|---|"
    for api, groups in OPTIONS.items():
        for verdict, why, names in groups:
            listed = ", ".join(f"`{name}`" for name in names.split())
            yield f"| {api} | {verdict}: {why} | {listed} |"
