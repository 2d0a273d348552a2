"""Services as users have them, described in TOML and asked over real HTTP."""

import asyncio
import json
import re
from collections import defaultdict

import pytest
from aiohttp import web

from kode_lab.errors import InvalidScenario, KodeLabError
from kode_lab.history.operation import echo_of, marker_of, read_of
from kode_lab.key import SessionKey
from kode_lab.lab.client import Client, OperationList
from kode_lab.targets.description import read_description
from kode_lab.targets.guessing import guessed
from kode_lab.targets.http_target import HttpTarget
from kode_lab.targets.target import outcome_of
from kode_lab.targets.template import JsonPath, Template, in_url, text_in

ADA, BOB = SessionKey("ada l/ov", "x&y", "a"), SessionKey("bob", "x&y", "a")
MARKERS = [marker_of(ADA, number) for number in range(8)]


def described(tmp_path, toml):
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    return HttpTarget(read_description(path))


def served(tmp_path, toml, routes, work):
    """Serve ``routes``, and return what ``work(target)`` returns."""

    async def main():
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        target = described(tmp_path, toml.replace("PORT", str(port)))
        try:
            await target.start()
            return await work(target)
        finally:
            await target.stop()
            await runner.cleanup()

    return asyncio.run(main())


def asked(tmp_path, toml, routes, prompt=f'say "{MARKERS[0]}"\n', key=ADA):
    """Return the answer to one turn, and its outcome."""

    async def work(target):
        answer = await target.turn(key, prompt, MARKERS[0][1:])
        return answer, outcome_of(MARKERS[0], answer)

    return served(tmp_path, toml, routes, work)


def answering(value, status=200, **how):
    async def handle(_request):
        if isinstance(value, str):
            return web.Response(text=value, status=status, **how)
        return web.json_response(value, status=status, **how)

    return [web.route("*", "/chat", handle)]


URL = 'url = "http://127.0.0.1:PORT"\n'
CHAT = URL + '[turn]\npath = "/chat"\nbody = { text = "{prompt}" }\n'
OK = f"done {MARKERS[0]}"


# --- what is sent ----------------------------------------------------------------------------


def test_values_are_escaped_for_where_they_stand(tmp_path):
    seen = {}

    async def handle(request):
        seen["path"] = request.raw_path
        seen["body"] = await request.json()
        seen["who"] = request.headers["X-User"]
        return web.json_response({"reply": OK})

    toml = URL + (
        '[turn]\npath = "/u/{user}/s/{session}"\nquery = { q = "{prompt}" }\n'
        'headers = { X-User = "{user}" }\nreply = "$.reply"\n'
        'body = { input = { text = "{prompt}", n = 3, ok = true }, list = ["{turn_id}"] }\n'
    )
    routes = [web.post("/u/{user}/s/{session}", handle)]
    _, outcome = asked(tmp_path, toml, routes)
    assert outcome.type == "ok"
    assert seen["path"].startswith("/u/ada%20l%2Fov/s/x%26y?q=say%20%22%23m")
    assert seen["body"] == {
        "input": {"text": f'say "{MARKERS[0]}"\n', "n": 3, "ok": True},
        "list": [MARKERS[0][1:]],
    }
    assert seen["who"] == "ada l/ov"


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ('form = { m = "{prompt}" }', "application/x-www-form-urlencoded", "m=say+%22%23m"),
        ('body = \'{"m": "{prompt}"}\'', "application/json", '{"m": "say \\"#m'),
        ('body = "{prompt}"', "text/plain", 'say "#m'),
    ],
)
def test_bodies_are_forms_templates_of_json_and_plain_text(tmp_path, body, kind, expected):
    seen = {}

    async def handle(request):
        seen["type"], seen["body"] = request.content_type, await request.text()
        return web.Response(text=OK)

    toml = URL + f'[turn]\npath = "/chat"\nmethod = "POST"\ntext = true\n{body}\n'
    _, outcome = asked(tmp_path, toml, [web.post("/chat", handle)])
    assert outcome.type == "ok"
    assert seen["type"] == kind
    assert seen["body"].startswith(expected)


