"""What experiments can fail with."""


class ExperimentError(ValueError):
    """An experiment is defined, changed or judged wrongly; the message says what would do."""
