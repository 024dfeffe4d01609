"""The other solvers' algebra, in float64: AlphaEdit's null space, ROME's equality, EMMET's relaxed one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.edit import solvers
from kedit_lab.edit.solvers import NullSpace, Preserved, equality, null_space, relaxed, ridge

D_K, D_OUT = 12, 5
SEEDS = st.integers(0, 10_000)
FACTS = st.integers(1, 20)


@pytest.fixture(scope="module", autouse=True)
def several_facts_in_a_part():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "PARTS", 4)
        yield


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(seed, rank=D_K):
    rows = normal(seed, 40, D_K) @ torch.diag(torch.logspace(0, -3, D_K, dtype=torch.float64))
    basis = torch.linalg.qr(normal(seed + 1, D_K, D_K)).Q
    rows = rows @ basis
    return rows.T @ rows / 40


THRESHOLD = 1e-2


@given(SEEDS)
def test_the_projector(seed):
    """P = Pᵀ = P², of the rank of small eigenvalues; the large directions are outside."""
    c = moment(seed)
    space = NullSpace(c, THRESHOLD, 1.0)
    p = space.basis @ space.basis.T
    torch.testing.assert_close(p, p.T)
    torch.testing.assert_close(p @ p, p, atol=1e-12, rtol=0)
    spectrum, vectors = torch.linalg.eigh(c)
    assert round(float(p.trace())) == int((spectrum < THRESHOLD).sum())
    assert (p @ vectors[:, spectrum >= THRESHOLD]).norm() < 1e-10


@given(SEEDS, FACTS)
def test_null_space_leaves_what_is_preserved(seed, n):
    """Δ = ΔP and tr(ΔCΔᵀ) ≤ threshold · ‖Δ‖²."""
    c = moment(seed)
    space = NullSpace(c, THRESHOLD, 2.0)
    delta = null_space(normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT), space).matrix()
    torch.testing.assert_close(delta @ space.basis @ space.basis.T, delta)
    assert (delta @ c @ delta.T).trace() <= THRESHOLD * delta.norm() ** 2 * (1 + 1e-9)


@given(SEEDS, FACTS)
def test_null_space_is_the_papers_form(seed, n):
    """Δ = R Kᵀ P (K Kᵀ P + S P + γ I)⁻¹ with columns K (AlphaEdit, Eq. 14, γ = 1 in its text)."""
    k, r, past = normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT), normal(seed + 4, 3, D_K)
    space = NullSpace(moment(seed), THRESHOLD, 1.5)
    p, s = space.basis @ space.basis.T, past.T @ past
    bracket = k.T @ k @ p + s @ p + 1.5 * torch.eye(D_K, dtype=torch.float64)
    expected = r.T @ k @ p @ torch.linalg.inv(bracket)
    torch.testing.assert_close(null_space(k, r, space.with_past(s)).matrix(), expected, rtol=1e-7, atol=1e-9)


@given(SEEDS, FACTS)
def test_null_space_minimises_its_objective(seed, n):
    """The gradient of ‖ΔPK - R‖² + ‖ΔPK_p‖² + γ‖ΔP‖² vanishes inside the null space."""
    k, r, past = normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT), normal(seed + 4, 3, D_K)
    space = NullSpace(moment(seed), THRESHOLD, 0.7)
    delta = null_space(k, r, space.with_past(past.T @ past)).matrix()
    gradient = (delta @ k.T - r.T) @ k + delta @ past.T @ past + 0.7 * delta
    assert (gradient @ space.basis).norm() < 1e-8 * max(1.0, float(gradient.norm()))


@given(SEEDS, FACTS, st.floats(0.1, 50))
def test_whole_space_is_ridge_with_the_identity(seed, n, gamma):
    """P = I and S = 0: MEMIT with λC = γI."""
    k, r = normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT)
    eye = torch.eye(D_K, dtype=torch.float64)
    expected = ridge(k, r, Preserved(eye, gamma)).matrix()
    torch.testing.assert_close(null_space(k, r, NullSpace(eye, 2.0, gamma)).matrix(), expected, rtol=1e-7, atol=1e-10)


@given(SEEDS)
def test_large_gamma_writes_nothing(seed):
    k, r = normal(seed + 2, 4, D_K), normal(seed + 3, 4, D_OUT)
    norms = [null_space(k, r, NullSpace(moment(seed), THRESHOLD, gamma)).norm() for gamma in (0.1, 1.0, 1e3, 1e9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-6


@given(SEEDS)
def test_past_keys_are_moved_less(seed):
    k, r, past = normal(seed + 2, 4, D_K), normal(seed + 3, 4, D_OUT), normal(seed + 4, 3, D_K)
    space = NullSpace(moment(seed), 1.0, 0.5)
    moved = [
        (null_space(k, r, space.with_past(weight * past.T @ past)).matrix() @ past.T).norm()
        for weight in (0.0, 1.0, 100.0)
    ]
    assert moved[2] <= moved[1] + 1e-9
    assert moved[1] <= moved[0] + 1e-9


def test_null_space_needs_one():
    with pytest.raises(ValueError, match=r"no eigenvalue of C is under threshold 1e-09 \(smallest: 1\); raise it"):
        NullSpace(torch.eye(3), 1e-9, 1.0)
    with pytest.raises(ValueError, match=r"gamma is 0\.0; the weight γ of the identity must be positive"):
        NullSpace(torch.zeros(3, 3), 1.0, 0.0)


def test_null_space_is_found_late_and_once(monkeypatch):
    """That there is one is seen without looking for it; copies share what is found."""
    reads = []
    monkeypatch.setattr(solvers, "eigen", lambda c: reads.append(c) or torch.linalg.eigh(c))
    space = NullSpace(lambda: torch.diag(torch.tensor([0.5, 2.0])).double(), 1.0, 1.0)
    assert not reads
    other = space.with_past(torch.eye(2, dtype=torch.float64)).with_past(torch.eye(2, dtype=torch.float64))
    assert other.basis is space.basis
    assert len(reads) == 1
    assert other.past.equal(2 * torch.eye(2, dtype=torch.float64))
    assert space.past is None
    oblique = torch.tensor([[2.0, 1.5], [1.5, 2.0]])  # eigenvalues 0.5 and 3.5
    NullSpace(oblique, 0.6, 1.0)
    assert len(reads) == 1
    with pytest.raises(ValueError, match=r"no eigenvalue of C is under threshold 0\.4 \(smallest: 0\.5\)"):
        NullSpace(oblique, 0.4, 1.0)


@given(SEEDS)
def test_equality_is_met_exactly(seed):
    """(W + Δ) k_met = target: Δ k_met = r; rank one; its row space is C⁻¹k (ROME, Eq. 2)."""
    c = moment(seed) + 0.1 * torch.eye(D_K, dtype=torch.float64)
    k, met, r = normal(seed + 2, 1, D_K), normal(seed + 3, 1, D_K), normal(seed + 4, 1, D_OUT)
    delta = equality(k, r, Preserved(c, 1.0), met).matrix()
    torch.testing.assert_close(delta @ met[0], r[0])
    assert torch.linalg.matrix_rank(delta) == 1
    direction = torch.linalg.solve(c, k[0])
    row = delta[int(delta.norm(dim=1).argmax())]
    assert abs(float(torch.nn.functional.cosine_similarity(row, direction, dim=0))) == pytest.approx(1, abs=1e-9)


@given(SEEDS, st.floats(0.01, 100))
def test_one_fact_ridge_points_where_rome_does(seed, lam):
    """Sherman-Morrison: MEMIT with one fact writes along r (C⁻¹k)ᵀ for every λ."""
    c = moment(seed) + 0.1 * torch.eye(D_K, dtype=torch.float64)
    k, r = normal(seed + 2, 1, D_K), normal(seed + 4, 1, D_OUT)
    a, b = ridge(k, r, Preserved(c, lam)).matrix(), equality(k, r, Preserved(c, 1.0), k).matrix()
    assert float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)) == pytest.approx(1, abs=1e-9)


@given(SEEDS)
def test_unrelaxed_emmet_is_rome_for_one_fact(seed):
    k, r, c = normal(seed, 1, D_K), normal(seed + 1, 1, 4), Preserved(moment(seed + 2), 1.0)
    torch.testing.assert_close(relaxed(k, r, c, 0.0).matrix(), equality(k, r, c, k).matrix(), rtol=1e-6, atol=1e-9)


@given(SEEDS, st.sampled_from([2, 3, 6, D_K, D_K + 5]))
def test_equality_writes_facts_one_after_another(seed, n):
    """The triangular system is the loop: each fact's residual as its predecessors left it, met exactly after it."""
    k, met, r, c = normal(seed, n, D_K), normal(seed + 3, n, D_K), normal(seed + 1, n, 4), moment(seed + 2)
    total, preserved = torch.zeros(4, D_K, dtype=torch.float64), Preserved(c, 1.0)
    for i in range(n):
        left = r[i : i + 1] - met[i : i + 1] @ total.T
        total = total + equality(k[i : i + 1], left, preserved, met[i : i + 1]).matrix()
        size = max(1.0, float(total.norm() * met[i].norm()))
        torch.testing.assert_close(total @ met[i], r[i], rtol=1e-6, atol=1e-9 * size)
    close = {"rtol": 1e-6, "atol": 1e-9 * float(total.norm())}
    written = []
    for size in (1, 5):  # facts of a part, where all are as many as key dimensions
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(solvers, "PARTS", D_K // size)
            delta = equality(k, r, preserved, met)
        torch.testing.assert_close(delta.matrix(), total, **close)
        written.append(delta.left)
    torch.testing.assert_close(*written, **close)


@given(SEEDS, FACTS, st.floats(0.01, 10), st.floats(0.01, 10))
def test_relaxed_is_ridge_with_the_product(seed, n, alpha, mu):
    c = moment(seed) + 0.1 * torch.eye(D_K, dtype=torch.float64)
    k, r = normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT)
    found = relaxed(k, r, Preserved(c, alpha), mu).matrix()
    torch.testing.assert_close(found, ridge(k, r, Preserved(c, alpha * mu)).matrix(), rtol=1e-6, atol=1e-9)
    spread = torch.linalg.solve(alpha * c, k.T)
    inner = k @ spread + mu * torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(found, r.T @ torch.linalg.solve(inner, spread.T), rtol=1e-5, atol=1e-8)


@given(SEEDS, st.integers(1, D_K - 2))
def test_unrelaxed_equality_is_met_by_independent_keys(seed, n):
    c = moment(seed) + 0.1 * torch.eye(D_K, dtype=torch.float64)
    k, r = normal(seed + 2, n, D_K), normal(seed + 3, n, D_OUT)
    delta = relaxed(k, r, Preserved(c, 3.0), 0.0).matrix()
    torch.testing.assert_close(delta @ k.T, r.T, rtol=1e-6, atol=1e-7)