# --- what an answer means --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reply", "kind"),
    [
        ({"reply": OK}, "$.reply", "ok"),
        ({"choices": [{"message": {"content": OK}}]}, "$.choices[0].message.content", "ok"),
        ({"out": [{"text": "done"}, {"text": MARKERS[0]}]}, "$.out[*].text", "ok"),
        ({"reply": {"parts": [{"text": OK}]}}, "$.reply", "ok"),
        ({}, "$.reply", "info"),
        ({"reply": ""}, "$.reply", "info"),
        ({"reply": None}, "$.reply", "info"),
        ({"__error__": {"message": "boom"}}, "$.reply", "info"),
        ({"reply": "I am sorry, the model is overloaded"}, "$.reply", "info"),
    ],
)
def test_a_reply_counts_where_its_path_finds_its_own_marker(tmp_path, value, reply, kind):
    answer, outcome = asked(tmp_path, f'{CHAT}reply = "{reply}"\n', answering(value))
    assert outcome.type == kind
    if value == {}:
        assert answer.error == "path '$.reply' finds nothing in {}"


def test_a_body_without_the_reply_is_still_evidence_of_a_foreign_reply(tmp_path):
    other = marker_of(BOB, 1)
    value = {"data": echo_of(other, read_of(other, [other]))}
    _, outcome = asked(tmp_path, f'{CHAT}reply = "$.reply"\n', answering(value))
    assert (outcome.type, outcome.answered) == ("info", other)


@pytest.mark.parametrize(
    ("status", "extra", "kind"),
    [
        (409, "", "fail"),
        (500, "", "info"),
        (500, "definite = [500]\n", "fail"),
        (409, "definite = []\n", "info"),
        (302, "", "info"),
        (204, "", "info"),
    ],
)
def test_which_statuses_are_definite_can_be_told(tmp_path, status, extra, kind):
    routes = answering("no", status) if status != 204 else answering("", 204)
    _, outcome = asked(tmp_path, f'{CHAT}reply = "$.reply"\n{extra}', routes)
    assert outcome.type == kind


RULES = """
[[turn.rules]]
outcome = "fail"
status = 200
path = "$.error.code"
values = [-32000, "busy"]
[[turn.rules]]
outcome = "info"
pattern = "interrupted"
"""


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"error": {"code": -32000}}, "fail"),
        ({"error": {"code": "busy"}}, "fail"),
        ({"reply": f"interrupted {OK}"}, "info"),
        ({"reply": OK}, "ok"),
    ],
)
def test_rules_on_the_body_come_before_the_status(tmp_path, value, kind):
    _, outcome = asked(tmp_path, f'{CHAT}reply = "$.reply"\n{RULES}', answering(value))
    assert outcome.type == kind


def test_a_service_that_is_not_there_has_accepted_nothing(tmp_path):
    async def work():
        target = described(tmp_path, f'{CHAT}reply = "$.reply"\n'.replace("PORT", "9"))
        try:
            await target.start()
            return await target.turn(ADA, "hi", "t")
        finally:
            await target.stop()

    answer = asyncio.run(work())
    assert answer.kind == "refused"
    assert "nothing listens at http://127.0.0.1:9" in answer.error


def test_a_connection_that_breaks_leaves_open_what_happened(tmp_path):
    async def handle(request):
        request.transport.abort()
        return web.Response()

    _, outcome = asked(tmp_path, f'{CHAT}reply = "$.reply"\n', [web.post("/chat", handle)])
    assert outcome.type == "info"


def test_text_and_html_are_read_by_a_regular_expression(tmp_path):
    page = f"<html><p class=r>it&#39;s {MARKERS[0]}</p></html>"
    toml = f"{CHAT}reply_pattern = '<p class=r>(.*?)</p>'\n"
    answer, outcome = asked(tmp_path, toml, answering(page))
    assert (answer.text, outcome.type) == (f"it's {MARKERS[0]}", "ok")


# --- streams ---------------------------------------------------------------------------------


def streaming(*pieces):
    async def handle(request):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece.encode())
        return response

    return [web.post("/chat", handle)]


def event(data, name=""):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


WORDS = [event({"type": "delta", "d": {"text": one}}) for one in ("done ", MARKERS[0])]
UNNAMED = (
    '[turn.stream]\nwhen = { path = "$.type", value = "delta" }\ntext = "$.d.text"\n'
    'done = "[DONE]"\n'
)


