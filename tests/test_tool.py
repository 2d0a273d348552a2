"""A tool is registered once, knows its session, and its failure is a sentence, never an end."""

import asyncio
import contextlib
import contextvars
import enum
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from kode_lab.errors import InvalidTool, Refused
from kode_lab.key import SessionKey
from kode_lab.message import ToolCall
from kode_lab.sessions.threads import Threads
from kode_lab.sessions.tool import (
    BLOCKING_S,
    ERROR_LIMIT_CHARS,
    RESULT_LIMIT_CHARS,
    LoopLag,
    Toolbox,
    ToolContext,
    tools_of,
    use,
)

ADA = SessionKey.of("ada", "planner")
LONG_S = 60.0  # far more than anything here takes
SHORT_S = 0.2  # for what never ends by itself; long enough for a thread to begin


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: date


def context(key=ADA, call_id="c1"):
    return ToolContext(key, "t1", call_id, f"t1/{call_id}")


def call(tool, arguments, timeout_s=LONG_S):
    """The result of one call, from a loop of its own."""
    name = tool.name if tool else "nothing"
    return asyncio.run(use(tool, ToolCall("c1", name, arguments), context(), timeout_s))


def tool_of(function):
    box = Toolbox()
    assert box.tool(function) is function
    return box.get(function.__name__)


async def until(claim):
    """Wait for a state that another thread brings about."""
    async with asyncio.timeout(LONG_S):
        while not claim():  # noqa: ASYNC110 - another thread's state has no event
            await asyncio.sleep(0)


# --- registering -----------------------------------------------------------------------------


def test_the_schema_comes_from_the_signature_and_the_docstring():
    def plan(
        title: str,
        copy: int,
        context: ToolContext,
        colour: Colour = Colour.RED,
        kind: Literal["a", "b"] = "a",
        share: Annotated[float, Field(ge=0, le=1)] = 0.5,
    ) -> str:
        """Plan something.

        As long as it takes.

        Args:
            title: What it is.
            copy: How often.
            context: Not for the model.
        """

    spec = tool_of(plan).spec
    assert spec["name"] == "plan"
    assert spec["description"] == "Plan something.\n\nAs long as it takes."
    schema = spec["input_schema"]
    assert schema["type"] == "object"
    assert schema["required"] == ("title", "copy")
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == ["title", "copy", "colour", "kind", "share"]
    assert schema["properties"]["title"] == {"type": "string", "description": "What it is."}
    assert schema["properties"]["copy"] == {"type": "integer", "description": "How often."}
    assert schema["properties"]["kind"] == {"type": "string", "enum": ("a", "b"), "default": "a"}
    share = {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}
    assert schema["properties"]["share"] == share
    assert "Not for the model" not in repr(spec)


def test_a_tool_without_arguments_or_docstring_is_a_tool():
    def now():
        return "noon"

    tool = tool_of(now)
    assert tool.description == ""
    assert tool.input_schema["properties"] == {}
    assert call(tool, {}).content == "noon"


def test_a_method_of_an_object_is_a_tool_without_its_self():
    class Diary:
        pages = ()

        def read(self, page: int) -> str:
            """Read a page."""
            return f"{self.pages} {page}"

    box = Toolbox()
    box.tool(Diary().read)
    assert list(box.get("read").input_schema["properties"]) == ["page"]
    assert call(box.get("read"), {"page": 1}).content == "() 1"


def test_a_name_is_registered_once():
    box = Toolbox()

    @box.tool
    def look(): ...

    with pytest.raises(InvalidTool, match="there is a tool 'look' already"):
        box.tool(look)
    assert box.names == ("look",)
    assert len(box) == 1
    assert [tool.name for tool in box] == ["look"]


def unannotated(day): ...
def starred(*days: str): ...
def double_starred(**days: str): ...
def positional(day: str, /): ...
def unresolved(day: "NoSuchType"): ...  # noqa: F821 - that is the point
def no_schema(day: threading.Lock): ...
def optional_context(context: ToolContext | None = None): ...
def list_of_contexts(contexts: list[ToolContext]): ...
def two_contexts(one: ToolContext, two: ToolContext): ...
def yielding() -> str:
    yield "a"


