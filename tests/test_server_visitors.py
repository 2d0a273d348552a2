"""Who may come, and what they learn of others: nothing."""

import hashlib
import logging
import re
import time

import jwt
import pytest
from house import run, until
from served import JSON, served

from kode_lab.cli import main
from kode_lab.errors import InvalidScenario
from kode_lab.server import tokens_of

ADAS, BOBS, OPS = "ada-token-0123456789", "bob-token-0123456789", "ops-token-0123456789"
SECRET = "0123456789abcdef0123456789abcdef"


def entry(user, token, more=""):
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nuser = "{user}"\nsha256 = "{digest}"\n{more}\n'


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "jwt.secret").write_text(SECRET + "\n")
    path = tmp_path / "tokens.toml"
    path.write_text(
        entry("ada", ADAS)
        + entry("bob", BOBS)
        + entry("ops", OPS, "operator = true")
        + '[jwt]\nsecret_file = "jwt.secret"\nalgorithms = ["HS256"]\n'
        'issuer = "home"\naudience = "kode-lab"\n'
    )
    return tokens_of(path)


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def signed(secret=SECRET, algorithm="HS256", **claims):
    claims = {
        "sub": "ada",
        "exp": time.time() + 600,
        "iss": "home",
        "aud": "kode-lab",
    } | claims
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, secret, algorithm=algorithm)


async def turn(house, headers, user="ada"):
    body = house.body("hello", userId=user)
    status, told, answered = await house.ask("POST", "/v1/turns", data=body, headers=JSON | headers)
    return status, told, answered


def test_a_token_opens_its_users_sessions_and_no_others(tmp_path, tokens):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            assert (await turn(house, bearer(ADAS)))[0] == 200
            assert (await turn(house, bearer(BOBS), "bob"))[0] == 200
            assert (await turn(house, bearer(signed())))[0] == 200
            assert (await turn(house, {"Authorization": f"bearer {ADAS}"}))[0] == 200
            status, told, _ = await turn(house, bearer(BOBS))
            assert (status, told["error"]["type"]) == (403, "Forbidden")
            # An operator sees the server, not the sessions.
            assert (await turn(house, bearer(OPS)))[0] == 403

    run(scenario())


def test_another_users_session_is_refused_in_the_same_words_whether_it_exists_or_not(
    tmp_path, tokens
):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            assert (await turn(house, bearer(ADAS)))[0] == 200
            answers = set()
            for user, session in (("ada", "s1"), ("ada", "none"), ("stranger", "s1")):
                path = f"/v1/sessions/{user}/{session}/clerk"
                for method, end in (
                    ("GET", f"{path}/messages"),
                    ("GET", f"{path}/state"),
                    ("DELETE", path),
                    ("GET", f"/v1/users/{user}/sessions"),
                ):
                    status, told, _ = await house.ask(method, end, headers=bearer(BOBS))
                    answers.add((status, str(told)))
                status, told, _ = await turn(house, bearer(BOBS), user)
                answers.add((status, str(told)))
            assert len(answers) == 1
            assert answers.pop()[0] == 403
            status, told, _ = await house.ask(
                "GET", "/v1/sessions/ada/s1/clerk/messages", headers=bearer(ADAS)
            )
            assert len(told["messages"]) == 2

    run(scenario())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": ADAS},
        {"Authorization": f"Basic {ADAS}"},
        {"Authorization": f"Bearer {ADAS}x"},
        {"Authorization": f"Bearer {ADAS[:-1]}"},
        {"Authorization": f"Bearer {ADAS.upper()}"},
        {"Authorization": f"Bearer {hashlib.sha256(ADAS.encode()).hexdigest()}"},
        {"Authorization": "Bearer " + "x" * 9_000},
        {"Authorization": "Bearer a.b.c"},
        {"Authorization": "Bearer ..."},
        {"X-Api-Key": ADAS},
    ],
    ids=str,
)
def test_a_visitor_without_a_known_token_is_a_stranger(tmp_path, tokens, headers):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            status, told, answered = await turn(house, headers)
            assert (status, told["error"]["type"]) == (401, "Unauthenticated")
            assert answered["WWW-Authenticate"].startswith("Bearer")
            for path in ("/v1/statistics", "/metrics", "/v1/live"):
                assert (await house.ask("GET", path, headers=headers))[0] == 401
            for path in ("/healthz", "/readyz", "/openapi.json", "/"):
                assert (await house.ask("GET", path, headers=headers))[0] == 200
            assert house.live_state.outcomes == {}

    run(scenario())


def test_two_tokens_at_once_are_none(tmp_path, tokens):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            reader, writer = await house.connect()
            head = "GET /v1/statistics HTTP/1.0\r\nHost: x\r\n"
            head += f"Authorization: Bearer {ADAS}\r\nAuthorization: Bearer {BOBS}\r\n\r\n"
            writer.write(head.encode())
            assert (await reader.read()).startswith(b"HTTP/1.1 401")
            writer.close()

    run(scenario())


