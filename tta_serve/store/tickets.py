"""Request ids that only this server can have given out.

    ticket = ID.TIME.TAG

    TIME   when it was issued, UTC seconds since 1970, hexadecimal
    TAG    the first 128 bits, hexadecimal, of HMAC-SHA-256(secret, ID.TIME)
           (RFC 2104, truncated as in its section 5)

So an id that was never given out, and one that is too old, are known without asking the database,
where the request itself may not have arrived yet.
"""

import hmac
import secrets

from tta_serve.store import settings
from tta_serve.store.database import Database
from tta_serve.store.errors import TooLateError, UnknownError
from tta_serve.store.options import DAY_S

_TAG = 32  # hexadecimal digits


def secret_of(db: Database) -> bytes:
    """Return the server's secret, the same for every replica and after every start.

    It is made at the first call.
    """
    return bytes.fromhex(settings.get_or_put(db, "ticket_secret", secrets.token_hex(32)).value)


def issue(secret: bytes, request_id: str, now: float) -> str:
    """Return the ticket of a request, to be given to whoever may judge its answer.

    Args:
        now: UTC seconds since 1970.
    """
    stamped = f"{request_id}.{int(now):x}"
    return f"{stamped}.{_tag(secret, stamped)}"


def verify(secret: bytes, ticket: str, now: float, most_age_s: float) -> str:
    """Return the id of the request that a ticket is of.

    Raises:
        UnknownError: This server did not issue the ticket.
        TooLateError: It issued the ticket more than `most_age_s` seconds ago.
    """
    stamped, _, tag = ticket.rpartition(".")
    if not hmac.compare_digest(_tag(secret, stamped).encode(), tag.encode(errors="surrogatepass")):
        raise UnknownError("no request has this id; send the merge.request_id of an answer")
    request_id, _, issued = stamped.rpartition(".")
    if now - int(issued, 16) > most_age_s:
        raise TooLateError(
            f"the request is too old; outcomes are taken for {most_age_s / DAY_S:g} days"
        )
    return request_id


def _tag(secret: bytes, stamped: str) -> str:
    return hmac.new(secret, stamped.encode(errors="surrogatepass"), "sha256").hexdigest()[:_TAG]
