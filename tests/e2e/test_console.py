"""The console in a real browser, on the demo: every view, keys, hostile names, the kill switch."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect

from deploy.demo.browser import BrowserError, open_browser
from tests.e2e.conftest import ADMIN_KEY, Demo
from tests.factories.experiment_logs import coin, rows, store
from tta_serve.experiments.design.assignment import RunningExperiment
from tta_serve.experiments.design.definition import Definition
from tta_serve.store.database import Database

VIEWS = ("try", "library", "experiments", "traffic")
SCHEMES = ("light", "dark")
PROMPT = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
ANSWER = "SELECT name FROM staff WHERE salary > 70;"
HOSTILE = "<img src=x onerror=window.hit=1>"
EXPERIMENT = {
    "name": "watched",
    "arms": [
        {"name": "plain", "policy": "base"},
        {"name": "gate", "policy": "gate"},
        {"name": "slow", "policy": "retrieval"},
    ],
    "control": "plain",
    "eligible": {"headers": {"x-of-these-tests": "1"}},
    "metrics": {
        "primary": {"name": "score", "kind": "share"},
        "guardrails": [{"name": "router_ms", "better": "lower", "tolerated": 50}],
    },
    "target": 400,
}

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with open_browser() as found:
            yield found
    except BrowserError as error:
        pytest.skip(str(error))


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    """A page that shows the console, and that has nothing to complain about when the test ends."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    found = context.new_page()
    found.set_default_timeout(60_000)
    complaints: list[str] = []

    def note(said: ConsoleMessage) -> None:
        """Keep what is wrong; that a click came before the page took the focus is not."""
        if said.type != "info":
            complaints.append(f"{said.type}: {said.text}")

    found.on("console", note)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(f"{demo.url}/console")
    yield found
    context.close()
    assert not complaints


@pytest.fixture
def managed(page: Page) -> Page:
    """The page, which has been given the key."""
    give_key(page, ADMIN_KEY)
    expect(page.locator("#keys-button")).to_have_text("Keys: management")
    return page


@pytest.fixture(scope="module")
def experiment(demo: Demo) -> Iterator[str]:
    """An experiment that runs, of which nobody else's requests are, and 900 users of it."""
    path = f"/admin/experiments/{EXPERIMENT['name']}"
    with admin(demo) as http:
        made = http.put(path, json=EXPERIMENT, headers={"if-none-match": "*"}).raise_for_status()
        started = http.post(f"{path}/start", headers={"if-match": made.headers["etag"]})
        version = started.raise_for_status().json()["version"]

        running = RunningExperiment(Definition.parse({**EXPERIMENT, "eligible": {}}), version)
        worth = coin(plain=0.4, gate=0.7, slow=0.4)
        began = time.time() - 7200
        seen, judged = rows(running, range(900), worth, start=began, spread_s=7000, tag="watched")
        db = Database(demo.store)
        store(db, seen, judged)
        db.close()
        yield str(EXPERIMENT["name"])
        now = http.get(path).raise_for_status()
        http.post(f"{path}/stop", headers={"if-match": now.headers["etag"]}).raise_for_status()


def admin(demo: Demo) -> httpx.Client:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.Client(base_url=demo.url, headers=headers, timeout=60)


def give_key(page: Page, key: str) -> None:
    page.locator("#keys-button").click()
    page.get_by_label("Management key").fill(key)
    page.get_by_role("button", name="Use", exact=True).click()


def open_view(page: Page, name: str) -> None:
    page.locator(f"nav a[href='#{name}']").click()
    expect(page.locator(f"nav a[href='#{name}']")).to_have_attribute("aria-current", "page")


def row(page: Page, table: str, name: str) -> Locator:
    """Return the row of a table that begins with a name."""
    return (
        page.get_by_role("table", name=table, exact=True)
        .get_by_role("row")
        .filter(has=page.get_by_role("rowheader", name=name, exact=True))
    )


def test_a_prompt_is_answered_twice_side_by_side(managed: Page) -> None:
    first, second = (managed.get_by_role("region", name=f"{n} answer") for n in ("First", "Second"))
    managed.get_by_label("What a user says").fill(PROMPT)
    first.get_by_label("Answered by").select_option("policy:inline")
    second.get_by_label("Answered by").select_option("mix:")
    second.get_by_label("Mix").fill("sql=0.7, math=0.3")
    for streams in (True, False):
        managed.get_by_label("Stream").set_checked(streams)
        managed.get_by_role("button", name="Ask both").click()
        expect(managed.get_by_role("status")).to_have_text("Both have answered.")
        expect(first.locator(".answer")).to_have_text(ANSWER)
        expect(first.locator(".facts")).to_contain_text("12 written")
        expect(first.get_by_role("table", name="Mix")).to_contain_text("sql")
        expect(first.get_by_role("table", name="Scores")).to_contain_text("triage")
        expect(first.get_by_text("Reason:")).to_be_visible()
        expect(first.locator(".facts")).to_contain_text(re.compile(r"Router[\d.]+ ms"))
        expect(second.get_by_role("table", name="Mix")).to_contain_text("0.7")
        expect(second.locator(".facts")).to_contain_text("explicit")


