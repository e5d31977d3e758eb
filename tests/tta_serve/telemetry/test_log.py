"""The lines of the log: what they say of a request, what they do not, and that they are bounded."""

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse
from starlette.types import Message

from tests.factories.asgi import asked, call, spoken
from tests.tta_serve.serving.generation.test_merging import TEXT, Desk, body
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ServerConfig
from tta_serve.config.telemetry import LogConfig
from tta_serve.exceptions import ConfigError
from tta_serve.serving.access.key_ring import KeyRing
from tta_serve.serving.http.edge import Edge, EdgeRules
from tta_serve.telemetry.log_sender import LogSender
from tta_serve.telemetry.log_writer import LogWriter

ours = logging.getLogger("tta_serve.test")


@contextmanager
def logging_to(file: Path, **config: Any) -> Iterator[None]:
    """Let this process log into a file, as a replica does by the process that started it."""
    options = LogConfig(file=file, **config)
    with LogWriter(options) as writer:
        sender = LogSender(options, writer.address)
        try:
            yield
        finally:
            sender.close()


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_request_is_one_line_and_none_of_its_text(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file):
        asked(
            Desk().app,
            "POST",
            TEXT,
            spoken(body("my secret", merge={"experts": {"sql": 0.7}})),
            headers={"x-request-id": "mine"},
        )
    [line] = read(file)
    seconds = line.pop("seconds")
    assert 0 < line.pop("first_token_seconds") <= seconds
    assert 0 <= line.pop("router_seconds") < seconds
    assert line.pop("time").endswith("+00:00")
    assert len(line.pop("mix")) == 16
    assert line.pop("process") == os.getpid()
    assert line == {
        "level": "INFO",
        "event": "request",
        "logger": "tta_serve.requests",
        "request_id": "mine",
        "method": "POST",
        "path": TEXT,
        "status": 200,
        "outcome": "ok",
        "model": "demo",
        "policy": "explicit",
        "experts": {"sql": 0.7},
        "abstained": False,
        "kept": False,
        "prompt_tokens": 1,
        "cached_tokens": 0,
        "completion_tokens": 1,
        "finish_reason": "stop",
    }
    assert "secret" not in file.read_text(encoding="utf-8")


def test_an_operator_who_asks_for_prompts_gets_them_redacted_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "log"
    text = "write to me@example.org " + "x" * 9999
    with logging_to(file, prompts=True):
        desk = Desk(shows_prompts=True)
        desk.ask(body(text) | {"model": "sql"})
    [line] = read(file)
    assert line["prompt"].startswith("write to [EMAIL] xxx")
    assert len(line["prompt"]) <= 4096


@pytest.mark.parametrize(
    ("asks", "status", "error"),
    [
        (b"{", 400, "invalid_request"),
        (spoken(body("x") | {"model": "nope"}), 404, "model_not_found"),
        (spoken({"model": "demo"}), 400, "invalid_request"),  # by vLLM
        (spoken(body("x", n=101) | {"model": "sql"}), 400, "invalid_request"),
    ],
)
def test_what_is_refused_has_a_line_that_says_why(
    tmp_path: Path, asks: bytes, status: int, error: str
) -> None:
    file = tmp_path / "log"
    with logging_to(file):
        asked(Desk().app, "POST", TEXT, asks)
    *_, line = read(file)
    assert (line["status"], line["error"], line["level"]) == (status, error, "INFO")
    assert "first_token_seconds" not in line


def test_a_failure_of_ours_names_its_request_beside_its_traceback(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file):
        desk = Desk()
        desk.llm.error = RuntimeError("it broke")
        got = desk.ask(body("x") | {"model": "sql"})
    failed, line = read(file)
    assert failed["request_id"] == line["request_id"] == got.headers["x-request-id"]
    assert "RuntimeError: it broke" in failed["traceback"]
    assert (line["level"], line["error"], line["outcome"]) == ("ERROR", "internal_error", "error")


def test_health_checks_are_silent_unless_wanted(tmp_path: Path) -> None:
    rules = EdgeRules(ServerConfig(), KeyRing(AccessConfig(), None))
    edge = Edge(PlainTextResponse("fine"), rules)
    for level, count in (("info", 0), ("debug", 1)):
        file = tmp_path / level
        with logging_to(file, level=level):
            asked(edge, "GET", "/readyz")
        assert len(read(file)) == count


def test_a_storm_of_refusals_is_counted_in_place_of_written(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file, most_alike=3):
        desk = Desk()
        for _ in range(200):
            desk.ask(body("x") | {"model": "nope"})
        for _ in range(5):
            desk.ask(body("x") | {"model": "sql"})
        time.sleep(1.2)
    lines = read(file)
    refused = [one for one in lines if one.get("error")]
    told = [one for one in lines if one["event"] == "lines left out"]
    assert len(refused) < 30
    assert len(refused) + sum(one["left_out"] for one in told) == 200
    assert {one["of"] for one in told} == {"model_not_found"}
    assert sum(one.get("outcome") == "ok" for one in lines) == 5, "what goes well is all there"


def test_clients_who_leave_at_once_flood_nothing_either(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file, most_alike=3):
        desk = Desk()
        for _ in range(50):
            asyncio.run(call(desk.app, "POST", TEXT, receive=leaving))
        time.sleep(1.2)
    lines = read(file)
    told = sum(one.get("left_out", 0) for one in lines)
    assert told > 20
    assert told + sum(one.get("outcome") == "aborted" for one in lines) == 50


async def leaving() -> Message:
    return {"type": "http.disconnect"}


def test_a_text_line_is_one_line_whatever_a_client_sends(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file, format="text"):
        Desk().ask(body("x") | {"model": "a\nERROR forged"})
    [line] = file.read_text(encoding="utf-8").splitlines()
    assert " INFO request " in line
    assert 'model="a\\nERROR forged"' in line


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file):
        ours.error("x" * 10**6, extra={"of": "y" * 10**6})
    [line] = read(file)
    assert len(line["event"]) == len(line["of"]) == 8192


def test_a_file_is_put_aside_when_it_is_full(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file, file_mib=1, files_kept=2):
        for i in range(600):
            ours.info("x" * 8000, extra={"number": i})
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["log", "log.1", "log.2"]
    assert all(one.stat().st_size <= 1 << 20 for one in tmp_path.iterdir())


def test_a_writer_who_does_not_write_holds_nobody_up(tmp_path: Path) -> None:
    before = REGISTRY.get_sample_value("tta_log_lines_left_out_total", {"why": "full"}) or 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        address = str(tmp_path / "socket")
        deaf.bind(address)
        sender = LogSender(LogConfig(), address)
        start = time.monotonic()
        for i in range(6000):
            ours.info("x", extra={"number": i})
        assert time.monotonic() - start < 5
        lost = REGISTRY.get_sample_value("tta_log_lines_left_out_total", {"why": "full"}) or 0
        assert lost - before > 1000
        sender.close()
        assert time.monotonic() - start < 8


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.log\.file: .*No such file"):
        LogWriter(LogConfig(file=tmp_path / "no" / "log"))