async def async_yielding() -> str:
    yield "a"


def naïve(): ...  # noqa: PLC2401 - that is the point
def with_a_name_of_sixty_five_letters_which_is_one_more_than_allowed_(): ...  # fmt: skip


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (unannotated, "unannotated: annotate 'day'"),
        (starred, r"starred: \*days: str cannot be passed by name"),
        (double_starred, "double_starred: .* cannot be passed by name"),
        (positional, "positional: .* cannot be passed by name"),
        (unresolved, "unresolved: an annotation cannot be resolved .*NoSuchType"),
        (no_schema, "no_schema: its arguments have no JSON schema"),
        (optional_context, "'context' may not hold a ToolContext: annotate one"),
        (list_of_contexts, "'contexts' may not hold a ToolContext"),
        (two_contexts, "'two' may not hold a ToolContext"),
        (yielding, "yielding yields: a tool must return one result"),
        (async_yielding, "async_yielding yields"),
        (naïve, "a tool's name is .* not 'naïve'"),
        (with_a_name_of_sixty_five_letters_which_is_one_more_than_allowed_, "a tool's name is"),
        (lambda: 1, "not '<lambda>'"),
        (Colour, "annotate|cannot"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_what_to_do(function, told):
    box = Toolbox()
    with pytest.raises(InvalidTool, match=told):
        box.tool(function)
    assert box.names == ()


def test_a_list_of_functions_and_tools_is_as_good_as_a_toolbox():
    def one() -> str:
        """Return one."""
        return "1"

    box = Toolbox()
    box.tool(one)

    def two() -> str:
        return "2"

    tools = tools_of([box.get("one"), two])
    assert [tool.name for tool in tools] == ["one", "two"]
    assert call(tools[1], {}).content == "2"
    assert tools_of(box) == (box.get("one"),)
    for wrong, told in (
        ("one", "tools is a str: pass a Toolbox, or a list"),
        ({"one": one}, "tools is a dict"),
        (None, "tools is a NoneType"),
        ([one, one], "two tools are called 'one'"),
        (["one"], "a tool's name is"),
        ([3], "a tool's name is"),
    ):
        with pytest.raises(InvalidTool, match=told):
            tools_of(wrong)


def test_a_decorator_with_alone_registers_the_same_function():
    box = Toolbox()

    @box.tool(alone=True)
    def write() -> str:
        return "written"

    assert write() == "written"
    assert box.get("write").is_alone
    assert not tool_of(lambda_free).is_alone


def lambda_free() -> str:
    return "free"


# --- arguments -------------------------------------------------------------------------------


def test_a_tool_gets_what_was_given_and_its_own_defaults_for_the_rest():
    marks = object()

    def plan(n: int, json: str = "none", day: date | None = None, extra: list[int] = marks) -> str:
        return f"{n} {json} {day!r} {extra is marks or extra}"

    tool = tool_of(plan)
    assert "default" not in tool.input_schema["properties"]["extra"]
    assert tool.input_schema["required"] == ("n",)
    assert call(tool, {"n": 1}).content == "1 none None True"
    everything = {"n": 1, "json": "x", "day": "2026-07-15", "extra": [4]}
    assert call(tool, everything).content == "1 x datetime.date(2026, 7, 15) [4]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "argument 'n': Field required"),
        ({"n": "1"}, "argument 'n': Input should be a valid integer"),
        ({"n": 1.5}, "argument 'n': Input should be a valid integer"),
        ({"n": True}, "argument 'n': Input should be a valid integer"),
        ({"n": None}, "argument 'n': Input should be a valid integer"),
        ({"n": 1, "m": 2}, "argument 'm': Extra inputs are not permitted"),
        ({"n": 1, "context": {}}, "argument 'context': Extra inputs are not permitted"),
        ({"n": 1, "arg_n": 2}, "argument 'arg_n': Extra inputs are not permitted"),
        ({"n": 1, "deep": {"k": ["x"]}}, "argument 'deep.k.0'"),
        ([1], "its input must be an object, not list"),
        (None, "its input must be an object, not NoneType"),
        ({"n": b"x"}, "its input is not JSON"),
        ({"n": 1, "t": "\ud800"}, "was not run"),
    ],
)
def test_arguments_that_do_not_fit_are_told_by_name_and_nothing_runs(arguments, told):
    ran = []

    def count(
        n: int, context: ToolContext, deep: dict[str, list[int]] | None = None, t: str = ""
    ) -> str:
        ran.append((n, context, deep, t))
        return "ran"

    result = call(tool_of(count), arguments)
    assert result.is_error
    assert result.call_id == "c1"
    assert told in result.content
    assert result.content.startswith("count was not run: ")
    assert ran == []


