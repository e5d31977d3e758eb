"""The exceptions that all parts of the server share."""


class ConfigError(ValueError):
    """The config cannot be used; the message names the key and what is allowed."""


class StartError(RuntimeError):
    """The application did not start; the message is the last words of the part that failed."""


class RayEndedError(RuntimeError):
    """A process of Ray ended while the application ran, which only a new start brings back."""


class PromptFileError(ValueError):
    """Prompts to learn or measure with cannot be used; the message says which, and why."""


class RequestError(ValueError):
    """The client's mistake: becomes an OpenAI error with this status, message and parameter."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = headers