@pytest.mark.parametrize(
    ("stream", "pieces", "kind"),
    [
        (UNNAMED, [event({"type": "start"}), *WORDS, event("[DONE]")], "ok"),
        (UNNAMED, [event({"type": "start"}), *WORDS], "info"),
        (UNNAMED, [], "info"),
        (UNNAMED, [event("[DONE]")], "info"),
        (
            '[turn.stream]\nevent = "text"\ntext = "$"\ndone = { event = "end" }\n',
            [event(f'"{OK}"', "text"), event("x", "other"), event("{}", "end")],
            "ok",
        ),
        (
            (
                '[turn.stream]\nevent = "text"\ndone = { event = "end" }\n'
                'failed = { event = "error" }\n'
            ),
            [event(OK, "text"), event("boom", "error"), event("{}", "end")],
            "info",
        ),
        (
            (
                '[turn.stream]\nformat = "lines"\ntext = "$.t"\n'
                'done = { path = "$.done", value = true }\n'
            ),
            [json.dumps({"t": "done "}) + "\n", json.dumps({"t": MARKERS[0], "done": True}) + "\n"],
            "ok",
        ),
    ],
)
def test_a_stream_counts_once_its_last_event_came(tmp_path, stream, pieces, kind):
    _, outcome = asked(tmp_path, CHAT + stream, streaming(*pieces))
    assert outcome.type == kind, outcome


# --- replies that come later -----------------------------------------------------------------


def test_a_reply_is_fetched_from_where_the_answer_says(tmp_path):
    polls = []

    async def begin(_request):
        return web.json_response({}, status=202, headers={"Location": "/jobs/7"})

    async def poll(_request):
        polls.append(1)
        is_done = len(polls) > 2
        return web.json_response({"state": "done" if is_done else "runs", "out": OK})

    toml = CHAT + (
        'reply = "$.out"\ncapture = { job = "header:Location" }\n[turn.later]\nurl = "{job}"\n'
        'every_s = 0.001\nuntil = { path = "$.state", values = ["done", "failed"] }\n'
    )
    routes = [web.post("/chat", begin), web.get("/jobs/7", poll)]
    _, outcome = asked(tmp_path, toml, routes)
    assert (outcome.type, len(polls)) == ("ok", 3)


@pytest.mark.parametrize(("is_there", "kind"), [(True, "ok"), (False, "info")])
def test_a_reply_is_found_in_a_shared_outbox_by_its_turn(tmp_path, is_there, kind):
    async def outbox(_request):
        mine = [{"reply_to": MARKERS[0][1:], "text": OK}] if is_there else []
        return web.json_response({"items": [{"reply_to": "other", "text": "no"}, *mine]})

    toml = CHAT + (
        'reply = "$.text"\n[turn.later]\npath = "/outbox"\nfind = "$.items[*]"\n'
        "every_s = 0.001\npatience_s = 0.05\n"
    )
    routes = [*answering({}), web.get("/outbox", outbox)]
    answer, outcome = asked(tmp_path, toml, routes)
    assert outcome.type == kind
    if not is_there:
        assert "patience_s=0.05" in answer.error


# --- set-up ----------------------------------------------------------------------------------


class Guarded:
    """A service with a log-in per user, and sessions that it names itself."""

    def __init__(self):
        self.logins = defaultdict(int)
        self.sessions = {}

    async def login(self, request):
        user = (await request.post())["user"]
        self.logins[user] += 1
        response = web.json_response({"token": f"token of {user}"})
        response.set_cookie("sid", f"cookie-{user[:3]}")
        return response

    async def open(self, request):
        assert request.cookies["sid"].startswith("cookie-")
        number = str(len(self.sessions))
        self.sessions[number] = request.headers["Authorization"]
        return web.json_response({"session": {"id": number}}, status=201)

    async def chat(self, request):
        number = request.match_info["id"]
        if request.headers["Authorization"] != self.sessions.get(number):
            return web.json_response({}, status=403)
        return web.json_response({"reply": (await request.json())["text"], "id": number})

    def routes(self):
        return [
            web.post("/login", self.login),
            web.post("/sessions", self.open),
            web.post("/sessions/{id}", self.chat),
        ]


