"""Target values: what they minimise, what bounds them, and that batching them changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from kedit_lab.edit import descent, targets
from kedit_lab.edit.align import Alignment
from kedit_lab.edit.bundles import folded
from kedit_lab.edit.groups import group
from kedit_lab.edit.recipes import find
from kedit_lab.extract.keys import keys, streams
from kedit_lab.measure.geometry import misalignment
from kedit_lab.model import hooks, past
from kedit_lab.model.tail import Tail
from kedit_lab.study.plain import plain_target
from kedit_lab.types import Fact

PREFIXES = ("Therefore I think so. ", "You know. ")
RECIPE = find("memit", layers=(1,), lr=0.1, lr_unit="hidden", decay=0.1, clamp=3.0, steps=8, stop=0.0)
DISTINCT = (
    Fact("John Smith", "{}'s employer is", "Greek"),
    Fact("Mary Jones", "The native language of {} is", "London"),
    Fact("France", "I know the capital of {}. It is in the city of", "Paris"),
    Fact("Europe", "{} works", "in Greek"),
)
SAME = tuple(
    Fact("John Smith", prompt, target)
    for prompt, target in [("{}'s employer is", "Greek"), ("{} is in the city of", "London"), ("{} works in", "Paris")]
)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=["gpt2", "llama"])
def pico(make, request):
    return make(request.param)


def values(lab, facts, recipe=RECIPE, prefixes=PREFIXES):
    return targets.values(lab, facts, group(lab, facts, recipe.group, 1), recipe, prefixes)


MERGE = RECIPE.with_(group="subject")


def whole_pass(lab, texts, at, layer, delta):
    """Log-probabilities of every position when δ is added behind a layer at each row's position, from a full pass."""

    def write(hidden):
        moved = hidden.clone()
        for i, spot in enumerate(at):
            moved[i, spot] = hidden[i, spot] + delta
        return moved

    with hooks.replace(lab, "block", layer, write):
        return lab.model(**lab.batch(texts)).logits.log_softmax(-1)


def naive_loss(lab, facts, recipe, prefixes, delta, reference=None):
    """(loss, log-probabilities of the drift row) of one value for all the facts, one text at a time."""
    layer, subject = recipe.layers[-1], facts[0].subject
    encode = lambda text: lab.tokenizer(text)["input_ids"]  # noqa: E731
    nll = []
    for fact in facts:
        before, _ = fact.prompt.split("{}")
        for prefix in ("", *prefixes):
            prompt, target = encode(prefix + fact.text), encode(" " + fact.target_new)
            at = len(encode(prefix + before + subject)) - 1
            logp = whole_pass(lab, [prompt + target], [at], layer, delta)[0]
            said = [logp[len(prompt) - 1 + i, token] for i, token in enumerate(target)]
            nll.append(-sum(said) / len(said))
    at = len(encode(subject)) - 1
    drift = whole_pass(lab, [encode(f"{subject} is a")], [at], layer, delta)[0, at]
    reference = drift.detach() if reference is None else reference
    kl = (drift.exp() * (drift - reference)).sum()
    h = streams(lab, facts[:1], layer)[0]
    return sum(nll) / len(nll) + recipe.kl * kl + recipe.decay * delta.norm() / h.norm() ** 2, reference


def naive_value(lab, facts, recipe, prefixes):
    """δ of one group by plain Adam on the whole loss."""
    h = streams(lab, facts[:1], recipe.layers[-1])[0]
    step = recipe.lr * h.norm() / len(h) ** 0.5
    delta, reference = torch.zeros_like(h).requires_grad_(), None
    adam = torch.optim.Adam([delta], lr=float(step), eps=1e-8 / float(step))  # the package's Adam counts in steps
    for _ in range(recipe.steps - 1):
        loss, reference = naive_loss(lab, facts, recipe, prefixes, delta, reference)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, float(recipe.clamp * h.norm() / delta.norm()))
    return h + delta.detach()