def test_an_unknown_tool_is_answered_with_the_known_ones():
    async def scenario(known):
        return await use(None, ToolCall("c9", "paint", {}), context(), 1, known=known)

    result = asyncio.run(scenario(("look", "write")))
    assert result == ("c9", "There is no tool 'paint'. Tools: look, write.", True)
    assert asyncio.run(scenario(())).content == "There is no tool 'paint'. Tools: none."


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(arguments=values | st.dictionaries(st.sampled_from(["n", "t", "context", "m"]), values))
@settings(max_examples=40, deadline=None)
def test_anything_a_model_sends_gets_a_result_and_the_tool_only_what_it_declared(arguments):
    async def echo(n: int, context: ToolContext, t: str = "") -> str:
        assert type(n) is int
        assert type(t) is str
        assert context.key == ADA
        return "ran"

    result = call(tool_of(echo), arguments)
    assert result.is_error == (result.content != "ran")


# --- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("text", "text"),
        ("", ""),
        (None, "done"),
        ({"a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true]}'),
        (Point(1, date(2026, 7, 15)), '{"x":1,"when":"2026-07-15"}'),
        (Colour.RED, '"red"'),
        ("é中😀", "é中😀"),
        ("a\ud800b", "a?b"),
    ],
)
def test_a_result_is_text_as_it_is_or_json(value, content):
    def give() -> object:
        return value

    async def give_later() -> object:
        return value

    for function in (give, give_later):
        result = call(tool_of(function), {})
        assert (result.content, result.is_error) == (content, False)
        json.dumps(result.content).encode()


def test_a_result_that_is_no_json_is_an_error_result():
    def give():
        return threading.Lock()

    result = call(tool_of(give), {})
    assert result.is_error
    assert "give failed: PydanticSerializationError" in result.content


def test_a_result_too_long_is_cut_and_says_so():
    def give():
        return "x" * (RESULT_LIMIT_CHARS + 1)

    result = call(tool_of(give), {})
    assert not result.is_error
    assert result.content.startswith("x" * RESULT_LIMIT_CHARS + "\n[cut here: ")
    assert f"RESULT_LIMIT_CHARS={RESULT_LIMIT_CHARS}" in result.content
    assert len(result.content) < RESULT_LIMIT_CHARS + 200


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such day"), "ValueError: no such day"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (StopIteration(3), "StopIteration: 3"),
        (SystemExit(1), "SystemExit: 1"),
        (TimeoutError("the database is slow"), "TimeoutError: the database is slow"),
        (ExceptionGroup("both", [ValueError("a")]), "ExceptionGroup: both (1 sub-exception)"),
        (Unspeakable(), "Unspeakable: (its message cannot be read)"),
        (ValueError("\ud800"), "ValueError: ?"),
        (ValueError("x" * 5_000), f"ValueError: {'x' * ERROR_LIMIT_CHARS}"),
    ],
)
def test_a_tool_that_raises_gives_a_sentence_without_a_traceback(error, told):
    def fail():
        raise error

    async def fail_later():
        raise error

    result = call(tool_of(fail), {})
    assert (result.content, result.is_error) == (f"fail failed: {told}", True)
    if isinstance(error, StopIteration):
        return  # a coroutine cannot raise it
    result = call(tool_of(fail_later), {})
    assert (result.content, result.is_error) == (f"fail_later failed: {told}", True)


