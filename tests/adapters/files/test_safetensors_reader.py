"""Files from others: read exactly, or refused before their data are touched."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapters.errors import ExpertError, LibraryError
from adapters.files.safetensors_reader import DTYPES as DTYPE_NAMES
from adapters.files.safetensors_reader import (
    FOREIGN_BITS,
    TensorFile,
    check_size,
    confine,
    index_tensors,
)

DTYPES = (
    *(
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.complex64,
    ),
    *(
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
    ),
)


def made(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file of safetensors' layout with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(
    dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)], ids=str)
def test_what_safetensors_saves_is_read_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"x": values, "y": torch.ones(3)}, tmp_path / "f.safetensors", {"key": "value"})
    file = TensorFile.open(tmp_path / "f.safetensors")
    assert file.shapes == {"x": shape, "y": (3,)}
    assert file.dtypes == {"x": dtype, "y": torch.float32}
    assert file.metadata == {"key": "value"}
    read = file.read("x")
    assert read.dtype == dtype
    assert read.shape == shape
    assert read.reshape(-1).view(torch.uint8).equal(values.reshape(-1).view(torch.uint8))
    assert file.read("y").equal(torch.ones(3))


def test_every_dtype_that_safetensors_knows_is_known(tmp_path: Path) -> None:
    """Its own error, of a dtype that it does not know, lists them."""
    made(tmp_path / "f.safetensors", {"x": entry("F31")}, bytes(8))
    with pytest.raises(Exception, match="expected one of") as error:
        safe_open(tmp_path / "f.safetensors", "pt")
    listed = str(error.value).partition("expected one of")[2]
    assert set(re.findall(r"`(\w+)`", listed)) == DTYPE_NAMES.keys() | FOREIGN_BITS.keys()


@pytest.mark.parametrize(("kind", "bits"), FOREIGN_BITS.items())
def test_a_dtype_that_torch_does_not_have_is_known_by_its_shape(
    tmp_path: Path, kind: str, bits: int
) -> None:
    path = made(tmp_path / "f.safetensors", {"x": entry(kind, [4, 8], [0, 4 * bits])})
    path.write_bytes(path.read_bytes() + bytes(range(4 * bits)))
    safe_open(path, "pt")
    file = TensorFile.open(path)
    assert file.shapes == {"x": (4, 8)}
    assert file.dtypes == {"x": kind}
    assert file.read_bytes("x").tolist() == list(range(4 * bits))
    with pytest.raises(ExpertError, match=f"x has the dtype {kind}, of which torch has no"):
        file.read("x")
    made(path, {"x": entry(kind, [4, 8], [0, 4 * bits - 1])}, bytes(4 * bits - 1))
    with pytest.raises(ExpertError, match=f"lies in {4 * bits - 1} bytes"):
        TensorFile.open(path)


def test_scales_of_whole_powers_are_read(tmp_path: Path) -> None:
    made(tmp_path / "f.safetensors", {"x": entry("F8_E8M0", [2], [0, 2])}, bytes([127, 128]))
    read = TensorFile.open(tmp_path / "f.safetensors").read("x")
    assert read.float().tolist() == [1.0, 2.0]


def test_a_tensor_is_the_callers_own(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "f.safetensors")
    file = TensorFile.open(tmp_path / "f.safetensors")
    file.read("x").zero_()
    assert file.read("x").equal(torch.ones(3))


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", b"", "cannot be read"),
        (b"[" * 100_000, b"", "cannot be read"),
        ([], b"", "no JSON object"),
        (b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8), "twice"),
        ({"x": []}, b"", "no dtype, shape and data_offsets"),
        ({"x": entry(more=1)}, bytes(8), "no dtype, shape and data_offsets"),
        ({"x": entry("F31")}, bytes(8), "unknown dtype 'F31'"),
        ({"x\ny": entry()}, bytes(8), r"'x\ny' is no name"),
        ({"\ud800": entry()}, bytes(8), r"'\ud800' is no name"),
        ({"x": entry("F\n32")}, bytes(8), r"unknown dtype 'F\n32'"),
        ({"x": entry(["F32"])}, bytes(8), "unknown dtype"),  # type: ignore[arg-type]
        ({"x": entry(shape=[-2])}, bytes(8), "the shape [-2]"),
        ({"x": entry(shape=[2.0])}, bytes(8), "the shape [2.0]"),
        ({"x": entry(shape=[True, 2])}, bytes(8), "the shape [True, 2]"),
        ({"x": entry(offsets=[0])}, bytes(8), "the offsets [0]"),
        ({"x": entry(offsets=[0, 4])}, bytes(8), "lies in 4 bytes"),
        ({"x": entry(offsets=[8, 0])}, bytes(8), "lies in -8 bytes"),
        ({"x": entry(shape=[1 << 62, 1 << 62])}, bytes(8), "lies in 8 bytes"),
        ({"x": entry(), "y": entry()}, bytes(8), "starts at byte"),
        ({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12), "starts at byte"),
        ({"x": entry(), "y": entry(offsets=[12, 20])}, bytes(20), "starts at byte"),
        ({"x": entry(offsets=[4, 12])}, bytes(12), "starts at byte"),
        ({"x": entry()}, bytes(7), "its tensors end"),
        ({"x": entry()}, bytes(9), "its tensors end"),
        ({"__metadata__": {"x": 1}}, b"", "no strings"),
        ({"__metadata__": []}, b"", "no strings"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: object, data: bytes, says: str
) -> None:
    path = made(tmp_path / "f.safetensors", header, data)
    with pytest.raises(ExpertError) as error:
        TensorFile.open(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [3, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ExpertError, match="its header is said to have"):
        TensorFile.open(made(tmp_path / "f.safetensors", b"{}", length=length))


def test_a_header_over_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = made(tmp_path / "f.safetensors", b"{}", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(200_000_000)
    with pytest.raises(ExpertError, match="its header is said to have 100000001 bytes"):
        TensorFile.open(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.safetensors").write_bytes(content)
    with pytest.raises(ExpertError, match="its header is said to have"):
        TensorFile.open(tmp_path / "f.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match="nowhere"):
        TensorFile.open(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExpertError, match="pickle, which can run code"):
        TensorFile.open(tmp_path / name)


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({"x": torch.ones(100)}, path)
    file = TensorFile.open(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ExpertError, match="ends inside x"):
        file.read("x")


def test_size_limits(tmp_path: Path) -> None:
    path = made(tmp_path / "f.safetensors", {})
    assert check_size(path, 10) == 10
    with pytest.raises(ExpertError, match="has 10 bytes; at most 9"):
        check_size(path, 9)
    with pytest.raises(ExpertError, match="at most 9"):
        TensorFile.open(path, max_bytes=9)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"x": torch.ones(1), f"y{name}": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    a, b = (TensorFile.open(tmp_path / f"{name}.safetensors") for name in "ab")
    assert index_tensors([a]) == {"x": a, "ya": a}
    with pytest.raises(ExpertError, match=r"x is in .*a\.safetensors and in .*b\.safetensors"):
        index_tensors([a, b])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "a\0b",
            "a\n",
            ".hidden",
            "-x",
            "a b",
            "a" * 65,
        ),
        *("\u0430bc", "a\u2215b", "\uff0e\uff0e", "a\u200bb", "caf\u00e9"),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LibraryError, match="letters, digits"):
        confine(tmp_path, name)


def test_plain_names_stay_below_the_root(tmp_path: Path) -> None:
    for name in ("sql", "a.b-c_d", "model-00001-of-00002.safetensors", "a" * 64, "a..b"):
        assert confine(tmp_path, name) == tmp_path / name


def test_links_may_lead_within_the_root_but_not_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("", encoding="utf-8")
    (root / "own").write_text("", encoding="utf-8")
    (root / "in").symlink_to("own")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("../secret")
    (root / "chain").symlink_to("out")
    assert confine(root, "in") == root / "in"
    for name in ("out", "up", "chain"):
        with pytest.raises(LibraryError, match="leads out"):
            confine(root, name)


def test_the_hub_cache_links_to_its_own_blobs_only(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_text("", encoding="utf-8")
    (tmp_path / "secret").write_text("", encoding="utf-8")
    (snapshot / "file").symlink_to("../../blobs/123")
    (snapshot / "out").symlink_to(tmp_path / "secret")
    assert confine(snapshot, "file") == snapshot / "file"
    deep = snapshot / "sql" / "v2"
    deep.mkdir(parents=True)
    (deep / "file").symlink_to("../../../../blobs/123")
    (deep / "beside").symlink_to("../../file")
    (deep / "out").symlink_to("../../../../../secret")
    assert confine(deep, "file") == deep / "file"
    assert confine(deep, "beside") == deep / "beside"
    for place in (snapshot, deep):
        with pytest.raises(LibraryError, match="leads out"):
            confine(place, "out")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x")
    with pytest.raises((LibraryError, ExpertError), match="x"):
        TensorFile.open(confine(tmp_path, "x"))