GUARDED = (
    URL
    + """
[setup.user]
path = "/login"
form = { user = "{user}" }
capture = { token = "$.token" }

[setup.session]
path = "/sessions"
method = "POST"
headers = { Authorization = "Bearer {token}" }
capture = { sid = "$.session.id" }

[turn]
path = "/sessions/{sid}"
headers = { Authorization = "Bearer {token}" }
body = { text = "{prompt}" }
reply = "$.reply"
"""
)


def test_users_log_in_once_and_sessions_are_opened_once(tmp_path):
    service = Guarded()

    async def work(target):
        keys = [ADA, ADA._replace(session_id="z"), BOB]
        answers = await asyncio.gather(*(target.turn(key, OK, "t") for key in keys * 4))
        await target.restart()
        answers.append(await target.turn(ADA, OK, "t"))
        return answers

    answers = served(tmp_path, GUARDED, service.routes(), work)
    assert {answer.kind for answer in answers} == {"reply"}
    assert service.logins == {"ada l/ov": 2, "bob": 1}, "again after a restart"
    assert len(service.sessions) == 3


def test_a_refused_log_in_refuses_the_turn(tmp_path):
    async def refuse(_request):
        return web.json_response({"why": "closed"}, status=503)

    answer, _ = asked(tmp_path, GUARDED, [web.post("/login", refuse)])
    assert answer.kind == "refused"
    assert 'set-up POST /login: 503 {"why": "closed"}' in answer.error


# --- histories -------------------------------------------------------------------------------

BEFORE = f'{CHAT}reply = "$.r"\n[history]\npath = "/h/{{session}}"\n'
ECHO = echo_of(MARKERS[1], read_of(MARKERS[1], [MARKERS[0], MARKERS[1]]))
USER = [f"hi {MARKERS[0]}", f"and {MARKERS[1]}"]


def read_back(tmp_path, toml, *pages):
    async def handle(request):
        at = int(request.query.get("cursor", 0))
        page = pages[at]
        if isinstance(page, int):
            return web.Response(status=page)
        return web.Response(text=page) if isinstance(page, str) else web.json_response(page)

    async def work(target):
        history = OperationList()
        await Client(target, history).read("r", ADA)
        return history.done[0]

    return served(tmp_path, toml, [web.route("*", "/h/{s}", handle)], work)


@pytest.mark.parametrize(
    ("extra", "page"),
    [
        (
            'items = "$.messages"',
            {
                "messages": [
                    {"role": "user", "content": USER[0]},
                    {"role": "assistant", "content": f"ok {ECHO}"},
                    {"role": "user", "content": [{"type": "text", "text": USER[1]}]},
                    {"role": "assistant", "content": [{"type": "text", "text": ECHO}]},
                ]
            },
        ),
        (
            'items = "$"\nrole = "$.who.kind"\nuser_role = "H"\ntext = "$.said"',
            [
                {"who": {"kind": "H"}, "said": USER[0]},
                {"who": {"kind": "M"}, "said": MARKERS[5]},
                {"who": {"kind": "H"}, "said": USER[1]},
            ],
        ),
        (
            'items = "$.turns"\ntext = "$.question"',
            {"turns": [{"question": one, "answer": f"{MARKERS[5]} {ECHO}"} for one in USER]},
        ),
        ('items = "$.list"', {"list": [f"{one}\n{ECHO}" for one in USER]}),
        (
            "items = \"$.lines\"\npattern = '^USER: (.*)'",
            {"lines": [f"USER: {USER[0]}", f"BOT: {MARKERS[5]}", f"USER: {USER[1]}"]},
        ),
        (
            "pattern = '<li class=u>(.*?)</li>'",
            f"<li class=u>{USER[0]}</li><li class=b>{MARKERS[5]}</li><li class=u>{USER[1]}</li>",
        ),
        (
            'items = "$.events[*].content"\ntext = "$.parts"',
            {
                "events": [
                    {"content": {"role": "user", "parts": [{"text": USER[0]}]}},
                    {"content": {"role": "model", "parts": [{"text": MARKERS[5]}]}},
                    {"content": {"role": "user", "parts": [{"text": USER[1]}]}},
                ]
            },
        ),
    ],
)
def test_who_said_what_in_a_history_is_told_apart(tmp_path, extra, page):
    operation = read_back(tmp_path, f"{BEFORE}{extra}\n", page)
    assert operation.markers == (MARKERS[0], MARKERS[1])