def test_a_tool_that_cancels_itself_does_not_cancel_its_session():
    async def cancel():
        raise asyncio.CancelledError

    result = call(tool_of(cancel), {})
    assert (result.content, result.is_error) == ("cancel failed: it cancelled itself.", True)


# --- the session that it runs for ---------------------------------------


def test_each_of_many_calls_at_once_learns_its_own_session():
    box = Toolbox()

    @box.tool
    def who(context: ToolContext) -> str:
        return (
            f"{context.key.user_id} {context.turn_id} {context.call_id} {context.idempotency_key}"
        )

    @box.tool
    async def who_later(context: ToolContext) -> str:
        await asyncio.sleep(0)
        return who(context)

    async def scenario():
        async def one(n):
            tool = box.get(("who", "who_later")[n % 2])
            key = SessionKey.of(f"user{n}", "planner")
            given = ToolContext(key, f"t{n}", f"c{n}", f"k{n}")
            return await use(tool, ToolCall(f"c{n}", tool.name, {}), given, LONG_S)

        return await asyncio.gather(*map(one, range(200)))

    for n, result in enumerate(asyncio.run(scenario())):
        assert result == (f"c{n}", f"user{n} t{n} c{n} k{n}", False)


session_of_thread = contextvars.ContextVar("session_of_thread", default="stranger")


def test_what_a_tool_sets_in_its_context_ends_with_the_call():
    box = Toolbox(thread_limit=1)  # the second call gets the first one's thread

    @box.tool
    def remember(name: str) -> str:
        before = session_of_thread.get()
        session_of_thread.set(name)
        return before

    @box.tool
    async def remember_later(name: str) -> str:
        return remember(name)

    async def scenario(tool):
        results = [
            await use(tool, ToolCall("c", tool.name, {"name": name}), context(), LONG_S)
            for name in ("ada", "bob")
        ]
        return [result.content for result in results], session_of_thread.get()

    for name in box.names:
        assert asyncio.run(scenario(box.get(name))) == (["stranger", "stranger"], "stranger")


# --- threads, hanging, cancelling ------------------------------------------------------------


def test_blocking_tools_run_at_the_same_time_and_the_loop_goes_on():
    box = Toolbox(thread_limit=32)
    together = threading.Barrier(9)

    @box.tool
    def meet() -> str:
        together.wait(LONG_S)  # none goes on before all eight, and the loop, are here
        return "met"

    async def scenario():
        calls = [
            asyncio.create_task(
                use(box.get("meet"), ToolCall(f"c{n}", "meet", {}), context(), LONG_S)
            )
            for n in range(8)
        ]
        await until(lambda: together.n_waiting == 8)
        together.wait(LONG_S)
        return await asyncio.gather(*calls)

    assert [result.content for result in asyncio.run(scenario())] == ["met"] * 8


def test_no_more_threads_work_at_once_than_the_limit():
    threads, release, begun = Threads(3, patience_s=LONG_S), threading.Event(), []

    def work():
        begun.append(threading.current_thread())
        release.wait(LONG_S)

    async def scenario():
        calls = [asyncio.create_task(threads.run(work, LONG_S)) for _ in range(7)]
        await until(lambda: len(begun) == 3)
        assert sum(threads.statistics()) == 7
        assert threads.statistics() == (3, 0, 0, 4)
        release.set()
        await asyncio.gather(*calls)
        assert len(begun) == 7
        assert len(set(begun)) == 3

    asyncio.run(scenario())


def test_a_session_whose_blocking_tools_fill_its_share_keeps_no_other_session_waiting():
    box = Toolbox(thread_limit=8)
    box.threads.patience_s = LONG_S
    release, begun = threading.Event(), []

    @box.tool
    def block(who: str) -> str:
        begun.append(who)
        if who == "ada":
            release.wait(LONG_S)
        return who

    def using(number, key):
        asked = ToolCall(f"c{number}", "block", {"who": key.user_id})
        return asyncio.create_task(use(box.get("block"), asked, context(key), LONG_S))

    async def scenario():
        blocked = [using(number, ADA) for number in range(20)]
        await until(lambda: len(begun) == 2)
        others = [using(number, SessionKey.of(f"u{number}", "clerk")) for number in range(20)]
        results = await asyncio.gather(*others)
        assert [result.content for result in results] == [f"u{number}" for number in range(20)]
        assert begun.count("ada") == 2, "a quarter of the threads"
        assert box.threads.statistics().waiting == 18
        release.set()
        assert {result.content for result in await asyncio.gather(*blocked)} == {"ada"}

    asyncio.run(scenario())


