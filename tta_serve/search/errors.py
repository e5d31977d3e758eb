"""What can go wrong with a search."""


class SearchError(ValueError):
    """A search cannot be made as it was asked for; the message says what would be possible."""