@pytest.mark.parametrize("page", [{"messages": []}, {"messages": None}, 404])
def test_absent_and_null_mean_empty(tmp_path, page):
    assert read_back(tmp_path, f'{BEFORE}items = "$.messages"\n', page).markers == ()


def said(*numbers, **more):
    return {"m": [{"role": "user", "content": MARKERS[n]} for n in numbers], **more}


PAGED = BEFORE + 'items = "$.m"\n[history.next]\npath = "$.next"\nquery = "cursor"\n'


def test_all_pages_of_a_history_are_read(tmp_path):
    operation = read_back(tmp_path, PAGED, said(0, 1, next=1), said(2, next=2), said(3))
    assert operation.markers == tuple(MARKERS[:4])


@pytest.mark.parametrize(
    "pages", [(said(0, next=1), 500), (said(0, next=1), said(1, next=1)), (said(0, next=True),)]
)
def test_pages_without_an_end_are_no_read(tmp_path, pages):
    operation = read_back(tmp_path, PAGED, *pages)
    assert (operation.type, operation.markers) == ("info", None)


def test_a_path_that_finds_nothing_shows_what_it_was_tried_on(tmp_path):
    operation = read_back(tmp_path, f'{BEFORE}items = "$.mesages"\n', {"messages": []})
    assert operation.type == "info"
    assert "path '$.mesages' finds nothing in {\"messages\": []}" in operation.error


# --- the file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("url = 3\n", "line 1: url: must be text, not 3"),
        ('url = "http://x"\n', "line 1: turn: is missing"),
        ('[turn]\npath = "/x"\nreply = "$.r"\n', "url: is missing"),
        ('url = "http://x"\n[turn]\npath = "/x"\n', "line 2: turn.reply: is missing"),
        (
            'url = "http://x"\n\n[turn]\npath = "/x"\nreply = "$.r"\nbdy = 1\n',
            "line 6: turn.bdy: is not a field: did you mean body?",
        ),
        (
            'url = "http://x"\n[turn]\npath = "/x"\nreply = "$.r"\nbody = { a = "{promt}" }\n',
            "line 5: turn.body.a: {promt} is not known: did you mean {prompt}?",
        ),
        (
            'url = "http://x"\n[turn]\npath = "/x"\nreply = "$.a[b"\n',
            "line 4: turn.reply: path '$.a[b' cannot be read at '[b'",
        ),
        (
            'url = "http://x"\n[turn]\npath = "/x"\nreply_pattern = "("\n',
            "line 4: turn.reply_pattern: not a regular expression",
        ),
        ('url = "http://x"\n[turn\n', "not TOML:"),
        (
            'url = "http://x"\n[declares]\npromises = ["fast"]\n[turn]\npath="/"\nreply="$"\n',
            "line 3: declares.promises: 'fast' is not valid: choose apart",
        ),
        (
            'url = "http://x"\n[turn]\npath = "/"\nreply = "$"\n[[turn.rules]]\noutcome = "bad"\n',
            "line 6: turn.rules.outcome: 'bad' is not valid: choose ok, fail or info",
        ),
    ],
)
def test_a_wrong_file_names_line_and_field(tmp_path, toml, told):
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    with pytest.raises(InvalidScenario, match=re.escape(told)):
        read_description(path)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("$", 3, [3]),
        ("a.b", {"a": {"b": 1}}, [1]),
        ("$['a b'][-1]", {"a b": [1, 2]}, [2]),
        ("$[*].x", [{"x": 1}, {"y": 2}, {"x": None}], [1, None]),
        ("$.a[5]", {"a": [1]}, []),
        ("$.a.b", {"a": "text"}, []),
    ],
)
def test_a_path_finds_what_it_names(path, value, found):
    assert JsonPath(path).all(value) == found


def test_a_template_leaves_other_braces_alone():
    template = Template('{"a": "{user}", b: {}} {{x')
    assert template.fill({"user": "é/"}, in_url) == '{"a": "%C3%A9%2F", b: {}} {{x'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image"}, "b"], "a\nb"),
        ({"parts": [{"text": "a"}]}, "a"),
        ([{"type": "tool_result", "content": "quotes the prompt"}], ""),
    ],
)
def test_the_text_of_a_content_is_a_text_or_blocks(content, text):
    assert text_in(content) == text


