"""What the store refuses, with the HTTP status that it becomes."""

from tta_serve.protocol import RequestError


class UnknownError(RequestError):
    """There is nothing of that name, or the server never gave out that id: 404."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


class ConflictError(RequestError):
    """Something else is already there: 409."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=409)


class TooLateError(RequestError):
    """The request is too old to be judged: 410."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=410)


class StaleError(RequestError):
    """It was changed since the version that the caller has seen; the message names the current one: 412."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=412)
