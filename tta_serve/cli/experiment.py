"""`tta experiment`: define, run, stop and judge experiments on policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tta_serve.cli import experiment_admin
from tta_serve.cli.experiment_admin import File, Name, read_definition
from tta_serve.cli.options import console, format_examples, print_table

if TYPE_CHECKING:
    from tta_serve.experiments.analysis.replay import Target
    from tta_serve.experiments.design.definition import Definition, Metric
    from tta_serve.experiments.design.planner import Design
    from tta_serve.store.database import Database

STORE = "sqlite:///tta.db"
"""The default of the config's `store.url`, which takes pydantic to ask for."""
StoreUrl = Annotated[str, typer.Option("--store", help="The server's database.")]

app = typer.Typer(no_args_is_help=True, help="Experiments on policies: define, run, stop, judge.")
app.command("list", epilog=format_examples("tta experiment list"))(experiment_admin.list_)
for _command, _examples in (
    (experiment_admin.show, ["tta experiment show routing"]),
    (experiment_admin.create, ["tta experiment create routing.yaml --dry-run"]),
    (experiment_admin.change, ["tta experiment change routing routing.yaml --version 3"]),
    (experiment_admin.start, ["tta experiment start routing"]),
    (experiment_admin.stop, ["tta experiment stop routing", "tta experiment stop routing --arm b"]),
    (experiment_admin.kill, ["tta experiment kill", "tta experiment kill --off"]),
    (experiment_admin.feedback, ["tta experiment feedback REQUEST_ID thumbs 1"]),
):
    app.command(epilog=format_examples(*_examples))(_command)


@app.command(
    epilog=format_examples(
        "tta experiment report routing",
        "tta experiment report routing --store sqlite:///tta.db --out report",
    )
)
def report(
    name: Name,
    store: StoreUrl = STORE,
    out: Annotated[
        Path | None, typer.Option(help="A folder for report.md, pictures and report.json.")
    ] = None,
) -> None:
    """Report what the logs say: which policy is better, and can the data be trusted?

    The last line is JSON.
    """
    from tta_serve.exceptions import ConfigError
    from tta_serve.experiments.analysis.report import (
        make_report,
        make_sheets,
        summarise,
        write_report,
    )

    with _open_database(store) as db, console.status("Reading the logs ..."):
        found = make_report(db, name)
    for sheet in make_sheets(found):
        print_table(sheet.to_table())
    for line in (*found.verdict.words, *found.verdict.missing, *found.health):
        console.print(f"- {line}")
    if out:
        try:
            write_report(found, out)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from None
        console.print(f"The report is {out / 'report.md'}")
    typer.echo(json.dumps(summarise(found)))


