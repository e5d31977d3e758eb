"""From a request to a mix, within the policy's deadline."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.mix import Mix
from router.policy import Context, Decision, Policy, Probe, Prompt
from router.table import create_policy
from tta_serve.catalog import Ask
from tta_serve.config import ServeConfig
from tta_serve.engine.client import ProbeError
from tta_serve.protocol import MergeInfo


@dataclass(frozen=True)
class Routed:
    """A request's mix and what its answer says about it."""

    mix: Mix
    info: MergeInfo


class Router:
    """The configured policies, ready to decide."""

    def __init__(self, config: ServeConfig, policies: dict[str, Policy], probe: Probe, digests: Mapping[str, str]) -> None:
        self._config = config
        self._policies = policies
        self._probe = probe
        self._digests = digests

    @classmethod
    async def create(cls, config: ServeConfig, context: Context, probe: Probe, digests: Mapping[str, str]) -> "Router":
        """Build every policy on the context; `probe` is for the requests. Raises RouterError."""
        policies = {n: await create_policy(p.type, p.options, context) for n, p in config.policies.items()}
        return cls(config, policies, probe, digests)

    async def route(self, ask: Ask, user_turn: str) -> Routed:
        """Decide; a policy that is late, or whose probe failed, is replaced by its named fallback."""
        start = time.perf_counter()
        fallback = None
        if ask.mix is not None:
            decision = Decision(ask.mix)
        else:
            assert ask.policy is not None
            try:
                decision = await self._decide(ask.policy, user_turn)
            except (TimeoutError, ProbeError):
                fallback = self._config.policies[ask.policy].fallback
                decision = await self._decide(fallback, user_turn)
        info = MergeInfo(
            policy=ask.label,
            experts=decision.mix.as_json(),
            mix="base" if decision.mix.is_base else decision.mix.key(self._digests)[:16],
            abstained=decision.abstained,
            fallback=fallback,
            router_ms=round((time.perf_counter() - start) * 1000, 3),
        )
        return Routed(decision.mix, info)

    async def _decide(self, name: str, user_turn: str) -> Decision:
        policy, limit = self._policies[name], self._config.policies[name].deadline_s
        return await asyncio.wait_for(policy.route(Prompt(user_turn), self._probe), limit)


def user_turn(request: Any, detokenize: Any) -> str:
    """What a policy reads: the text of a chat's last user turn, or a completion's prompt.

    A completion with several prompts is one request with one mix, so all of them count.
    """
    if hasattr(request, "messages"):
        turns = [m for m in request.messages if m.get("role") == "user"]
        return _content(turns[-1].get("content")) if turns else ""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], int):
        return str(detokenize(prompt))
    return "\n".join(p if isinstance(p, str) else detokenize(p) for p in prompt or ())


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or () if part.get("type") == "text")
