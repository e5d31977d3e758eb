"""Our server with the demo, and with one thing of its config otherwise."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.library.library import EXAMPLES_FILE
from loadtest.common.copies import copy_expert
from loadtest.common.workload import EXPERTS
from loadtest.sides.servers import read_demo_config

EXPERIMENT = {
    "arms": [{"name": name, "policy": "inline"} for name in ("control", "same")],
    "control": "control",
    "metrics": {"primary": {"name": "score", "kind": "share"}},
}
"""The experiment of a server that has one: both arms do what the demo does."""
_MANY = 64  # experts, and tenants
Config = dict[str, Any]


@dataclass(frozen=True)
class GrownServer:
    """One way of serving the demo."""

    change: Callable[[Config, Path, str], None]
    """Changes the config, given a folder of the server's own and the key of its clients."""
    experiment: bool = False
    """Whether an experiment runs, whose arms are both the default policy."""


def _keep(config: Config, folder: Path, key: str) -> None:
    """Change nothing."""


def _add_experts(config: Config, folder: Path, key: str) -> None:
    """Copy the library, and its experts a little changed, until there are 64.

    Their example prompts are like nothing that is asked, so that the same experts answer as before.
    """
    library = folder / "experts"
    shutil.copytree(EXPERTS, library)
    own = sorted(path.parent for path in library.glob("*/adapter_config.json"))
    for number in range(_MANY - len(own)):
        expert = own[number % len(own)]
        copy = library / f"{expert.name}-{number}"
        copy_expert(expert, copy, 1 + 1e-3 * (number + 1))
        lines = (f"Department {line} wants its report signed." for line in range(8))
        (copy / EXAMPLES_FILE).write_text("\n".join(lines), encoding="utf-8")
    config["library"]["path"] = str(library)


def _add_tenants(config: Config, folder: Path, key: str) -> None:
    keys = [key, *(secrets.token_hex(16) for _ in range(_MANY - 1))]
    config["access"] = {
        "keys": {
            f"tenant-{number}": {"sha256": hashlib.sha256(own.encode()).hexdigest()}
            for number, own in enumerate(keys)
        }
    }


def _add_store(config: Config, folder: Path, key: str) -> None:
    config["store"] = {"url": f"sqlite:///{folder / 'store.db'}"}


def _write_no_log(config: Config, folder: Path, key: str) -> None:
    config["server"] = {"log": {"format": "none"}}


def _set_grid(grid: float) -> Callable[[Config, Path, str], None]:
    def change(config: Config, folder: Path, key: str) -> None:
        config["mix"] = {"grid": grid}

    return change


DEMO_SERVER = "demo"
SERVERS = {
    DEMO_SERVER: GrownServer(_keep),
    "experts_64": GrownServer(_add_experts),
    "tenants_64": GrownServer(_add_tenants),
    "experiment": GrownServer(_add_store, experiment=True),
    "log_none": GrownServer(_write_no_log),
    "grid_0.01": GrownServer(_set_grid(0.01)),
    "grid_0.25": GrownServer(_set_grid(0.25)),
}


def write_config(name: str, folder: Path, key: str) -> Path:
    """Write the config of a server, and what belongs to it, to a folder of its own.

    Args:
        name: One of `SERVERS`.
        folder: The folder; it must not be there.
        key: What clients say, where there are keys.
    """
    folder.mkdir()
    config = read_demo_config(("inline", "retrieval-top3"))
    SERVERS[name].change(config, folder, key)
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file