def test_the_parts_of_a_key_are_those_that_a_request_names(tmp_path):
    assert described(tmp_path, f'{CHAT}reply = "$"\n').declaration.parts == ()
    named = f'{CHAT}reply = "$"\nheaders = {{ U = "{{user_uuid}}", K = "{{session}}" }}\n'
    assert described(tmp_path, named).declaration.parts == ("user", "session")


# --- services that are started ---------------------------------------------------------------


def test_a_service_that_does_not_start_says_its_last_words(tmp_path):
    toml = f'start = "python3 -c \'raise SystemExit(\\"no model\\")\'"\n{CHAT}reply = "$"\n'
    target = described(tmp_path, toml.replace("PORT", "9"))

    async def begin():
        try:
            await target.start()
        finally:
            await target.stop()

    with pytest.raises(KodeLabError, match=r"ended with status 1 before it answered.*no model"):
        asyncio.run(begin())


# --- guesses ---------------------------------------------------------------------------------

OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Chat"},
    "paths": {
        "/health": {"get": {"responses": {}}},
        "/users/{user_id}/threads/{thread_id}/chat": {
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/In"}}}
                },
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Out"}}
                        }
                    }
                },
            }
        },
        "/users/{user_id}/threads/{thread_id}": {
            "get": {
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {
                                "schema": {"type": "object", "properties": {"messages": {}}}
                            }
                        }
                    }
                }
            }
        },
    },
    "components": {
        "schemas": {
            "In": {
                "type": "object",
                "required": ["message", "mode"],
                "properties": {
                    "message": {"type": "string"},
                    "mode": {"enum": ["fast", "slow"]},
                    "temperature": {"type": "number"},
                },
            },
            "Out": {"type": "object", "properties": {"answer": {"type": "string"}}},
        }
    },
}


def operation(*parameters, body=None, kind="application/json", status="200", answer=None):
    """Return an operation of an OpenAPI document; a parameter is ``in:name``."""
    named = [dict(zip(("in", "name"), one.split(":"), strict=True)) for one in parameters]
    found = {"parameters": [{**one, "required": True} for one in named]}
    if body:
        texts = {name: {"type": "string"} for name in body}
        found["requestBody"] = {"content": {kind: {"schema": {"properties": texts}}}}
    schema = {"properties": {name: {"type": "string"} for name in answer or ()}}
    found["responses"] = {status: {"content": {"application/json": {"schema": schema}}}}
    return found


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (
            {"/ask": {"post": operation("query:user", "header:X-Session-Id", body=["question"])}},
            'query = { user = "{user}" }\nheaders = { X-Session-Id = "{session}" }\n',
        ),
        (
            {
                "/say": {
                    "post": operation(
                        body=["chat_id", "text"], kind="application/x-www-form-urlencoded"
                    )
                }
            },
            'form = { chat_id = "{session}", text = "{prompt}" }',
        ),
        (
            {
                "/threads": {"post": operation(status="201", answer=["id"])},
                "/threads/{tid}/runs": {"post": operation("path:tid", body=["input"])},
                "/threads/{tid}": {"get": operation("path:tid")},
            },
            '[setup.session]\npath = "/threads"\nmethod = "POST"\ncapture = { sid = "$.id" }',
        ),
        (
            {"/chats/{id}": {"post": operation("path:id", body=["message"], status="202")}},
            "The answer is 202",
        ),
    ],
)
def test_parameters_forms_and_minted_ids_are_guessed(tmp_path, paths, told):
    toml = guessed({"paths": paths}, "http://127.0.0.1:8000")
    assert told in toml
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    read_description(path)


def test_a_description_is_guessed_from_an_openapi_document(tmp_path):
    toml = guessed(OPENAPI, "http://127.0.0.1:8000")
    assert 'path = "/users/{user}/threads/{session}/chat"' in toml
    assert 'body = { message = "{prompt}", mode = "fast" }' in toml
    assert 'reply = "$.answer"' in toml
    assert 'items = "$.messages"' in toml
    assert described(tmp_path, toml).declaration.parts == ("user", "session")


@pytest.mark.parametrize("document", [{}, {"paths": {}}, {"paths": {"/x": {"get": {}}}}])
def test_a_document_without_a_chat_is_refused(document):
    with pytest.raises(InvalidScenario):
        guessed(document, "http://x")
