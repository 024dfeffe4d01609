"""An edit is computed beside the model, applied and undone bit for bit, and survives a file."""

import json
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kedit_lab.edit import edit as module
from kedit_lab.edit import groups, run, solvers, targets
from kedit_lab.edit import weights as weights_module
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.groups import clusters
from kedit_lab.edit.recipes import find
from kedit_lab.edit.solvers import Preserved, ridge
from kedit_lab.extract.keys import keys, streams
from kedit_lab.extract.moments import second_moment
from kedit_lab.model.lab import make_lab
from kedit_lab.types import Fact, Probe
from tests.pico.tiny import KINDS, TEXTS, build

FACTS = (
    Fact("John Smith", "{}'s employer is", "Greek", "London", "employer", ("John Smith works at",),
         (Probe("Mary Jones's employer is", "London", "near"),), (Probe("Greek employs", "John Smith", "inverse"),)),
    Fact("Mary Jones", "The native language of {} is", "Paris"),
    Fact("John Smith", "{} is in", "Zoë"),
)  # fmt: skip
RECIPE = find("memit", layers=(1,), lr=0.1, lr_unit="hidden", decay=0.0, clamp=2.0, steps=5, lam=1.0, prefixes=1,
              prefix_length=3)  # fmt: skip
CASES = [(name, dtype) for name in ("gpt2", "llama") for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def pico(tokenizer, request):
    name, dtype = request.param
    return make_lab(build(KINDS[name].config).to(dtype), tokenizer, name)


@pytest.fixture(params=["gpt2", "llama"])
def exact(tokenizer, request):
    """In float32, where changes can be compared."""
    return make_lab(build(KINDS[request.param].config), tokenizer, request.param)


@pytest.fixture
def compute(cache):
    def compute(lab, facts=FACTS, recipe=RECIPE, **overrides):
        return run.edit(lab, facts, recipe, TEXTS, cache, **overrides)

    return compute


def weights(lab):
    return {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}


def changed(lab, before):
    """Names of the tensors that differ in any bit."""
    return {name for name, tensor in lab.model.state_dict().items() if not torch.equal(tensor, before[name])}


@contextmanager
def unchanged(lab):
    before = weights(lab)
    yield
    assert changed(lab, before) == set()


@pytest.mark.parametrize("layers", [(1,), (0, 1), (0, 2)])
def test_computing_changes_nothing(pico, compute, layers):
    with unchanged(pico):
        made = compute(pico, layers=layers)
    assert set(made.deltas) == {pico.arch.mlp[layer].name for layer in layers}
    assert all(delta.norm() > 0 for delta in made.deltas.values())


@pytest.mark.parametrize("layers", [(1,), (0, 1), (-1,)])
def test_exactly_the_named_tensors_change(pico, compute, layers):
    made, before = compute(pico, layers=layers), weights(pico)
    with made.applied() as same:
        assert same is made
        assert changed(pico, before) == {pico.arch.mlp[layer].name for layer in layers}
    assert changed(pico, before) == set()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_weights_come_back_after_an_exception(pico, compute, error):
    made = compute(pico, layers=(0, 1))
    before = weights(pico)

    def fail():
        with made.applied():
            assert changed(pico, before)
            raise error

    with pytest.raises(error):
        fail()
    assert changed(pico, before) == set()
    assert "not applied" in repr(made)


def test_apply_and_undo_by_hand(pico, compute):
    made = compute(pico)
    with unchanged(pico):
        assert "not applied" in repr(made)
        assert made.apply() is made
        assert "not applied" not in repr(made)
        with pytest.raises(RuntimeError, match=r"applied already; call undo\(\) first"):
            made.apply()
        assert made.undo() is made
        with pytest.raises(RuntimeError, match="not applied; there is nothing to undo"):
            made.undo()
    with unchanged(pico), made.applied():
        pass


def test_stacked_edits_come_off_in_order(pico, compute):
    first, second = compute(pico, FACTS[:1]), compute(pico, FACTS[1:2])
    with unchanged(pico):
        first.apply()
        between = weights(pico)
        with pytest.warns(UserWarning, match=r"\.1\..* is not as it was when .* facts was computed; its change is"):
            second.apply()
        with pytest.raises(RuntimeError, match=r"\.1\..* was changed after this edit; undo the later edit first"):
            first.undo()
        second.undo()
        assert changed(pico, between) == set()
        first.undo()


def test_edits_of_other_layers_are_free(pico, compute):
    first, second = compute(pico, layers=(0,)), compute(pico, layers=(2,))
    with unchanged(pico):
        first.apply()
        second.apply()
        first.undo()
        second.undo()


def test_failing_application_leaves_nothing(pico, compute, monkeypatch):
    made, add = compute(pico, layers=(0, 1)), weights_module.add

    def fail(projection, delta):
        add(projection, delta)
        if projection == pico.arch.mlp[1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(weights_module, "add", fail)
    with unchanged(pico), pytest.raises(KeyboardInterrupt):
        made.apply()
    monkeypatch.undo()
    with unchanged(pico), made.applied():  # it can still be applied
        pass


@pytest.mark.parametrize("stage", ["current", "solver", "add"])
def test_failing_computation_leaves_nothing(pico, compute, monkeypatch, stage):
    """The first layer is written while the second one is read; then something breaks."""
    before, calls = weights(pico), []

    def second(real):
        def call(*args, **kwargs):
            calls.append(stage)
            if stage == "add":
                real(*args, **kwargs)
            if stage == "add" or len(calls) == 2:
                assert stage == "add" or changed(pico, before) == {pico.arch.mlp[0].name}
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    if stage == "solver":
        monkeypatch.setitem(solvers.SOLVERS, "ridge", second(ridge))
    else:
        monkeypatch.setattr(run, stage, second(getattr(run, stage)))
    with pytest.raises(KeyboardInterrupt):
        compute(pico, layers=(0, 1))
    assert calls
    assert changed(pico, before) == set()


def test_delta_is_what_the_weight_gains(exact, compute):
    made = compute(exact, layers=(0, 1))
    before = {layer: exact.arch.mlp[layer].module.weight.clone() for layer in (0, 1)}
    with made.applied():
        for layer in (0, 1):
            gain = exact.arch.mlp[layer].module.weight.double() - before[layer].double()
            delta = made.delta(layer)
            assert delta.shape == (exact.arch.d_model, exact.arch.d_k)
            assert delta.dtype == torch.float64
            stored = delta.T if exact.arch.mlp[layer].transposed else delta
            torch.testing.assert_close(gain, stored, rtol=0, atol=2e-7)  # half a unit in the last place of W
    assert torch.equal(made.delta(-2), made.delta(1))


def test_bfloat16_sums_before_it_rounds(tokenizer, compute):
    lab = make_lab(build(KINDS["llama"].config).to(torch.bfloat16), tokenizer)
    made, weight = compute(lab), lab.arch.mlp[1].module.weight
    expected = (weight.double() + made.delta(1)).to(torch.bfloat16)
    with made.applied():
        assert torch.equal(weight, expected)


def test_deltas_are_factors(pico, compute):
    delta = compute(pico).at(1)
    assert delta.left.shape == (pico.arch.d_model, len(FACTS))
    assert delta.right.shape == (pico.arch.d_k, len(FACTS))


def test_delta_of_another_layer(exact, compute):
    made = compute(exact)
    with pytest.raises(ValueError, match=r"layer 0 is not edited; this edit changes [a-z.]*\.1\..*weight"):
        made.delta(0)
    with pytest.raises(ValueError, match="layer 7 is not one of this model's 3 layers"):
        made.delta(7)


@pytest.mark.parametrize("spread", ["1/m", "1/sqrt(m)", "whole"])
def test_layers_are_solved_one_after_another(exact, compute, cache, spread):
    """Each layer writes its share of what is missing at the last one, with the earlier writes in place."""
    made = compute(exact, layers=(0, 1), spread=spread)
    prefixes = exact.prefixes(1, 3)
    recipe = made.recipe
    z = targets.values(exact, FACTS, [[0], [1], [2]], recipe, prefixes).z
    covariance = {layer: second_moment(exact, layer, TEXTS, cache) for layer in (0, 1)}
    original = exact.arch.mlp[0].module.weight.clone()
    for layer, m in ((0, 2), (1, 1)):
        share = {"1/m": 1 / m, "1/sqrt(m)": m**-0.5, "whole": 1.0}[spread]
        k, now = keys(exact, FACTS, layer, prefixes), streams(exact, FACTS, 1)
        expected = ridge(k, (z - now) * share, Preserved(covariance[layer], recipe.lam)).matrix()
        torch.testing.assert_close(made.delta(layer), expected, rtol=1e-4, atol=1e-6)
        if layer == 0:
            stored = expected.T if exact.arch.mlp[0].transposed else expected
            exact.arch.mlp[0].module.weight.copy_((original.double() + stored).float())
    exact.arch.mlp[0].module.weight.copy_(original)


def test_edit_brings_the_stream_to_its_target(exact, compute):
    """With a tiny λ the stream behind the edited layer is z, where no key is shared."""
    made = compute(exact, FACTS[:2], lam=1e-6, prefixes=0)
    z = targets.values(exact, FACTS[:2], [[0], [1]], made.recipe, ()).z
    with made.applied():
        torch.testing.assert_close(streams(exact, FACTS[:2], 1), z, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(streams(exact, FACTS[:2], 1), z, rtol=0.05, atol=0.05)


def test_distinct_subjects_merge_to_the_same_edit(exact, compute):
    merge = find("memit-merge").with_(**{k: v for k, v in vars(RECIPE).items() if k not in ("name", "group")})
    memit, merged = compute(exact, FACTS[:2]), compute(exact, FACTS[:2], merge)
    assert merged.recipe.group == "subject"
    assert torch.equal(memit.delta(1), merged.delta(1))
    assert not torch.equal(compute(exact).delta(1), compute(exact, FACTS, merge).delta(1))


def test_collisions_are_told(exact, compute):
    same = tuple(replace(FACTS[0], prompt=prompt, relation=prompt) for prompt in ("{} is", "{} works in", "{} knows"))
    made = compute(exact, (*same, FACTS[1]), prefixes=0)
    assert made.collisions == "3 of 4 facts share a key (cosine > 0.99): with memit their values are averaged"
    assert made.collisions in repr(made)
    merged = compute(exact, (*same, FACTS[1]), prefixes=0, group="subject", name="memit-merge")
    assert merged.collisions.endswith("with memit-merge each set of them gets one joint value")
    assert compute(exact, FACTS[:2]).collisions == ""
    pairs = groups.collisions(exact, (*same, FACTS[1]), layer=1)
    assert len(pairs) == 3
    assert set(pairs["a"]) | set(pairs["b"]) == {fact.text for fact in same}
    assert pairs["cosine"].min() > 0.99


@pytest.mark.parametrize("rows", [1, 2, 512])
def test_clusters(monkeypatch, rows):
    monkeypatch.setattr(groups, "BLOCK", rows)  # of the similarity matrix that are looked at together
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.01], [-1.0, 0.0], [3.0, 0.0]])
    assert clusters(keys) == [3, 1, 1]


