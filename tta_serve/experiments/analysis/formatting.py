"""Numbers as they stand in sentences and tables."""

import numpy as np

from tta_serve.experiments.analysis.results import Estimate


def format_number(value: float | None, *, sign: bool = False) -> str:
    """Return four significant digits, without an exponent; "" for None."""
    if value is None:
        return ""
    return str(
        np.format_float_positional(value, 4, unique=False, fractional=False, trim="-", sign=sign)
    )


def format_p(p: float) -> str:
    """Return a p-value with four digits."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def format_estimate(found: Estimate | None, *, sign: bool = False) -> str:
    """Return a value and its interval, as in "0.61 (0.59..0.63)"; "" for None."""
    if found is None:
        return ""
    low = format_number(found.low, sign=sign)
    high = format_number(found.high, sign=sign)
    interval = f"{low}..{high}" if low or high else "no interval yet"
    return f"{format_number(found.value, sign=sign)} ({interval})"


def format_percent(share: float) -> str:
    """Return a share as percents with one decimal."""
    return f"{100 * share:.1f} %"
