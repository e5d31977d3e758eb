"""Our outermost layer, where Ray serves a replica's app: Ray puts it around its own.

Ray imports this in every process that it serves from, so it imports nothing that is not needed for
that; vLLM, for one, sets up logging anew when it is imported, which Ray's proxy does not survive.
"""

from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp

EDGES: list[Callable[[ASGIApp], ASGIApp]] = []
"""Of the replica in this process, if there is one."""


def middlewares() -> list[Middleware]:
    """What Ray puts around its own layer before it serves."""
    return [Middleware(edge) for edge in EDGES]
