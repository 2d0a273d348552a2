"""A small agent service with one instrumentation, which leaves a trace and what its store holds.

``python service.py NAME correct|broken MODEL_URL DIRECTORY`` writes ``NAME-MODE.jsonl`` and
``NAME-MODE.truth.json``. NAME is a loop or framework, an underline, and an instrumentation. The
broken service reads a session, asks the model, and writes it back, without a lock.

It runs in an environment of its own and must not import kode_lab.
"""

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

NAME, MODE, MODEL_URL, DIRECTORY = sys.argv[1:]
LOOP, INSTRUMENTATION = NAME.split("_")
OUT = Path(DIRECTORY) / f"{NAME}-{MODE}.jsonl"
HAS_ROOT = not INSTRUMENTATION.endswith("-rootless")
INSTRUMENTATION = INSTRUMENTATION.removesuffix("-rootless")
SYSTEM = "You are a planner. Be brief."
os.environ.update(
    OPENAI_API_KEY="none",
    ANTHROPIC_API_KEY="none",
    OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_and_event",
    LITELLM_LOCAL_MODEL_COST_MAP="True",
)
if INSTRUMENTATION == "otel-v2-latest":
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
if INSTRUMENTATION == "otel-v2":
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"
logging.disable(logging.ERROR)  # of exporters that find no server
LINES = []


def write(value):
    LINES.append(json.dumps(value, default=str))


# --- OpenTelemetry: one span or log record a line, as the collector's file exporter writes them


def otlp(message):
    from base64 import b64decode

    from google.protobuf.json_format import MessageToDict

    record = MessageToDict(message)
    for resource in (*record.get("resourceSpans", ()), *record.get("resourceLogs", ())):
        for scope in (*resource.get("scopeSpans", ()), *resource.get("scopeLogs", ())):
            for one in (*scope.get("spans", ()), *scope.get("logRecords", ())):
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in one:
                        one[key] = b64decode(one[key]).hex()
    write(record)


def tracer():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        def export(self, spans):
            if INSTRUMENTATION == "printed":
                LINES.extend(span.to_json(indent=None) for span in spans)
            else:
                from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

                for span in spans:
                    otlp(encode_spans([span]))
            return SpanExportResult.SUCCESS

    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=10_000))
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
    return provider


def logger():
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs import export as logs

    exported = getattr(logs, "LogRecordExportResult", None) or logs.LogExportResult
    base = getattr(logs, "LogRecordExporter", None) or logs.LogExporter

    class ToFile(base):
        def export(self, batch):
            for one in batch:
                otlp(encode_logs([one]))
            return exported.SUCCESS

        def shutdown(self):
            pass

        def force_flush(self, timeout_millis=0):
            return True

    provider = LoggerProvider()
    provider.add_log_record_processor(logs.SimpleLogRecordProcessor(ToFile()))
    set_logger_provider(provider)
    return provider


TRACER = None
if INSTRUMENTATION in ("openinference", "otel-v2", "otel-v2-latest", "openllmetry", "printed"):
    provider = tracer()
    TRACER = provider.get_tracer("service")
    if INSTRUMENTATION.startswith("otel-v2"):
        from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

        OpenAIInstrumentor().instrument(tracer_provider=provider, logger_provider=logger())
    elif INSTRUMENTATION == "openllmetry":
        from importlib import import_module

        module = import_module(f"opentelemetry.instrumentation.{LOOP}")
        name = {"openai": "OpenAIInstrumentor", "anthropic": "AnthropicInstrumentor"}[LOOP]
        getattr(module, name)().instrument(tracer_provider=provider)
    else:
        from importlib import import_module

        module, name = {
            "openai": ("openai", "OpenAIInstrumentor"),
            "anthropic": ("anthropic", "AnthropicInstrumentor"),
            "langgraph": ("langchain", "LangChainInstrumentor"),
        }[LOOP]
        module = import_module(f"openinference.instrumentation.{module}")
        getattr(module, name)().instrument(tracer_provider=provider)

# --- loops and frameworks: each answers a list of messages, and tells its own logger


async def ask_openai(messages, user, session, root):
    if INSTRUMENTATION == "langfuse":
        from langfuse.openai import AsyncOpenAI
    else:
        from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{MODEL_URL}/v1", max_retries=0) as client:
        system = {"role": "system", "content": SYSTEM}
        request = {"model": "gpt-4.1", "messages": [system, *messages]}
        begin = time.time()
        run = None
        if INSTRUMENTATION == "langsmith":
            run = root.create_child("ChatOpenAI", "llm", inputs={"messages": request["messages"]})
        reply = await client.chat.completions.create(**request)
        if INSTRUMENTATION == "sdk-json":
            write(
                {
                    "request": request,
                    "response": json.loads(reply.to_json()),
                    "user_id": user,
                    "session_id": session,
                    "start_time": begin,
                    "end_time": time.time(),
                }
            )
        if run is not None:
            run.end(outputs=json.loads(reply.to_json()))
            write(run_dict(run))
        return reply.choices[0].message.content


def run_dict(run):
    return json.loads(json.dumps(run._get_dicts_safe(), default=str))


