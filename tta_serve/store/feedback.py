"""Outcomes as they come back from users: late, early, twice, or for requests that never were."""

import time
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from sqlalchemy import select

from tta_serve.store import tickets
from tta_serve.store.database import Database
from tta_serve.store.errors import ConflictError
from tta_serve.store.measures import BUILT_IN
from tta_serve.store.records import Outcome
from tta_serve.store.schema import outcomes

IdempotencyKey = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")]


class Feedback(BaseModel):
    """The body of POST /v1/feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(min_length=1, max_length=512)
    """The ticket that the answer gave as its `merge.request_id`."""
    metric: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")
    """Any name but those of what the server measures itself."""
    value: float = Field(allow_inf_nan=False)

    @field_validator("metric")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if value in BUILT_IN:
            raise ValueError(
                f"the server measures {', '.join(BUILT_IN)} itself; choose another name"
            )
        return value


def take(
    db: Database, secret: bytes, feedback: Feedback, key: IdempotencyKey | None, most_age_s: float
) -> Outcome:
    """Store an outcome, whether or not its exposure is there yet.

    Args:
        key: The header Idempotency-Key; there is one set of keys for the whole database.

    Returns:
        The outcome as stored, which for one that was stored before is the first one.

    Raises:
        UnknownError: The request id is forged, found without a look at the database.
        TooLateError: The request is old, found without a look at the database.
        ConflictError: Another outcome is already there.
    """
    now = time.time()
    request_id = tickets.verify(secret, feedback.request_id, now, most_age_s)
    return record(db, Outcome(request_id, feedback.metric, feedback.value, now, key))


def record(db: Database, outcome: Outcome) -> Outcome:
    """Store an outcome that is known to be of a real request.

    Returns:
        The outcome as stored, with the time at which it was stored first.

    Raises:
        ConflictError: The request has another value or key in this metric, or the key was used for
            something else.
    """
    with db.write() as connection:
        new = (
            db.insert(outcomes)
            .values(vars(outcome))
            .on_conflict_do_nothing()
            .returning(outcomes.c.request_id)
        )
        if connection.execute(new).first() is not None:
            return outcome
        same = (outcomes.c.request_id == outcome.request_id) & (outcomes.c.metric == outcome.metric)
        row = connection.execute(select(outcomes).where(same)).one_or_none()
    if row is None:
        raise ConflictError("the Idempotency-Key was used for another outcome; take a new one")
    stored = Outcome(*row)
    if replace(outcome, time=stored.time) != stored:
        raise ConflictError(
            f"the request has {outcome.metric} {stored.value:g} already, and outcomes are not"
            " changed"
        )
    return stored
