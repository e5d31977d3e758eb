"""Choose the replica that has a request's conversation, and so its mix and its cache."""

import hashlib
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class ConversationRouter(ConsistentHashRouter):  # type: ignore[misc]
    """Ray's consistent hashing, by the conversation where no session is named."""

    def _routing_key(self, pending_request: Any) -> str | None:
        if pending_request is not None and not pending_request.metadata.session_id:
            # HAProxy's router has read the body; Ray's own proxy passes it by.
            for body in pending_request.args[:1]:
                if isinstance(body, SimpleNamespace) and (key := conversation_key(vars(body))):
                    return key
        found: str | None = super()._routing_key(pending_request)
        return found


def conversation_key(body: Mapping[str, Any]) -> str | None:
    """Return what all turns of a conversation share: session, user, or the first messages.

    Of the messages those up to the first user turn count.

    None for a request that is in no conversation.
    """
    for name in ("session_id", "user"):
        if isinstance(body.get(name), str) and body[name]:
            return f"{name}:{body[name]}"
    messages = body.get("messages")
    first = []
    for message in messages if isinstance(messages, list) else ():
        first.append(message)
        if isinstance(message, Mapping) and message.get("role") == "user":
            text = json.dumps(first, sort_keys=True, default=str)
            return hashlib.sha256(text.encode()).hexdigest()
    return None