def test_a_mix_with_layers_shows_them_and_a_wrong_one_is_explained(managed: Page) -> None:
    first, second = (managed.get_by_role("region", name=f"{n} answer") for n in ("First", "Second"))
    first.get_by_label("Answered by").select_option("policy:learned")
    second.get_by_label("Answered by").select_option("mix:")
    second.get_by_label("Mix").fill(f"{HOSTILE}")
    managed.get_by_label("Tokens at most").fill("4")
    managed.get_by_role("button", name="Ask both").click()
    chart = first.get_by_role("figure")
    expect(chart.locator("canvas")).to_be_visible()
    chart.get_by_text("As a table").click()
    expect(chart.get_by_role("row")).to_have_count(31)  # of the 30 layers, and the titles
    expect(second.locator(".error")).to_contain_text("is no coefficient; write sql=0.7")


def test_all_policies_say_what_they_would_do(managed: Page, demo: Demo) -> None:
    with admin(demo) as http:
        policies = [one["name"] for one in http.get("/admin/policies").json()["policies"]]
    managed.get_by_label("What a user says").fill(PROMPT)
    managed.get_by_role("button", name="Explain all policies").click()
    table = "Decisions of all policies, without an answer"
    for policy in policies:
        expect(row(managed, table, policy)).to_have_count(1)
    expect(row(managed, table, "inline")).to_contain_text("sql 1")


def test_the_library_says_what_is_served_and_how_alike_it_is(managed: Page, demo: Demo) -> None:
    with admin(demo) as http:
        served = http.get("/admin/experts").json()["replicas"][0]
        kinship = http.get("/admin/experts/kinship").raise_for_status().json()
    assert kinship["experts"] == sorted(served["experts"])
    assert not kinship["left_out"]
    open_view(managed, "library")
    for name, digest in served["experts"].items():
        expect(row(managed, "Experts that are served", name)).to_contain_text(digest)
        expect(row(managed, "Experts that are served", name)).to_contain_text("1 of 1")
    expect(row(managed, "Room taken", "Experts")).to_contain_text("6 of 64")
    cosine = kinship["cosines"][0][1]
    pairs = row(managed, "Cosines of all pairs of experts", kinship["experts"][0])
    expect(pairs).to_contain_text(f"{cosine:.3f}".rstrip("0"))


def test_a_running_experiment_is_told_as_its_report_has_it(managed: Page, experiment: str) -> None:
    open_view(managed, "experiments")
    managed.get_by_label("Experiment").select_option(experiment)
    expect(managed.get_by_text("The winner is gate.").first).to_be_visible()
    better = row(managed, "score less the control's", "gate")
    expect(better).to_contain_text("better")
    expect(better).to_contain_text(re.compile(r"0\.\d+ to 0\.\d+"))
    expect(row(managed, "score less the control's", "slow")).to_contain_text("undecided")
    expect(row(managed, "Guardrails of each arm", "router_ms").first).to_contain_text("kept")
    ratio = row(managed, "Units of each arm, and how many there should be", "plain")
    expect(ratio).to_contain_text("300")
    expect(managed.get_by_text("as it should be", exact=True)).to_be_visible()
    expect(managed.locator("figure canvas")).to_be_visible()


def test_the_kill_switch_asks_first_then_answers_everybody(
    managed: Page, demo: Demo, client: openai.OpenAI
) -> None:
    open_view(managed, "experiments")
    switch = managed.get_by_role("region", name="Kill switch")
    dialog = managed.get_by_role("alertdialog")
    switch.get_by_label("Answer with").select_option("balanced")
    switch.get_by_role("button").click()
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    dialog.get_by_role("button", name="Cancel").click()
    assert read_kill(demo) is None
    try:
        switch.get_by_role("button").click()
        dialog.get_by_role("button", name="Answer everybody with balanced").click()
        expect(managed.locator("#banner")).to_contain_text("balanced answers every request")
        assert read_kill(demo) == "balanced"
        time.sleep(1)
        messages: Any = [{"role": "user", "content": PROMPT}]
        answer: Any = client.chat.completions.create(
            model="smollm2:base", messages=messages, max_tokens=1
        )
        assert (answer.merge["policy"], set(answer.merge["experts"])) == ("kill", {"sql", "math"})

        switch.get_by_role("button").click()
        dialog.get_by_role("button", name="Answer as usual").click()
        expect(managed.locator("#banner")).to_be_empty()
        assert read_kill(demo) is None
    finally:
        with admin(demo) as http:
            http.delete("/admin/kill").raise_for_status()
        time.sleep(1)


def read_kill(demo: Demo) -> str | None:
    """Return who answers everybody, None while the kill switch is off."""
    with admin(demo) as http:
        kill = http.get("/admin/kill").raise_for_status().json()["kill"]
    return kill and str(kill["to"])


