"""The command `tta`."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from tta_serve.config import ConfigError, ServeConfig, StartError, load
from tta_serve.evaluation.cli import command as evaluate
from tta_serve.experiments.cli import app as experiment
from tta_serve.experts_cli import app as experts
from tta_serve.router_cli import app as router

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(experts, name="experts")
app.add_typer(router, name="router")
app.add_typer(experiment, name="experiment")
app.command("eval")(evaluate)
console = Console(highlight=False, soft_wrap=True)


@app.callback()
def _root() -> None:
    """Serve one base model and its experts, merged per request."""


@app.command()
def serve(  # noqa: PLR0913 - one option each
    config: Annotated[Path | None, typer.Option(help="A config file; the options below go on top of it.")] = None,
    model: Annotated[str | None, typer.Option(help="The base: a folder or a Hugging Face id.")] = None,
    experts: Annotated[Path | None, typer.Option(help="A folder of PEFT adapters, examples.txt in each if any.")] = None,
    policy: Annotated[str | None, typer.Option(help="The default policy.")] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(show_default="8000")] = None,
) -> None:
    """Start the server and stay in the foreground until interrupted."""
    if config is None and (model is None or experts is None):
        raise typer.BadParameter("give --config FILE, or --model ID_OR_PATH with --experts DIR")
    overrides: dict[str, Any] = {
        "model.source": model,
        "library.path": None if experts is None else str(experts.resolve()),
        "default_policy": policy,
        "server.host": host,
        "server.port": port,
    }
    if config is None:
        overrides |= _defaults(str(model), experts)
    _serve(load(config, overrides))


def _defaults(model: str, experts: Path | None) -> dict[str, Any]:
    """Without a config: the base's own name, and routing by examples where every expert has some."""
    from adapters.library import Library

    library = Library.open(experts or Path())
    routable = all(library.examples(name) for name in library.names)
    defaults: dict[str, Any] = {"model.id": Path(model).name.lower()}
    if routable:
        defaults["policies.retrieval.type"] = "retrieval"
    else:
        console.print("Not every expert has an examples.txt: without a merge field the base answers.")
        defaults["default_policy"] = "base"
    return defaults


def _serve(config: ServeConfig) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    start = time.perf_counter()
    with ExitStack() as running:
        with console.status(f"Starting {config.model.id}: engine, experts, policies (about a minute) ..."):
            from tta_serve.serving.launch import RunningApp

            app = running.enter_context(RunningApp(config))
        console.print(f"Ready after {time.perf_counter() - start:.0f} s: {app.url}/v1   metrics: {app.url}/metrics")
        console.print(f"Try it:\n{_example(app.url, config.model.id)}\nStop with Ctrl-C.", markup=False)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("Stopping ...")


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _example(url: str, model: str) -> str:
    question = "Table staff(name, salary, dept). Which name in staff have salary above 70?"
    return (
        f"  curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '"
        f'{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": "{question}"}}]}}\''
    )


def _mount_demo() -> None:
    """`tta demo` lives beside the packages, in the repository: there only in a checkout."""
    root = Path(__file__).resolve().parent.parent
    if (root / "deploy" / "demo" / "cli.py").is_file():
        sys.path.insert(0, str(root))
        from deploy.demo.cli import app as demo

        app.add_typer(demo, name="demo", help="The demo: its base, its experts, their training.")


def main() -> None:
    """Errors of the user end in one message; anything else keeps its traceback."""
    from adapters.errors import AdapterError
    from router.policy import RouterError

    _mount_demo()
    try:
        app()
    except (ConfigError, AdapterError, RouterError) as error:
        _fail(2, str(error))
    except StartError as error:
        _fail(1, f"the server did not start:\n{error}")


def _fail(status: int, message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