async def ask_anthropic(messages, user, session, root):
    from anthropic import AsyncAnthropic

    async with AsyncAnthropic(base_url=MODEL_URL, max_retries=0) as client:
        request = {"model": "claude-sonnet-4-5", "max_tokens": 500, "system": SYSTEM}
        begin = time.time()
        reply = await client.messages.create(messages=messages, **request)
        if INSTRUMENTATION == "sdk-json":
            write(
                {
                    "request": {**request, "messages": messages},
                    "response": json.loads(reply.to_json()),
                    "user_id": user,
                    "session_id": session,
                    "start_time": begin,
                    "end_time": time.time(),
                }
            )
        return reply.content[0].text


async def ask_litellm(messages, user, session, root):
    import litellm

    if not litellm.callbacks:
        from litellm.integrations.custom_logger import CustomLogger

        class ToFile(CustomLogger):
            async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
                write(kwargs["standard_logging_object"])

        litellm.callbacks = [ToFile()]
    reply = await litellm.acompletion(
        model="openai/gpt-4.1",
        api_base=f"{MODEL_URL}/v1",
        num_retries=0,
        messages=[{"role": "system", "content": SYSTEM}, *messages],
        user=user,
        metadata={"session_id": session},
        litellm_session_id=session,
    )
    return reply.choices[0].message.content


ASK = {"openai": ask_openai, "anthropic": ask_anthropic, "litellm": ask_litellm}
STORE = {}
GRAPH = None


async def turn_in_langgraph(user, session, text):
    global GRAPH
    if GRAPH is None:
        from langchain.agents import create_agent
        from langchain_openai import ChatOpenAI
        from langgraph.checkpoint.memory import InMemorySaver

        model = ChatOpenAI(model="gpt-4.1", base_url=f"{MODEL_URL}/v1", max_retries=0)
        GRAPH = create_agent(model, [], system_prompt=SYSTEM, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": session}, "metadata": {"user_id": user}}
    reply = await GRAPH.ainvoke({"messages": [{"role": "user", "content": text}]}, config)
    STORE[session] = [
        {"role": "user" if one.type == "human" else "assistant", "content": one.content}
        for one in (await GRAPH.aget_state(config)).values["messages"]
    ]
    return reply["messages"][-1].content


async def turn_in_loop(user, session, text, root):
    messages = [*STORE.get(session, ()), {"role": "user", "content": text}]
    answer = await ASK[LOOP](messages, user, session, root)
    STORE[session] = [*messages, {"role": "assistant", "content": answer}]


ACKNOWLEDGED = []


async def turn(user, session, text):
    root, around = None, nullcontext()
    if HAS_ROOT and TRACER is not None and LOOP != "langgraph":
        told = {"gen_ai.conversation.id": session, "user.id": user}
        around = TRACER.start_as_current_span("turn", attributes=told)
    if INSTRUMENTATION == "langfuse":
        around = LANGFUSE.start_as_current_observation(name="turn", as_type="agent")
    if INSTRUMENTATION == "langsmith":
        from langsmith.run_trees import RunTree

        extra = {"metadata": {"thread_id": session, "user_id": user}}
        root = RunTree(name="turn", run_type="chain", inputs={"text": text}, extra=extra)
    with around:
        if INSTRUMENTATION == "langfuse":
            from langfuse import propagate_attributes

            with propagate_attributes(session_id=session, user_id=user):
                await turn_in_loop(user, session, text, root)
        elif LOOP == "langgraph":
            await turn_in_langgraph(user, session, text)
        else:
            await turn_in_loop(user, session, text, root)
    if root is not None:
        root.end(outputs={"text": "done"})
        write(run_dict(root))
    ACKNOWLEDGED.append(text)


LANGFUSE = None
if INSTRUMENTATION == "langfuse":
    from langfuse import Langfuse

    LANGFUSE = Langfuse(
        public_key="pk", secret_key="sk", base_url="http://127.0.0.1:9", tracer_provider=tracer()
    )


async def session_of(user, session, counts):
    number = 0
    for at_once in counts:
        asked = range(number, number + at_once)
        await asyncio.gather(
            *(
                turn(user, session, f"Please note item {n} of {user}'s {session} list.")
                for n in asked
            )
        )
        number += at_once


async def main():
    one_by_one = [1] * 5
    at_once = one_by_one if MODE == "correct" else [1, 1, 4, 1, 1]
    await asyncio.gather(
        session_of("ada", "ada-trip", one_by_one),
        session_of("bob", "bob-trip", one_by_one),
        session_of("cyd", "cyd-trip", at_once),
    )
    while LOOP == "litellm" and len(LINES) < len(ACKNOWLEDGED):  # it logs after it has answered
        await asyncio.sleep(0.01)


asyncio.run(main())
OUT.write_text("\n".join(LINES) + "\n")
kept = [one["content"] for messages in STORE.values() for one in messages if one["role"] == "user"]
truth = {"acknowledged": ACKNOWLEDGED, "lost": sorted(set(ACKNOWLEDGED) - set(kept))}
OUT.with_suffix(".truth.json").write_text(json.dumps(truth, indent=1))
os._exit(0)  # exporters without a server would try again for a while
