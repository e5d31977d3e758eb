"""Trained gates: what minimising the loss of experts' own answers must find, and the command."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.bank.token_gating import Gating as Engines
from adapters.library.library import Library
from adapters.low_rank import make_canonical_expert
from tests.factories.tiny_library import NAMES, load_mixed, sample_answers
from tests.reference import gated_shares, read
from tta_serve.cli.main import app
from tta_serve.offline.mixed_model import MixedModel
from tta_serve.offline.train_layer_gates import (
    LayerGateSettings,
    TrainableGating,
    TrainedLayerGates,
    train,
)


def load_canonical(library: Path, *names: str) -> MixedModel:
    experts = load_mixed(library, *names)
    return MixedModel(experts.plain, [make_canonical_expert(expert) for expert in experts.experts])


def train_gates(library: Path, settings: LayerGateSettings, *names: str) -> TrainedLayerGates:
    experts = load_canonical(library, *names)
    opened = Library.open(library)
    return train(
        experts, [opened.expert(name) for name in names], sample_answers(experts), settings
    )


def test_the_loss_falls_and_every_weight_of_every_expert_has_a_gate_of_its_rank(
    library: Path,
) -> None:
    found = train_gates(library, LayerGateSettings(steps=25), *NAMES)
    assert found.after < 0.7 * found.before
    for name in NAMES:
        expert = Library.open(library).expert(name)
        gates = found.gates[expert.digest]
        assert {module: len(gate.g) for module, gate in gates.items()} == {
            m: f.rank for m, f in expert.factors.items()
        }
        assert all((gate.g > 0).all() for gate in gates.values())


def test_the_same_is_trained_again_and_in_any_order_of_experts(library: Path) -> None:
    first, again, turned = (
        train_gates(library, LayerGateSettings(steps=4), *names)
        for names in (NAMES, NAMES, NAMES[::-1])
    )
    assert (again.before, again.after) == (first.before, first.after)
    assert (turned.before, turned.after) == pytest.approx((first.before, first.after), rel=1e-4)
    for digest, own in first.gates.items():
        for module, gate in own.items():
            torch.testing.assert_close(turned.gates[digest][module].g, gate.g, rtol=1e-3, atol=1e-3)


def test_an_expert_alone_is_sure_of_itself(library: Path) -> None:
    assert train_gates(library, LayerGateSettings(steps=1), "sql").before == pytest.approx(
        train_gates(library, LayerGateSettings(steps=1), "sql").after
    )


def test_the_rule_that_is_trained_is_the_one_that_engines_follow(library: Path) -> None:
    """Against shares computed number by number."""
    experts, g = load_canonical(library, *NAMES), torch.Generator().manual_seed(0)
    rule = TrainableGating(experts)
    for parameter in rule.parameters:
        parameter.data = torch.randn(parameter.shape, generator=g)
    for site in experts.sites:
        x = torch.randn(5, site.a.shape[1], generator=g)
        gates, dense = (
            rule.make_gates(site),
            {k: e.factors[site.name].dense() for k, e in enumerate(experts.experts)},
        )
        wanted = gated_shares(
            {k: read(d) for k, d in dense.items()}, Engines("trained", 9, 1.0), x, gates
        )
        found = rule(site, x @ site.a.T)
        for k in dense:
            torch.testing.assert_close(
                found[:, site.owners == k][:, 0], wanted[k], rtol=1e-3, atol=1e-4
            )


def test_the_command_writes_what_a_server_reads(library: Path, tmp_path: Path) -> None:
    def run(*more: str) -> tuple[int, str]:
        base = ("--base", str(library.parent / "base"))
        given = [
            "router",
            "gates",
            "--library",
            str(library),
            *base,
            "--prompts",
            "2",
            "--answer",
            "4",
            "--steps",
            "3",
            *more,
        ]
        result = CliRunner().invoke(app, given)
        return result.exit_code, result.output + str(result.exception or "")

    code, said = run()
    assert code == 0, said
    assert "->" in said
    opened = Library.open(library)
    assert read_gates(library / LAYER_GATES).keys() == set(opened.digests.values())
    code, said = run()
    assert code != 0
    assert "--replace" in said
    assert run("--replace")[0] == 0
