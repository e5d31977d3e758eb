"""Outcomes: once each, whenever they come, and for nothing that was never answered."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import event

from tests.factories.exposures import exposure, read_exposures
from tta_serve.store import exposures, feedback, tickets
from tta_serve.store.database import Database
from tta_serve.store.errors import ConflictError, TooLateError, UnknownError
from tta_serve.store.feedback import Feedback, IdempotencyKey
from tta_serve.store.options import DAY_S
from tta_serve.store.records import Outcome, Span

SECRET = b"a secret of the server"


def _ticket(request_id: str, age_s: float = 0) -> str:
    return tickets.issue(SECRET, request_id, time.time() - age_s)


def _take(
    db: Database, ticket: str, value: float, key: str | None = None, metric: str = "score"
) -> Outcome:
    return feedback.take(
        db, SECRET, Feedback(request_id=ticket, metric=metric, value=value), key, DAY_S
    )


def _stored(db: Database, metric: str = "score") -> dict[str, float | None]:
    return {row.request_id: value for row, value in read_exposures(db, Span("routing"), metric)}


@pytest.mark.parametrize("early", [True, False])
def test_it_may_come_before_or_after_its_exposure(db: Database, early: bool) -> None:
    if not early:
        exposures.write(db, [exposure(request_id="a")])
    before = time.time()
    taken = _take(db, _ticket("a", age_s=DAY_S - 60), 0.5, "key")
    assert before <= taken.time <= time.time()
    assert taken == Outcome("a", "score", 0.5, taken.time, "key")
    if early:
        exposures.write(db, [exposure(request_id="a")])
    assert _stored(db) == {"a": 0.5}
    assert _stored(db, "clicks") == {"a": None}


@pytest.mark.parametrize("key", ["key", None])
def test_the_same_again_is_answered_as_the_first_time(db: Database, key: str | None) -> None:
    exposures.write(db, [exposure(request_id="a")])
    first = _take(db, _ticket("a"), 0.1, key)
    assert _take(db, _ticket("a", age_s=5), 0.1, key) == first
    assert _stored(db) == {"a": 0.1}


def test_the_same_many_times_at_once_is_stored_once(db: Database) -> None:
    ticket = _ticket("a")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: _take(db, ticket, 0.1, "key"), range(16)))) == 1


@pytest.mark.parametrize(
    ("another", "says"),
    [
        (Outcome("a", "score", 0.2, 5.0), "the request has score 0.1 already"),
        (Outcome("a", "score", 0.1, 5.0), "the request has score 0.1 already"),
        (Outcome("a", "score", 0.2, 5.0, "another"), "the request has score 0.1 already"),
        (Outcome("a", "score", 0.1, 5.0, "another"), "the request has score 0.1 already"),
        (Outcome("a", "score", 0.2, 5.0, "key"), "the request has score 0.1 already"),
        (Outcome("b", "score", 0.1, 5.0, "key"), "Idempotency-Key was used for another outcome"),
        (Outcome("a", "clicks", 0.1, 5.0, "key"), "Idempotency-Key was used for another outcome"),
    ],
)
def test_what_contradicts_the_first_is_refused(db: Database, another: Outcome, says: str) -> None:
    exposures.write(db, [exposure(request_id="a"), exposure(request_id="b")])
    feedback.record(db, Outcome("a", "score", 0.1, 4.0, "key"))
    with pytest.raises(ConflictError, match=says):
        feedback.record(db, another)
    assert (_stored(db), _stored(db, "clicks")) == ({"a": 0.1, "b": None}, {"a": None, "b": None})


def test_others_without_a_key_do_not_get_in_the_way(db: Database) -> None:
    exposures.write(db, [exposure(request_id="a"), exposure(request_id="b")])
    for request_id, metric, value in (("a", "score", 1), ("a", "clicks", 2), ("b", "score", 3)):
        assert _take(db, _ticket(request_id), value, None, metric).value == value
    assert (_stored(db), _stored(db, "clicks")) == ({"a": 1, "b": 3}, {"a": 2, "b": None})


def test_a_forged_or_old_id_is_refused_without_a_look_at_the_database(db: Database) -> None:
    statements: list[str] = []
    event.listen(db._engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    with pytest.raises(UnknownError):
        _take(db, "chatcmpl-1", 0.5)
    with pytest.raises(TooLateError, match="taken for 1 days"):
        _take(db, _ticket("a", age_s=DAY_S + 5), 0.5)
    assert statements == []
    _take(db, _ticket("a"), 0.5)
    assert statements


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": float("nan")}, "finite"),
        ({"value": float("inf")}, "finite"),
        ({"value": "1"}, "number"),
        ({"value": True}, "number"),
        ({"metric": "total_ms"}, "the server measures total_ms, .*error, abstained itself"),
        ({"metric": "error"}, "choose another name"),
        ({"metric": "a\n"}, "pattern"),
        ({"metric": "a" * 65}, "pattern"),
        ({"request_id": "a" * 513}, "512"),
        ({"comment": "nice"}, "not permitted"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(change: dict[str, object], says: str) -> None:
    good = {"request_id": "a", "metric": "score", "value": 1}
    assert Feedback.model_validate(good).value == 1.0
    with pytest.raises(ValidationError, match=says):
        Feedback.model_validate({**good, **change})


@pytest.mark.parametrize("key", ["", "a b", "é", "a\n", "a" * 256])
def test_a_key_that_no_header_should_have_is_refused(key: str) -> None:
    keys = TypeAdapter(IdempotencyKey)
    assert keys.validate_python("8e03978e-40d5-43dd-bc93-6894a57f9324")
    with pytest.raises(ValidationError):
        keys.validate_python(key)
