"""What can go wrong with a server, each done to a real one."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters.files.facts import WEIGHTS_FILE
from loadtest.sides.checked_load import CheckedLoad
from loadtest.sides.kept_server import KeptDatabase, KeptServer

CLOCK = "clock jumps"
_OUTAGE_S = 10.0
_RESTART_S = 1200.0
_STORM = 400
_AT_ONCE = 16


class NotPossible(Exception):
    """A fault cannot be done on this machine, or to this server; the message says why."""


@dataclass(frozen=True)
class Scene:
    """What faults are done to."""

    server: KeptServer
    database: KeptDatabase
    load: CheckedLoad


@dataclass(frozen=True)
class FaultKind:
    """One of them."""

    name: str
    strike: Callable[[Scene], None]
    """Does it, and undoes what an operator would."""
    ends_replica: bool = False
    """Whether a replica ends by it, with the exposures of its last second."""
    quick: bool = False
    """Whether the short form has it, too."""


def _kill(name: str) -> Callable[[Scene], None]:
    """Return what kills one of the server's processes, by a part of its command line."""

    def strike(scene: Scene) -> None:
        found = scene.server.find(name)
        if not found:
            raise NotPossible(f"there is no process {name}")
        found[-1].kill()

    return strike


def _end_database(scene: Scene) -> None:
    scene.database.kill()
    time.sleep(_OUTAGE_S)
    scene.database.start()


def _fill_disk(scene: Scene) -> None:
    if not scene.database.has_own_disk:
        raise NotPossible("this machine lets us mount no disk for the database")
    file = scene.database.fill()
    time.sleep(_OUTAGE_S)
    file.unlink()
    scene.database.start()


def _corrupt_expert(scene: Scene) -> None:
    """Change weights on disk; whoever loads them is refused, and what is served stays."""
    weights: Path = scene.server.experts / "sql" / WEIGHTS_FILE
    sound = weights.read_bytes()
    with scene.server.make_admin() as admin:
        [first, *_] = admin.get("/admin/experts").json()["replicas"]
        place, digest = "/admin/experts/sql", {"replaces": first["experts"]["sql"]}
        try:
            for damaged in (sound[: len(sound) // 2], b"\xff" * 64 + sound[64:]):
                weights.write_bytes(damaged)
                refused = admin.put(place, params=digest)
                assert refused.status_code == 400, refused.text
        finally:
            weights.write_bytes(sound)
        assert admin.put(place, params=digest).status_code == 200


def _freeze_policy(scene: Scene) -> None:
    """Let a policy of the experiment be late with every decision, and then in time again."""
    with scene.server.make_admin() as admin:
        policies = admin.get("/admin/config").json()["policies"]
        frozen = policies | {"gate": policies["gate"] | {"deadline_s": 1e-6}}
        admin.put("/admin/config", json={"policies": frozen}).raise_for_status()
        time.sleep(_OUTAGE_S)
        admin.post("/admin/config/rollback").raise_for_status()


def _storm_of_feedback(scene: Scene) -> None:
    tickets = [one.ticket for one in scene.load.outcomes if one.ticket][-_STORM // 2 :]
    forged = [f"{number:032x}.0.0" for number in range(_STORM - len(tickets))]

    with httpx.Client(base_url=scene.server.url, timeout=60) as client:

        def send(ticket: str) -> None:
            client.post("/v1/feedback", json={"request_id": ticket, "metric": "score", "value": 1})

        _do_at_once(send, [*tickets, *forged])


def _storm_of_cancels(scene: Scene) -> None:
    body = {"model": "auto", "prompt": "Once upon a time", "max_tokens": 400, "stream": True}

    with httpx.Client(base_url=scene.server.url, timeout=60) as client:

        def leave(number: int) -> None:
            with client.stream("POST", "/v1/completions", json=body) as answer:
                if number % 2:
                    next(answer.iter_bytes(), None)

        _do_at_once(leave, list(range(_STORM // 4)))


def _storm_of_connections(scene: Scene) -> None:
    host, _, port = scene.server.url.removeprefix("http://").partition(":")

    def connect(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=30) as line:
            if number % 2:
                line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")

    _do_at_once(connect, list(range(_STORM)))


def _do_at_once(do: Callable[[Any], object], over: list[Any]) -> None:
    """Do something for many, some at once; what fails of it is the storm's own."""

    def one(given: Any) -> None:
        with suppress(httpx.HTTPError, OSError):
            do(given)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(one, over))


def _jump_clock(scene: Scene) -> None:
    """Set the clock an hour ahead, an hour back, and right again."""
    if scene.server.clock is None:
        raise NotPossible("there is no C compiler, cc, to make a wrong clock with")
    for ahead in (3600, -3600, 0):
        scene.server.clock.set(ahead)
        time.sleep(_OUTAGE_S)


def _restart_replicas(scene: Scene) -> None:
    """Let all replicas be replaced by new ones, as an operator does after a change."""
    if scene.server.replicas < 2:
        raise NotPossible("a lone replica has nobody who answers while it is replaced")
    scene.server.restart_replicas(_RESTART_S)


FAULTS = (
    FaultKind("corrupt expert", _corrupt_expert, quick=True),
    FaultKind("frozen policy", _freeze_policy, quick=True),
    FaultKind("storm of feedback", _storm_of_feedback, quick=True),
    FaultKind("storm of cancels", _storm_of_cancels, quick=True),
    FaultKind("storm of connections", _storm_of_connections, quick=True),
    FaultKind("database", _end_database, quick=True),
    FaultKind("full disk", _fill_disk, quick=True),
    FaultKind(CLOCK, _jump_clock),
    FaultKind("rolling restart", _restart_replicas),
    FaultKind("worker", _kill("VLLM::Worker"), ends_replica=True, quick=True),
    FaultKind("engine core", _kill("VLLM::EngineCore"), ends_replica=True),
    FaultKind("replica", _kill("ray::ServeReplica"), ends_replica=True),
    FaultKind("controller", _kill("ray::ServeController")),
    FaultKind("ingress", _kill("haproxy")),
    FaultKind("head", _kill("gcs_server"), ends_replica=True),
)
