"""What engines are started with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.common.workload import EXPERTS

if TYPE_CHECKING:
    from loadtest.sides.engines import Setup


def setup_in(folder: Path, **more: Any) -> Setup:
    """Return the demo's base and experts as what engines start from.

    Args:
        folder: A temporary one.
        more: Further fields of `Setup`.
    """
    from adapters.library.library import Library
    from deploy.demo.base import ensure_base
    from loadtest.sides.engines import Setup

    return Setup(ensure_base(), Library.open(EXPERTS), folder, **more)
