"""What a search must know of a running server, which its management says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters.mix import MixRules
from tta_serve.config.access import AccessConfig
from tta_serve.config.sections import ExperimentsConfig, ServeConfig
from tta_serve.evaluation.arms import RequestFactory
from tta_serve.search.errors import SearchError


@dataclass(frozen=True)
class ServerFacts:
    """What a server serves, and what it allows."""

    config: Mapping[str, Any]
    """Its config, as `GET /admin/config` tells it."""
    digests: Mapping[str, str]
    """The digest of each expert, by name."""

    @property
    def requests(self) -> RequestFactory:
        """What makes requests for mixes."""
        return RequestFactory(self.config["model"]["id"], self.config["mix"]["max_experts"])

    @property
    def slots(self) -> int:
        """How many requests the engines take at once."""
        server = self.config["server"]
        return int(server["slots"] * server["replicas"])

    @property
    def default_policy(self) -> str:
        """The policy of requests that name none."""
        return str(self.config["default_policy"])

    @property
    def library(self) -> Path:
        """Where its experts are, on its machine."""
        return Path(self.config["library"]["path"])

    def make_rules(self, layers: int) -> MixRules:
        """Return what a mix may be, for a base of so many layers."""
        mix = self.config["mix"]
        names = frozenset(self.digests)
        return MixRules(
            names, layers, mix["grid"], mix["max_experts"], mix["minimum"], mix["maximum"]
        )

    def count_layers(self) -> int:
        """Return how many layers the base has, by its config.

        Raises:
            SearchError: It is not on this machine.
        """
        from transformers import AutoConfig

        from tta_serve.serving.experts.startup import source_of

        source = self.config["model"]["source"]
        try:
            found = AutoConfig.from_pretrained(str(source_of(source)))
        except (OSError, ValueError):
            raise SearchError(
                f"how many layers the base has is not known, as {source} is not on this machine;"
                " search by expert or component"
            ) from None
        return int(found.get_text_config().num_hidden_layers)


def read_facts(url: str, key: str) -> ServerFacts:
    """Ask a server for what a search must know.

    Raises:
        SearchError: It does not answer, or refuses.
    """
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            config, experts = (
                client.get(path).raise_for_status().json()
                for path in ("/admin/config", "/admin/experts")
            )
            return ServerFacts(config, experts["replicas"][0]["experts"])
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        why = "set TTA_ADMIN_KEY to the key that it was started with" if status == 401 else ""
        raise SearchError(f"{url} refused, status {status}; {why}".rstrip("; ")) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise SearchError(f"--url is http://HOST:PORT, got {url!r}") from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise SearchError(
            f"no such server answers at {url} ({error}); start one with `tta serve`"
        ) from None


def reduce_to_search(config: ServeConfig, experts: int) -> ServeConfig:
    """Return the config of an engine of a search's own.

    It has the default policy and what that falls back to, neither keys nor store, and allows all
    experts in one mix.
    """
    names = {"base", config.default_policy}
    names |= {config.policies[name].fallback for name in names}
    return config.model_copy(
        update={
            "access": AccessConfig(),
            "store": None,
            "experiments": ExperimentsConfig(),
            "policies": {name: config.policies[name] for name in sorted(names)},
            "mix": config.mix.model_copy(
                update={"max_experts": max(experts, config.mix.max_experts)}
            ),
        }
    )