def test_traffic_is_drawn_by_expert_as_it_comes(page: Page, client: openai.OpenAI) -> None:
    open_view(page, "traffic")
    experts = page.get_by_role("figure").first
    messages: Any = [{"role": "user", "content": PROMPT}]
    expect(page.get_by_text("as of")).to_be_visible()
    for _ in range(3):
        client.chat.completions.create(model="smollm2:sql", messages=messages, max_tokens=1)
    expect(page.locator(".tiles dd").first).not_to_have_text("–", timeout=30_000)
    expect(experts.locator("canvas")).to_be_visible()
    experts.get_by_text("As a table").click()
    expect(experts.get_by_role("columnheader", name="sql")).to_be_visible()
    column = [cell.inner_text() for cell in experts.get_by_role("columnheader").all()].index("sql")
    answered = (
        "at => [...document.querySelectorAll('figure tbody tr')]"
        ".some(row => Number(row.cells[at].textContent) > 0)"
    )
    for _ in range(150):
        if page.evaluate(answered, column):
            return
        page.wait_for_timeout(200)
    raise AssertionError("no row of the table has traffic of sql")


def test_without_a_key_nothing_is_asked_that_wants_one(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for view in ("library", "experiments"):
        open_view(page, view)
        expect(page.get_by_role("heading", name="This wants the management key")).to_be_visible()
    open_view(page, "try")
    expect(page.get_by_role("button", name="Explain all policies")).to_be_disabled()
    assert not [url for url in asked if "/admin/" in url]


def test_the_key_is_held_in_memory_alone(managed: Page) -> None:
    for view in VIEWS:
        open_view(managed, view)
        assert ADMIN_KEY not in managed.url
    kept = managed.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
    assert kept == '[{},{},""]'
    assert managed.context.cookies() == []
    assert ADMIN_KEY not in managed.content()
    fields = managed.evaluate("[...document.querySelectorAll('input')].map(i => i.value).join()")
    assert ADMIN_KEY not in fields
    managed.reload()
    expect(managed.locator("#keys-button")).to_have_text("Keys: none")


def test_a_wrong_key_is_refused_and_not_held(browser: Browser, demo: Demo) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{demo.url}/console")
    give_key(page, "wrong")
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("its own key")
    expect(page.locator("#keys-button")).to_have_text("Keys: none")
    context.close()


def test_hostile_names_and_answers_do_not_become_markup(managed: Page, experiment: str) -> None:
    """What the server says passes by, with a name of it replaced by markup."""

    def replace(route: Route) -> None:
        answer = route.fetch()
        text = re.sub(r'"(sql|gate|balanced|SELECT[^"]*)"', json.dumps(HOSTILE), answer.text())
        route.fulfill(response=answer, body=re.sub(r'expert="\w+"', f'expert="{HOSTILE}"', text))

    for asked in ("**/v1/**", "**/admin/**", "**/metrics"):
        managed.route(asked, replace)
    managed.reload()
    give_key(managed, ADMIN_KEY)
    managed.get_by_label("Stream").uncheck()
    managed.get_by_role("button", name="Ask both").click()
    expect(managed.locator(".answer").first).to_have_text(HOSTILE)
    for view in ("library", "experiments", "traffic"):
        open_view(managed, view)
        expect(managed.locator("main").get_by_text(HOSTILE).first).to_be_attached()
    assert managed.evaluate("window.hit") is None
    assert managed.locator("img[onerror]").count() == 0
    managed.unroute_all(behavior="wait")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_everybody_can_use_it(managed: Page, scheme: Any, experiment: str) -> None:
    """axe finds nothing in any view, nor in the dialogs, wide and narrow."""
    managed.emulate_media(color_scheme=scheme)
    managed.get_by_role("button", name="Ask both").click()
    expect(managed.get_by_role("status")).to_have_text("Both have answered.")
    check(managed)
    managed.locator("#keys-button").click()
    check(managed)
    managed.keyboard.press("Escape")
    for view, words in (
        ("library", "Kinship"),
        ("experiments", "Guardrails"),
        ("traffic", "Slots in use"),
    ):
        open_view(managed, view)
        expect(managed.get_by_text(words).first).to_be_visible()
        check(managed)
    open_view(managed, "experiments")
    managed.set_viewport_size({"width": 390, "height": 800})
    managed.get_by_role("button", name="Answer everybody with it …").click()
    check(managed)
    wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not managed.evaluate(wider), "it fits a small screen"


def check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_what_a_pointer_does(managed: Page) -> None:
    managed.reload()
    managed.keyboard.press("Tab")
    expect(managed.get_by_text("Skip to the content")).to_be_focused()
    managed.keyboard.press("Enter")
    expect(managed.locator("main")).to_be_focused()
    managed.get_by_label("What a user says").focus()
    managed.keyboard.press("Control+Enter")
    expect(managed.get_by_role("status")).to_have_text("Both have answered.")
