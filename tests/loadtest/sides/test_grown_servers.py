"""The servers of `python -m loadtest growth`: each is the demo's but for what it says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.library.library import Library
from loadtest.sides.grown_servers import DEMO_SERVER, SERVERS, write_config
from tta_serve.config.loading import load
from tta_serve.serving.access.key_ring import KeyRing

KEY = "a" * 32


def read(name: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        write_config(name, folder / name, KEY).read_text(encoding="utf-8")
    )
    return found


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("experts_64", "library"),
        ("tenants_64", "access"),
        ("experiment", "store"),
        ("log_none", "server"),
        ("grid_0.01", "mix"),
        ("grid_0.25", "mix"),
    ],
)
def test_a_server_differs_from_the_demo_in_one_section(
    tmp_path: Path, name: str, section: str
) -> None:
    demo, other = read(DEMO_SERVER, tmp_path), read(name, tmp_path)
    keys = demo.keys() | other.keys()
    assert {key for key in keys if demo.get(key) != other.get(key)} == {section}
    load(tmp_path / name / "serve.yaml", {})


def test_all_servers_are_tested() -> None:
    assert len(SERVERS) == 7


def test_sixty_four_different_experts_are_served(tmp_path: Path) -> None:
    library = Library.open(read("experts_64", tmp_path)["library"]["path"])
    assert len(library.usable().names) == 64
    assert len({expert.digest for expert in library}) == 64
    assert all(library.examples(name) for name in library.names)
    config = load(tmp_path / "experts_64" / "serve.yaml", {})
    assert sum(max(f.rank for f in e.factors.values()) for e in library) <= (
        config.library.capacity.ranks
    )


def test_clients_have_the_key_of_one_tenant_of_many(tmp_path: Path) -> None:
    read("tenants_64", tmp_path)
    access = load(tmp_path / "tenants_64" / "serve.yaml", {}).access
    assert len(access.keys) == 64
    headers = {"authorization": f"Bearer {KEY}"}
    assert KeyRing(access, None).identify("/v1/completions", headers).label == "tenant-0"