def test_a_session_whose_tools_hang_has_its_share_again_when_they_are_given_up():
    box, release = Toolbox(thread_limit=4), threading.Event()

    @box.tool
    def hang() -> str:
        release.wait(LONG_S)
        return "late"

    @box.tool
    def quick() -> str:
        return "quick"

    async def scenario():
        for number in range(3):
            hung = ToolCall(f"h{number}", "hang", {})
            assert (await use(box.get("hang"), hung, context(), 0.02)).is_error
        asked = [ToolCall(f"q{number}", "quick", {}) for number in range(3)]
        calls = [use(box.get("quick"), one, context(), LONG_S) for one in asked]
        assert [result.content for result in await asyncio.gather(*calls)] == ["quick"] * 3
        release.set()
        await until(lambda: box.threads.statistics().hung == 0)
        last = await use(box.get("quick"), asked[0], context(), LONG_S)
        assert last.content == "quick"

    asyncio.run(scenario())


def test_a_result_that_exists_when_the_time_ends_is_returned_and_an_error_has_words():
    """The thread ends while the loop is busy, so the time-out and the result come together."""
    threads, release = Threads(1), threading.Event()

    def act():
        release.wait(LONG_S)
        return "acted"

    async def scenario():
        running = asyncio.create_task(threads.run(act, SHORT_S))
        await until(lambda: threads.statistics().running == 1)
        release.set()
        while threads.statistics().running:
            pass  # the loop does not run meanwhile, so no callback does
        threading.Event().wait(SHORT_S)  # so that the time-out is due in the same pass
        return await running

    assert asyncio.run(scenario()) == "acted"


def test_calls_that_wait_for_people_keep_no_other_session_waiting():
    box, release = Toolbox(thread_limit=8), threading.Event()
    box.threads.patience_s = 0.01

    @box.tool
    def approve() -> str:
        release.wait(LONG_S)
        return "approved"

    @box.tool
    def quick() -> str:
        return "quick"

    async def scenario():
        waiting = [
            asyncio.create_task(
                use(
                    box.get("approve"),
                    ToolCall("c", "approve", {}),
                    context(SessionKey.of(f"w{number}", "clerk")),
                    LONG_S,
                )
            )
            for number in range(40)
        ]
        asked = ToolCall("c", "quick", {})
        answered = await use(box.get("quick"), asked, context(), LONG_S)
        assert answered.content == "quick"
        await until(lambda: box.threads.statistics().running >= 40)
        release.set()
        assert {result.content for result in await asyncio.gather(*waiting)} == {"approved"}
        await until(lambda: sum(box.threads.statistics()) <= 8)

    asyncio.run(scenario())


def test_as_many_calls_may_wait_as_the_extra_limit_says():
    threads = Threads(1, extra_limit=2, patience_s=0.01)
    release = threading.Event()

    async def scenario():
        calls = [
            asyncio.create_task(threads.run(lambda: release.wait(LONG_S), LONG_S)) for _ in range(5)
        ]
        await until(lambda: threads.statistics().running == 3)
        with pytest.raises(TimeoutError, match=r"not begun within 0\.2 s"):
            await threads.run(lambda: None, SHORT_S)
        release.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_calls_get_a_thread_in_the_order_in_which_they_came():
    threads, order = Threads(1), []

    async def scenario():
        calls = (threads.run(lambda n=n: order.append(n), LONG_S) for n in range(50))
        await asyncio.gather(*calls)

    asyncio.run(scenario())
    assert order == list(range(50))