@app.command(
    epilog=format_examples(
        "tta experiment replay routing --arm gate",
        "tta experiment replay routing --policy retrieval --metric thumbs",
    )
)
def replay(  # noqa: PLR0913 - one option each
    name: Name,
    arm: Annotated[str | None, typer.Option(help="The policy that always takes this arm.")] = None,
    policy: Annotated[str | None, typer.Option(help="A policy that arms have.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help='JSON: draw arms by {"ARM": weight, ...}.')
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(help='JSON lines: {"request_id": ..., "arms": {ARM: probability, ...}}.'),
    ] = None,
    metric: Annotated[str | None, typer.Option(show_default="the primary one")] = None,
    clip: Annotated[
        float, typer.Option(min=1, help="Of weights, for the estimate that clips them.")
    ] = 20.0,
    store: StoreUrl = STORE,
) -> None:
    """Estimate what another policy would have been worth on the logged traffic.

    Give one of --arm, --policy, --weights and --probabilities. The last line is JSON.
    """
    from dataclasses import asdict

    from tta_serve.experiments.analysis.replay import replay as estimate
    from tta_serve.experiments.design.stored import StoredExperiment
    from tta_serve.store import experiments

    if sum(given is not None for given in (arm, policy, weights, probabilities)) != 1:
        raise typer.BadParameter("give one of --arm, --policy, --weights and --probabilities")

    with _open_database(store) as db:
        stored = StoredExperiment.from_text(experiments.get(db, name).definition)
        definition = stored.definition
        target = _read_target(definition, arm, policy, weights, probabilities)
        chosen = _find_metric(definition, metric)
        result = estimate(db, stored.span, chosen, target, alpha=definition.alpha, clip=clip)

    found = asdict(result)
    _print_replay(found, definition.alpha)
    typer.echo(json.dumps({"experiment": name, **found}))


@app.command(
    epilog=format_examples(
        "tta experiment plan --rate 0.6 --effect 0.05",
        "tta experiment plan --deviation 30 --mean 120 --units 2000",
    )
)
def plan(  # noqa: PLR0913 - one option each
    effect: Annotated[
        float | None,
        typer.Option(help="The difference that is to be found: units per arm are wanted."),
    ] = None,
    units: Annotated[
        int | None, typer.Option(min=2, help="Units per arm: the least difference is wanted.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Of a share: the control's, between 0 and 1.")
    ] = None,
    deviation: Annotated[
        float | None, typer.Option(help="Of a mean: the standard deviation of a unit.")
    ] = None,
    mean: Annotated[
        float | None,
        typer.Option(help="The control's mean, to tell the difference as a share of it."),
    ] = None,
    power: Annotated[
        float, typer.Option(min=0.06, max=0.99, help="Probability of finding it.")
    ] = 0.8,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.05, help="Error rate.")] = 0.05,
    comparisons: Annotated[
        int, typer.Option(min=1, help="Treatments times primary and secondary metrics.")
    ] = 1,
    target: Annotated[
        int | None,
        typer.Option(min=2, help="The definition's target.", show_default="the best one"),
    ] = None,
) -> None:
    """Compute how many units an experiment takes, or what it can find. The last line is JSON."""
    from tta_serve.experiments.design import planner
    from tta_serve.experiments.statistics.sequential import Sequential

    if (effect is None) == (units is None) or (rate is None) == (deviation is None):
        raise typer.BadParameter(
            "give one of --effect and --units, and one of --rate and --deviation"
        )
    if rate is not None and mean is not None:
        raise typer.BadParameter("--rate is the control's mean already: leave --mean out")
    metric: planner.PlannedMetric = (
        planner.Mean(deviation) if deviation is not None else planner.Rate(rate or 0.0)
    )
    level = alpha / comparisons
    test = Sequential(target or 1, level)
    designs = {"one look at the end": planner.fixed_design(level)}
    designs["looked at all the time"] = (
        planner.peeking_design(test) if target else planner.tuned_design(test)
    )
    found = {
        title: _compute_plan(design, metric, effect, units, power)
        for title, design in designs.items()
    }
    _print_plan(found, rate if rate is not None else mean)
    fixed, sequential = ({"units": n, "difference": difference} for n, difference in found.values())
    typer.echo(
        json.dumps({"fixed": fixed, "sequential": sequential, "power": power, "alpha": alpha})
    )


@app.command(
    epilog=format_examples(
        "tta experiment validate routing.yaml",
        "tta experiment validate routing.yaml --config serve.yaml",
    )
)
def validate(
    file: File,
    config: Annotated[
        Path | None, typer.Option(help="A server's config, whose policies arms may have.")
    ] = None,
) -> None:
    """Check a definition, and show who would get what. The last line is JSON."""
    from tta_serve.config.loading import load
    from tta_serve.exceptions import ConfigError

    definition = read_definition(file)
    if config is not None:
        there = load(config, {}).policies
        unknown = sorted({arm.policy for arm in definition.arms} - there.keys())
        if unknown:
            raise ConfigError(
                f"{config} has no policy {', '.join(unknown)}; it has: {', '.join(there)}"
            )

    _print_shares(definition)
    typer.echo(
        json.dumps(
            {
                "name": definition.name,
                "weights": definition.weights,
                "coverage": definition.coverage,
            }
        )
    )


