"""What a benchmark leaves in files: its figures, a table of them and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
WHERE = "out"
"""The option that says where files go, which is no part of what was measured."""


def describe_command(context: typer.Context) -> str:
    """Return the command as it was given, files by their names alone, without `--out`."""
    words = ["python", "-m", "loadtest", context.info_name or ""]
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source and source.name == "COMMANDLINE" and option.name != WHERE:
            value = context.params[option.name or ""]
            words += _spell(option.opts, option.secondary_opts, value)
    return " ".join(words)


def _spell(names: Sequence[str], negations: Sequence[str], value: Any) -> list[str]:
    if isinstance(value, bool):
        return [names[0] if value else negations[0]]
    values = value if isinstance(value, list | tuple) else [value]
    texts = [one.name if isinstance(one, Path) else str(one) for one in values]
    return [word for text in texts for word in (names[0], text)]


def write_results(
    folder: Path, name: str, result: Row, rows: Sequence[Sequence[str]], figure: "Figure"
) -> None:
    """Write `NAME.json`, `NAME.md` and `NAME.svg`, over what is there.

    Args:
        folder: Where to.
        name: The benchmark's.
        result: Its figures.
        rows: The table of them, its head first.
        figure: The picture of them.
    """
    text = json.dumps(result, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / f"{name}.md").write_text(make_markdown(rows), encoding="utf-8")
    _write_svg(folder / f"{name}.svg", figure)


def make_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its head first, as Markdown has it."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write_svg(file: Path, figure: "Figure") -> None:
    from matplotlib import rc_context

    # So that equal figures are equal files.
    with rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, format="svg", metadata={"Date": None})