def test_norms(pico, compute):
    made = compute(pico, layers=(0, 1))
    table = made.norms()
    assert list(table.index) == [pico.arch.mlp[layer].name for layer in (0, 1)]
    for layer, row in zip((0, 1), table.itertuples(), strict=True):
        assert row.delta == pytest.approx(float(made.delta(layer).norm()), rel=1e-9)
        weight = float(pico.arch.mlp[layer].module.weight.double().norm())
        assert row.weight == pytest.approx(weight)
        assert row.ratio == pytest.approx(row.delta / weight)
    with made.applied():
        assert made.norms().equals(table)  # still the norm before the edit


def test_losses(exact, compute):
    made = compute(exact)
    table = made.losses()
    assert list(table.columns) == ["group", "step", "loss"]
    assert table["group"].nunique() == 3
    for g, rows in table.groupby("group"):
        assert list(rows["step"]) == list(range(len(made.curves[g])))
        assert list(rows["loss"]) == made.curves[g]
    assert set(made.seconds) == {"targets", "statistics", "keys", "solve"}
    assert min(made.seconds.values()) >= 0


def test_overrides_reach_a_recipe_that_takes_published_values(exact, cache):
    """By name, a recipe's numbers are those of the model's shape; a keyword must still win."""
    made = run.edit(exact, FACTS[:1], "memit", TEXTS, cache, steps=3, prefixes=0, stop=0.0)
    assert (made.recipe.steps, made.recipe.prefixes, made.recipe.layers) == (3, 0, (0,))
    assert made.recipe.values.startswith("fallback")
    assert list(map(len, made.curves)) == [3]


