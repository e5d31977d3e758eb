"""What routing can fail with."""


class RouterError(ValueError):
    """A policy is configured wrongly; the message says what would have worked."""
