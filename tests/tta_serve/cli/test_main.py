"""`tta` as a whole: what it refuses, its help and completion, and how soon it answers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from tests.factories.experts import make_expert, make_plain_base
from tta_serve.cli import admin_client, experiment, options
from tta_serve.cli.main import app, main
from tta_serve.config import loading as server_config
from tta_serve.store.options import StoreOptions


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tta_serve.cli.main", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


Stopped = Callable[..., str]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stopped:
    """What a command line that cannot work says on standard error before it exits with 2."""

    def run_here(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tta", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr().err

    return run_here


def config(folder: Path, text: str) -> str:
    file = folder / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "model: {id: m, source: x}\nlibrary: {path: nowhere}\ndefault_policy: base\n",
            "no such folder",
        ),
        (
            "model: {id: m, source: x}\nlibrary: {path: .}\ndefault_policy: base\n",
            "holds no PEFT adapter folder",
        ),
        (
            "model: {id: m, source: x, oops: 1}\nlibrary: {path: .}\ndefault_policy: base\n",
            "model.oops: Extra inputs",
        ),
    ],
)
def test_a_start_that_cannot_work_says_why_and_exits_2(
    tmp_path: Path, stopped: Stopped, text: str, says: str
) -> None:
    said = stopped("serve", "--config", config(tmp_path, text))
    assert says in said
    assert "Traceback" not in said


def test_a_base_that_is_not_there_is_named(tmp_path: Path, demo_experts: Path) -> None:
    result = run("serve", "--model", str(tmp_path / "no-model"), "--experts", str(demo_experts))
    assert result.returncode == 2
    assert "model.source" in result.stderr
    assert "no-model" in result.stderr


def test_without_a_config_model_and_experts_are_needed(stopped: Stopped) -> None:
    assert "--experts" in stopped("serve", "--model", "x")


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below one, with what is typed to reach it."""
    parts = getattr(command, "commands", {})
    if not parts:
        yield path, command
    for name, part in parts.items():
        yield from commands(part, *path, name)


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_no_help_is_taken_for_markup_and_lost() -> None:
    def helps(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield command.epilog or ""
        yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
        for part in getattr(command, "commands", {}).values():
            yield from helps(part)

    found = list(helps(typer.main.get_command(app)))
    assert len(found) > 100
    assert [text for text in found if str(Text.from_markup(text)) != text] == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_ends_with_examples_that_fit_80_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
    _, _, shown = result.output.partition("Examples:")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines == [line.strip() for line in COMMANDS[path].epilog.splitlines()[2:]]
    assert lines[0].startswith(" ".join(("tta", *path)))
    assert all(len(line) <= 80 for line in result.output.splitlines())


def test_examples_are_of_options_that_there_are() -> None:
    for path, command in COMMANDS.items():
        known = {name for parameter in command.params for name in parameter.opts}
        used = {word for word in command.epilog.split() if word.startswith("--")}
        assert used <= known, path


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"tta-serve {version('tta-serve')}\n")


def test_shells_complete_commands() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
    asked = {"_TTA_COMPLETE": "complete_bash", "COMP_WORDS": "tta experts v", "COMP_CWORD": "2"}
    result = CliRunner().invoke(app, [], prog_name="tta", env=asked)
    assert result.output.split() == ["verify"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["experts", "--help"],
        ["experts", "list", "--library", "{experts}"],
        ["experiment", "list", "--url", "http://127.0.0.1:9"],
    ],
    ids=" ".join,
)
def test_what_needs_no_weights_imports_no_torch(demo_experts: Path, arguments: list[str]) -> None:
    script = """
import sys
from tta_serve.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "vllm", "ray", "matplotlib", "scipy"} & sys.modules.keys()
    print("imported", sorted(heavy))
"""
    filled = [part.replace("{experts}", str(demo_experts)) for part in arguments]
    found = subprocess.run(
        [sys.executable, "-c", script, *filled],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TTA_ADMIN_KEY": "key"},
    )
    assert "imported []" in found.stdout, found


def test_constants_that_save_an_import_are_the_servers() -> None:
    assert StoreOptions().url == experiment.STORE
    assert server_config.KEY_VARIABLE == admin_client.KEY_VARIABLE


