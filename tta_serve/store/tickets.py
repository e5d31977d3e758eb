"""Request ids that only this server can have given out.

    ticket = ID.TIME.TAG    TIME: of issue, UTC seconds since 1970, hexadecimal
    TAG = the first 128 bits, hexadecimal, of HMAC-SHA-256(secret, ID.TIME)          (RFC 2104, truncated as in its section 5)

So an id that was never given out, and one that is too old, are known without asking the database, where the request itself
may not have arrived yet.
"""

import hmac
import secrets

from tta_serve.store import settings
from tta_serve.store.database import Database
from tta_serve.store.errors import TooLateError, UnknownError
from tta_serve.store.options import DAY_S

_TAG = 32


def secret_of(db: Database) -> bytes:
    """The server's secret: made at the first call, the same for every replica and after every start."""
    return bytes.fromhex(settings.first(db, "ticket_secret", secrets.token_hex(32)).value)


def issue(secret: bytes, request_id: str, now: float) -> str:
    """The ticket of a request, to be given to whoever may judge its answer. now: UTC seconds since 1970"""
    stamped = f"{request_id}.{int(now):x}"
    return f"{stamped}.{_tag(secret, stamped)}"


def verify(secret: bytes, ticket: str, now: float, most_age_s: float) -> str:
    """The request's id. Raises UnknownError if this server did not issue the ticket, TooLateError if it did so long ago."""
    stamped, _, tag = ticket.rpartition(".")
    if not hmac.compare_digest(_tag(secret, stamped).encode(), tag.encode(errors="surrogatepass")):
        raise UnknownError("no request has this id; send the merge.request_id of an answer")
    request_id, _, issued = stamped.rpartition(".")
    if now - int(issued, 16) > most_age_s:
        raise TooLateError(f"the request is too old; outcomes are taken for {most_age_s / DAY_S:g} days")
    return request_id


def _tag(secret: bytes, stamped: str) -> str:
    return hmac.new(secret, stamped.encode(errors="surrogatepass"), "sha256").hexdigest()[:_TAG]
