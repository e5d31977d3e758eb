"""An environment for each client, in the cache folder: made again when its pins change."""

import fcntl
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.demo.base import cache_root
from tests.clients.catalog import HERE, Client

ROOT = HERE.parent.parent
MAKE_LIMIT_S = 900
UV = Path(sys.executable).with_name("uv")
PINS = ("requirements.txt", "overrides.txt", "package.json")
MADE = ".made"


class EnvironmentFailed(RuntimeError):
    """A client's environment could not be made; the message is the last line of why."""


def place(client: Client) -> Path:
    """Where the client's environment is."""
    return cache_root() / "clients" / client.name


def job_command(client: Client) -> list[str]:
    """The command of the client's job, without the server's address; run it in the root folder."""
    where = ensure_environment(client)
    module = f"tests.clients.{client.name}.job"
    if (client.folder / "package.json").exists():
        for source in (HERE / "asked.mjs", client.folder / "job.mjs"):
            shutil.copy(source, where)
        return [str(where / "node_modules/.bin/node"), str(where / "job.mjs")]
    if (client.folder / "requirements.txt").exists():
        return [str(where / "bin/python"), "-m", module]
    return [sys.executable, "-m", module]


def version(client: Client) -> str:
    """The version that the client's pins name, or the project's own of a package that it has."""
    requirements = client.folder / "requirements.txt"
    if requirements.exists():
        pins = dict(
            re.findall(
                r"^([\w.-]+)(?:\[.*\])?==(\S+)", requirements.read_text(encoding="utf-8"), re.M
            )
        )
        return str(pins[client.package])
    manifest = client.folder / "package.json"
    if manifest.exists():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["dependencies"][client.package])
    for name in (client.package, f"{client.package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def ensure_environment(client: Client) -> Path:
    """Make the client's environment, unless it is there with the same pins; say where it is."""
    where, digest = place(client), pins_digest(client)
    where.parent.mkdir(parents=True, exist_ok=True)
    with locked(where.with_suffix(".lock")):
        made = where / MADE
        if not made.exists() or made.read_text(encoding="utf-8") != digest:
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir()
            make(client, where)
            made.write_text(digest, encoding="utf-8")
    return where


def pins_digest(client: Client) -> str:
    """Changes with what the environment is made of."""
    files = [client.folder / name for name in PINS]
    texts = [file.read_bytes() for file in files if file.exists()]
    parts = [sys.version.encode(), torch_pin().encode() if client.needs_torch else b"", *texts]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def make(client: Client, where: Path) -> None:
    """Fill an empty folder."""
    if (client.folder / "package.json").exists():
        shutil.copy(client.folder / "package.json", where)
        step(["npm", "install", "--omit=optional", "--no-package-lock", "--no-audit"], where)
    elif (client.folder / "requirements.txt").exists():
        make_python(client, where)


def make_python(client: Client, where: Path) -> None:
    """A virtual environment of this Python's version."""
    python = str(where / "bin/python")
    step([str(UV), "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(where)])
    install = [str(UV), "pip", "install", "--quiet", "--python", python]
    if client.needs_torch:
        install_torch(python)
        install += ["--override", str(client.folder / "overrides.txt")]
    step([*install, "-r", str(client.folder / "requirements.txt")])


def install_torch(python: str) -> None:
    """The CPU build of torch, from where the project's own set-up takes it."""
    pin = torch_pin()
    try:
        step([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", pin])
    except EnvironmentFailed:
        bare = pin.removesuffix("+cpu")
        options = ["--torch-backend", "cpu", "--python", python]
        step([str(UV), "pip", "install", "--quiet", *options, bare])


def torch_pin() -> str:
    """The CPU build of torch that the project locks."""
    lock = (ROOT / "deploy/setup/cpu.txt").read_text(encoding="utf-8")
    found = re.search(r"^torch==\S+", lock, re.M)
    if found is None:
        raise EnvironmentFailed("deploy/setup/cpu.txt locks no torch")
    return found.group()


def step(command: list[str], folder: Path = ROOT) -> None:
    """Run one command within the limit."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=MAKE_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(str(error)) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EnvironmentFailed(f"{command[0]}: {said[-1] if said else 'failed'}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file; the system lets go of it even if the process is killed."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
