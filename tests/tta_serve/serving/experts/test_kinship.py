"""Which experts are compared, and when they are compared anew."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch

from adapters.expert import Expert, LowRank
from adapters.files.peft import write_peft
from tta_serve.serving.experts import kinship
from tta_serve.serving.experts.kinship import Kinship

MODULE = "model.layers.0.mlp.up_proj"


def write(root: Path, name: str, *, sign: float = 1) -> str:
    """Write an expert that changes one weight, and return its digest."""
    a = torch.linspace(-1, 1, 8).reshape(2, 4)
    expert = Expert(name, {MODULE: LowRank(a, sign * torch.ones(3, 2))})
    write_peft(expert, root / name, "base")
    return expert.digest


def test_the_experts_that_are_served_are_compared_by_name(tmp_path: Path) -> None:
    digests = {name: write(tmp_path, name, sign=s) for name, s in (("b", -1), ("a", 1))}
    found = asyncio.run(Kinship(tmp_path).find(digests))
    assert found == {"experts": ["a", "b"], "cosines": [[1, -1], [-1, 1]], "left_out": {}}


def test_what_the_folder_holds_no_more_is_left_out_and_named(tmp_path: Path) -> None:
    digests = {"a": write(tmp_path, "a"), "gone": "0" * 64}
    shutil.rmtree(tmp_path / "a")
    write(tmp_path, "a", sign=2)
    found = asyncio.run(Kinship(tmp_path).find(digests))
    assert found["experts"] == []
    assert "other weights" in found["left_out"]["a"]
    assert "no expert 'gone'" in found["left_out"]["gone"]


def test_it_is_measured_once_for_each_state_of_what_is_served(tmp_path: Path) -> None:
    async def ask() -> None:
        found = Kinship(tmp_path)
        one = {"a": write(tmp_path, "a")}
        first = await found.find(one)
        assert await found.find(dict(one)) is first
        both = {**one, "b": write(tmp_path, "b")}
        assert (await found.find(both))["experts"] == ["a", "b"]

    asyncio.run(ask())


def test_no_more_are_compared_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {name: write(tmp_path, name) for name in ("a", "b", "c")}
    monkeypatch.setattr(kinship, "MOST_EXPERTS", 2)
    found = asyncio.run(Kinship(tmp_path).find(digests))
    assert found["experts"] == ["a", "b"]
    assert list(found["left_out"]) == ["c"]
