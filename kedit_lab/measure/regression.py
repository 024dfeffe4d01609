"""A straight line through points with its uncertainty, for studies in which one number should explain another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import linregress

Numbers = Sequence[float | int] | pd.Series | Float[np.ndarray, " points"]
LEVEL = 95  # per cent of the resampled lines that lie inside an interval or a band


@dataclass(frozen=True)
class Line:
    """y = intercept + slope · x by least squares, the share ``r2`` of y's variance, and resampled lines."""

    slope: float
    intercept: float
    r2: float
    slopes: Float[np.ndarray, " resamples"]
    intercepts: Float[np.ndarray, " resamples"]

    @property
    def interval(self) -> tuple[float, float]:
        """Where 95 % of the resampled slopes lie (percentile bootstrap)."""
        low, high = np.percentile(self.slopes, bounds())
        return float(low), float(high)

    def band(self, x: Numbers) -> pd.DataFrame:
        """The line at some x with the band of 95 % of the resampled lines: ``x, value, low, high``."""
        x = np.asarray(x, dtype=float)
        low, high = np.percentile(self.intercepts[:, None] + self.slopes[:, None] * x, bounds(), axis=0)
        return pd.DataFrame({"x": x, "value": self.intercept + self.slope * x, "low": low, "high": high})


def bounds() -> tuple[float, float]:
    """The two percentiles of an interval."""
    return (100 - LEVEL) / 2, (100 + LEVEL) / 2


def regression(x: Numbers, y: Numbers, resamples: int = 2000, seed: int = 0) -> Line:
    """Least squares of y on x; points are resampled whole (x with its y), which asks nothing of the noise.

    Raises ValueError for fewer than three points, or where all x are one.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(f"{len(x)} points at {len(set(x))} places; a line needs three points and two places")
    found = linregress(x, y)
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    drawn = drawn[np.ptp(x[drawn], axis=1) > 0]  # a sample of one place has no line
    mx, my = x[drawn].mean(1), y[drawn].mean(1)
    slopes = ((x[drawn] - mx[:, None]) * (y[drawn] - my[:, None])).sum(1) / ((x[drawn] - mx[:, None]) ** 2).sum(1)
    return Line(float(found.slope), float(found.intercept), float(found.rvalue**2), slopes, my - slopes * mx)
