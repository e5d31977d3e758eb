"""Numbers in sentences and tables."""

import numpy as np

from tta_serve.experiments.results import Estimate


def number(value: float | None, *, sign: bool = False) -> str:
    """Four significant digits, without an exponent; "" for None."""
    if value is None:
        return ""
    return str(np.format_float_positional(value, 4, unique=False, fractional=False, trim="-", sign=sign))


def chance(p: float) -> str:
    """A p-value."""
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def spread(found: Estimate | None, *, sign: bool = False) -> str:
    """A value and its interval: "0.61 (0.59..0.63)"; "" for None."""
    if found is None:
        return ""
    low, high = number(found.low, sign=sign), number(found.high, sign=sign)
    return f"{number(found.value, sign=sign)} ({f'{low}..{high}' if low or high else 'no interval yet'})"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
