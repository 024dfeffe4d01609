"""RECT keeps the relatively largest entries, PRUNE restrains singular values; both leave the rest alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.edit.post import largest, prune_delta, rect_delta
from kedit_lab.types import Delta, Dense

SEEDS = st.integers(0, 10_000)


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(SEEDS, st.floats(0, 1))
def test_largest_counts(seed, share):
    scores = normal(seed, 4, 7)
    mask = largest(scores, share)
    assert int(mask.sum()) == int(share * 28)
    if 0 < mask.sum() < 28:
        assert scores[mask].min() >= scores[~mask].max()


@given(SEEDS, st.floats(0.1, 1))
def test_rect(seed, keep):
    """Kept entries unchanged, the rest zero; the choice does not depend on ΔW's scale."""
    delta, weight = Delta(normal(seed, 4, 2), normal(seed + 1, 6, 2)), normal(seed + 2, 4, 6)
    found = rect_delta(delta, weight, keep).matrix()
    kept = found != 0
    assert int(kept.sum()) == int(keep * 24)
    assert torch.equal(found[kept], delta.matrix()[kept])
    ratio = (delta.matrix() / weight).abs()
    if not kept.all():
        assert ratio[kept].min() >= ratio[~kept].max() * (1 - 1e-6)
    assert torch.equal(rect_delta(delta * 7.0, weight, keep).matrix() != 0, kept)


def test_what_is_no_number_is_not_hidden():
    change = torch.tensor([[float("nan"), 1.0, 2.0, 3.0]]).double()
    assert largest(change, 0.5).tolist() == [[True, False, False, True]]
    assert rect_delta(Dense(change), torch.ones(1, 4), 0.5).matrix().isnan().any()


def test_rect_at_its_ends():
    delta, weight = Dense(normal(0, 4, 6)), normal(1, 4, 6)
    assert torch.equal(rect_delta(delta, weight, 1.0).matrix(), delta.change)
    assert not rect_delta(delta, weight, 0.0).matrix().any()


@given(SEEDS, st.floats(1.1, 10))
def test_prune(seed, base):
    """Values above W's largest σ become log_a(σ̂) - log_a(σ) + σ; singular vectors and rank stay."""
    delta, weight = Delta(10 * normal(seed, 5, 3), normal(seed + 1, 6, 3)), normal(seed + 2, 5, 6)
    bound = torch.linalg.svdvals(weight)[0]
    u, s, vh = torch.linalg.svd(delta.matrix(), full_matrices=False)
    wanted = torch.where(s > bound, (s.log() - bound.log()) / torch.tensor(base, dtype=torch.float64).log() + bound, s)
    found = prune_delta(delta, weight, base).matrix()
    torch.testing.assert_close(found, u[:, :3] * wanted[:3] @ vh[:3], rtol=1e-6, atol=1e-8)
    assert torch.linalg.matrix_rank(found) == 3


def test_prune_leaves_small_updates():
    delta, weight = Delta(1e-3 * normal(0, 5, 3), normal(1, 6, 3)), normal(2, 5, 6)
    assert prune_delta(delta, weight, 2.0) is delta


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_ties_go_to_earlier_entries(share):
    assert largest(torch.ones(10), share).tolist() == [i < int(share * 10) for i in range(10)]
