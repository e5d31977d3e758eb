"""Read a request's body: whole, bounded in time and size, unpacked, as JSON safe to hand on."""

import asyncio
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.types import Receive

from tta_serve.exceptions import RequestError

_DEEPEST = 128
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ClientLeft(Exception):
    """The connection was closed before the body was whole."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], most_bytes: int, within_s: float
) -> bytes:
    """A request's body, unpacked.

    Raises RequestError: 408, 413, or 415 for a content-encoding that is not gzip or deflate. Raises
    ClientLeft.
    """
    packed = headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("identity", *_WINDOWS):
        known = ", ".join(_WINDOWS)
        raise RequestError(
            f"content-encoding {packed[:40]!r} is not understood; these are: {known}", status=415
        )
    if (
        headers.get("content-length", "0").isdecimal()
        and int(headers.get("content-length", "0")) > most_bytes
    ):
        raise _too_large(most_bytes)
    try:
        async with asyncio.timeout(within_s):
            body = await _gather(receive, most_bytes)
    except TimeoutError:
        raise RequestError(
            f"the body did not come within {within_s:g} seconds", status=408
        ) from None
    return body if packed == "identity" else _unpacked(body, packed, most_bytes)


async def _gather(receive: Receive, most_bytes: int) -> bytes:
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise _too_large(most_bytes)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(f"the request body is larger than {most_bytes} bytes", status=413)


def _unpacked(body: bytes, packed: str, most_bytes: int) -> bytes:
    unpack = zlib.decompressobj(_WINDOWS[packed])
    try:
        whole = unpack.decompress(body, most_bytes + 1)
    except zlib.error:
        raise RequestError(f"the body is not {packed}, as content-encoding says") from None
    if len(whole) > most_bytes:
        raise _too_large(most_bytes)
    if not unpack.eof or unpack.unused_data:
        raise RequestError(f"the body is not whole {packed}, as content-encoding says")
    return whole


def read_json(body: bytes) -> Any:
    """The body's JSON.

    Raises RequestError for what is none, is nested too deeply, or has half of a character in it.
    """
    try:
        # Not `json.loads(body)`, which takes UTF-16 and 32 too, and halves of characters.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    _check_depth(value)
    if _ESCAPED_SURROGATE.search(body):
        _check_characters(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner for one in level for inner in _inside(one) if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested more than {_DEEPEST} levels deep")


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise RequestError(
            f"the body has half of a character in it, the surrogate {half}"
        ) from None
