"""Pictures of the console for its README, of the demo while an experiment runs on it."""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Page

from deploy.demo.browser import find_browser, open_browser
from deploy.demo.experiment import draw_users, make_config, run
from tta_serve.evaluation.local_server import find_free_port
from tta_serve.serving.launch import managed

FOLDER = Path(__file__).resolve().parent.parent.parent / "tta_serve/serving/console/pictures"
WIDTH, MOST_HEIGHT = 1160, 1240
COLOURS = 96
"""Of a picture's palette: a page has few, and a picture so takes about 40 kB."""
_SETTLE_MS = 1500
_LIMIT_MS = 90_000


def take_pictures(folder: Path, users: int, tell: Callable[[], None]) -> None:
    """Serve the demo, let simulated users ask it, and picture every view.

    Args:
        folder: Where the pictures go.
        users: How many users ask.
        tell: Called for each of them.

    Raises:
        BrowserError: There is no browser here.
    """
    find_browser()  # before a server is started for it
    with tempfile.TemporaryDirectory(prefix="tta-pictures-") as place:
        config = make_config(f"sqlite:///{place}/demo.db", find_free_port())
        # The browser's client keeps an event loop in this thread, which Ray must not find there.
        with managed(config) as (url, key), open_browser() as browser:
            page = browser.new_page(viewport={"width": WIDTH, "height": MOST_HEIGHT})
            page.set_default_timeout(_LIMIT_MS)
            _picture_views(
                page, url, key, folder, lambda: _let_users_ask(page, url, key, users, tell)
            )


def _picture_views(page: Page, url: str, key: str, folder: Path, ask: Callable[[], None]) -> None:
    """Picture the traffic while users ask, then all else."""
    folder.mkdir(parents=True, exist_ok=True)
    page.goto(f"{url}/console")
    _give_key(page, key)
    _open(page, "traffic")
    ask()
    _picture(page, folder / "traffic", "dark")
    for name, prepare, schemes in (
        ("try", _ask_both, ("light", "dark")),
        ("library", _wait_for_kinship, ("light",)),
        ("experiments", _wait_for_report, ("light", "dark")),
    ):
        _open(page, name)
        prepare(page)
        _picture(page, folder / name, *schemes)


def _give_key(page: Page, key: str) -> None:
    page.locator("#keys-button").click()
    page.get_by_label("Management key").fill(key)
    page.get_by_role("button", name="Use", exact=True).click()
    page.get_by_text("Keys: management").wait_for()


def _open(page: Page, view: str) -> None:
    page.locator(f"nav a[href='#{view}']").click()


def _let_users_ask(page: Page, url: str, key: str, users: int, tell: Callable[[], None]) -> None:
    """Run the demo's experiment beside the page, which meanwhile reads what happens."""
    crowd = draw_users(users, seed=1)
    asking = threading.Thread(target=lambda: asyncio.run(run(url, key, crowd, tell)))
    asking.start()
    while asking.is_alive():
        page.wait_for_timeout(_SETTLE_MS)


def _ask_both(page: Page) -> None:
    page.get_by_role("button", name="Ask both").click()
    page.get_by_text("Both have answered.").wait_for()
    page.get_by_role("button", name="Explain all policies").click()
    page.get_by_text("All policies have decided.").wait_for()


def _wait_for_kinship(page: Page) -> None:
    page.get_by_role("heading", name="Kinship").wait_for()


def _wait_for_report(page: Page) -> None:
    page.get_by_label("Experiment").select_option("routing")
    page.get_by_role("heading", name="Guardrails").wait_for()


def _picture(page: Page, stem: Path, *schemes: Literal["light", "dark"]) -> None:
    """Write a picture of the page as it is in each scheme, cut where it is too long."""
    page.get_by_role("heading", level=1).click()  # no control has the focus
    height = page.evaluate("document.documentElement.scrollHeight")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(_SETTLE_MS)
        page.evaluate("scrollTo(0, 0)")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(height, MOST_HEIGHT)}
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip)))  # type: ignore[arg-type]
        few = shot.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
        few.save(stem.with_name(f"{stem.name}-{scheme}.png"), optimize=True)
    page.emulate_media(color_scheme="light")