def test_another_run_gives_the_same(exact, compute):
    assert torch.equal(compute(exact).delta(1), compute(exact).delta(1))


# files


@pytest.fixture
def saved(exact, compute, tmp_path):
    made = compute(exact, layers=(0, 1))
    return made, made.save(tmp_path / "my.edit")


def test_round_trip(saved, exact):
    made, path = saved
    found = Edit.load(path, exact)
    assert (found.facts, found.recipe, found.base, found.collisions) == (
        made.facts,
        made.recipe,
        made.base,
        made.collisions,
    )
    for layer in (0, 1):
        assert torch.equal(found.delta(layer), made.delta(layer))
    with made.applied():
        expected = weights(exact)
    with unchanged(exact), found.applied():
        assert changed(exact, expected) == set()
    assert [file.name for file in path.parent.iterdir()] == ["my.edit"]


def test_of_many_facts_the_change_itself_is_kept(exact, compute, tmp_path):
    """More facts than keys have dimensions: ΔW beside the residuals it was solved for, which a file keeps too."""
    subjects = [f"{chr(65 + i % 26)}{chr(97 + i // 26)}" for i in range(exact.arch.d_k + 2)]
    facts = tuple(Fact(subject, "{} works in", "Paris") for subject in subjects)
    made = compute(exact, facts, steps=2)
    assert made.at(1).change.shape == (exact.arch.d_model, exact.arch.d_k)
    assert made.at(1).left.shape == (exact.arch.d_model, len(facts))
    found = Edit.load(made.save(tmp_path / "many.edit"), exact)
    assert torch.equal(found.delta(1), made.delta(1))
    assert torch.equal(found.at(1).left, made.at(1).left)
    torch.testing.assert_close((found * 2).at(1).left, 2 * made.at(1).left)


