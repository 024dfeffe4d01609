"""β coefficients: a projection without a ridge, something smaller with one (fact sheet, invariants 13 and 14)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_lab.extract.betas import betas

settings.register_profile("algebra", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("algebra")
CLOSE = {"rtol": 1e-7, "atol": 1e-7}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed, d_k):
    x = normal(seed, 4 * d_k, d_k)
    return x.T @ x / len(x) + 0.1 * torch.eye(d_k, dtype=torch.float64)


@st.composite
def keysets(draw):
    """Keys, independent or not, with duplicates."""
    seed, n, d = draw(st.integers(0, 10**6)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    copies = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9))
    return normal(seed, n, d)[copies]


@given(keysets())
def test_projection(keys):
    beta = betas(keys)
    torch.testing.assert_close(beta, beta.T, **CLOSE)
    torch.testing.assert_close(beta @ beta, beta, **CLOSE)
    torch.testing.assert_close(beta @ keys, keys, **CLOSE)  # Σ_j β_ij k_j = k_i
    assert (beta.diagonal() > -1e-9).all()
    assert (beta.diagonal() < 1 + 1e-9).all()
    assert float(beta.trace()) == pytest.approx(int(torch.linalg.matrix_rank(keys)), abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_independent_keys_do_not_mix(seed, n):
    torch.testing.assert_close(betas(normal(seed, n, 6)), torch.eye(n, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2, 3)])
def test_duplicates_share_equally(sizes):
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    expected = (cluster[:, None] == cluster).double() / torch.tensor(sizes)[cluster]
    torch.testing.assert_close(betas(normal(1, len(sizes), 8)[cluster]), expected, **CLOSE)


@given(keysets(), st.sampled_from([0.01, 1.0, 100.0]))
def test_with_a_ridge_below_one(keys, lam):
    beta = betas(keys, moment(7, keys.shape[1]), lam)
    torch.testing.assert_close(beta, beta.T, **CLOSE)
    eigenvalues = torch.linalg.eigvalsh(beta)
    assert eigenvalues.min() > -1e-9
    assert eigenvalues.max() < 1


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([0.1, 5.0]))
def test_another_key_takes_its_share(seed, n, lam):
    """Adding k_j lowers β_ii by (k_iᵀM⁻¹k_j)² / (1 + k_jᵀM⁻¹k_j) with M = λC + KKᵀ."""
    keys, new, covariance = normal(seed, n, 5), normal(seed + 1, 5), moment(seed + 2, 5)
    before = betas(keys, covariance, lam).diagonal()
    after = betas(torch.cat([keys, new[None]]), covariance, lam).diagonal()[:n]
    reach = torch.linalg.solve(lam * covariance + keys.T @ keys, new)
    torch.testing.assert_close(before - after, (keys @ reach).square() / (1 + new @ reach), rtol=1e-6, atol=1e-10)
    assert (after < before).all()


@given(keysets(), st.sampled_from([0.1, 10.0]))
def test_definition(keys, lam):
    covariance = moment(3, keys.shape[1])
    inverse = torch.linalg.inv(lam * covariance + keys.T @ keys)
    expected = torch.stack([torch.stack([k_j @ inverse @ k_i for k_j in keys]) for k_i in keys])
    torch.testing.assert_close(betas(keys, covariance, lam), expected, **CLOSE)


def test_identity_stands_in_for_missing_statistics():
    keys = normal(1, 4, 6)
    torch.testing.assert_close(betas(keys, lam=3.0), betas(keys, torch.eye(6, dtype=torch.float64), 3.0))
    assert not torch.allclose(betas(keys, lam=3.0), betas(keys, lam=6.0))


def test_small_ridge_is_nearly_none():
    keys = normal(1, 5, 8)[[0, 1, 1, 2, 3, 4, 4, 4]]
    torch.testing.assert_close(betas(keys, moment(2, 8), 1e-9), betas(keys), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float64_whatever_comes_in(dtype):
    keys = normal(1, 3, 6).to(dtype)
    assert betas(keys).dtype == torch.float64
    torch.testing.assert_close(betas(keys, torch.eye(6), 1.0), betas(keys.double(), lam=1.0))


def test_noise_of_float32_does_not_separate_twins():
    key = normal(1, 1, 50).float()
    twins = key.expand(3, -1) * (1 + 1e-6 * normal(2, 3, 50).float())
    torch.testing.assert_close(betas(twins), torch.full((3, 3), 1 / 3, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_negative_lambda():
    with pytest.raises(ValueError, match=r"lam is -1.0; the ridge weight must be zero or positive"):
        betas(normal(1, 2, 3), lam=-1.0)
