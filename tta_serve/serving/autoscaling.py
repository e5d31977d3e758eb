"""How many replicas a load wants. Ray's controller asks, so nothing of the server is imported."""

from typing import Any

CACHE_IN_USE = "cache_in_use"
"""What replicas report beside their requests: the share of the cache that requests hold."""


class ReplicasForLoad:
    """Ray's autoscaling policy: as many as keep the requests and the cache of each at a target.

    Where both are targets, the one that wants more replicas decides.

    Args:
        requests: Of one replica, running and waiting.
        cache: The share of its cache of keys and values; None not to look at it.
    """

    def __init__(self, requests: float, cache: float | None = None) -> None:
        self._requests = requests
        self._cache = cache

    def __call__(self, load: Any) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas, before Ray's bounds and delays, and no state.

        Args:
            load: Ray's `AutoscalingContext`.
        """
        wanted = load.total_num_requests / self._requests
        if self._cache is not None:
            in_use = (load.aggregated_metrics or {}).get(CACHE_IN_USE, {})
            wanted = max(wanted, sum(in_use.values()) / self._cache)
        return wanted, {}
