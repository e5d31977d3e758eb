"""`python -m loadtest faults`: what fails, for how long, and what is lost, when something breaks.

A server with an experiment is asked without pause while its parts are killed and its surroundings
fail, one after the other. Who starts a process again that has ended is a service manager, here
`KeptServer`; nobody else helps. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from loadtest.commands.fault_kinds import CLOCK, FAULTS, FaultKind, NotPossible, Scene
from loadtest.common.console import progress
from loadtest.common.experiment_start import start_experiment
from loadtest.common.seeded_run import run_seeded
from loadtest.sides.checked_load import CheckedLoad, LoadOutcome
from loadtest.sides.kept_server import KeptDatabase, KeptServer, WrongClock, wait_whole

CLIENTS = 4
QUESTIONS = 12
START_S = 600.0
RECOVER_S = 480.0
CALM_S = 8.0
"""How long nothing may fail before the server counts as recovered."""
PROMISED_S = 1.5
"""Exposures of how many seconds before its end a replica may lose: those that wait, one second,
and a write."""
_EXPERIMENT = {
    "arms": [{"name": "gate", "policy": "gate"}, {"name": "retrieval", "policy": "retrieval"}],
    "control": "gate",
    "metrics": {"primary": {"name": "score", "kind": "share"}},
}


@dataclass(frozen=True)
class FaultResult:
    """What a fault did."""

    struck: float
    """When, by the monotonic clock."""
    over: float
    """When it was undone, as far as it is not the server's to recover."""
    recovered_s: float | None
    """Seconds from the strike until nothing failed any more and all replicas answered."""
    failed: int
    """Requests that failed."""
    answered: int
    """Requests that were answered."""
    kinds: str
    """How requests failed."""


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="One replica, and one kill of its engine.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="A fault; give it once for each.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=2, show_default="2; 1 if quick")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is asked.")] = 0,
) -> None:
    """Break a server's parts and surroundings under load, and see what comes of it."""
    known = [fault.name for fault in FAULTS]
    if unknown := set(only or ()) - set(known):
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = [f for f in FAULTS if (f.name in only if only else f.quick or not quick)]
    count = replicas or (1 if quick else 2)

    def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
        return _break_all(folder, chosen, count, seed)

    run_seeded(measure, quick=quick, seed=seed)


def _break_all(folder: Path, faults: list[FaultKind], replicas: int, seed: int) -> dict[str, Any]:
    from deploy.demo.base import ensure_base

    with ExitStack() as stack:
        database = KeptDatabase()
        stack.callback(database.close)
        compiler = shutil.which("cc")
        jumps = any(fault.name == CLOCK for fault in faults)
        clock = WrongClock(compiler, folder) if compiler and jumps else None
        server = KeptServer(ensure_base(), folder, database.url, replicas, clock)
        stack.callback(server.close)
        with progress.status(f"start {replicas} replica(s) ..."):
            words = "the server does not start"
            assert wait_whole(server, START_S), server.log.read_text(encoding="utf-8") or words
        load = _prepare(server, seed)
        scene = Scene(server, database, load)
        results: dict[str, FaultResult] = {}
        skipped: dict[str, str] = {}
        with load.running():
            time.sleep(CALM_S)
            for fault in faults:
                try:
                    with progress.status(f"{fault.name} ..."):
                        results[fault.name] = _break(scene, fault)
                    progress.log(fault.name, results[fault.name])
                except NotPossible as reason:
                    skipped[fault.name] = str(reason)
        server.close()  # what waits is written
        ended = {fault.name: fault.ends_replica for fault in faults}
        kills = [(r.struck, r.over) for name, r in results.items() if ended[name]]
        lost = _count_lost(database.url, load.outcomes, kills)
    _show(results, skipped)
    return {
        "replicas": replicas,
        "requests": len(load.outcomes),
        "faults": len(results),
        "skipped": skipped,
        "wrong_answers": sum(one.wrong for one in load.outcomes),
        "exposures": sum(bool(one.ticket) for one in load.outcomes),
        "exposures_lost": lost[0],
        "exposures_lost_beyond_promise": lost[1],
        "recovered_s": {name: r.recovered_s for name, r in results.items()},
        "failed_requests": {name: r.failed for name, r in results.items()},
        "server_starts": server.starts,
    }


def _prepare(server: KeptServer, seed: int) -> CheckedLoad:
    """Start an experiment, and learn what answers are right."""
    with server.make_admin() as admin:
        start_experiment(admin, "faults", _EXPERIMENT)
    experts = sorted(path.name for path in server.experts.iterdir() if path.is_dir())
    names = [name for name in experts if (server.experts / name / "examples.txt").exists()]
    prompts = [
        (server.experts / name / "examples.txt").read_text(encoding="utf-8").splitlines()[0]
        for name in names
    ]
    load = CheckedLoad(server.url, CLIENTS, seed)
    with progress.status("learn the right answers ..."):
        load.learn(prompts, names, QUESTIONS)
    return load


def _break(scene: Scene, fault: FaultKind) -> FaultResult:
    """Do a fault, and wait until the server has recovered from it."""
    struck = time.monotonic()
    fault.strike(scene)
    over = time.monotonic()
    if fault.ends_replica:
        time.sleep(2)  # until it has noticed
    whole = None
    while time.monotonic() < over + RECOVER_S:
        last = scene.load.find_last_failure(struck)
        calm = time.monotonic() - max(last or struck, over) > CALM_S
        if whole is None and scene.server.is_whole():
            whole = time.monotonic()
        if whole is not None and calm:
            break
        time.sleep(0.5)
    last = scene.load.find_last_failure(struck) or struck
    recovered = None if whole is None or not calm else max(last, whole, over) - struck
    with_failure = [o.failure for o in scene.load.outcomes if o.ended >= struck and o.failure]
    return FaultResult(
        struck,
        over,
        recovered,
        len(with_failure),
        scene.load.count_since(struck, lambda one: not one.failure),
        ", ".join(sorted(set(with_failure))),
    )


def _count_lost(
    url: str, outcomes: list[LoadOutcome], kills: list[tuple[float, float]]
) -> tuple[int, int]:
    """Return how many exposures are not in the store, and how many of them should be."""
    from tta_serve.store.database import Database
    from tta_serve.store.schema import exposures

    database = Database(url)
    with database.read() as connection:
        kept = set(connection.execute(select(exposures.c.request_id)).scalars())
    database.close()
    lost = [o for o in outcomes if o.ticket and o.ticket.split(".")[0] not in kept]

    def excused(outcome: LoadOutcome) -> bool:
        return any(
            struck - PROMISED_S <= outcome.ended <= over + PROMISED_S for struck, over in kills
        )

    for outcome in (one for one in lost if not excused(one)):
        progress.log("lost:", outcome, "kills:", kills)
    return len(lost), sum(not excused(one) for one in lost)


def _show(results: dict[str, FaultResult], skipped: dict[str, str]) -> None:
    table = Table("fault", "recovered after s", "failed", "answered meanwhile", "how they failed")
    for name, r in results.items():
        recovered = "not" if r.recovered_s is None else f"{r.recovered_s:.1f}"
        table.add_row(name, recovered, str(r.failed), str(r.answered), r.kinds)
    for name, why in skipped.items():
        table.add_row(name, "skipped", "", "", why)
    Console().print(table)