def test_a_table_is_lines_of_cells_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("name", "mix", title="All of them")
    table.add_row("long" * 20, "sql 1.0\nmath\t0.5")
    options.print_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "All of them",
        "name\tmix",
        f"{'long' * 20}\tsql 1.0, math 0.5",
    ]


def test_a_table_is_drawn_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "console", Console(force_terminal=True, width=40))
    options.print_table(Table("name", "mix"))
    assert "┃ name ┃ mix ┃" in Text.from_ansi(capsys.readouterr().out).plain


def test_a_line_is_not_broken_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    options.console.print("word " * 30)
    assert len(capsys.readouterr().out.splitlines()) == 1


PATHS = (
    ("serve", "--config", "{path}"),
    ("serve", "--model", "m", "--experts", "{path}"),
    ("eval", "--config", "{path}", "--suite", "{path}"),
    ("doctor", "{path}"),
    ("experts", "list", "--library", "{path}"),
    ("experts", "list", "--json", "--library", "{path}"),
    ("experts", "show", "x", "--library", "{path}"),
    ("experts", "verify", "--library", "{path}"),
    ("experts", "remove", "x", "--library", "{path}"),
    ("experts", "restore", "x", "--library", "{path}"),
    ("experts", "base", "{path}", "--library", "{path}"),
    ("experts", "add", "{path}", "--name", "x", "--base", "{path}", "--rank", "2"),
    ("experts", "diff", "a", "b", "--library", "{path}"),
    ("router", "train", "--library", "{path}"),
    ("router", "features", "--prompts", "{path}", "--library", "{path}"),
    ("router", "gates", "--library", "{path}"),
    ("router", "pareto", "--name", "x", "--library", "{path}"),
    ("router", "learn", "--name", "x", "--library", "{path}"),
    ("router", "recombine", "--name", "x", "--library", "{path}"),
    ("experiment", "validate", "{path}"),
)


@pytest.mark.parametrize("kind", ["missing", "folder", "junk", "loop", "below a file", "long"])
@pytest.mark.parametrize("arguments", PATHS, ids=" ".join)
def test_no_path_ends_in_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    arguments: tuple[str, ...],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk").write_bytes(b"\xff\xfe\x00junk")
    (tmp_path / "loop").symlink_to("loop")
    names = {"below a file": "junk/below", "long": "x" * 300}
    path = tmp_path / names.get(kind, kind)
    monkeypatch.setattr("sys.argv", ["tta", *(a.format(path=path) for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    if arguments[0] != "doctor" or kind != "folder":
        assert end.value.code == 2
        assert said.err
    assert "Traceback" not in said.err


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""A locale that has no letters but those of ASCII."""


SEVERAL = """
import json, sys
from tta_serve.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tta", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    print("\\0", end="")
"""


def run_in_turn(*commands: tuple[str, ...]) -> list[str]:
    """Return what each command prints in one process of such a locale; none may fail."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        env=os.environ | ASCII,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\0")[:-1]


def test_text_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    base = make_plain_base(tmp_path / "base", 0)
    make_expert(tmp_path / "sql", base, seed=0, layers=range(2), rank=2)
    prompts = ["Quelle heure est-il, André ?", "日本"]
    (tmp_path / "prompts.txt").write_text("\ufeff" + "\n".join(prompts), encoding="utf-8")
    library = tmp_path / "library"
    add = ("experts", "add", str(tmp_path / "sql"), "--name", "sql", "--base", str(base))
    more = ("--examples", str(tmp_path / "prompts.txt"), "--library", str(library))
    within = ("sql", "--library", str(library))
    _, shown = run_in_turn((*add, *more), ("experts", "show", "--json", *within))
    assert json.loads(shown)["examples"] == prompts
    manifest = json.loads((library / "sql/v0001/expert.json").read_text(encoding="utf-8"))
    assert manifest["examples"] == prompts
    manifest["description"] = "日本 ✓"
    text = json.dumps(manifest, ensure_ascii=False)
    (library / "sql/v0001/expert.json").write_text(text, encoding="utf-8")
    run_in_turn(*(("experts", command, *within) for command in ("show", "verify")))


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = "model: {id: m, source: é}\nlibrary: {path: nowhere}\ndefault_policy: base\n"
    (tmp_path / "serve.yaml").write_text("\ufeff" + text, encoding="utf-8")
    assert server_config.load(tmp_path / "serve.yaml", {}).model.source == "é"
