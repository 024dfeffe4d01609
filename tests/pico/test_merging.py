"""Merging edits: what is kept, what is scaled, and that ends of the range are the edit and the base."""

import pytest
import torch

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.merging import METHODS, combine, interference, merge, slerp
from kedit_lab.edit.post import prune, rect
from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import edit
from kedit_lab.model.lab import make_lab
from kedit_lab.types import Delta, Dense, Fact
from tests.pico.tiny import KINDS, build

FACT = Fact("John Smith", "{}'s employer is", "Greek")


@pytest.fixture(scope="module")
def pico(tokenizer):
    return make_lab(build(KINDS["llama"].config), tokenizer, "llama")


@pytest.fixture
def edits(pico):
    def one(seed):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
        names = [pico.arch.mlp[layer].name for layer in (0, 1)]
        return Edit(pico, find("memit"), (FACT,), {name: Delta(draw(32, 2), draw(48, 2)) for name in names},
                    pico.fingerprint())  # fmt: skip

    return one(1), one(2), one(3)


def matrices(edit):
    return torch.stack([delta.matrix() for delta in edit.deltas.values()])


@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_merge_keeps_the_largest(edits, density, jointly):
    base, found = matrices(edits[0]), matrices(merge(edits[0], 0.8, density, jointly))
    for old, new in [(base, found)] if jointly else zip(base, found, strict=True):
        kept = new != 0
        assert int(kept.sum()) == int(density * old.numel())
        torch.testing.assert_close(new[kept], 0.8 * old[kept])
        if 0 < kept.sum() < kept.numel():
            assert old[kept].abs().min() >= old[~kept].abs().max()


def test_merge_of_one_is_the_edit(edits):
    assert torch.equal(matrices(merge(edits[0])), matrices(edits[0]))
    assert not matrices(merge(edits[0], scale=0.0)).any()
    torch.testing.assert_close(matrices(merge(2.0 * edits[0], 1.0, 0.3)), 2 * matrices(merge(edits[0], 1.0, 0.3)))
    assert merge(edits[0], 0.8, 0.2).recipe.name == "merge(memit, 0.8, 0.2)"


def test_merged_edit_is_an_edit(edits, pico, tmp_path):
    made = merge(edits[0], 0.8, 0.2)
    before = {name: tensor.clone() for name, tensor in pico.model.state_dict().items()}
    with made.applied():
        assert any(not torch.equal(tensor, before[name]) for name, tensor in pico.model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in pico.model.state_dict().items())
    found = Edit.load(made.save(tmp_path / "merged.edit"), pico)
    torch.testing.assert_close(matrices(found), matrices(made))
    assert all(isinstance(delta, Dense) for delta in found.deltas.values())


def test_combinations(edits):
    a, b, c = map(matrices, edits)
    torch.testing.assert_close(matrices(combine(edits)), a + b + c)
    torch.testing.assert_close(matrices(combine(edits, weights=[1, 2, 0])), a + 2 * b)
    torch.testing.assert_close(matrices(combine(edits, "linear")), (a + b + c) / 3)
    ties = matrices(combine(edits, "ties"))
    stack = torch.stack([a, b, c])
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0).double()
    agree = stack.sign() == sign
    torch.testing.assert_close(ties, (stack * agree).sum(0) / agree.sum(0).clamp_min(1))
    dare = [matrices(combine(edits, "dare", density=0.5, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(dare[0], dare[1])
    assert not torch.equal(dare[0], dare[2])
    assert combine(edits).facts == (FACT,) * 3
    for method in METHODS[:-1]:
        assert matrices(combine(edits[:2], method, density=0.3)).isfinite().all()


def test_dare_keeps_the_expectation(edits):
    """Dropped at random and rescaled: the mean over many draws is the edit."""
    twice = (edits[0], 0.0 * edits[0])
    mean = torch.stack([matrices(combine(twice, "dare", density=0.5, seed=seed)) for seed in range(300)]).mean(0)
    a = matrices(edits[0])
    assert (mean - a).norm() < 0.12 * a.norm()


def test_slerp():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    assert float(slerp(a, b, 0.5).norm()) == pytest.approx(2.0)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


def test_interference(edits):
    table = interference(edits[0], edits[0])
    assert list(table.index) == list(edits[0].deltas)
    assert table["cosine"].tolist() == pytest.approx([1.0, 1.0])
    assert table["conflict"].tolist() == [0.0, 0.0]
    opposed = interference(edits[0], -1.0 * edits[0])
    assert opposed["cosine"].tolist() == pytest.approx([-1.0, -1.0])
    assert opposed["conflict"].tolist() == pytest.approx([1.0, 1.0])
    other = interference(edits[0], edits[1])
    assert other["conflict"].between(0.3, 0.7).all()
    name = next(iter(edits[1].deltas))
    part = edits[1].with_deltas({name: edits[1].deltas[name]}, "part")
    assert interference(edits[0], part)["cosine"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: merge(e[0], density=1.5), "density is 1.5; it is a share between 0 and 1"),
        (lambda e: merge(e[0], scale=float("nan")), "scale is nan; it must be a finite number"),
        (lambda e: combine(e[:1]), "1 edits given; there is nothing to combine under two"),
        (lambda e: combine(e, "average"), "method is 'average'; choose one of linear, task-arithmetic"),
        (lambda e: combine(e, weights=[1.0]), "1 weights for 3 edits; give one each"),
        (lambda e: combine(e, "slerp"), "slerp walks between two edits, 3 given"),
    ],
)
def test_bad_input(edits, call, message):
    with pytest.raises(ValueError, match=message):
        call(edits)


def test_other_bases(edits):
    other = Edit(edits[1].lab, edits[1].recipe, (FACT,), edits[1].deltas, "elsewhere")
    for call in (lambda: combine([edits[0], other]), lambda: edits[0] + other, lambda: interference(edits[0], other)):
        with pytest.raises(ValueError, match="were computed on different weights"):
            call()


def test_a_derived_edit_knows_what_it_was_computed_on(pico, tmp_path):
    """Behind a factor or a merge too: RECT and PRUNE look at the weights, and who applies it is warned."""
    settings = {"steps": 3, "prefixes": 0, "lam": 1.0, "stop": 0.0, "statistics": "identity"}
    x, y = (edit(pico, [FACT], "memit", cache=tmp_path, layers=(layer,), **settings) for layer in (1, 2))
    wanted = matrices(rect(x))
    with x.applied():
        assert torch.equal(matrices(rect(x)), wanted)
        for act in (rect, prune):
            with pytest.raises(ValueError, match="is not as it was when this edit was computed; undo the edit"):
                act(1.0 * x)
    assert torch.equal(matrices(rect(1.0 * x)), wanted)
    both = combine([x, y], "task-arithmetic", weights=[1, 1])
    with y.applied(), pytest.warns(UserWarning, match="not as"), both.applied():
        pass