def test_a_hanging_tool_becomes_an_error_and_the_next_call_has_a_thread():
    box = Toolbox(thread_limit=1)
    box.threads.idle_s = 2 * LONG_S  # a thread that ends here ends because it is one too many
    release, ended = threading.Event(), threading.Event()

    @box.tool
    def hang() -> None:
        release.wait(LONG_S)
        ended.set()

    @box.tool
    def answer() -> str:
        return "42"

    async def scenario():
        hung = await use(box.get("hang"), ToolCall("c1", "hang", {}), context(), SHORT_S)
        assert hung.is_error
        assert re.fullmatch(
            r"hang: no result after 0\.2 s; its thread cannot be stopped and may still act\.",
            hung.content,
        )
        assert box.threads.statistics().hung == 1
        answered = await use(box.get("answer"), ToolCall("c2", "answer", {}), context(), LONG_S)
        assert answered == ("c2", "42", False)
        release.set()
        await until(lambda: box.threads.statistics().hung == 0)
        assert ended.is_set()
        # The thread that took the hung one's place is one too many now.
        await until(lambda: sum(box.threads.statistics()) == 1)

    asyncio.run(scenario())


def test_when_too_many_threads_hang_a_call_is_told_that_nothing_was_done():
    threads = Threads(1, extra_limit=1)
    release, ran = threading.Event(), []

    async def scenario():
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"no result after 0\.2 s"):
                await threads.run(lambda: release.wait(LONG_S), SHORT_S)
        with pytest.raises(TimeoutError, match=r"not begun within 0\.2 s: .*THREAD_LIMIT=1"):
            await threads.run(lambda: ran.append("late"), SHORT_S)
        assert threads.statistics() == (0, 0, 2, 0)
        release.set()
        assert await threads.run(lambda: "again", LONG_S) == "again"
        await until(lambda: threads.statistics().hung == 0)
        assert ran == []  # what was given up before it began never runs

    asyncio.run(scenario())


def test_a_full_waiting_line_refuses_by_the_name_of_its_limit():
    threads = Threads(1, waiting_limit=2)
    release, has_begun = threading.Event(), threading.Event()

    def first():
        has_begun.set()
        release.wait(LONG_S)

    async def scenario():
        calls = [asyncio.create_task(threads.run(first, LONG_S))]
        await until(has_begun.is_set)
        calls += [asyncio.create_task(threads.run(lambda: None, LONG_S)) for _ in range(2)]
        await until(lambda: threads.statistics().waiting == 2)
        with pytest.raises(Refused, match="WAITING_LIMIT=2"):
            await threads.run(lambda: None, LONG_S)
        release.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_idle_threads_go_away():
    threads = Threads(4, idle_s=0.01)

    async def scenario():
        await asyncio.gather(*(threads.run(lambda: None, LONG_S) for _ in range(20)))
        await until(lambda: threads.statistics() == (0, 0, 0, 0))
        assert await threads.run(lambda: 5, LONG_S) == 5

    asyncio.run(scenario())


