"""Every recipe on every architecture: it changes the tensors it names, and all comes back bit for bit."""

from dataclasses import replace

import pytest
import torch

from kedit_lab.edit import finetune, targets
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.finetune import adapters
from kedit_lab.edit.groups import group
from kedit_lab.edit.mend import Editor, edited_weights, gradients
from kedit_lab.edit.recipe import Hyper, Neurons, Recipe, Tuning
from kedit_lab.edit.recipes import TABLE, find
from kedit_lab.edit.run import edit, remember
from kedit_lab.extract.keys import values
from kedit_lab.model.lab import make_lab
from kedit_lab.model.tokens import fact_row
from kedit_lab.train.mend import train_mend
from kedit_lab.types import Dense, Fact
from tests.pico.tiny import KINDS, TEXTS, build

FACTS = (
    Fact("John Smith", "{}'s employer is", "Greek", "London"),
    Fact("John Smith", "{} works in the city of", "Paris"),
    Fact("Mary Jones", "The native language of {} is", "Greek"),
)
SMALL = {
    Recipe: {"steps": 3, "prefixes": 1, "prefix_length": 3, "lam": 1.0, "threshold": 1e9, "stop": 0.0},
    Tuning: {"epochs": 2, "stop": 0.0},
    Neurons: {"steps": 4},
    Hyper: {},
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODELS = [(kind, torch.float32, device) for kind in KINDS for device in DEVICES]
MODELS += [(kind, torch.bfloat16, device) for kind in ("gpt2", "llama") for device in DEVICES]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: f"{m[0]}-{str(m[1]).removeprefix('torch.')}-{m[2]}")
def fresh(tokenizer, request):
    name, dtype, device = request.param
    return make_lab(build(KINDS[name].config).to(device, dtype), tokenizer, name)


def bits(lab):
    return {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}


def changed(lab, before):
    return {name for name, tensor in lab.model.state_dict().items() if not torch.equal(tensor, before[name])}


def make(lab, method, cache, **more):
    recipe = TABLE[method]
    settings = SMALL[type(recipe)] | more
    if isinstance(recipe, Hyper):
        path = cache / f"{lab.fingerprint()}.safetensors"
        if not path.exists():
            train_mend_quietly(lab, path)
        settings |= {"path": str(path)}
    return edit(lab, FACTS, recipe, TEXTS, cache, **settings)


def train_mend_quietly(lab, path):
    train_mend(lab, path, FACTS, steps=2, rows=2, progress=False)


@pytest.mark.parametrize("method", TABLE)
def test_changes_what_it_names_and_comes_back(fresh, method, cache):
    before = bits(fresh)
    names = {name for name, _ in fresh.model.named_modules()}
    made = make(fresh, method, cache)
    assert changed(fresh, before) == set()
    assert {name for name, _ in fresh.model.named_modules()} == names
    assert not any(p.requires_grad or p.grad is not None for p in fresh.model.parameters())
    assert all(torch.isfinite(delta.matrix()).all() for delta in made.deltas.values())
    assert made.facts == FACTS
    with made.applied():
        tied = {name for name in changed(fresh, before) if name not in made.deltas}
        assert not tied
        assert changed(fresh, before)
    assert changed(fresh, before) == set()


@pytest.mark.parametrize("method", ["memit", "rect", "prune", "lora", "ft-l", "kn", "mend"])
def test_files_keep_every_kind_of_change(fresh, method, cache, tmp_path):
    made = make(fresh, method, cache)
    found = Edit.load(made.save(tmp_path / "an.edit"), fresh)
    assert found.recipe == made.recipe
    with made.applied():
        after = bits(fresh)
    with found.applied():
        assert changed(fresh, after) == set()


@pytest.fixture
def pico(make_one):
    return make_one


@pytest.fixture(params=["gpt2", "llama"])
def make_one(tokenizer, request):
    return make_lab(build(KINDS[request.param].config), tokenizer, request.param)


def test_constrained_tuning_stays_inside(pico, cache):
    made = make(pico, "ft-l", cache, epsilon=1e-3, lr=0.1)
    for delta in made.deltas.values():
        assert isinstance(delta, Dense)
        assert delta.matrix().abs().max() <= 1e-3 + 1e-7
        assert delta.matrix().abs().max() > 0.9e-3


def test_threshold_without_bound_changes_nothing(pico, cache):
    with pytest.raises(ValueError, match="the update is zero"):
        make(pico, "r-sft", cache, stop=1e6)


def test_tuning_takes_exactly_its_steps(pico, cache):
    made = make(pico, "r-sft", cache, epochs=3, repeats=2, lr=1e-6)
    assert [len(curve) for curve in made.curves] == [6] * len(FACTS)


def test_lora_with_no_epochs_left_is_refused(pico, cache):
    with pytest.raises(ValueError, match="epochs is 0"):
        make(pico, "lora", cache, epochs=0)


