"""`tta experiment`: define, run, stop and judge experiments on policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.experiments import admin_cli
from tta_serve.experiments.admin_cli import File, Name, read_definition
from tta_serve.experts_cli import console
from tta_serve.store.options import StoreOptions

if TYPE_CHECKING:
    from router.experiments.definition import Definition, Metric
    from router.experiments.planner import Design
    from tta_serve.experiments.replay import Target
    from tta_serve.store.database import Database

STORE: str = StoreOptions().url
StoreUrl = Annotated[str, typer.Option("--store", help="The server's database.")]

app = typer.Typer(no_args_is_help=True, help="Experiments on policies: define, run, stop, judge.")
for _command in (admin_cli.show, admin_cli.create, admin_cli.change, admin_cli.start, admin_cli.stop, admin_cli.kill):
    app.command()(_command)
app.command("list")(admin_cli.list_)
app.command()(admin_cli.feedback)


@app.command()
def report(
    name: Name,
    store: StoreUrl = STORE,
    out: Annotated[Path | None, typer.Option(help="A folder for report.md, pictures and report.json.")] = None,
) -> None:
    """What the logs say: which policy is better, and whether the data can be trusted. The last line is JSON."""
    from tta_serve.config import ConfigError
    from tta_serve.experiments.report import report_of, sheets, summary, write

    with _opened(store) as db, console.status("Reading the logs ..."):
        found = report_of(db, name)
    for sheet in sheets(found):
        console.print(sheet.table())
    for line in (*found.verdict.words, *found.verdict.missing, *found.health):
        console.print(f"- {line}", soft_wrap=True)
    if out:
        try:
            write(found, out)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from None
        console.print(f"The report is {out / 'report.md'}", soft_wrap=True)
    typer.echo(json.dumps(summary(found)))


@app.command()
def replay(  # noqa: PLR0913 - one option each
    name: Name,
    arm: Annotated[str | None, typer.Option(help="The policy that always takes this arm.")] = None,
    policy: Annotated[str | None, typer.Option(help="A policy that arms have.")] = None,
    weights: Annotated[Path | None, typer.Option(help='JSON: draw arms by {"ARM": weight, ...}.')] = None,
    probabilities: Annotated[
        Path | None, typer.Option(help='JSON lines: {"request_id": ..., "arms": {ARM: probability, ...}}.')
    ] = None,
    metric: Annotated[str | None, typer.Option(show_default="the primary one")] = None,
    clip: Annotated[float, typer.Option(min=1, help="Of weights, for the estimate that clips them.")] = 20.0,
    store: StoreUrl = STORE,
) -> None:
    """What another policy would have been worth on the logged traffic. Give one of four. The last line is JSON."""
    from dataclasses import asdict

    from tta_serve.experiments import targets
    from tta_serve.experiments.control import Stored
    from tta_serve.experiments.replay import replay as estimate
    from tta_serve.store import experiments

    if sum(given is not None for given in (arm, policy, weights, probabilities)) != 1:
        raise typer.BadParameter("give one of --arm, --policy, --weights and --probabilities")

    def target(definition: Definition) -> Target:
        if arm is not None:
            return targets.to_arm(definition, arm)
        if policy is not None:
            return targets.to_policy(definition, policy)
        if weights is not None:
            return targets.to_weights(definition, targets.read_weights(weights))
        assert probabilities is not None
        return targets.by_request(definition, probabilities)

    with _opened(store) as db:
        stored = Stored.read(experiments.get(db, name).definition)
        chosen = _metric(stored.definition, metric)
        found = asdict(estimate(db, stored.span, chosen, target(stored.definition), alpha=stored.definition.alpha, clip=clip))
    _print_replay(found, stored.definition.alpha)
    typer.echo(json.dumps({"experiment": name, **found}))


@app.command()
def plan(  # noqa: PLR0913 - one option each
    effect: Annotated[float | None, typer.Option(help="The difference that is to be found: units per arm are wanted.")] = None,
    units: Annotated[int | None, typer.Option(min=2, help="Units per arm: the least difference is wanted.")] = None,
    rate: Annotated[float | None, typer.Option(help="Of a share: the control's, between 0 and 1.")] = None,
    deviation: Annotated[float | None, typer.Option(help="Of a mean: the standard deviation of a unit.")] = None,
    mean: Annotated[float | None, typer.Option(help="The control's mean, to tell the difference as a share of it.")] = None,
    power: Annotated[float, typer.Option(min=0.06, max=0.99, help="Probability of finding it.")] = 0.8,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.05, help="Error rate.")] = 0.05,
    comparisons: Annotated[int, typer.Option(min=1, help="Treatments times primary and secondary metrics.")] = 1,
    target: Annotated[int | None, typer.Option(min=2, help="The definition's target.", show_default="the best one")] = None,
) -> None:
    """How many units an experiment takes, or what it can find. The last line is JSON."""
    from router.experiments import planner
    from router.experiments.sequential import Sequential

    if (effect is None) == (units is None) or (rate is None) == (deviation is None):
        raise typer.BadParameter("give one of --effect and --units, and one of --rate and --deviation")
    if rate is not None and mean is not None:
        raise typer.BadParameter("--rate is the control's mean already: leave --mean out")
    metric: planner.Metric = planner.Mean(deviation) if deviation is not None else planner.Rate(rate or 0.0)
    level = alpha / comparisons
    test = Sequential(target or 1, level)
    designs = {"one look at the end": planner.fixed(level)}
    designs["looked at all the time"] = planner.peeking(test) if target else planner.tuned(test)
    found = {title: _planned(design, metric, effect, units, power) for title, design in designs.items()}
    base, table = rate if rate is not None else mean, Table("design", "units per arm", "difference", "of the control's")
    for title, (n, difference) in found.items():
        table.add_row(title, str(n), f"{difference:.4g}", f"{difference / base:.1%}" if base else "")
    console.print(table)
    (fixed, sequential) = ({"units": n, "difference": difference} for n, difference in found.values())
    typer.echo(json.dumps({"fixed": fixed, "sequential": sequential, "power": power, "alpha": alpha}))


@app.command()
def validate(
    file: File, config: Annotated[Path | None, typer.Option(help="A server's config, whose policies arms may have.")] = None
) -> None:
    """Check a definition, and show who would get what. The last line is JSON."""
    from tta_serve.config import ConfigError, load

    definition = read_definition(file)
    if config is not None:
        there = load(config, {}).policies
        if unknown := sorted({arm.policy for arm in definition.arms} - there.keys()):
            raise ConfigError(f"{config} has no policy {', '.join(unknown)}; it has: {', '.join(there)}")
    title = f"{definition.name}: {definition.coverage:.1%} of all {definition.unit}s in the layer {definition.layer}"
    table = Table("arm", "policy", "of the experiment", "of all", title=title)
    for arm in definition.arms:
        share = definition.weights[arm.name]
        control = " (control)" * (arm.name == definition.control)
        table.add_row(arm.name + control, arm.policy, f"{share:.1%}", f"{share * definition.coverage:.1%}")
    console.print(table)
    typer.echo(json.dumps({"name": definition.name, "weights": definition.weights, "coverage": definition.coverage}))


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    """A server's database. What the store refuses becomes a ConfigError."""
    from tta_serve.config import ConfigError
    from tta_serve.protocol import RequestError
    from tta_serve.store.database import Database

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"there is no database {url}; name the server's with --store")
    db = Database(url)
    try:
        yield db
    except RequestError as error:
        raise ConfigError(str(error)) from None
    finally:
        db.close()