def test_cancelling_a_caller_goes_through_at_once_and_its_thread_runs_on_to_its_end():
    box = Toolbox()
    has_begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    @box.tool
    def slow() -> None:
        has_begun.set()
        release.wait(LONG_S)
        ended.set()

    async def scenario():
        task = asyncio.create_task(
            use(box.get("slow"), ToolCall("c", "slow", {}), context(), LONG_S)
        )
        await until(has_begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ended.is_set()
        release.set()
        await until(ended.is_set)

    asyncio.run(scenario())


def test_a_call_cancelled_while_it_waits_for_a_thread_never_runs():
    threads, ran = Threads(1), []
    has_begun, release = threading.Event(), threading.Event()

    def first():
        has_begun.set()
        release.wait(LONG_S)

    async def scenario():
        holder = asyncio.create_task(threads.run(first, LONG_S))
        await until(has_begun.is_set)
        second = asyncio.create_task(threads.run(lambda: ran.append("second"), LONG_S))
        await until(lambda: threads.statistics().waiting == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert threads.statistics().waiting == 0
        release.set()
        await holder
        await threads.run(lambda: None, LONG_S)

    asyncio.run(scenario())
    assert ran == []


def test_a_cancelled_async_tool_tidies_up_before_its_caller_goes():
    events = []
    box = Toolbox()

    @box.tool
    async def tidy() -> None:
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("tidied")

    async def scenario():
        task = asyncio.create_task(
            use(box.get("tidy"), ToolCall("c", "tidy", {}), context(), LONG_S)
        )
        await until(lambda: events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["begun", "tidied"]
        late = await use(box.get("tidy"), ToolCall("c", "tidy", {}), context(), 0.01)
        assert late.content == "tidy: no result after 0.01 s; it was cancelled."
        assert events == ["begun", "tidied"] * 2

    asyncio.run(scenario())


def test_an_async_tool_that_ignores_cancellation_holds_no_caller():
    release = asyncio.Event()
    box = Toolbox()

    @box.tool
    async def stubborn() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    async def scenario():
        result = await use(box.get("stubborn"), ToolCall("c", "stubborn", {}), context(), 0.01)
        assert result.is_error
        assert result.content == "stubborn: no result after 0.01 s, and it ignores cancellation."
        (left,) = [task for task in asyncio.all_tasks() if task.get_name() == "tool stubborn"]
        release.set()
        await left

    asyncio.run(scenario())


def test_a_result_that_comes_while_the_tool_is_being_cancelled_is_given():
    box = Toolbox()

    @box.tool
    async def just() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "it did happen"

    assert call(box.get("just"), {}, timeout_s=0.01) == ("c1", "it did happen", False)


def test_an_async_tool_that_blocks_the_loop_is_named_and_its_time_is_counted(caplog):
    box, lag = Toolbox(), LoopLag()

    @box.tool
    async def block() -> str:
        await asyncio.sleep(0)
        threading.Event().wait(BLOCKING_S)
        await asyncio.sleep(0)
        return "done"

    @box.tool
    async def polite() -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * BLOCKING_S):
                await asyncio.Event().wait()
        return "done"

    async def scenario():
        for name in ("polite", "block", "block"):
            asked = ToolCall("c", name, {})
            assert (await use(box.get(name), asked, context(), LONG_S, lag=lag)).content == "done"

    asyncio.run(scenario())
    (blocked,) = lag.by_tool()
    assert (blocked.tool, blocked.times) == ("block", 2)
    assert BLOCKING_S <= blocked.longest_s <= blocked.total_s == lag.total_s
    assert "async tool block blocked the event loop for 0." in caplog.text


def test_a_watched_tool_is_cancelled_and_raises_as_any_other():
    box, lag = Toolbox(), LoopLag()

    @box.tool
    async def tidy() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "it did happen"

    @box.tool
    async def fail() -> str:
        await asyncio.sleep(0)
        raise ValueError("no such day")

    async def scenario():
        late = await use(box.get("tidy"), ToolCall("c", "tidy", {}), context(), 0.01, lag=lag)
        failed = await use(box.get("fail"), ToolCall("c", "fail", {}), context(), 1, lag=lag)
        return late.content, failed.content

    assert asyncio.run(scenario()) == ("it did happen", "fail failed: ValueError: no such day")


def test_a_tool_that_hangs_holds_neither_the_loop_s_end_nor_the_process_s():
    script = """
import asyncio, threading
from kode_lab.key import SessionKey
from kode_lab.message import ToolCall
from kode_lab.sessions.tool import Toolbox, ToolContext, use
box = Toolbox()
@box.tool
def hang():
    threading.Event().wait()
context = ToolContext(SessionKey.of("a", "b"), "t", "c", "k")
print(asyncio.run(use(box.get("hang"), ToolCall("c", "hang", {}), context, 0.05)).is_error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_a_loop_that_closed_before_its_thread_ended_is_no_error(recwarn):
    threads = Threads(1)
    release = threading.Event()

    async def leave():
        with pytest.raises(TimeoutError):
            await threads.run(lambda: release.wait(LONG_S), SHORT_S)

    asyncio.run(leave())
    release.set()

    async def come_again():
        return await threads.run(lambda: "still serving", LONG_S)

    assert asyncio.run(come_again()) == "still serving"
    assert list(recwarn) == []


def test_importing_tools_and_agents_does_not_load_pydantic():
    script = (
        "import sys, kode_lab.sessions.tool, kode_lab.sessions.agent\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert 'docstring_parser' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
