"""The table of static merges: those there are, and those there are not, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

from adapters.merge import average, calibrated, factors, rotate, sparse, spectral
from adapters.merge.method import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {row.name: row for module in (average, sparse, spectral, rotate, factors, calibrated) for row in module.ROWS}
)

NOT_IMPLEMENTED: Mapping[str, str] = MappingProxyType(
    {
        "mwa": "metrics-weighted averaging: how it makes weights of losses or steps could not be obtained; "
        "use linear with weights of your own",
        **factors.NOT_IMPLEMENTED,
    }
)
assert not METHODS.keys() & NOT_IMPLEMENTED.keys()