@pytest.mark.parametrize("facts", [DISTINCT[:1], DISTINCT[3:], SAME], ids=["one", "two tokens", "merged"])
def test_values_are_those_of_a_plain_descent(pico, facts):
    recipe = MERGE.with_(steps=4)
    found = values(pico, facts, recipe)
    expected = naive_value(pico, facts, recipe, PREFIXES)
    assert (expected - found.h[0]).norm() > 0.01 * found.h[0].norm()
    torch.testing.assert_close(found.z, expected.expand(len(facts), -1), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("facts", [DISTINCT[3:], SAME], ids=["two tokens", "merged"])
def test_first_loss_is_the_mean_nll(pico, facts):
    """Mean over facts and prefixes, each normalised by its own target's length; no drift and no δ yet."""
    zero = torch.zeros(pico.arch.d_model)
    expected, _ = naive_loss(pico, facts, RECIPE.with_(kl=0.0, decay=0.0), PREFIXES, zero)
    assert values(pico, facts, MERGE).curves[0][0] == pytest.approx(float(expected), rel=1e-4)


def test_values_equal_the_benchmarks_plain_form(pico):
    recipe = RECIPE.with_(stop=0.5, steps=12)
    found = values(pico, DISTINCT, recipe)
    plain = torch.stack([plain_target(pico, fact, recipe, PREFIXES) for fact in DISTINCT])
    torch.testing.assert_close(found.z, plain, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("recipe", [RECIPE.with_(stop=0.5, steps=12), find("pmet", layers=(1,), lr=0.1, steps=9)])
def test_running_the_few_again_changes_nothing(pico, monkeypatch, recipe):
    """Whether all rows go back or those still sought run again alone: the same values after the same passes."""
    found = {}
    for share in (0.0, 2.0):
        monkeypatch.setattr(descent, "AGAIN", share)
        found[share] = values(pico, DISTINCT, recipe)
    assert [len(curve) for curve in found[0.0].curves] == [len(curve) for curve in found[2.0].curves]
    torch.testing.assert_close(found[2.0].z, found[0.0].z, **CLOSE)


def test_absolute_step_size(pico):
    recipe = RECIPE.with_(lr=0.05, lr_unit="absolute", steps=2, decay=0.0)
    moved = values(pico, DISTINCT, recipe)
    torch.testing.assert_close((moved.z - moved.h).abs(), torch.full_like(moved.h, 0.05), rtol=1e-2, atol=1e-4)


def test_hidden_step_size(pico):
    """Adam's first step has the size of the step: lr·‖h‖/√d in every coordinate."""
    found = values(pico, DISTINCT, RECIPE.with_(steps=2))
    size = 0.1 * found.h.norm(dim=1) / found.h.shape[1] ** 0.5
    torch.testing.assert_close((found.z - found.h).abs().mean(1), size, rtol=1e-2, atol=1e-4)


def test_a_pass_serves_several_steps(pico):
    """Without what needs no pass the gradient stays as it is, and of equal gradients Adam's steps add up."""
    once = RECIPE.with_(lr=0.3, steps=2, decay=0.0)
    found = values(pico, DISTINCT, once.with_(lr=0.1, reuse=3))
    assert (found.z - found.h).norm() > 0.1
    # Adam adds 1e-8 to each length it divides by, at every step: the smallest gradients lose 5e-4 of a step of 0.3
    torch.testing.assert_close(found.z, values(pico, DISTINCT, once).z, rtol=1e-3, atol=2e-3)


ALIGNED = find("eamet", layers=(1,), lr=0.05, lr_unit="hidden", steps=3, stop=0.0)


def test_alignment_is_taken_anew_at_every_step(pico):
    """Of a pass's gradient alone ten steps would be one step ten times as long; the alignment bends their way."""
    layer, seen = ALIGNED.layers[-1], {}
    k = keys(pico, DISTINCT, layer, PREFIXES).float()
    for reuse, lr in ((10, 0.05), (1, 0.5)):
        watched = []
        recipe = ALIGNED.with_(reuse=reuse, lr=lr)
        each = [[i] for i in range(len(DISTINCT))]
        found = targets.values(pico, DISTINCT, each, recipe, PREFIXES, lambda step, _, w=watched: w.append(step))
        seen[reuse] = float(misalignment(found.z - found.h, k).sum())
        assert [len(curve) for curve in found.curves] == [3] * len(DISTINCT)
        assert watched == list(range(2 * reuse + 1))
    assert seen[10] < 0.5 * seen[1]


def test_passes_end_with_what_they_are_for(pico):
    """Where a pass serves several steps, the stop looks at the likelihood, which costs it, and not at the alignment."""
    heavy = ALIGNED.with_(align_mse=1e6, stop=100.0)
    assert [len(curve) for curve in values(pico, DISTINCT, heavy.with_(reuse=2)).curves] == [2] * len(DISTINCT)
    assert [len(curve) for curve in values(pico, DISTINCT, heavy).curves] == [2, *[3] * (len(DISTINCT) - 1)]


def test_start_is_the_stream(pico):
    torch.testing.assert_close(values(pico, DISTINCT).h, streams(pico, DISTINCT, 1), **CLOSE)


@pytest.mark.parametrize("override", [{"steps": 1}, {"clamp": 0.0}, {"lr": 0.0}, {"stop": 100.0}], ids=str)
def test_nothing_moves(pico, override):
    found = values(pico, DISTINCT, RECIPE.with_(**override))
    assert torch.equal(found.z, found.h)
    lengths = {len(curve) for curve in found.curves}
    assert lengths == ({1} if set(override) & {"steps", "stop"} else {RECIPE.steps})


@pytest.mark.parametrize("clamp", [0.05, 0.2])
def test_clamp_is_respected(pico, clamp):
    found = values(pico, DISTINCT, RECIPE.with_(clamp=clamp, lr=1.0))
    ratio = (found.z - found.h).norm(dim=1) / found.h.norm(dim=1)
    assert ratio.max() < clamp * (1 + 1e-4)
    assert ratio.max() > 0.9 * clamp


def test_first_pass_measures_no_drift(pico):
    curves = [values(pico, DISTINCT, RECIPE.with_(kl=kl)).curves for kl in (0.0, 1e4)]
    assert [curve[0] for curve in curves[0]] == [curve[0] for curve in curves[1]]
    assert all(a[1] < b[1] for a, b in zip(*curves, strict=True))


def test_losses_fall(pico):
    for curve in values(pico, DISTINCT).curves:
        assert len(curve) == RECIPE.steps
        assert curve[-1] < curve[0]


def test_one_subject_has_one_start(pico):
    """Causality: in subject-first prompts nothing before or at the lookup token knows the relation."""
    h = values(pico, SAME).h
    torch.testing.assert_close(h, h[:1].expand(3, -1), rtol=1e-5, atol=1e-5)
    k = keys(pico, SAME, 1, PREFIXES)
    torch.testing.assert_close(k, k[:1].expand(3, -1), rtol=1e-5, atol=1e-5)


def test_one_subject_has_many_values_unless_merged(pico):
    each, merged = values(pico, SAME), values(pico, SAME, MERGE)
    assert (each.z[0] - each.z[1]).norm() > 0.05 * each.h[0].norm()
    assert torch.equal(merged.z, merged.z[:1].expand(3, -1))
    assert torch.equal(merged.h, merged.h[:1].expand(3, -1))
    assert (len(each.curves), len(merged.curves)) == (3, 1)


def test_merging_distinct_subjects_changes_nothing(pico):
    each, merged = values(pico, DISTINCT), values(pico, DISTINCT, MERGE)
    assert torch.equal(each.z, merged.z)
    assert each.curves == merged.curves


def test_two_copies_are_one(pico):
    one, two = values(pico, SAME[:1], MERGE), values(pico, (SAME[0], SAME[0]), MERGE)
    torch.testing.assert_close(two.z, one.z.expand(2, -1), **CLOSE)
    assert two.curves[0] == pytest.approx(one.curves[0], rel=1e-4)


def test_groups_keep_their_facts_apart(pico):
    """Facts of three subjects in mixed order: every fact gets its own group's value."""
    facts = (SAME[0], DISTINCT[1], SAME[1], DISTINCT[2], SAME[2])
    assert group(pico, facts, "subject", 1) == [[0, 2, 4], [1], [3]]
    found = values(pico, facts, MERGE)
    torch.testing.assert_close(found.z[[0, 2, 4]], values(pico, SAME, MERGE).z, **CLOSE)
    torch.testing.assert_close(found.z[[1, 3]], values(pico, DISTINCT[1:3]).z, **CLOSE)


def test_batched_is_one_by_one(pico):
    found = values(pico, DISTINCT + SAME)
    alone = [values(pico, [fact]) for fact in DISTINCT + SAME]
    torch.testing.assert_close(found.z, torch.cat([one.z for one in alone]), **CLOSE)
    for curve, one in zip(found.curves, alone, strict=True):
        assert curve == pytest.approx(one.curves[0], rel=1e-3)


def test_order_does_not_matter(pico):
    torch.testing.assert_close(values(pico, DISTINCT[::-1]).z, values(pico, DISTINCT).z.flip(0), **CLOSE)


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_chunks_do_not_matter(pico, monkeypatch, budget):
    before = values(pico, DISTINCT + SAME, MERGE)
    asked = targets.questions(pico, DISTINCT + SAME, group(pico, DISTINCT + SAME, "subject", 1), MERGE, PREFIXES)
    assert len(list(targets.batches(asked, targets.budget(pico)))) == 1
    monkeypatch.setattr(targets, "budget", lambda *_: budget)
    parts = list(targets.batches(asked, budget))
    assert len(parts) > 1
    assert sorted(g for part in parts for g in part) == list(range(len(asked)))
    after = values(pico, DISTINCT + SAME, MERGE)
    torch.testing.assert_close(after.z, before.z, **CLOSE)
    assert [len(curve) for curve in after.curves] == [len(curve) for curve in before.curves]


@pytest.mark.parametrize("method", ["memit", "pmet"])
def test_a_group_too_large_for_a_pass_runs_in_parts(pico, monkeypatch, method):
    """No pass is larger than allowed, and nothing of one is held for the way back while the others run."""
    monkeypatch.setattr(past, "WASTE", (2, 2))  # rows of several lengths are bundles of their own before
    recipe = find(method, layers=(1,), steps=4, stop=0.0, group="subject")
    weights = {p.untyped_storage().data_ptr() for p in pico.model.parameters()}
    run, back, passes, sizes, held, found = descent.forward, torch.autograd.grad, [], [], [], []

    def noted(tail, *rest):
        passes.append(tail.inputs["input_ids"].numel())
        return run(tail, *rest)

    def pack(kept):
        if kept.untyped_storage().data_ptr() not in weights:
            sizes.append(kept.nbytes)
        return kept

    def grad(*args):
        held.append(sum(sizes))
        sizes.clear()
        return back(*args)

    monkeypatch.setattr(descent, "forward", noted)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    for most in (54, 16):  # all tokens of the group, or two to three rows
        monkeypatch.setattr(targets, "budget", lambda *_, most=most: most)
        with saved_tensors_hooks(pack, lambda kept: kept):
            found.append((values(pico, SAME, recipe), max(passes), max(held)))
        for seen in (passes, sizes, held):
            seen.clear()
    (whole, _, most), (parts, widest, least) = found
    assert 8 < widest <= 16
    assert least < most / 2
    torch.testing.assert_close(parts.z, whole.z, **CLOSE)
    assert parts.curves[0] == pytest.approx(whole.curves[0], rel=1e-4)


def test_budget_follows_the_model(pico, monkeypatch):
    """A small model has ROOM; without it, what is held stays at a sixth of the weights."""
    wide = targets.budget(pico)
    assert wide > 1000
    monkeypatch.setattr(targets, "ROOM", 0)
    held = 4 * (pico.arch.layers * (10 * pico.arch.d_model + 8 * pico.arch.d_k) + 2 * 512)
    weights = 4 * sum(p.numel() for p in pico.model.parameters())
    assert targets.budget(pico) * held <= weights / 6 < (targets.budget(pico) + 1) * held
    assert targets.budget(pico) < wide


def test_work_bounds_what_a_pass_holds(pico):
    """``lab.work`` bytes, whatever would be fast; without alignment, what is found is the same."""
    held = 4 * (pico.arch.layers * (10 * pico.arch.d_model + 8 * pico.arch.d_k) + 2 * 512)
    small = replace(pico, work=40 * held)
    assert targets.budget(small) == targets.budget(small, room=10**9) == 40
    assert targets.budget(replace(pico, work=1)) == 1
    asked = targets.questions(pico, DISTINCT, group(pico, DISTINCT, "each", 1), RECIPE, PREFIXES)
    assert len(list(targets.batches(asked, targets.budget(pico)))) == 1 < len(list(targets.batches(asked, 40)))
    torch.testing.assert_close(values(small, DISTINCT).z, values(pico, DISTINCT).z, **CLOSE)


def test_only_a_bound_lets_aligned_blocks_depend_on_the_layer(pico, monkeypatch):
    """What a pass of eamet counts: every block, so that values do not depend on it, or those it runs."""
    asked, budget = [], targets.budget
    monkeypatch.setattr(targets, "budget", lambda lab, start, room: asked.append(start) or budget(lab, start, room))
    recipe = find("eamet", layers=(1,), steps=2)
    for lab in (pico, replace(pico, work=10**6)):
        values(lab, DISTINCT[:2], recipe)
    assert asked == [0, 2]


def test_budget_bounds_a_batch(pico):
    facts = DISTINCT + SAME
    asked = targets.questions(pico, facts, group(pico, facts, "each", 1), RECIPE, PREFIXES)
    for part in targets.batches(asked, 60):
        rows = [a.row for g in part for a in asked[g]]
        assert len(part) == 1 or sum(len(row.ids) - row.lookup for row in rows) <= 60


def test_a_turn_ends_before_the_next(pico):
    facts = DISTINCT + SAME
    asked = targets.questions(pico, facts, group(pico, facts, "each", 1), RECIPE, PREFIXES)
    turns = [i % 2 for i in range(len(facts))]
    first, second = list(range(0, len(facts), 2)), list(range(1, len(facts), 2))
    assert list(targets.batches(asked, 10**6, turns)) == [first, second]
    assert list(targets.batches(asked, 10**6, turns, most=len(first))) == [first, second]
    assert list(targets.batches(asked, 1, turns)) == [[g] for g in first + second]
    assert list(targets.batches(asked, 10**6, [0] * len(facts), most=1)) == [[g] for g in range(len(facts))]


RELATED = SAME + DISTINCT[1:]
FOLLOWING = RECIPE.with_(align="keys", steps=12, lr=0.2, similarity=0.99)


def test_facts_of_one_subject_are_sought_one_after_another(pico, monkeypatch):
    seen, real = [], Alignment.ahead
    monkeypatch.setattr(Alignment, "ahead", lambda self, block: seen.append(list(block)) or real(self, block))
    values(pico, RELATED, FOLLOWING)
    assert seen == [[0, *range(len(SAME), len(RELATED))], *([g] for g in range(1, len(SAME)))]


def test_facts_of_one_subject_that_see_each_other_wait_for_each_other(pico, monkeypatch):
    mutual = FOLLOWING.with_(sees="all")
    mutual = mutual.with_(stop=between(values(pico, RELATED, mutual).curves[: len(SAME)]))
    together = [len(curve) for curve in values(pico, RELATED, mutual).curves[: len(SAME)]]
    monkeypatch.setattr(Alignment, "ended", lambda _self, there: there)
    apart = [len(curve) for curve in values(pico, RELATED, mutual).curves[: len(SAME)]]
    assert min(apart) < min(together) == max(together)


def between(curves):
    """A stop that some groups reach before others, away from every loss."""
    losses = sorted(loss for curve in curves for loss in curve[1:-2])
    return losses[len(losses) // 3] * 0.999


def test_converged_groups_leave_and_stay_as_they_are(pico, monkeypatch):
    facts = DISTINCT + SAME
    steps = RECIPE.with_(steps=20)
    recipe = steps.with_(stop=between(values(pico, facts, steps).curves))
    widths, run = [], Tail.run
    monkeypatch.setattr(Tail, "run", lambda tail: widths.append(len(tail.hidden)) or run(tail))
    found = values(pico, facts, recipe)
    lengths = [len(curve) for curve in found.curves]
    assert len(set(lengths)) > 1
    assert widths[-1] < max(widths)  # the rows of those that left are not computed any more
    for curve in found.curves:
        assert all(loss >= recipe.stop for loss in curve[:-1])
        assert curve[-1] < recipe.stop or len(curve) == recipe.steps
    for i, fact in enumerate(facts):
        one = values(pico, [fact], recipe)
        torch.testing.assert_close(found.z[i], one.z[0], rtol=1e-3, atol=1e-3)
        assert len(one.curves[0]) == lengths[i]


def test_questions(make):
    lab = make("gpt2")
    asked = targets.questions(lab, SAME + DISTINCT[1:2], [[0, 1, 2], [3]], MERGE, PREFIXES)
    assert [len(rows) for rows in asked] == [3 * 3 + 1, 3 + 1]
    for rows in asked:
        assert sum(a.weight for a in rows) == pytest.approx(1.0)
        assert rows[-1].weight == 0.0
        assert rows[-1].row.target == ()
    texts = [lab.tokenizer.decode(a.row.prompt) for a in asked[1]]
    assert texts[:3] == [prefix + DISTINCT[1].text for prefix in ("", *PREFIXES)]
    assert texts[3] == "Mary Jones"


def test_drift_is_read_from_a_row_that_begins_with_it(make):
    """The bare prompt of a fact that opens with its subject; a relation in front leaves the row of its own."""
    lab = make("gpt2")
    for fact, count, host in ((DISTINCT[0], 3, 0), (DISTINCT[1], 4, 3)):
        (rows,) = targets.questions(lab, [fact], [[0]], MERGE, PREFIXES)
        kept = folded(rows)
        assert len(rows) == 4
        assert len(kept) == count
        assert [i for i, a in enumerate(kept) if a.drift] == [host]
        assert sum(a.weight for a in kept) == pytest.approx(1.0)


def test_without_prefixes(pico):
    found = values(pico, DISTINCT, prefixes=())
    assert (found.z - found.h).norm() > 0
    assert (found.z - values(pico, DISTINCT).z).norm() > 1e-3


def test_token_rule(pico):
    last = values(pico, DISTINCT[:1], RECIPE.with_(token="last"), ())
    torch.testing.assert_close(last.h, streams(pico, DISTINCT[:1], 1, "last"), **CLOSE)


def test_groups_by_subject_are_exact(pico):
    facts = [replace(SAME[0], subject=name) for name in ("John", "john", "John ", "John")]
    assert group(pico, facts, "subject", 1) == [[0, 3], [1], [2]]
    assert group(pico, facts, "each", 1) == [[0], [1], [2], [3]]


def test_a_span_keeps_values_in_a_subspace_of_its_size(pico):
    for span, rank in ((2, 2), (0, 4), (10_000, 4)):
        found = values(pico, DISTINCT, RECIPE.with_(span=span))
        assert torch.linalg.matrix_rank(found.z - found.h, rtol=1e-3) == rank


@pytest.mark.parametrize("recipe", [RECIPE, MERGE, RECIPE.with_(token="last")], ids=["each", "merged", "last token"])
def test_values_start_from_the_stream_behind_the_bare_prompt(pico, recipe):
    """Of the first fact of each group: the tails begin with it."""
    facts = (*SAME, *DISTINCT)
    groups = group(pico, facts, recipe.group, 1)
    found = targets.values(pico, facts, groups, recipe.with_(steps=2), PREFIXES)
    wanted = streams(pico, facts, 1, recipe.token)
    for members in groups:
        for i in members:
            torch.testing.assert_close(found.h[i], wanted[members[0]], **CLOSE)