def test_a_signed_token_is_taken_only_as_it_was_meant(tmp_path, tokens):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            for token, status in (
                (signed(), 200),
                (signed(sub="bob"), 403),
                (signed(sub=None), 401),
                (signed(sub=""), 401),
                (signed(exp=None), 401),
                (signed(exp=time.time() - 600), 401),
                (signed(nbf=time.time() + 600), 401),
                (signed(iss="elsewhere"), 401),
                (signed(iss=None), 401),
                (signed(aud="another"), 401),
                (signed(aud=None), 401),
                (signed(secret="f" * 32), 401),
                (signed(secret=SECRET * 2, algorithm="HS512"), 401),
                (signed(secret=None, algorithm="none"), 401),
                (signed()[:-4] + "AAAA", 401),
            ):
                found, told, _ = await turn(house, bearer(token))
                assert found == status, (token, told)
            status, _, _ = await house.ask("GET", "/metrics", headers=bearer(signed()))
            assert status == 403
            operator = signed(kode_lab_operator=True)
            assert (await house.ask("GET", "/metrics", headers=bearer(operator)))[0] == 200
            text = signed(kode_lab_operator="yes")
            assert (await house.ask("GET", "/v1/live", headers=bearer(text)))[0] == 403

    run(scenario())


def test_the_whole_server_is_shown_to_operators_only(tmp_path, tokens):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            for path in ("/metrics", "/v1/live"):
                assert (await house.ask("GET", path, headers=bearer(OPS)))[0] == 200
                assert (await house.ask("GET", path, headers=bearer(ADAS)))[0] == 403
            status, told, _ = await house.ask("GET", "/v1/statistics", headers=bearer(ADAS))
            assert status == 200
            assert "ada" not in str(told)

    run(scenario())


def test_neither_token_nor_prompt_stands_in_logs_figures_or_anything_but_the_session(
    tmp_path, tokens, caplog
):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            caplog.set_level(logging.WARNING)  # as kode-lab serve does
            secret = "the-prompt-is-a-secret"
            body = house.body(f"fail:1 {secret}")
            headers = JSON | bearer(ADAS)
            assert (await house.ask("POST", "/v1/turns", data=body, headers=headers))[0] == 200
            assert (await turn(house, bearer(signed())))[0] == 200
            await turn(house, bearer("wrong-token"))
            await house.idle()
            shown = caplog.text
            for path in ("/metrics", "/v1/live", "/v1/statistics"):
                shown += str((await house.ask("GET", path, headers=bearer(OPS)))[1])
            for hidden in (secret, ADAS, OPS, SECRET, "wrong-token", signed().split(".")[2]):
                assert hidden not in shown
            files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
            assert [path for path in files if secret.encode() in path.read_bytes()]
            for path in files:
                assert ADAS.encode() not in path.read_bytes()

    run(scenario())


def test_a_made_token_opens_the_door_that_its_lines_are_put_in(tmp_path, capsys):
    assert main(["token", "--user", 'a "quoted" user', "--operator"]) == 0
    lines, said = capsys.readouterr()
    path = tmp_path / "tokens.toml"
    path.write_text(lines)
    token = re.search(r"token, shown only now: (\S+)", said)[1]
    visitor = tokens_of(path).visitor_of([(b"authorization", f"Bearer {token}".encode())])
    assert visitor == ('a "quoted" user', True)
    # What goes into the file does not tell the token.
    assert token not in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no"),
        ("token = 1", "mend the file"),
        ("[[token]]\nuser = 'ada'", "sha256"),
        ("[[token]]\nuser = 'ada'\nsha256 = 'abcd'", "64 hexadecimal"),
        ("[[token]]\nuser = 'ada'\nsha256 = 'xyz'", "hexadecimal"),
        ("[[token]]\nuser = 'ada'\npassword = 'x'", "password"),
        (entry("", "t"), "userId is empty"),
        (entry("ada", "t", "operator = 1"), "operator"),
        (entry("ada", "t") + "[jwt]\nalgorithms = ['HS256']", "secret_file or public_key_file"),
        ("[jwt]\nsecret_file = 'short'\nalgorithms = ['HS256']", "_SECRET_LEAST_BYTES=32"),
        ("[jwt]\nsecret_file = 'gone'\nalgorithms = ['HS256']", "No such file"),
        ("[jwt]\nsecret_file = 'long'\nalgorithms = ['RS256']", "choose of HS256"),
        ("[jwt]\nsecret_file = 'long'\nalgorithms = ['none']", "choose of HS256"),
        ("[jwt]\nsecret_file = 'long'\nalgorithms = []", "choose of HS256"),
        ("[jwt]\npublic_key_file = 'long'\nalgorithms = ['HS256']", "choose of RS256"),
        ("[jwt]\nsecret_file = 'long'\nalgorithms = ['HS256']\nleeway = 1", "leeway"),
        ("[[users]]\n", "unknown field 'users'"),
        ("not toml", "mend the file"),
    ],
)
def test_a_file_of_tokens_that_cannot_be_meant_is_refused_with_its_reason(tmp_path, text, said):
    (tmp_path / "short").write_text("secret")
    (tmp_path / "long").write_text(SECRET)
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidScenario, match=re.escape(said)):
        tokens_of(path)


def test_with_tokens_the_server_answers_to_any_name(tmp_path, tokens):
    async def scenario():
        async with served(tmp_path, tokens=tokens) as house:
            headers = bearer(ADAS) | {"Host": "agents.example"}
            assert (await house.ask("GET", "/v1/statistics", headers=headers))[0] == 200
            await until(lambda: not house.service.turns_in_flight)

    run(scenario())
