"""Bodies: whole, within a time and a size, unpacked, and JSON that is safe to hand on."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from tests.factories.asgi import receiving
from tta_serve.exceptions import RequestError
from tta_serve.serving.http.body import ClientLeft, read_body, read_json

MOST = 64 * 1024


def read(*parts: bytes, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(read_body(receiving(*parts), named, MOST, 5))


def refused(*parts: bytes, **headers: str) -> RequestError:
    with pytest.raises(RequestError) as error:
        read(*parts, **headers)
    return error.value


# How a body comes.


def test_a_body_is_its_parts() -> None:
    assert read(b"one ", b"", b"two") == b"one two"
    assert read() == b""
    assert read(b"x" * MOST) == b"x" * MOST


def test_a_body_that_is_too_large_is_413_however_it_comes() -> None:
    said = refused(b"{}", content_length=str(MOST + 1))
    assert said.status == 413
    assert str(MOST) in str(said)
    for parts in ([b"x" * (MOST + 1)], [b"x" * 1024] * 65):
        assert refused(*parts).status == 413
        assert refused(*parts, content_length="2").status == 413, "it said that it was smaller"


def test_of_a_body_that_is_too_large_no_more_is_read() -> None:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1024, "more_body": True}

    with pytest.raises(RequestError, match="larger"):
        asyncio.run(read_body(receive, {}, MOST, 5))
    assert taken == 65


@pytest.mark.parametrize("length", ["", "-1", "x", "1e9", "½"])
def test_a_length_that_is_none_is_passed_over(length: str) -> None:
    assert read(b"{}", content_length=length) == b"{}"


def test_a_slow_body_is_408_after_its_time() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(RequestError, match=r"within 0\.1 seconds") as error:
        asyncio.run(read_body(receive, {}, MOST, 0.1))
    assert error.value.status == 408


def test_a_client_that_leaves_in_its_body_is_no_error() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientLeft):
        asyncio.run(read_body(receive, {}, MOST, 5))


# Packed bodies.


@pytest.mark.parametrize(
    ("packed", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), (" GZip ", gzip.compress)],
)
def test_a_packed_body_is_unpacked(packed: str, pack: Any) -> None:
    body = json.dumps({"prompt": "ü" * 999}).encode()
    whole = pack(body)
    assert read(whole, content_encoding=packed) == body
    assert (
        read(*(whole[i : i + 7] for i in range(0, len(whole), 7)), content_encoding=packed) == body
    )
    assert read(pack(b"x" * MOST), content_encoding=packed) == b"x" * MOST


def test_a_body_may_say_that_it_is_not_packed() -> None:
    assert read(b"{}", content_encoding="identity") == b"{}"


@pytest.mark.parametrize("packed", ["br", "zstd", "gzip, gzip", "x-gzip", "", "ÿ", "x" * 5000])
def test_another_encoding_is_415_and_names_those_there_are(packed: str) -> None:
    said = refused(b"{}", content_encoding=packed)
    assert said.status == 415
    assert "gzip, deflate" in str(said)
    assert len(str(said)) < 200


@pytest.mark.parametrize(("packed", "bits"), [("gzip", 31), ("deflate", 15)])
def test_a_bomb_is_413_and_never_unpacked(packed: str, bits: int) -> None:
    pack = zlib.compressobj(9, zlib.DEFLATED, bits)
    bomb = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(48)), pack.flush()])
    assert len(bomb) < MOST
    tracemalloc.start()
    try:
        assert refused(bomb, content_encoding=packed).status == 413
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("packed", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_what_is_not_whole_or_something_else_is_400(packed: str, pack: Any) -> None:
    whole = pack(b'{"a": 1}' * 20)
    for body in (
        b"",
        b"{}",
        whole[:-1],
        whole[:-9],
        whole[:3],
        whole + b"x",
        whole + whole,
        b"\x00" + whole,
    ):
        said = refused(body, content_encoding=packed)
        assert said.status == 400
        assert packed in str(said)
    broken = bytearray(whole)
    broken[-2] ^= 0xFF
    assert refused(bytes(broken), content_encoding=packed).status == 400, "its check sum"


# JSON.


def not_json(body: bytes) -> str:
    with pytest.raises(RequestError) as error:
        read_json(body)
    assert error.value.status == 400
    assert len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize(
    "value", [{}, [], 0, "x", None, {"a": [1.5, -2e-9, "ü😀\x7f", {"": True}]}, {"a": "\\ud800"}]
)
def test_json_is_read(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(JSON, st.booleans())
def test_all_json_is_read_as_it_is(value: Any, escaped: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    value: Any = None
    with suppress(RequestError):
        value = read_json(body)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def test_a_byte_order_mark_may_stand_before_it() -> None:
    assert read_json(b"\xef\xbb\xbf" + '{"a": "ü"}'.encode()) == {"a": "ü"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'a': 1}", b"{} {}", b"nul", b'{"a": 01}', b'{"a": "\n"}', b"\x00"]
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    assert "not JSON" in not_json(body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_400(number: str) -> None:
    for body in (number, f'{{"temperature": {number}}}', f'{{"a": [[{number}]]}}'):
        assert f"{number} is no number of JSON" in not_json(body.encode())


def test_an_integer_of_thousands_of_digits_is_400() -> None:
    assert "not JSON" in not_json(b'{"seed": ' + b"1" * 5000 + b"}")


def test_latin_1_is_400() -> None:
    assert "not UTF-8" in not_json('{"prompt": "é"}'.encode("latin-1"))


@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_a_body_may_be_nested_128_levels_deep(opens: str, closes: str) -> None:
    def nested(levels: int) -> bytes:
        return (opens * levels + "1" + closes * levels).encode()

    read_json(nested(128))
    for levels in (129, 1000, 100_000):
        assert "more than 128 levels" in not_json(nested(levels))


def test_a_broad_body_is_not_a_deep_one() -> None:
    value = {"a": [[1], [2], {"b": [3]}] * 20_000}
    assert read_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\ud800"}',
        b'{"a": "\\uDFFF x"}',
        b'{"a": [["\\udc00\\ud800"]]}',
        b'{"\\ud800": 1}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": "\\ud800"}'.encode("utf-16"),
    ],
    ids=["high", "low", "the-wrong-way-round", "in-a-name", "as-bytes", "in-utf-16"],
)
def test_half_of_a_character_is_400(body: bytes) -> None:
    not_json(body)


def test_both_halves_of_a_character_are_one() -> None:
    assert read_json(b'{"a": "\\ud83d\\ude00 \\\\ud800"}') == {"a": "😀 \\ud800"}
