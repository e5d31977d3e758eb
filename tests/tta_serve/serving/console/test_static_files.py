"""The console's files over HTTP, and what may not stand in them."""

import re
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.tta_serve.serving.conftest import complete
from tta_serve.serving.console.static_files import FOLDER

OWN = [file for file in FOLDER.iterdir() if file.is_file()]
ADDRESS = re.compile(r"""(?:src|href)="([^"#]+)"|from "([^"]+)\"""")


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


def test_the_page_and_all_that_it_names_is_there(client: TestClient) -> None:
    page = client.get("/console")
    assert page.status_code == 200
    named = {
        name for file in OWN for pair in ADDRESS.findall(file.read_text("utf-8")) for name in pair
    }
    assert len(named - {""}) > 15
    for name in named - {""}:
        assert name.startswith("/console/"), "nothing is fetched from elsewhere"
        assert client.get(name).status_code == 200, name


def test_scripts_are_scripts_and_nothing_else_may_run(client: TestClient) -> None:
    for path, kind in (
        ("/console", "text/html"),
        ("/console/app.js", "text/javascript"),
        ("/console/style.css", "text/css"),
        ("/console/icon.svg", "image/svg+xml"),
    ):
        headers = client.get(path).headers
        assert headers["content-type"].startswith(kind)
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["trusted-types"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"


def test_a_browser_that_has_a_file_is_not_sent_it_again(client: TestClient) -> None:
    tag = client.get("/console/app.js").headers["etag"]
    assert client.get("/console/app.js", headers={"if-none-match": tag}).status_code == 304


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "..%2fstatic_files.py", "%2e%2e/__init__.py", "vendor", "%2fetc%2fpasswd"],
)
def test_no_other_file_is_there(client: TestClient, name: str) -> None:
    assert client.get(f"/console/{name}").status_code == 404


def test_it_can_be_switched_off(build: Callable[[], FastAPI]) -> None:
    app = complete(build(), console=False)
    assert TestClient(app).get("/console").status_code == 404


@pytest.mark.parametrize(
    "forbidden",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "Storage", "cookie", "style="],
)
def test_nothing_that_a_server_says_becomes_markup_or_stays(forbidden: str) -> None:
    assert not [file.name for file in OWN if forbidden in file.read_text("utf-8")]