def _read_target(
    definition: Definition,
    arm: str | None,
    policy: str | None,
    weights: Path | None,
    probabilities: Path | None,
) -> Target:
    """Return the policy that is to be estimated: the one of the four that is given."""
    from tta_serve.experiments.analysis import replay_targets

    if arm is not None:
        return replay_targets.target_arm(definition, arm)
    if policy is not None:
        return replay_targets.target_policy(definition, policy)
    if weights is not None:
        return replay_targets.target_weights(definition, replay_targets.read_weights(weights))
    assert probabilities is not None
    return replay_targets.target_by_request(definition, probabilities)


@contextmanager
def _open_database(url: str) -> Iterator[Database]:
    """Open a server's database; what the store refuses becomes a ConfigError."""
    from tta_serve.exceptions import ConfigError
    from tta_serve.store.database import Database
    from tta_serve.store.errors import StoreError

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"there is no database {url}; name the server's with --store")
    db = Database(url)
    try:
        yield db
    except StoreError as error:
        raise ConfigError(str(error)) from None
    finally:
        db.close()


def _find_metric(definition: Definition, name: str | None) -> Metric:
    """Return a metric of the definition, or any that was logged, as a mean."""
    from tta_serve.experiments.design.definition import Metric

    metrics = definition.metrics
    known = {metric.name: metric for metric in metrics.all}
    return metrics.primary if name is None else known.get(name) or Metric(name=name)


def _compute_plan(
    design: Design, metric: Any, effect: float | None, units: int | None, power: float
) -> tuple[int, float]:
    """Return units per arm, and the difference that they find."""
    from tta_serve.experiments.design import planner

    if effect is not None:
        return planner.units_needed(design, metric, effect, power), effect
    assert units is not None
    return units, planner.detectable_difference(design, metric, units, power)


def _print_plan(found: dict[str, tuple[int, float]], control: float | None) -> None:
    """Print units per arm and differences, by design.

    Args:
        found: What `_compute_plan` returned.
        control: The control's mean, if it is known.
    """
    table = Table("design", "units per arm", "difference", "of the control's")
    for title, (units, difference) in found.items():
        share = f"{difference / control:.1%}" if control else ""
        table.add_row(title, str(units), f"{difference:.4g}", share)
    print_table(table)


def _print_shares(definition: Definition) -> None:
    """Print the share of the units that each arm gets."""
    title = (
        f"{definition.name}: {definition.coverage:.1%} of all {definition.unit}s in the layer"
        f" {definition.layer}"
    )
    table = Table("arm", "policy", "of the experiment", "of all", title=title)
    for arm in definition.arms:
        share = definition.weights[arm.name]
        control = " (control)" if arm.name == definition.control else ""
        shares = (f"{share:.1%}", f"{share * definition.coverage:.1%}")
        table.add_row(arm.name + control, arm.policy, *shares)
    print_table(table)


def _print_replay(found: dict[str, Any], alpha: float) -> None:
    from tta_serve.experiments.analysis.formatting import (
        format_estimate,
        format_number,
        format_percent,
    )
    from tta_serve.experiments.analysis.results import Estimate

    title = (
        f"{found['metric']}, of {found['units']} units; confidence intervals of"
        f" {format_percent(1 - alpha)} for one look"
    )
    table = Table("estimate", "value", title=title)
    for key, said in (
        ("served", "as it was served"),
        ("ips", "IPS"),
        ("snips", "SNIPS"),
        ("clipped", f"IPS, weights up to {format_number(found['clip'])}, any sample size"),
        ("covered", "share of the policy's decisions that the log covers"),
    ):
        table.add_row(
            said, format_estimate(Estimate(**found[key])) if found[key] else "not to be had"
        )
    table.add_row("effective sample size, units", format_number(found["effective"]))
    print_table(table)
    if found["without"]:
        console.print(f"{found['without']} requests have no {found['metric']} and are left out.")
    if (high := found["covered"]["high"]) is not None and high < 1:
        console.print(
            "The log says nothing of the rest of the policy's decisions; IPS counts them as 0."
        )
