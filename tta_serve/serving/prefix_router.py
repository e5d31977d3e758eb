"""Choose the replica that was asked the longest prefix of a prompt."""

from typing import Any

from ray.serve.llm.request_router import PrefixCacheAffinityRouter


class PrefixRouter(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """Ray's own choice, which reads chats and prompts alone.

    Requests of other shapes, which would fail there, go where there is room.
    """

    def _extract_text_from_request(self, pending_request: Any) -> str | None:
        try:
            text: str = super()._extract_text_from_request(pending_request)
        except ValueError:
            return None
        return text or None
