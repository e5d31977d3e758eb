"""What is kept of example prompts: when a start uses it, and when it reads anew."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.mix import MixRules
from router.decision import Prompt
from router.probing import Activations, Outputs, Probe, Window, gather_all
from tests.factories.counting_engine import NAN, CountingEngine
from tta_serve.serving.routing import example_readings
from tta_serve.serving.routing.example_readings import (
    ExampleProbe,
    ExampleReadings,
    find_file,
)
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe

TEXTS = ["one", "three", "sixteen"]
DIGESTS = {"a": "d1", "b": "d2"}
MIX = MixRules(frozenset(DIGESTS), layers=2).mix({"a": 1.0})


class Base(CountingEngine):
    """A base that reads a text as its length times something, and in a template as more."""

    def __init__(self, factor: float = 1.0, template: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.template = template

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        await self._ask("features", text)
        return torch.tensor([len(text) * self.factor, 1.0 + chat * self.template])

    async def compare(self, prompt: Prompt, *rest: Any, **named: Any) -> Outputs:
        found = await super().compare(prompt, *rest, **named)
        return replace(found, js=found.js + self.factor * len(prompt.user_turn))

    async def activations(self, text: str) -> Activations:
        found = await super().activations(text)
        unread = torch.tensor([[1.0, NAN]] * 3)
        return replace(found, norm=unread * self.factor)


Results = list[Tensor | Outputs | Activations]
KINDS = ("features", "chat", "compare", "activations")


def start(
    file: Path | None,
    base: Base | None = None,
    texts: list[str] = TEXTS,
    kinds: Sequence[str] = KINDS,
    digests: Mapping[str, str] = DIGESTS,
) -> tuple[Results, list[object]]:
    """Returns what was read, and the texts that the engine was asked for."""

    async def run() -> tuple[Results, list[object]]:
        engine = base or Base()
        readings = ExampleReadings(file)
        probe: Probe = ExampleProbe(ViewProbe(engine, digests, ProbeCache(0)), readings)
        ask: dict[str, Callable[[str], Awaitable[Tensor | Outputs | Activations]]] = {
            "features": probe.features,
            "chat": lambda text: probe.features(text, chat=True),
            "compare": lambda text: probe.compare(Prompt(text), [MIX], Window()),
            "activations": probe.activations,
        }
        found = [one for kind in kinds for one in await gather_all(ask[kind], texts)]
        again = [one for kind in kinds for one in await gather_all(ask[kind], texts)]
        assert_same(found, again)
        readings.save()
        return found, [asked[1] for asked in engine.asked]

    return asyncio.run(run())


def assert_same(one: Results, other: Results) -> None:
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        parts = [{"": x} if isinstance(x, Tensor) else vars(x) for x in (a, b)]
        assert parts[0].keys() == parts[1].keys()
        for x, y in zip(*(p.values() for p in parts), strict=True):
            if isinstance(x, Tensor):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
            else:
                assert x == y


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_start_reads_what_is_new_and_one_text_to_check(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "deep" / "file.safetensors"
    found, asked = start(file, kinds=[kind])
    assert sorted(asked) == sorted(TEXTS)  # type: ignore[type-var]
    again, asked = start(file, kinds=[kind])
    assert_same(found, again)
    assert asked == TEXTS[:1]
    _, asked = start(file, texts=[*TEXTS[1:], "new"], kinds=[kind])
    assert sorted(asked) == sorted([TEXTS[1], "new"])  # type: ignore[type-var]
    assert len(start(file, kinds=[kind])[1]) == 1, "what one start does not ask for is kept"


def test_what_is_too_much_goes_if_nobody_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_readings, "MOST_READINGS", 4)
    file = tmp_path / "file.safetensors"
    for texts in (TEXTS, ["a", "b"]):
        start(file, texts=texts, kinds=["features"])
    assert len(start(file, texts=["a", "b"], kinds=["features"])[1]) == 1
    _, asked = start(file, kinds=["features"])
    assert len(set(asked)) == 2, "one went, and one is read to check the file"
    many = [str(number) for number in range(6)]
    start(file, texts=many, kinds=["features"])
    assert len(start(file, texts=many, kinds=["features"])[1]) == 1, "what is asked for is kept"


def test_all_kinds_share_a_file_and_each_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    found, asked = start(file)
    assert len(asked) == len(KINDS) * len(TEXTS)
    again, asked = start(file)
    assert_same(found, again)
    assert asked == TEXTS[:1] * len(KINDS)


@pytest.mark.parametrize("kinds", [("features", "chat"), ("chat", "features")])
def test_another_chat_template_is_noticed_where_the_base_is_the_same(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    file = tmp_path / "file.safetensors"
    start(file, kinds=kinds)
    found, asked = start(file, Base(template=2.0), kinds=kinds)
    assert_same(found, start(None, Base(template=2.0), kinds=kinds)[0])
    assert len(asked) == len(TEXTS) + 1, "one bare text to check, and all in the template"


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_reads_all_anew(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file.safetensors"
    start(file, kinds=[kind])
    found, asked = start(file, Base(1.1), kinds=[kind])
    assert sorted(asked) == sorted(TEXTS)  # type: ignore[type-var]
    assert_same(found, start(None, Base(1.1), kinds=[kind])[0])
    assert len(start(file, Base(1.1 + 1e-6), kinds=[kind])[1]) == 1, "the same base another day"


def test_other_experts_have_readings_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    start(file, kinds=["compare", "activations"])
    others = {**DIGESTS, "b": "d3"}
    _, asked = start(file, kinds=["compare", "activations"], digests=others)
    assert asked.count(TEXTS[1]) == 1, "the mix is of an expert that is the same still"


@pytest.mark.parametrize("spoil", ["cut", "text", "folder", "older"])
def test_what_cannot_be_read_is_not_used(tmp_path: Path, spoil: str) -> None:
    file = tmp_path / "file.safetensors"
    start(file)
    if spoil == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif spoil == "text":
        file.write_text("no tensors", encoding="utf-8")
    elif spoil == "folder":
        file.unlink()
        file.mkdir()
    elif spoil == "older":
        save_file({"0" * 64: torch.ones(2)}, file)
    assert len(start(file)[1]) == len(KINDS) * len(TEXTS)


def test_without_a_file_nothing_is_checked() -> None:
    assert len(start(None)[1]) == len(KINDS) * len(TEXTS)


def test_a_base_is_told_by_its_files_and_by_what_readings_depend_on(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    weights = base / "model.safetensors"
    weights.write_bytes(b"12")
    first = find_file(tmp_path, base, [1, None])
    assert first == find_file(tmp_path, base, [1, None])
    found = {
        first,
        find_file(tmp_path, base, [2, None]),
        find_file(tmp_path, "hub/name", [1, None]),
    }
    weights.write_bytes(b"34")
    os.utime(weights, ns=(1, 1))
    found.add(find_file(tmp_path, base, [1, None]))
    assert len(found) == 4


def test_a_folder_keeps_the_latest_files(tmp_path: Path) -> None:
    for number in range(12):
        file = tmp_path / f"{number}.safetensors"
        start(file)
        os.utime(file, (number, number))
    left = sorted(int(file.stem) for file in tmp_path.iterdir())
    assert left == list(range(4, 12))
