"""What clients hear of what the store refuses."""

import pytest

from tta_serve.serving.http.openai_errors import failure_of
from tta_serve.store.errors import (
    ConflictError,
    StaleError,
    StoreError,
    TooLateError,
    UnknownError,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UnknownError("nothing there"), 404, "not_found_error", "not_found"),
        (ConflictError("taken"), 409, "conflict", "conflict"),
        (TooLateError("too old"), 410, "invalid_request_error", "gone"),
        (StaleError("look again"), 412, "invalid_request_error", "precondition_failed"),
    ],
)
def test_each_refusal_of_the_store_has_a_status(
    error: StoreError, status: int, kind: str, code: str
) -> None:
    failure = failure_of(error)
    assert failure.status == status
    assert failure.body()["error"] == {
        "message": str(error),
        "type": kind,
        "param": None,
        "code": code,
    }


def test_no_refusal_of_the_store_is_forgotten() -> None:
    refusals = {UnknownError, ConflictError, TooLateError, StaleError}
    assert refusals == set(StoreError.__subclasses__())
