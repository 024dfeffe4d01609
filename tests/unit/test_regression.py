"""A line through points: exact where the points lie on one, and as uncertain as the noise makes it."""

import numpy as np
import pytest

from kedit_lab.measure.regression import regression


def noisy(seed, n=60, slope=0.5, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 10, n)
    return x, 2 + slope * x + noise * rng.normal(size=n)


def test_points_on_a_line_leave_no_doubt():
    x = [0.0, 1.0, 2.0, 5.0]
    line = regression(x, [3 - 2 * at for at in x])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((-2, 3, 1))
    assert line.interval == pytest.approx((-2, -2))
    band = line.band([0, 10])
    assert band["value"].to_list() == pytest.approx([3, -17])
    assert band["low"].to_list() == pytest.approx(band["high"].to_list())


def test_the_line_is_that_of_least_squares():
    x, y = noisy(0)
    line = regression(x, y)
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_intervals_cover_the_true_slope_about_as_often_as_they_say():
    intervals = [regression(*noisy(seed), resamples=300).interval for seed in range(60)]
    assert 50 <= sum(low < 0.5 < high for low, high in intervals) <= 60
    assert any(not low < 0.7 < high for low, high in intervals)


def test_the_same_seed_gives_the_same_interval_and_fewer_points_a_wider_one():
    x, y = noisy(1)
    assert regression(x, y).interval == regression(x, y).interval != regression(x, y, seed=1).interval
    wide, narrow = (np.ptp(regression(x[:n], y[:n]).interval) for n in (8, 60))
    assert wide > narrow


@pytest.mark.parametrize(("x", "said"), [([1.0, 2.0], "2 points at 2 places"), ([1.0] * 4, "4 points at 1 places")])
def test_too_little_for_a_line(x, said):
    with pytest.raises(ValueError, match=said):
        regression(x, list(range(len(x))))
