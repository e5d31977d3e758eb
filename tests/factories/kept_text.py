"""A text that a test shares among what in a server are replicas."""


class MemoryText:
    """It lives as long as the test."""

    def __init__(self) -> None:
        self.text: bytes | None = None

    def read(self) -> bytes | None:
        return self.text

    def write(self, text: bytes) -> None:
        self.text = text