def _metric(definition: Definition, name: str | None) -> Metric:
    """The definition's own, or any that was logged, as a mean."""
    from router.experiments.definition import Metric

    metrics = definition.metrics
    known = {metric.name: metric for metric in metrics.all}
    return metrics.primary if name is None else known.get(name) or Metric(name=name)


def _planned(design: Design, metric: Any, effect: float | None, units: int | None, power: float) -> tuple[int, float]:
    """Units per arm and the difference that they find."""
    from router.experiments import planner

    if effect is not None:
        return planner.units(design, metric, effect, power), effect
    assert units is not None
    return units, planner.detectable(design, metric, units, power)


def _print_replay(found: dict[str, Any], alpha: float) -> None:
    from tta_serve.experiments.results import Estimate
    from tta_serve.experiments.words import number, percent, spread

    title = f"{found['metric']}, of {found['units']} units; confidence intervals of {percent(1 - alpha)} for one look"
    table = Table("estimate", "value", title=title)
    for key, said in (
        ("served", "as it was served"),
        ("ips", "IPS"),
        ("snips", "SNIPS"),
        ("clipped", f"IPS, weights up to {number(found['clip'])}, any sample size"),
        ("covered", "share of the policy's decisions that the log covers"),
    ):
        table.add_row(said, spread(Estimate(**found[key])) if found[key] else "not to be had")
    table.add_row("effective sample size, units", number(found["effective"]))
    console.print(table)
    if found["without"]:
        console.print(f"{found['without']} requests have no {found['metric']} and are left out.")
    if (high := found["covered"]["high"]) is not None and high < 1:
        console.print("The log says nothing of the rest of the policy's decisions; IPS counts them as 0.")