def test_fresh_lora_is_the_identity(pico):
    """B = 0: the wrapped model gives the same logits, and what is read from the factors is no change."""
    recipe = TABLE["lora"].with_(layers=(0, 1), dropout=0.0)
    weights = finetune.chosen(pico, recipe)
    batch = pico.batch([[1, 2, 3]])
    with torch.no_grad():
        before = pico.model(**batch).logits
        with adapters(pico, weights, recipe) as (_, _, read):
            assert torch.equal(pico.model(**batch).logits, before)
            assert all(delta.norm() == 0 for delta in read().values())


def test_untrained_mend_is_the_gradient_of_normalised_inputs(pico):
    """At first the network is the identity; tokens without a gradient write nothing."""
    weights = edited_weights(pico, [1])
    rows = [fact_row(pico.tokenizer, fact) for fact in FACTS]
    editor = Editor([p.name for p in weights], [(p.d_in, p.d_out) for p in weights])
    for index, found in enumerate(gradients(pico, rows, weights)):
        assert found.mask.any()
        assert not found.mask.all()  # rows are padded, and nothing behind the answer has a gradient
        u, d = found.u[found.mask], found.d[found.mask]
        editor.get_buffer(f"mean{index}").copy_(mean := torch.cat([u, d], 1).mean(0))
        editor.get_buffer(f"std{index}").copy_(std := torch.cat([u, d], 1).std(0) + 1e-3)
        with torch.no_grad():
            new = editor(index, u, d)
            step = float(editor.rate[index])
        size = u.shape[1]
        torch.testing.assert_close(new[0], (u - mean[:size]) / std[:size], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new[1], -step * (d - mean[size:]) / std[size:], rtol=1e-4, atol=1e-6)


def test_gradients_of_all_tokens_are_the_weights_gradient(pico):
    weights = edited_weights(pico, [1])
    rows = [fact_row(pico.tokenizer, fact) for fact in FACTS[:2]]
    found = gradients(pico, rows, weights)
    for projection, gradient in zip(weights, found, strict=True):
        weight = projection.module.weight
        weight.requires_grad_(True)
        with torch.enable_grad():
            total = finetune.loss(pico, rows, "target") * len(rows)
            (expected,) = torch.autograd.grad(total, weight)
        weight.requires_grad_(False)
        summed = gradient.d.flatten(0, 1).T @ gradient.u.flatten(0, 1)
        torch.testing.assert_close(summed, projection.stored(expected), rtol=1e-3, atol=1e-6)


def test_no_neuron_is_above_the_largest(pico, cache):
    with pytest.raises(ValueError, match="the update is zero: no neuron is above the threshold"):
        make(pico, "kn", cache, threshold=1.0)


def test_more_steps_than_are_needed_change_nothing(pico, cache):
    """R-SFT: once every sample stops early, K does not matter."""
    settings = {"epochs": 1, "lr": 0.05, "stop": 3.0}
    few, many = (make(pico, "r-sft", cache, repeats=k, **settings) for k in (40, 60))
    assert all(len(curve) < 40 for curve in few.curves)
    for name, delta in few.deltas.items():
        assert torch.equal(delta.matrix(), many.deltas[name].matrix())


def test_edits_add_and_scale(pico, cache):
    a, b = make(pico, "memit", cache), make(pico, "ft-m", cache)
    total = a + b
    assert total.facts == FACTS + FACTS
    for name, delta in total.deltas.items():
        parts = [e.deltas[name].matrix().double() for e in (a, b) if name in e.deltas]
        torch.testing.assert_close(delta.matrix().double(), sum(parts), rtol=1e-5, atol=1e-6)
    half = 0.5 * a
    for name in a.deltas:
        torch.testing.assert_close(half.deltas[name].matrix(), 0.5 * a.deltas[name].matrix())
    assert half.recipe.name == "0.5 * memit"


def test_rome_meets_its_target_exactly(pico, cache):
    """(W + ΔW) k_bare = v*: with the bare prompt as the only context the MLP writes what was asked for."""
    made = edit(pico, FACTS[:1], "rome", TEXTS, cache, **SMALL[Recipe] | {"prefixes": 0})
    wanted = targets.values(pico, FACTS[:1], [[0]], made.recipe, ()).z
    with made.applied():
        torch.testing.assert_close(values(pico, FACTS[:1], made.recipe.layers[-1]), wanted, rtol=1e-3, atol=1e-3)
    twin = edit(pico, FACTS[:1], "r-rome", TEXTS, cache, **SMALL[Recipe] | {"prefixes": 0})
    layer = made.recipe.layers[-1]
    torch.testing.assert_close(made.delta(layer), twin.delta(layer))


