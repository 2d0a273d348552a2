"""The live page: one file, asks only its own server, and shows in a browser who holds and waits."""

import asyncio
import shutil

import pytest
from house import run, until
from served import JSON, served

from kode_lab.server import tokens_of
from kode_lab.server.auth import new_token, token_entry

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# A browser that asks for nothing outside, and needs no display.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def two_tokens(path):
    """Return the tokens of ada and of an operator, and the server's file of them."""
    (ada, adas), (operator, operators) = new_token(), new_token()
    (path / "tokens.toml").write_text(
        token_entry("ada", adas, is_operator=False)
        + token_entry("operator", operators, is_operator=True)
    )
    return ada, operator, tokens_of(path / "tokens.toml")


def test_the_page_may_ask_only_its_own_server(tmp_path):
    async def scenario():
        async with served(tmp_path) as house:
            status, page, headers = await house.ask("GET", "/")
            assert status == 200
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "connect-src 'self'" in policy
            assert "unsafe" not in policy
            text = page.decode()
            for outside in ("http://", "https://", "//cdn", "@import", "url("):
                assert outside not in text.replace("http://www.w3.org/2000/svg", "")
            assert headers["X-Content-Type-Options"] == "nosniff"

    run(scenario())


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_who_holds_who_waits_and_what_came_of_it(tmp_path):
    playwright = pytest.importorskip("playwright.async_api")

    ada, operator, tokens = two_tokens(tmp_path)

    async def scenario():
        async with served(tmp_path, tokens=tokens) as house, playwright.async_playwright() as play:
            browser = await play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = await browser.new_page(color_scheme="light")
            complaints, asked = [], []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("request", lambda request: asked.append(request.url))
            # A session whose name would run, if it were ever taken for HTML.
            name = "<img src=x onerror=alert(1)>"
            headers = JSON | {"Authorization": f"Bearer {ada}"}
            house.gates["ask"].shut()
            turns = []
            for number in range(3):
                body = house.body(f"p{number}", sessionId=name)
                turns.append(
                    asyncio.create_task(house.ask("POST", "/v1/turns", data=body, headers=headers))
                )
                await until(lambda: house.service.turns_in_flight == len(turns))
            await page.goto(house.http.base_url)
            await page.get_by_label("An operator's token").fill(operator)
            refusals = [text for text in complaints if "401" in text]
            await page.get_by_role("button", name="Open").click()
            row = page.locator("#rows tr")
            await row.wait_for()
            assert (await row.locator("td").first.inner_text()) == f"ada : {name}"
            assert (await row.locator("td").nth(6).inner_text()) == "2"
            assert await page.locator("#waiting").inner_text() == "2"
            assert await page.locator("#busy").inner_text() == "1 session has turns in flight"
            ground = "getComputedStyle(document.body).backgroundColor"
            assert await page.evaluate(ground) == "rgb(255, 255, 255)"
            await page.emulate_media(color_scheme="dark")
            assert await page.evaluate(ground) == "rgb(18, 23, 29)"
            house.gates["ask"].open()
            await asyncio.gather(*turns)
            await page.get_by_text("Half of the last 3 turns took").wait_for()
            await page.get_by_text("No session is held").wait_for()
            assert await page.locator("#plot rect.work").count() == 3
            assert refusals
            assert [text for text in complaints if "401" not in text] == []
            assert {url for url in asked if not url.startswith(house.http.base_url)} <= {"data:,"}
            assert await page.evaluate("document.documentElement.scrollWidth") <= 1280
            await browser.close()

    run(scenario(), patience_s=60)
