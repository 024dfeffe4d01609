"""Cosine, average key distance and misalignment (fact sheet, invariants 16 and 20)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_lab.measure.geometry import akd, cosine, misalignment

settings.register_profile("algebra", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("algebra")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds, sizes = st.integers(0, 10**6), st.integers(2, 9)


@given(seeds, sizes)
def test_cosine(seed, n):
    rows, others = normal(seed, n, 5), normal(seed + 1, 3, 5)
    expected = torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) for b in others]) for a in rows])
    torch.testing.assert_close(cosine(rows, others), expected)
    torch.testing.assert_close(cosine(rows), cosine(rows, rows))
    torch.testing.assert_close(cosine(rows).diagonal(), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(cosine(7.0 * rows, 0.01 * others), expected)


def test_cosine_is_taken_in_float32_at_least():
    rows = normal(1, 3, 5)
    assert cosine(rows.bfloat16()).dtype == cosine(rows.float()).dtype == torch.float32
    assert cosine(rows).dtype == torch.float64


@given(seeds, sizes)
def test_akd_is_the_mean_distance(seed, n):
    keys = normal(seed, n, 5)
    distances = [float((keys[a] - keys[b]).norm()) for a in range(n) for b in range(a)]
    assert akd(keys) == pytest.approx(sum(distances) / len(distances))


@given(seeds, sizes, st.floats(0.01, 100))
def test_akd_moves_with_nothing_but_scale(seed, n, scale):
    keys = normal(seed, n, 5)
    assert akd(keys) > 0
    assert akd(keys.flip(0)) == pytest.approx(akd(keys))
    assert akd(keys + 10 * normal(seed + 1, 5)) == pytest.approx(akd(keys))
    assert akd(-scale * keys) == pytest.approx(scale * akd(keys))


def test_akd_is_zero_for_equal_keys_alone():
    same = normal(1, 1, 700).float().expand(5, -1)
    assert akd(same) == 0.0
    assert akd(same[:1]) == 0.0
    moved = same.clone()
    moved[2, 3] += 1e-3
    assert akd(moved) == pytest.approx(4 / 10 * 1e-3, rel=1e-2)  # not lost among 700 numbers of size one


@given(seeds, st.integers(3, 9))
def test_misalignment_sees_direction_alone(seed, n):
    residuals, keys = normal(seed, n, 4), normal(seed + 1, n, 6)
    found = misalignment(residuals, keys)
    assert found.shape == (n,)
    assert (found > 0).all()
    lengths = normal(seed + 2, n, 1).exp()
    torch.testing.assert_close(misalignment(lengths * residuals, 5 * keys), found, rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(3, 9))
def test_misalignment_is_zero_where_the_cosines_agree(seed, n):
    keys = normal(seed, n, 5)
    rotation = torch.linalg.qr(normal(seed + 1, 8, 5)).Q  # 8 x 5 with orthonormal columns
    torch.testing.assert_close(misalignment(3 * keys @ rotation.T, keys), torch.zeros(n, dtype=torch.float64))


def test_misalignment_is_a_divergence_of_softmaxes():
    residuals, keys = normal(1, 4, 4), normal(2, 4, 6)
    for i, found in enumerate(misalignment(residuals, keys, temperature=0.5)):
        others = [j for j in range(4) if j != i]
        p, q = ((cosine(x)[i, others] / 0.5).softmax(0) for x in (residuals, keys))
        assert float(found) == pytest.approx(float((p * (p / q).log()).sum()))


def test_colliding_keys_are_misaligned():
    """One key for all, and targets that differ: the same-subject batch. Distinct keys with like targets: nothing."""
    key, targets = normal(1, 1, 6).expand(4, -1), normal(2, 4, 5)
    assert misalignment(targets, key).min() > 0.01
    torch.testing.assert_close(misalignment(targets[:1].expand(4, -1), key), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("facts", [0, 1])
def test_misalignment_needs_two(facts):
    with pytest.raises(ValueError, match=f"{facts} given, at least 2 needed"):
        misalignment(normal(1, facts, 3), normal(2, facts, 3))
