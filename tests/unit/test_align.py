"""EAMET's alignment terms: what they ignore, where they vanish, and that blocks see what they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.edit import align
from kedit_lab.edit.align import Alignment, Wanted, unit
from kedit_lab.edit.recipes import find

SEEDS = st.integers(0, 10_000)
RECIPE = find("eamet", layers=(0,))
TAU = 0.07


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(rows, others):
    return unit(rows) @ unit(others).T


@given(SEEDS, st.integers(1, 9))
def test_equal_cosines_are_aligned(seed, n):
    s = cosines(normal(seed, 3, 8), normal(seed + 1, n, 8))
    torch.testing.assert_close(Wanted.of(s, TAU, 5).divergence(s), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(Wanted.of(s, TAU, 5).error(s), torch.zeros(3), atol=1e-12, rtol=0)


@given(SEEDS, st.integers(2, 9))
def test_divergence_is_not_negative_and_moves_with_disagreement(seed, n):
    s, c = (cosines(normal(seed + i, 3, 8), normal(seed + 2, n, 8)) for i in (0, 1))
    wanted = Wanted.of(s, TAU, 5)
    found = wanted.divergence(c)
    assert found.min() >= -1e-6
    assert wanted.divergence(s + 0.5 * (c - s)).sum() <= found.sum() + 1e-6


@given(SEEDS, st.integers(1, 9), st.integers(1, 12))
def test_error_weighs_the_nearest_keys(seed, n, top):
    """Σ w (s - c)² over the top M with w = softmax(s/τ), written plainly."""
    s, c = (cosines(normal(seed + i, 2, 8), normal(seed + 2, n, 8)) for i in (0, 1))
    expected = []
    for row in range(2):
        chosen = sorted(range(n), key=lambda j: -float(s[row, j]))[:top]
        w = torch.softmax(s[row, chosen] / TAU, 0)
        expected.append(sum(w[i] * (s[row, j] - c[row, j]) ** 2 for i, j in enumerate(chosen)))
    torch.testing.assert_close(Wanted.of(s, TAU, top).error(c), torch.stack(expected), rtol=1e-4, atol=1e-6)


@given(SEEDS, st.floats(0.1, 10), st.floats(0.1, 10))
def test_scales_do_not_matter(seed, a, b):
    keys, delta, earlier = normal(seed, 5, 8), normal(seed + 1, 3, 6), normal(seed + 2, 2, 6)

    def loss(k, d, e):
        alignment = Alignment.of(k, RECIPE)
        alignment.keep([0, 1], e)
        return alignment.ahead([2, 3, 4]).loss(d)

    torch.testing.assert_close(loss(keys, delta, earlier), loss(a * keys, b * delta, a * earlier), rtol=1e-3, atol=1e-4)


def test_first_fact_has_nothing_to_align_with():
    alignment = Alignment.of(normal(0, 3, 8), RECIPE)
    assert alignment.ahead([0]).loss(normal(1, 1, 6)) == 0


@pytest.mark.parametrize("sees", ["earlier", "all"])
def test_a_block_sees_earlier_blocks_and_itself(monkeypatch, sees):
    """Every row against those before it (or all others so far); only a row's own δ gets a gradient from its loss."""
    keys, delta, earlier = normal(0, 5, 8), normal(1, 3, 6).requires_grad_(), normal(2, 2, 6)
    alignment = Alignment.of(keys, RECIPE.with_(sees=sees))
    alignment.keep([0, 1], earlier)
    monkeypatch.setattr(align, "BLOCK", 2)  # keys that are compared together
    found = alignment.ahead([2, 3, 4]).loss(delta)
    everyone = torch.cat([earlier, delta.detach()])
    for row, fact in enumerate((2, 3, 4)):
        others = [j for j in range(5 if sees == "all" else fact) if j != fact]
        c, s = cosines(delta[row : row + 1], everyone[others]), cosines(keys[fact : fact + 1], keys[others])
        wanted = Wanted.of(s, TAU, 50)
        expected = 2.0 * wanted.divergence(c) + 8.0 * wanted.error(c)
        torch.testing.assert_close(found[row : row + 1], expected)
    (gradient,) = torch.autograd.grad(found[1], delta, retain_graph=True)
    assert gradient[1].norm() > 0
    assert gradient[[0, 2]].norm() == 0


def test_close_keys_take_turns():
    """A residual is found behind those of the earlier close keys, and behind what those follow; others at once."""
    a, b, c = normal(0, 3, 8)
    keys = torch.stack([a, b, a, 2 * a, c, b + 0.01 * c, -a])
    assert Alignment.of(keys, RECIPE).turns() == [0, 0, 1, 2, 0, 1, 0]
    chain = torch.stack([a, a + 0.4 * a.norm() * unit(b[None])[0], a + 0.8 * a.norm() * unit(b[None])[0]])
    s = cosines(chain, chain)
    assert s[0, 2] < RECIPE.similarity < min(s[0, 1], s[1, 2])
    assert Alignment.of(chain, RECIPE).turns() == [0, 1, 2]
    assert Alignment.of(chain, RECIPE.with_(similarity=0.99)).turns() == [0, 0, 0]


@pytest.mark.parametrize("setting", [{"block": 1}, {"block": 3}, {"sees": "all"}])
def test_no_turns_where_blocks_are_set_or_all_are_seen(setting):
    assert Alignment.of(normal(0, 1, 8).expand(4, 8), RECIPE.with_(**setting)).turns() == [0] * 4


def test_kin_that_see_each_other_end_together():
    a, b = normal(0, 2, 8)
    keys, there = torch.stack([b, a, b, 2 * a]), torch.tensor([True, True, False, True])
    mutual = Alignment.of(keys, RECIPE.with_(sees="all"))
    assert mutual.ahead([0, 1, 2, 3]).ended(there).tolist() == [False, True, False, True]
    assert mutual.ahead([0, 1, 3, 2]).ended(there).tolist() == [True, False, False, True]
    mutual.keep([0, 2], normal(1, 2, 6))
    assert mutual.ahead([1, 3]).ended(torch.tensor([True, False])).tolist() == [False, False]
    assert Alignment.of(keys, RECIPE).ahead([0, 1, 2, 3]).ended(there).equal(there)


def test_the_first_of_a_block_sees_nobody():
    delta = normal(1, 3, 6).requires_grad_()
    found = Alignment.of(normal(0, 3, 8), RECIPE).ahead([0, 1, 2]).loss(delta)
    assert found[0] == 0
    assert (found[1:] > 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), delta)
    assert gradient.isfinite().all()
    assert gradient[0].norm() == 0


@pytest.mark.parametrize("start", [torch.zeros(2, 6), torch.full((2, 6), 1e-30)])
def test_gradients_are_finite_from_nothing(start):
    delta = start.clone().requires_grad_()
    alignment = Alignment.of(normal(0, 4, 8), RECIPE)
    alignment.keep([0, 1], normal(2, 2, 6))
    (gradient,) = torch.autograd.grad(alignment.ahead([2, 3]).loss(delta).sum(), delta)
    assert gradient.isfinite().all()
