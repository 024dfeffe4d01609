"""The ridge solver in float64: the identities that define it, in both of the forms in which it is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kedit_lab.edit import solvers
from kedit_lab.edit.solvers import SOLVERS, SPREADS, NullSpace, Preserved, cholesky, divided, mirror, ridge
from kedit_lab.extract.betas import betas
from kedit_lab.types import Delta, Dense

CLOSE = {"rtol": 1e-8, "atol": 1e-8}
FEW, MANY = (3, 8), (8, 3)  # (facts, d_k): the Woodbury form and the dense form


@pytest.fixture(scope="module", autouse=True)
def several_facts_in_a_part():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "PARTS", 2)
        yield


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed, d_k):
    """A well-conditioned second moment."""
    x = normal(seed, 4 * d_k, d_k)
    return x.T @ x / len(x) + 0.1 * torch.eye(d_k, dtype=torch.float64)


@st.composite
def problems(draw, facts=(1, 12), d_k=(1, 9)):
    """(keys, residuals, C, λ) with numbers of facts and dimensions in these ranges."""
    seed, n, d = draw(st.integers(0, 10**6)), draw(st.integers(*facts)), draw(st.integers(*d_k))
    lam = 10.0 ** draw(st.integers(-2, 3))
    return normal(seed, n, d), normal(seed + 1, n, draw(st.integers(1, 5))), moment(seed + 2, d), lam


def solve(keys, residuals, covariance, lam):
    return ridge(keys, residuals, Preserved(covariance, lam)).matrix()


def objective(delta, keys, residuals, covariance, lam):
    return float((keys @ delta.T - residuals).square().sum() + lam * (delta @ covariance @ delta.T).trace())


@given(problems())
def test_gradient_is_zero(problem):
    keys, residuals, covariance, lam = problem
    delta = solve(*problem)
    gradient = (delta @ keys.T - residuals.T) @ keys + lam * delta @ covariance
    assert gradient.norm() <= 1e-9 * (residuals.T @ keys).norm()


@given(problems(), st.integers(0, 10**6))
def test_no_neighbour_is_better(problem, seed):
    delta = solve(*problem)
    step = 1e-3 * normal(seed, *delta.shape)
    assert objective(delta, *problem) < objective(delta + step, *problem)


@given(problems(facts=(1, 1)))
def test_one_fact(problem):
    keys, residuals, covariance, lam = problem
    s = keys[0] @ torch.linalg.inv(lam * covariance) @ keys[0]
    torch.testing.assert_close(solve(*problem) @ keys[0], residuals[0] * s / (1 + s), **CLOSE)


@given(problems(facts=(1, 1)))
def test_one_fact_in_the_limits(problem):
    keys, residuals, covariance, _ = problem
    exact = solve(keys, residuals, covariance, 1e-9) @ keys[0]
    assert (exact - residuals[0]).norm() < 1e-4 * residuals[0].norm()
    sizes = [float(solve(keys, residuals, covariance, lam).norm()) for lam in (1.0, 1e3, 1e6, 1e9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-6 * sizes[0] + 1e-12


@given(problems(facts=(1, 1), d_k=(2, 9)))
def test_one_fact_has_one_direction(problem):
    """Sherman-Morrison: Δ ∥ r (C⁻¹k)ᵀ for every λ (invariant 8)."""
    keys, residuals, covariance, _ = problem
    direction = torch.outer(residuals[0], torch.linalg.solve(covariance, keys[0]))
    for lam in (1e-3, 1.0, 1e3):
        delta = solve(keys, residuals, covariance, lam)
        assert torch.nn.functional.cosine_similarity(delta.flatten(), direction.flatten(), dim=0) > 1 - 1e-9


@pytest.mark.parametrize("facts", [1, 4, 8])
def test_independent_keys_without_ridge_are_written_exactly(facts):
    keys, residuals = torch.eye(8, dtype=torch.float64)[:facts] + 0.1 * normal(1, facts, 8), normal(2, facts, 5)
    written = keys @ solve(keys, residuals, moment(3, 8), 1e-11).T
    torch.testing.assert_close(written, residuals, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keys", [normal(1, 9, 4), normal(2, 3, 8)[[0, 0, 1, 2, 2, 2]]], ids=["too many", "duplicates"])
def test_dependent_keys_without_ridge_share_by_beta(keys):
    residuals = normal(5, len(keys), 5)
    written = keys @ solve(keys, residuals, moment(6, keys.shape[1]), 1e-10).T
    torch.testing.assert_close(written, betas(keys) @ residuals, rtol=1e-5, atol=1e-5)


@given(problems())
def test_betas_say_what_is_written(problem):
    keys, residuals, covariance, lam = problem
    written = keys @ solve(*problem).T
    torch.testing.assert_close(written, betas(keys, covariance, lam) @ residuals, **CLOSE)


@given(problems(facts=(1, 1)), st.integers(2, 12))
def test_identical_columns_are_one_with_a_smaller_lambda(problem, n):
    keys, residuals, covariance, lam = problem
    many = solve(keys.expand(n, -1), residuals.expand(n, -1), covariance, lam)
    torch.testing.assert_close(many, solve(keys, residuals, covariance, lam / n), **CLOSE)


@given(problems(facts=(2, 12)))
def test_identical_keys_write_their_mean(problem):
    """Why memit fails on one subject: every fact gets the same, in the direction of the mean residual."""
    keys, residuals, covariance, lam = problem
    n = len(residuals)
    same = keys[:1].expand(n, -1)
    s = n * keys[0] @ torch.linalg.inv(lam * covariance) @ keys[0]
    torch.testing.assert_close(
        solve(same, residuals, covariance, lam) @ keys[0], residuals.mean(0) * s / (1 + s), **CLOSE
    )


@given(problems(), st.sampled_from([0.01, 3.0, 1000.0]))
def test_only_lambda_times_c_enters(problem, c):
    keys, residuals, covariance, lam = problem
    torch.testing.assert_close(solve(*problem), solve(keys, residuals, covariance / c, lam * c), **CLOSE)


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_facts_does_not_matter(problem, random):
    keys, residuals, covariance, lam = problem
    order = random.sample(range(len(keys)), len(keys))
    torch.testing.assert_close(solve(keys[order], residuals[order], covariance, lam), solve(*problem), **CLOSE)


@given(problems())
def test_both_forms_are_one(problem):
    keys, residuals, covariance, lam = problem
    inverse = torch.linalg.inv(lam * covariance)
    dense = residuals.T @ keys @ torch.linalg.inv(lam * covariance + keys.T @ keys)
    inner = torch.linalg.inv(keys @ inverse @ keys.T + torch.eye(len(keys), dtype=torch.float64))
    torch.testing.assert_close(residuals.T @ inner @ keys @ inverse, dense, **CLOSE)  # Woodbury, on paper
    torch.testing.assert_close(solve(*problem), dense, **CLOSE)


@pytest.mark.parametrize(("shape", "factored"), [(FEW, True), (MANY, False), ((5, 5), False)])
def test_the_form_follows_the_shape(shape, factored):
    preserved = Preserved(moment(1, shape[1]), 2.0)
    ridge(normal(2, *shape), normal(3, shape[0], 4), preserved)
    assert ("factor" in vars(preserved)) is factored


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solved_in_float64_whatever_comes_in(shape, dtype):
    keys, residuals = normal(1, *shape).to(dtype), normal(2, shape[0], 4).to(dtype)
    delta = ridge(keys, residuals, Preserved(moment(3, shape[1]).float(), 2.0))
    assert delta.matrix().dtype == torch.float64
    exact = solve(keys.double(), residuals.double(), moment(3, shape[1]).float().double(), 2.0)
    torch.testing.assert_close(delta.matrix(), exact, **CLOSE)


@pytest.mark.parametrize("shape", [FEW, MANY])
def test_factors_of_few_facts_are_kept_or_the_change_of_many(shape):
    """And the residuals either way."""
    residuals = normal(2, shape[0], 4)
    delta = ridge(normal(1, *shape), residuals, Preserved(moment(3, shape[1]), 2.0))
    torch.testing.assert_close(delta.left, residuals.T, rtol=0, atol=0)
    if shape == FEW:
        assert delta.right.shape == (shape[1], shape[0])
    else:
        assert delta.change.shape == (4, shape[1])


def test_dense_changes_keep_their_residuals():
    one = ridge(normal(1, *MANY), normal(2, MANY[0], 4), Preserved(moment(3, MANY[1]), 2.0))
    trained = Dense(normal(4, 4, MANY[1]))
    both = one + one * 0.5
    torch.testing.assert_close(both.matrix(), 1.5 * one.matrix())
    torch.testing.assert_close(both.left, torch.cat([one.left, 0.5 * one.left], 1))
    few = ridge(normal(5, 2, MANY[1]), normal(6, 2, 4), Preserved(moment(3, MANY[1]), 2.0))
    torch.testing.assert_close((few + one).left, torch.cat([few.left, one.left], 1))
    torch.testing.assert_close((one + few).left, torch.cat([one.left, few.left], 1))
    torch.testing.assert_close((few + one).matrix(), few.matrix() + one.matrix())
    assert (one + trained).left is (trained + one).left is (trained * 2.0).left is None


@pytest.mark.parametrize("facts", [3, 8, 20], ids=["few", "as many", "many"])
def test_singular_statistics(facts):
    """C of rank 4 in 8 dimensions, keys of one subject: both forms must still find the minimum."""
    x = normal(1, 4, 8)
    covariance = x.T @ x
    assert torch.linalg.matrix_rank(covariance) == 4
    keys, residuals = normal(2, 1, 8).expand(facts, -1), normal(3, facts, 5)
    delta = solve(keys, residuals, covariance, 2.0)
    gradient = (delta @ keys.T - residuals.T) @ keys + 2.0 * delta @ covariance
    assert gradient.norm() < 1e-4 * (residuals.T @ keys).norm()


def test_fewer_tokens_than_dimensions_in_single_precision():
    """C of 40 tokens in 160 dimensions with a large mean, summed in float32 as on a GPU, is negative by its error."""
    x = (normal(1, 40, 160) + 10).float()
    covariance = x.T @ x / len(x)
    assert torch.linalg.eigvalsh(covariance.double())[0] < -1e-6 * covariance.diagonal().mean()
    assert Preserved(covariance, 2.0).factor.isfinite().all()


@pytest.mark.parametrize("width", [1, 7, 512, 1100])
def test_mirror_makes_symmetric(width):
    matrix = normal(1, width, width)
    expected = matrix.triu() + matrix.triu(1).T
    mirror(matrix)
    assert matrix.equal(expected)


@pytest.mark.parametrize("d_k", [1, 6])
def test_divided_is_the_inverse(d_k):
    c, rows = moment(1, d_k), normal(2, 5, d_k)
    wanted = rows @ torch.linalg.inv(c)
    for own in (rows.T.contiguous().T, rows.clone()):
        found = divided(own, cholesky(c.clone()))
        torch.testing.assert_close(found, wanted)
    assert found.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("n", [2, 9])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_given_is_left_as_it_is(solver, n):
    """Keys and residuals in float64 too, which the solvers could take for their own."""
    given = normal(1, n, 6), normal(2, n, 4), normal(3, n, 6), moment(4, 6)
    before = [tensor.clone() for tensor in given]
    k, r, met, c = given
    kept = NullSpace(c, 1e9, 1.0) if solver == "null-space" else Preserved(c, 1.0)
    SOLVERS[solver](k, r, kept, **{"equality": {"met": met}, "relaxed": {"mu": 0.1}}.get(solver, {}))
    assert all(map(torch.equal, given, before))


def test_statistics_that_are_none():
    with pytest.raises(ValueError, match="not positive semi-definite; delete its cache file"):
        _ = Preserved(-torch.eye(3), 1.0).factor


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_lambda_must_be_positive(lam):
    with pytest.raises(ValueError, match=r"lam is .*; the weight λ of the preserved keys must be positive"):
        Preserved(torch.eye(3), lam)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_norm_equals_the_matrix_norm(seed, rank, d_out, d_k):
    delta = Delta(normal(seed, d_out, rank), normal(seed + 1, d_k, rank))
    assert delta.norm() == pytest.approx(float(torch.linalg.matrix_norm(delta.matrix())), rel=1e-9)


def test_norm_of_nothing():
    assert Delta(torch.zeros(3, 2), torch.ones(4, 2)).norm() == 0.0


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_spreads(layers):
    """If a write arrives in full, all layers write equal parts and nothing remains; the last one writes it all."""
    written, missing = [], 1.0
    for index in range(layers):
        written.append(missing * SPREADS["1/m"](layers - index))
        missing -= written[-1]
    assert written == pytest.approx([1 / layers] * layers)
    assert missing == pytest.approx(0.0)
    assert all(spread(1) == 1.0 for spread in SPREADS.values())
    assert SPREADS["1/sqrt(m)"](4) == 0.5
    assert SPREADS["whole"](layers) == 1.0
