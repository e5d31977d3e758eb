"""Tickets: only their issuer's are taken, and only for a while."""

import hashlib
import pickle

import pytest

from tta_serve.store import tickets
from tta_serve.store.database import Database
from tta_serve.store.errors import TooLateError, UnknownError

SECRET = b"a secret of the server"


def test_the_tag_is_the_hmac_of_rfc_2104() -> None:
    key = SECRET.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"chatcmpl-1.3e8").digest()
    tag = hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()[:32]
    assert tickets.issue(SECRET, "chatcmpl-1", 1000.9) == f"chatcmpl-1.3e8.{tag}"


@pytest.mark.parametrize("request_id", ["chatcmpl-1", "a.b.c", "", "é/ü"])
def test_a_ticket_gives_its_id_back_until_it_is_old(request_id: str) -> None:
    ticket = tickets.issue(SECRET, request_id, 1000)
    assert tickets.verify(SECRET, ticket, 1000, 60) == request_id
    assert tickets.verify(SECRET, ticket, 1060, 60) == request_id
    # Issued by a replica whose clock is ahead.
    assert tickets.verify(SECRET, ticket, 900, 60) == request_id
    with pytest.raises(TooLateError):
        tickets.verify(SECRET, ticket, 1061, 60)


def test_a_ticket_with_any_character_changed_is_unknown() -> None:
    ticket = tickets.issue(SECRET, "chatcmpl-1", 1000)
    for i, old in enumerate(ticket):
        for new in {"0", "1", ".", "é", "\ud800", ""} - {old}:
            with pytest.raises(UnknownError):
                tickets.verify(SECRET, ticket[:i] + new + ticket[i + 1 :], 1000, 60)


@pytest.mark.parametrize(
    "ticket", ["", ".", "..", "chatcmpl-1", "chatcmpl-1.3e8.", f"chatcmpl-1.3e8.{'0' * 32}"]
)
def test_what_was_never_issued_is_unknown(ticket: str) -> None:
    with pytest.raises(UnknownError) as error:
        tickets.verify(SECRET, ticket, 1000, 60)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_ticket_of_another_server_is_unknown() -> None:
    with pytest.raises(UnknownError):
        tickets.verify(SECRET, tickets.issue(b"another secret", "chatcmpl-1", 1000), 1000, 60)


def test_the_secret_is_the_same_for_every_replica_and_start(url: str) -> None:
    found = []
    for _ in range(2):
        db = Database(url)
        found += [tickets.secret_of(db), tickets.secret_of(db)]
        db.close()
    assert len(set(found)) == 1
    assert len(found[0]) == 32
