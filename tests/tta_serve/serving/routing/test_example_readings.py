"""What is kept of example prompts: when a start uses it, and when it reads anew."""

import asyncio
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from router.probing import Probe, read_features
from tests.factories.counting_engine import CountingEngine
from tta_serve.serving.routing.example_readings import (
    CONTROLS,
    ExampleProbe,
    ExampleReadings,
    find_file,
)
from tta_serve.serving.routing.probe_cache import ProbeCache, ViewProbe

TEXTS = ["one", "three", "sixteen"]


class Base(CountingEngine):
    """A base that reads a text as its length times something, and in a template as more."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    async def features(self, text: str, *, chat: bool = False) -> Tensor:
        await self._ask("features", text, chat)
        return torch.tensor([len(text) * self.factor, 1.0 + chat])


def start(
    file: Path | None, base: Base | None = None, texts: list[str] = TEXTS, *, chat: bool = False
) -> tuple[Tensor, list[object]]:
    """Returns the features, and which texts the base was asked for apart from the controls."""

    async def run() -> tuple[Tensor, list[object]]:
        engine = base or Base()
        readings = ExampleReadings(file)
        await readings.open(engine.features, chat=chat)
        probe: Probe = ExampleProbe(ViewProbe(engine, {}, ProbeCache(1)), readings)
        features = await read_features(texts, probe, chat=chat)
        again = await read_features(texts, probe, chat=chat)
        assert torch.equal(features, again)
        readings.save()
        return features, [asked[1] for asked in engine.asked if asked[1] not in CONTROLS]

    return asyncio.run(run())


@pytest.mark.parametrize("chat", [False, True])
def test_the_next_start_reads_only_what_is_new(tmp_path: Path, chat: bool) -> None:
    file = tmp_path / "deep" / "file.safetensors"
    features, asked = start(file, chat=chat)
    assert sorted(asked) == sorted(TEXTS * (1 + chat))  # type: ignore[type-var]
    again, asked = start(file, chat=chat)
    assert torch.equal(features, again)
    assert asked == []
    _, asked = start(file, texts=[*TEXTS[1:], "new"], chat=chat)
    assert asked == ["new"] * (1 + chat)
    assert start(file, chat=chat)[1] == ["one"] * (1 + chat), "what no start asks for is forgotten"


def test_another_base_reads_all_anew(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    start(file)
    features, asked = start(file, Base(1.1))
    assert len(asked) == len(TEXTS)
    assert features[0, 0] == pytest.approx(3.3)
    assert not start(file, Base(1.1 + 1e-6))[1], "the same base on another day"


@pytest.mark.parametrize("spoil", ["cut", "text", "folder", "chat"])
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
    chat = spoil == "chat"
    assert len(start(file, chat=chat)[1]) == len(TEXTS) * (1 + chat)


def test_without_a_file_nothing_is_compared_nor_kept() -> None:
    base = Base()
    assert len(start(None, base)[1]) == len(base.asked) == len(TEXTS)


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
