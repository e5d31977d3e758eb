"""What of a library stops the start, and what does not."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import LibraryError
from tests.factories.experts import make_expert, make_narrow_expert, make_plain_base
from tta_serve.cli.experts import app
from tta_serve.config.loading import load
from tta_serve.config.sections import ServeConfig
from tta_serve.exceptions import ConfigError
from tta_serve.serving.experts.startup import StartupPlan


def test_a_library_of_another_base_stops_the_start(tmp_path: Path) -> None:
    mine = make_plain_base(tmp_path / "mine", 0)
    other = make_plain_base(tmp_path / "other", 1)
    make_expert(tmp_path / "sql", mine, seed=0, layers=range(2))
    arguments = [
        "add",
        str(tmp_path / "sql"),
        "--name=sql",
        f"--base={mine}",
        f"--library={tmp_path / 'library'}",
    ]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    settings = {
        "model.id": "m",
        "library.path": str(tmp_path / "library"),
        "default_policy": "base",
    }
    assert StartupPlan.of(load(None, {**settings, "model.source": str(mine)})).digests.keys() == {
        "sql"
    }
    with pytest.raises(LibraryError, match="Experts of another base need a library of their own"):
        StartupPlan.of(load(None, {**settings, "model.source": str(other)}))


def settings_of(root: Path, **more: object) -> ServeConfig:
    given = {"model.id": "m", "model.source": str(root / "base"), "default_policy": "base"}
    return load(None, {**given, "library.path": str(root / "library"), **more})


def test_an_expert_that_cannot_be_used_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    for seed, name in enumerate(("sql", "cut", "odd name", "prompts")):
        make_expert(tmp_path / "library" / name, base, seed=seed, layers=range(2))
    pissa = tmp_path / "library" / "pissa"
    make_expert(pissa, base, seed=5, layers=range(2), init_lora_weights="pissa")
    (tmp_path / "library" / "cut" / "adapter_model.safetensors").write_bytes(b"cut")
    (tmp_path / "library" / "prompts" / "examples.txt").write_bytes(b"\xff")
    (tmp_path / "library" / "away").symlink_to("nowhere")
    module = "model.layers.0.mlp.up_proj"
    make_narrow_expert(tmp_path / "library" / "wide", module, (7, 32))
    plan = StartupPlan.of(settings_of(tmp_path))
    assert list(plan.digests) == ["sql"]
    said = [record.getMessage() for record in caplog.records]
    for name, reason in (
        ("pissa", "init_lora_weights"),
        ("cut", "cannot be read as safetensors"),
        ("odd name", "letters, digits"),
        ("prompts", "examples.txt cannot be read"),
        ("wide", "is to change as (7, 32)"),
        ("away", "which is not there"),
    ):
        assert any(f"expert {name} is left out" in line and reason in line for line in said), name


def test_a_policy_of_an_expert_that_is_left_out_says_why(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    for name in ("sql", "cut"):
        make_expert(tmp_path / "library" / name, base, seed=0, layers=range(2))
    (tmp_path / "library" / "cut" / "adapter_model.safetensors").write_bytes(b"cut")
    config = settings_of(tmp_path, **{"library.entries": {"both": {"cut": 1.0}}})
    with pytest.raises(ConfigError, match=r"(?s)both.*expert cut is left out: .*safetensors"):
        StartupPlan.of(config)


def test_a_library_of_which_nothing_can_be_used_stops_the_start(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    make_expert(tmp_path / "library" / "cut", base, seed=0, layers=range(2))
    (tmp_path / "library" / "cut" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(LibraryError, match=r"no expert can be used: .*cannot be read"):
        StartupPlan.of(settings_of(tmp_path))


def add_expert(root: Path, base: Path, name: str, seed: int, *options: str) -> None:
    make_expert(root / name, base, seed=seed, layers=range(2))
    arguments = ["add", str(root / name), f"--name={name}", f"--base={base}"]
    ran = CliRunner().invoke(app, [*arguments, f"--library={root / 'library'}", *options])
    assert ran.exit_code == 0, ran.output


def test_experts_of_other_licences_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    add_expert(tmp_path, base, "free", 0, "--licence=Apache-2.0")
    add_expert(tmp_path, base, "lab", 1, "--licence=CC-BY-NC-4.0")
    add_expert(tmp_path, base, "plain", 2)
    for licences, served in (
        (None, {"free", "lab", "plain"}),
        (["apache-*", "unstated"], {"free", "plain"}),
        (["CC-*"], {"lab"}),
    ):
        plan = StartupPlan.of(settings_of(tmp_path, **{"library.licences": licences}))
        assert plan.digests.keys() == served
    assert "expert free is left out: its licence is Apache-2.0; library.licences has: CC-*" in (
        caplog.text
    )
    with pytest.raises(LibraryError, match="no expert can be used: its licence is"):
        StartupPlan.of(settings_of(tmp_path, **{"library.licences": ["MIT"]}))


def test_an_expert_that_may_be_used_only_alone_is_merged_with_nothing(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    add_expert(tmp_path, base, "own", 0, "--alone")
    add_expert(tmp_path, base, "other", 1)
    library = f"--library={tmp_path / 'library'}"
    for command in (
        ["merge", "--name=both", "--experts=own,other", "--method=linear", library],
        ["twin", "--prefix=t", "--experts=own,other", library],
    ):
        ran = CliRunner().invoke(app, command)
        assert isinstance(ran.exception, LibraryError), ran.output
        assert "own: may be used only alone" in str(ran.exception)
    shown = CliRunner().invoke(app, ["show", "own", library])
    assert "alone: in no mix with others" in shown.output
