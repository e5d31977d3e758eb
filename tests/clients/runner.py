"""Run clients' jobs against a server, one after another, and say in one table how they went."""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.base import ensure_base
from tests.clients.catalog import CLIENTS, HERE, KNOWN, Client
from tests.clients.environments import ROOT, EnvironmentFailed, job_command, place, version

JOB_LIMIT_S = 420
README = HERE / "README.md"
# What would lead a client away from the server that it is given.
STRAY = ("OPENAI_", "ANTHROPIC_", "PYTHONPATH", "PYTHONHOME", "NODE_OPTIONS")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@dataclass
class Outcome:
    """How one client's job went: failures by step; `known` are the client's own."""

    client: Client
    passed: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    log: Path | None = None

    def words(self) -> str:
        """The result in one cell of a table."""
        if self.failures:
            step, why = next(iter(self.failures.items()))
            return f"failed: {step}: {why}"
        more = "".join(f"; {step} fails: {why}" for step, why in self.known.items())
        return f"passed ({len(self.passed)} steps){more}"


def run_client(client: Client, url: str) -> Outcome:
    """Make the client's environment if it is missing, and do its job."""
    begun = time.monotonic()
    try:
        command = [*job_command(client), url]
    except EnvironmentFailed as error:
        return Outcome(client, failures={"environment": first_line(str(error))})
    place(client).mkdir(parents=True, exist_ok=True)
    log = place(client) / "last.log"
    code = run_job(command, log)
    outcome = read_outcome(client, code, log.read_text(errors="replace", encoding="utf-8"))
    outcome.seconds, outcome.log = time.monotonic() - begun, log
    return outcome


def run_job(command: list[str], log: Path) -> int | None:
    """The job's exit status, or none if it ran out of time; what it said is in the log."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(STRAY)}
    environment = kept | OFFLINE | {"TTA_BASE": str(ensure_base())}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(JOB_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_session(process.pid)
            process.wait()


def end_session(leader: int) -> None:
    """End what the job started and did not end, however the job itself ended."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def read_outcome(client: Client, code: int | None, said: str) -> Outcome:
    """What the job said of its steps, with the known failures apart."""
    outcome = Outcome(client, passed=re.findall(r"^passed: (\w+)$", said, re.M))
    for step, why in re.findall(r"^failed: (\w+): (.*)$", said, re.M):
        reason = KNOWN.get((client.name, step))
        if reason is None:
            outcome.failures[step] = why
        else:
            outcome.known[step] = reason
    wanted = 1 if outcome.failures or outcome.known else 0
    if code is None:
        outcome.failures["limit"] = f"not done after {JOB_LIMIT_S} s"
    elif code != wanted or not (outcome.passed or outcome.failures):
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        outcome.failures["end"] = f"it ended with {code}: {last}"
    return outcome


def first_line(text: str) -> str:
    """The first line of a message."""
    return (text.strip().splitlines() or [""])[0]


def cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    short = text if len(text) <= 300 else f"{text[:297]}..."
    return short.replace("|", "\\|")


def row(outcome: Outcome) -> str:
    """One outcome as a row of a Markdown table."""
    client = outcome.client
    cells = (client.title, version(client), client.does, outcome.words())
    return f"| {' | '.join(cell(text) for text in cells)} |"


def table(outcomes: list[Outcome], before: str = "") -> str:
    """All outcomes as a Markdown table, with the rows from before of clients not tried now."""
    now = {outcome.client.title: row(outcome) for outcome in outcomes}
    rows = ["| client | version | what it did | result |", "| --- | --- | --- | --- |"]
    for client in CLIENTS.values():
        old = re.search(rf"^\| {re.escape(client.title)} \| .*$", before, re.M)
        rows += [now.get(client.title) or (old.group() if old else "")]
    return "\n".join(filter(None, rows))


def readme(outcomes: list[Outcome]) -> str:
    """The folder's README: what this is, how it is run, and how it went the last time."""
    before = README.read_text(encoding="utf-8") if README.exists() else ""
    return f"""# Clients as acceptance tests

Each folder here has the pins of one client's own environment and a job: what people do with that
client, done against a running demo. Environments are made in the cache folder, never in the
project's own; nothing but packages is fetched.

    python -m tests.clients                                  # all of them, on a demo started for it
    python -m tests.clients --url http://127.0.0.1:8000      # on a demo that runs
    python -m tests.clients litellm dspy                     # some of them
    python -m tests.clients --write                          # and write their rows to this file

A failure whose cause is the client itself is in `KNOWN` of [catalog.py](catalog.py), with the
reason. Five of the jobs are tests (`tests/e2e/test_clients.py`). The last run of each:

{table(outcomes, before)}
"""


def report(outcome: Outcome) -> None:
    """One line while it runs, and every failure in full."""
    print(f"{outcome.client.name} ({outcome.seconds:.0f} s): {outcome.words()}", file=sys.stderr)
    for step, why in list(outcome.failures.items())[1:]:
        print(f"  {step}: {why}", file=sys.stderr)
    if outcome.failures and outcome.log:
        print(f"  all it said: {outcome.log}", file=sys.stderr)


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """The address given, or that of a demo started for this and stopped after it."""
    if url:
        yield url
        return
    from tests.e2e.conftest import serving
    from tta_serve.evaluation.local_server import find_free_port

    config, experts = ROOT / "deploy/demo/serve.yaml", ROOT / "deploy/demo/experts"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        options = ("--model", str(ensure_base()))
        with serving(config, find_free_port(), log, experts, *options) as demo:
            yield demo.url


def main() -> None:
    """The command: exit status 1 if any client failed for a reason that is not known."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--url", help="a running server; without it, the demo is started")
    parser.add_argument("--write", action="store_true", help=f"write the table to {README.name}")
    given = parser.parse_args()
    unknown = set(given.names) - set(CLIENTS)
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}; of {', '.join(CLIENTS)}")
    outcomes = []
    with served(given.url) as url:
        for name in given.names or list(CLIENTS):
            outcomes.append(run_client(CLIENTS[name], url))
            report(outcomes[-1])
    print(table(outcomes))
    if given.write:
        README.write_text(readme(outcomes), encoding="utf-8")
    sys.exit(any(outcome.failures for outcome in outcomes))