def test_rome_at_once_is_rome_in_sequence(pico, cache):
    """Values found on the unedited model and written one after another are those of single edits, in one ΔW."""
    settings = SMALL[Recipe] | {"prefixes": 0}
    together = edit(pico, FACTS, "rome", TEXTS, cache, **settings)
    layer = together.recipe.layers[-1]
    last = edit(pico, FACTS[2:], "rome", TEXTS, cache, **settings)
    with last.applied():
        wanted = values(pico, FACTS[2:], layer)
    with together.applied():
        torch.testing.assert_close(values(pico, FACTS[2:], layer), wanted, rtol=1e-3, atol=1e-3)
    one_by_one = edit(pico, FACTS, "rome", TEXTS, cache, **settings, block=1)
    assert not torch.allclose(one_by_one.delta(layer), together.delta(layer))  # its values saw the earlier edits
    distinct = edit(pico, FACTS[1:], "rome", TEXTS, cache, **settings)
    assert distinct.at(layer).left.shape[1] == 2


def test_emmet_is_memit_with_the_product(pico, cache):
    one = {"layers": (1,), "steps": 3, "prefixes": 0, "clamp": 2.0, "lr": 0.1, "lr_unit": "hidden", "stop": 0.0}
    emmet = edit(pico, FACTS, "emmet", TEXTS, cache, **one, lam=5.0, mu=0.2)
    memit = edit(pico, FACTS, "memit", TEXTS, cache, **one, lam=1.0)
    torch.testing.assert_close(emmet.delta(1), memit.delta(1), rtol=1e-4, atol=1e-7)


def test_eamet_without_alignment_is_memit(pico, cache):
    """Fact sheet, invariant 17: same start, bound, stop and prefixes, no alignment."""
    same = {"layers": (1,), "steps": 4, "prefixes": 1, "clamp": 2.0, "lr": 0.1, "lr_unit": "hidden", "stop": 0.0,
            "decay": 0.0, "lam": 1.0}  # fmt: skip
    plain = edit(pico, FACTS, "memit", TEXTS, cache, **same)
    off = {"align_kl": 0.0, "align_mse": 0.0, "start": "zero", "bound": "hidden"}
    aligned = edit(pico, FACTS, "eamet", TEXTS, cache, **same | off)
    torch.testing.assert_close(plain.delta(1), aligned.delta(1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("method", "facts"), [("eamet", FACTS[1:]), ("eamet", FACTS), ("eamet-merge", FACTS)])
def test_keys_are_kept_or_read_again(pico, cache, method, facts):
    """Where little may be held, keys are not held from the values to the solve; the same blocks give the same bits."""
    same = {"layers": (1,), "steps": 4, "prefixes": 1, "lam": 1.0, "stop": 0.0}
    recipe, held = find(method).on(pico.arch, **same), []
    for lab in (pico, replace(pico, work=10**9)):
        found = targets.values(lab, facts, group(lab, facts, recipe.group, 1), recipe, lab.prefixes(1))
        held.append(found.keys is not None)
    assert held == [True, False]
    kept, again = (edit(lab, facts, method, TEXTS, cache, **same) for lab in (pico, replace(pico, work=10**9)))
    assert torch.equal(kept.delta(1), again.delta(1))


def test_order_matters_for_eamet_alone(pico, cache):
    same = {"layers": (1,), "steps": 4, "prefixes": 0, "lam": 1.0, "stop": 0.0}
    for method, equal in (("memit", True), ("eamet", False)):
        there = edit(pico, FACTS, method, TEXTS, cache, **same)
        back = edit(pico, FACTS[::-1], method, TEXTS, cache, **same)
        assert torch.allclose(there.delta(1), back.delta(1), rtol=1e-3, atol=1e-5) == equal


def test_memory_counts_for_recipes_that_have_one(pico, cache):
    settings = SMALL[Recipe] | {"layers": (1,)}
    first = edit(pico, FACTS[:1], "memit-seq", TEXTS, cache, **settings)
    with first.applied():
        memory = remember(pico, FACTS[:1], first.recipe)
        assert memory.facts == 1
        assert torch.linalg.matrix_rank(memory.past[1]) == 1
        again = remember(pico, FACTS[:1], first.recipe, memory)
        torch.testing.assert_close(again.past[1], 2 * memory.past[1])
    k = torch.linalg.eigh(memory.past[1]).eigenvectors[:, -1]
    without = edit(pico, FACTS[2:], "memit-seq", TEXTS, cache, **settings)
    within = edit(pico, FACTS[2:], "memit-seq", TEXTS, cache, memory=memory, **settings)
    assert (within.delta(1) @ k).norm() < (without.delta(1) @ k).norm()
    plain = edit(pico, FACTS[2:], "memit", TEXTS, cache, memory=memory, **settings)
    assert torch.equal(plain.delta(1), without.delta(1))
    assert remember(pico, FACTS, plain.recipe).facts == 0
