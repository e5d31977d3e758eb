"""`tta doctor`: all that is wrong in a library, a line each, and status 2 if something is."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from adapters.bank.layer_gates import LAYER_GATES, write_gates
from adapters.library.checkup import ROUTER
from adapters.library.library import Library
from router.artifacts import check_artifacts
from router.policies.pareto import FRONTS
from router.policies.recombined import ENTRY_SETS
from router.scoring.trained_gate import Gate, GateRecord, make_head
from tests.factories.experts import make_expert, make_gates, make_plain_base
from tta_serve.cli import machine_checkup
from tta_serve.cli.main import app
from tta_serve.evaluation.local_server import find_free_port


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of two experts, with gates of both kinds."""
    root = tmp_path_factory.mktemp("sound")
    base = make_plain_base(root / "base", 0)
    library = root / "library"
    make_expert(library / "plain", base, seed=0, layers=range(2), rank=2)
    make_expert(root / "sql", base, seed=1, layers=range(2), rank=2)
    add = ["experts", "add", str(root / "sql"), "--name=sql", f"--base={base}"]
    CliRunner().invoke(app, [*add, f"--library={library}"], catch_exceptions=False)
    opened = Library.open(library)
    write_gates(library / LAYER_GATES, make_gates(opened.experts), replace=False)
    record = GateRecord(opened.digests, 1, 0, 1.0, 0.5, {})
    Gate(record, torch.zeros(4), torch.ones(4), make_head(4, 0, 3)).save(library / ROUTER)
    return library


@pytest.fixture
def library(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "library")


def doctor(library: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["doctor", str(library), *more], catch_exceptions=False)


def test_a_sound_library_ends_with_status_0(library: Path) -> None:
    ended = doctor(library)
    assert (ended.exit_code, ended.stdout) == (0, "2 experts can be used; 0 things are wrong\n")
    found = json.loads(doctor(library, "--json").stdout)
    assert found["faults"] == []
    assert found["experts"] == Library.open(library).digests


def test_each_fault_is_a_line_with_what_to_do(library: Path) -> None:
    (library / "sql" / "v0001" / "weights-00001.safetensors").write_bytes(b"cut")
    (library / "away").symlink_to("nowhere")
    ended = doctor(library)
    assert ended.exit_code == 2
    header, *lines, last = ended.stdout.splitlines()
    assert header == "\twhere\twhat\twhat to do"
    assert {line.split("\t")[1] for line in lines} >= {"sql@1", "away"}
    assert all(len(line.split("\t")) == 4 and line.split("\t")[3] for line in lines)
    assert last.endswith("things are wrong")
    ended = doctor(library, "--json")
    assert ended.exit_code == 2
    assert {fault["place"] for fault in json.loads(ended.stdout)["faults"]} >= {"sql@1", "away"}


def test_what_was_made_for_experts_that_are_gone_or_damaged_is_found(library: Path) -> None:
    experts = Library.open(library).digests
    assert list(check_artifacts(library, experts)) == []
    gone = {fault.place: fault.what for fault in check_artifacts(library, {"sql": "0"})}
    assert gone["router/gate.json"] == "it was made of plain, gone since and sql, changed since"
    assert "2 of the 2 experts" in gone["router/layer-gates.safetensors"]

    (library / ROUTER / "gate.safetensors").write_bytes(b"cut")
    (library / LAYER_GATES).write_bytes(b"cut")
    (library / ROUTER / FRONTS).mkdir()
    (library / ROUTER / FRONTS / "front.json").write_text("{", encoding="utf-8")
    (library / ROUTER / ENTRY_SETS).mkdir()
    (library / ROUTER / ENTRY_SETS / "set.json").write_text("{", encoding="utf-8")
    (library / ROUTER / "notes.txt").touch()
    (library / ROUTER / ".DS_Store").touch()
    assert {fault.place for fault in check_artifacts(library, experts)} == {
        "router/gate.json",
        "router/layer-gates.safetensors",
        "router/fronts/front.json",
        "router/recombined/set.json",
        "router/notes.txt",
    }


def test_a_folder_that_is_no_library_is_one_message(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["doctor", str(tmp_path / "nowhere")])
    assert ended.exit_code != 0
    assert "no such folder" in str(ended.exception)


def write_config(root: Path, library: Path, **server: object) -> Path:
    config = root / "serve.yaml"
    said = {
        "model": {"id": "m", "source": str(library.parent / "base")},
        "library": {"path": str(library)},
        "default_policy": "base",
        "server": {"port": find_free_port(), **server},
    }
    config.write_text(yaml.safe_dump(said), encoding="utf-8")
    return config


def test_of_a_machine_it_says_what_would_stop_a_server(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(config: Path) -> dict[str, tuple[str, str]]:
        ran = CliRunner().invoke(app, ["doctor", "--json", "--config", str(config)])
        found = json.loads(ran.stdout)
        assert found["experts"] or "serve.yaml" in ran.stdout
        return {fault["place"]: (fault["grade"], fault["what"]) for fault in found["faults"]}

    assert not {grade for grade, _ in examine(write_config(tmp_path, sound)).values()} - {"note"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        grade, what = examine(write_config(tmp_path, sound, port=port))["server.port"]
    assert (grade, f"{port} cannot be listened on" in what) == ("wrong", True)
    grade, what = examine(write_config(tmp_path, sound, replicas=10_000))["memory"]
    assert (grade, "the server takes about" in what) == ("wrong", True)
    config = write_config(tmp_path, sound, slots=0)
    assert "server.slots" in examine(config)[str(config)][1]

    monkeypatch.setattr(machine_checkup, "version", lambda name: "0.0.1")
    ran = CliRunner().invoke(app, ["doctor", "--machine"])
    assert ran.exit_code == 2
    assert "0.0.1 is installed; this server is made for ==2.60.0" in " ".join(ran.stdout.split())