def test_saved_while_applied(saved, exact):
    made, path = saved
    with made.applied():
        made.save(path)
        with pytest.raises(
            ValueError, match=r"was computed on weights .*, but this lab's are .*; load the same model, and undo"
        ):
            Edit.load(path, exact)
    assert torch.equal(Edit.load(path, exact).delta(1), made.delta(1))


def test_other_base(saved, exact, tokenizer):
    _, path = saved
    other = make_lab(build(KINDS[exact.name].config, seed=1), tokenizer)
    with pytest.raises(ValueError, match="was computed on weights"):
        Edit.load(path, other)
    half = make_lab(build(KINDS[exact.name].config).to(torch.bfloat16), tokenizer)
    with pytest.raises(ValueError, match="was computed on weights"):
        Edit.load(path, half)


def test_missing_file(exact, tmp_path):
    with pytest.raises(ValueError, match=r"there is no saved edit at .*nothing\.edit"):
        Edit.load(tmp_path / "nothing.edit", exact)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100], ids=["empty", "text", "ones"])
def test_not_a_saved_edit(exact, tmp_path, content):
    path = tmp_path / "bad.edit"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"bad.edit is not a readable saved edit \(.*\); give a whole file that Edit.save wrote"
    ):
        Edit.load(path, exact)


def test_other_tensors(exact, tmp_path):
    save_file({"0.left": torch.zeros(3)}, tmp_path / "plain.edit")
    with pytest.raises(ValueError, match="is not a readable saved edit"):
        Edit.load(tmp_path / "plain.edit", exact)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_file(saved, exact, share):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is not a readable saved edit"):
        Edit.load(path, exact)


def test_flipped_bytes(saved, exact):
    """Wherever one bit is wrong, in the header, the facts or the numbers, the file is refused."""
    made, path = saved
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    spots = [*range(0, header, 97), content.index(b"John Smith"), *range(header, len(content), 4001), len(content) - 1]
    for at in spots:
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged: its contents|is not a readable saved edit"):
            Edit.load(path, exact)
    path.write_bytes(content)
    assert Edit.load(path, exact).facts == made.facts


def test_other_format(saved, exact):
    _, path = saved
    manifest, tensors = module.read(path)
    text = json.dumps(manifest | {"format": "kedit-lab edit 0"})
    save_file(tensors, path, metadata={"manifest": text, "digest": module.digest(text, tensors)})
    with pytest.raises(ValueError, match="is in the format 'kedit-lab edit 0', this version reads 'kedit-lab edit 2'"):
        Edit.load(path, exact)
    assert load_file(path).keys() == tensors.keys()


def test_failing_save_leaves_the_old_file(saved, monkeypatch):
    made, path = saved
    before = path.read_bytes()

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        made.save(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="disk full"):
        made.save(path.with_name("new.edit"))
    assert [file.name for file in path.parent.iterdir()] == ["my.edit"]


def test_saved_edit_names_its_parts(saved):
    manifest, tensors = module.read(saved[1])
    assert set(tensors) == {f"{name}/{side}" for name in saved[0].deltas for side in ("left", "right")}
    assert manifest["recipe"]["name"] == "memit"
    assert [row["subject"] for row in manifest["facts"]] == [fact.subject for fact in FACTS]
    assert set(manifest["versions"]) == {"kedit-lab", "torch", "transformers"}


def test_facts_from_files_old_and_new():
    """Every field of a fact comes back from JSON; a file from before a field existed is read with its default."""
    rich = replace(
        FACTS[0],
        locality=(Probe("Paris is in", "Europe", "other", ("the EU",)),),
        generation=("John Smith is",),
        aliases=("Hellenic",),
        id="7",
    )
    assert module.revive(json.loads(json.dumps(asdict(rich)))) == rich
    old = json.loads(json.dumps(asdict(FACTS[0])))
    for name in ("locality", "generation", "aliases", "id"):
        del old[name]
    for probe in (*old["neighborhood"], *old["portability"]):
        del probe["aliases"]
    assert module.revive(old) == FACTS[0]
