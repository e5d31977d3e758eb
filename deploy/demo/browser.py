"""A real browser without a window: Chromium from Debian's packages, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PROGRAM = "chromium-headless-shell"
TOOLS = Path(__file__).resolve().parent.parent.parent / ".venv/tools"
"""Where deploy/setup/test_tools.sh unpacks it."""


class BrowserError(RuntimeError):
    """There is no browser here."""


def find_browser() -> Path:
    """Return where the browser is.

    Raises:
        BrowserError: It is not here.
    """
    fetched = TOOLS / "usr/lib/chromium" / PROGRAM
    found = fetched if fetched.exists() else shutil.which(PROGRAM) or shutil.which("chromium")
    if found is None:
        raise BrowserError(f"{PROGRAM} is not here: bash deploy/setup/test_tools.sh fetches it")
    return Path(found)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run a browser, and end it with the block.

    Raises:
        BrowserError: It is not here.
    """
    program = find_browser()
    # What was unpacked and not installed has libraries of its own, which the loader does not know.
    folders = sorted({str(file.parent) for file in TOOLS.rglob("*.so*")})
    environment: dict[str, str | float | bool] = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(folders),
    }
    # Chromium's sandbox refuses to run as root; the only pages it is shown are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=arguments, env=environment
        )
        try:
            yield browser
        finally:
            browser.close()
