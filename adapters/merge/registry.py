"""The table of static merges, and of those that are not implemented, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

from adapters.merge import average, calibrated, factors, rotate, sparse, spectral
from adapters.merge.method import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for module in (average, sparse, spectral, rotate, factors, calibrated)
        for row in module.ROWS
    }
)
"""All methods by name."""

NOT_IMPLEMENTED: Mapping[str, str] = MappingProxyType(
    {
        "mwa": (
            "metrics-weighted averaging: how it makes weights of losses or steps could not be"
            " obtained; use linear with weights of your own"
        ),
        **factors.NOT_IMPLEMENTED,
    }
)
"""Published methods that we do not have, and why, by name."""
assert not METHODS.keys() & NOT_IMPLEMENTED.keys()
