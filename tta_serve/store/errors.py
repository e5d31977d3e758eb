"""What the store refuses.

    StoreError
    ├── UnknownError     there is nothing of that name or id
    ├── ConflictError    something else is already there
    ├── TooLateError     the request is too old to be judged
    └── StaleError       it was changed meanwhile

The store knows nothing of HTTP; `tta_serve.serving.http.openai_errors` has the table of statuses.
"""


class StoreError(ValueError):
    """The store refuses something; the message says what is there instead."""


class UnknownError(StoreError):
    """There is nothing of that name, or the server never gave out that id."""


class ConflictError(StoreError):
    """Something else is already there."""


class TooLateError(StoreError):
    """The request is too old to be judged."""


class StaleError(StoreError):
    """It was changed since the version that the caller has seen; the message names the newest."""
