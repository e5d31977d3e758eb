"""The command `tta`."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from tta_serve.cli.config import app as config_app
from tta_serve.cli.doctor import command as doctor
from tta_serve.cli.evaluate import command as evaluate
from tta_serve.cli.experiment import app as experiment
from tta_serve.cli.experts import app as experts
from tta_serve.cli.keys import app as keys
from tta_serve.cli.options import console, format_examples
from tta_serve.cli.router import app as router
from tta_serve.cli.search import command as search

if TYPE_CHECKING:
    from tta_serve.config.sections import ServeConfig, ServerConfig
    from tta_serve.serving.launch import RunningApp

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
app.add_typer(experts, name="experts")
app.add_typer(router, name="router")
app.add_typer(experiment, name="experiment")
app.add_typer(keys, name="keys")
app.add_typer(config_app, name="config")
app.command(
    "eval",
    epilog=format_examples(
        "tta eval --config serve.yaml --suite questions.jsonl --quick",
        "tta eval --config serve.yaml --suite questions.jsonl --arms policy",
        "tta eval --config serve.yaml --tasks ./tasks --limit 100",
    ),
)(evaluate)

app.command(
    "search",
    epilog=format_examples(
        "tta search asked.jsonl --config serve.yaml --requests 2000 --name found",
        "tta search asked.jsonl --url http://127.0.0.1:8000 --by third --minutes 20",
        "tta search asked.jsonl --config serve.yaml --algorithm frank_wolfe",
    ),
)(search)
app.command(
    "doctor", epilog=format_examples("tta doctor", "tta doctor ./library", "tta doctor --json")
)(doctor)


def _print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"tta-serve {version('tta-serve')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Serve one base model and its experts, merged per request."""


@app.command(
    epilog=format_examples(
        "tta serve --config deploy/demo/serve.yaml",
        "tta serve --model ./base --experts ./experts --port 9000",
    )
)
def serve(  # noqa: PLR0913 - one option each
    config: Annotated[
        Path | None, typer.Option(help="A config file; the options below go on top of it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base: a folder or a Hugging Face id.")
    ] = None,
    experts: Annotated[
        Path | None, typer.Option(help="A folder of PEFT adapters, examples.txt in each if any.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="The default policy.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Where to listen.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on.", show_default="8000")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen to other machines without asking for keys.")
    ] = False,
) -> None:
    """Start the server and stay in the foreground until interrupted.

    The signal USR1 reads the config anew and restarts the replicas, one after the other.
    """
    from tta_serve.config.loading import load

    if config is None and (model is None or experts is None):
        raise typer.BadParameter("give --config FILE, or --model ID_OR_PATH with --experts DIR")
    overrides: dict[str, Any] = {
        "model.source": model,
        "library.path": None if experts is None else os.path.realpath(experts),
        "default_policy": policy,
        "server.host": host,
        "server.port": port,
        "access.insecure": insecure or None,
    }
    if config is None:
        overrides |= _defaults(str(model), experts)
    _serve(partial(load, config, overrides))


def _defaults(model: str, experts: Path | None) -> dict[str, Any]:
    """Return what holds without a config.

    That is the base's own name, and routing by examples where every expert has some.
    """
    from adapters.library.library import Library

    library = Library.open(experts or Path())
    sound, _ = library.read_experts()
    routable = all(library.examples(name) for name in library.classes if name in sound)
    defaults: dict[str, Any] = {"model.id": Path(model).name.lower()}
    if routable:
        defaults["policies.retrieval.type"] = "retrieval"
    else:
        console.print(
            "Not every expert has an examples.txt: without a merge field the base answers."
        )
        defaults["default_policy"] = "base"
    return defaults


def _serve(read_config: Callable[[], ServeConfig]) -> None:
    """Serve until interrupted; standard output is for the lines of the log alone."""
    config = read_config()
    people = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGUSR1, _overhear)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    title = f"Starting {config.model.id}: engine, experts, policies (about a minute) ..."
    start = time.perf_counter()
    with ExitStack() as running:
        with people.status(title):
            from tta_serve.serving.launch import RunningApp

            served = running.enter_context(RunningApp(config, log=True))

        seconds = time.perf_counter() - start
        people.print(
            f"Ready after {seconds:.0f} s: {served.url}/v1   metrics: {served.url}/metrics"
        )
        if config.server.console:
            people.print(f"Console: {_find_management(config.server)}/console")
        people.print(f"Try it:\n{_example(served.url, config.model.id)}\nStop with Ctrl-C.")
        try:
            while True:
                _wait_for_restart(served)
                _restart(served, read_config, people)
        except KeyboardInterrupt:
            people.print("Stopping ...")


def _find_management(server: ServerConfig) -> str:
    """Return the address at which the server is managed."""
    if server.admin_port is None:
        return f"http://{server.host}:{server.port}"
    return f"http://{server.admin_host}:{server.admin_port}"


def _wait_for_restart(served: RunningApp) -> None:
    """Return when the signal USR1 comes; none is heard at other times. Raises RayEndedError."""
    signal.signal(signal.SIGUSR1, _ask_restart)
    try:
        served.wait()
    except _RestartAsked:
        pass
    finally:
        signal.signal(signal.SIGUSR1, _overhear)


def _restart(served: RunningApp, read_config: Callable[[], ServeConfig], people: Console) -> None:
    """Restart the replicas; what is wrong with the config is said, and the server goes on."""
    from adapters.errors import AdapterError
    from tta_serve.exceptions import ConfigError, StartError

    people.print("Restarting the replicas, one after the other ...")
    try:
        served.restart(read_config())
    except (AdapterError, ConfigError, StartError) as error:
        people.print(f"error: not restarted: {error}")
    else:
        people.print("Restarted.")


class _RestartAsked(Exception):
    pass


def _overhear(signum: int, frame: object) -> None:
    """Nothing; where a signal is ignored, the processes that Ray starts ignore it too."""


def _ask_restart(signum: int, frame: object) -> None:
    raise _RestartAsked


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _example(url: str, model: str) -> str:
    question = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
    return (
        f"  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '"
        f'{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content":'
        f' "{question}"}}]}}\''
    )


def main() -> None:
    """Run `tta`: the user's mistakes end in one message, anything else in a traceback.

    What the system refuses of a file that a user named is one of the former.
    """
    from adapters.errors import AdapterError
    from adapters.files.paths import explain_refusal
    from router.errors import RouterError
    from tta_serve.exceptions import (
        ConfigError,
        PromptFileError,
        RayEndedError,
        RequestError,
        StartError,
    )
    from tta_serve.experiments.errors import ExperimentError
    from tta_serve.search.errors import SearchError
    from tta_serve.store.errors import StoreError

    _write_any_text()
    try:
        app()
    except OSError as error:
        # What has no path is no file of the user's, but for a disk that is full.
        if not error.filename and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(2, explain_refusal(error, "the disk"))
    except (
        AdapterError,
        ConfigError,
        ExperimentError,
        PromptFileError,
        RequestError,
        RouterError,
        SearchError,
        StoreError,
    ) as error:
        _fail(2, str(error))
    except StartError as error:
        _fail(1, f"the server did not start:\n{error}")
    except RayEndedError as error:
        _fail(1, str(error))


def _write_any_text() -> None:
    """Write what the locale has no letters for as escapes, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(status: int, message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
