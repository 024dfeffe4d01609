"""Sequences: the model comes back, runs resume to the same bits, batches come off, merging and routing add up."""

import json
import shutil

import pytest
import torch

from kedit_lab.measure.health import Reference, health, perplexity
from kedit_lab.model.lab import make_lab
from kedit_lab.study import sequence as module
from kedit_lab.study.sequence import Merge, sequence
from kedit_lab.types import Fact
from tests.pico.tiny import KINDS, TEXTS, build

BATCHES = [
    [Fact("John Smith", "{}'s employer is", "Greek"), Fact("Mary Jones", "{} works in", "Paris")],
    [Fact("France", "The capital of {} is", "London")],
    [Fact("Europe", "{} is a", "city"), Fact("Greek", "{} is the language of", "London")],
]
SMALL = {"layers": (0, 1), "steps": 4, "prefixes": 1, "prefix_length": 3, "lam": 1.0, "stop": 0.0, "lr": 0.1,
         "lr_unit": "hidden", "clamp": 2.0, "decay": 0.0}  # fmt: skip
UNRELATED = ("The rain stopped", "Soup needs salt")


@pytest.fixture(autouse=True)
def small_statistics(monkeypatch, tmp_path_factory):
    """Statistics over four texts."""
    monkeypatch.setenv("KEDIT_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "moments"))
    monkeypatch.setattr("kedit_lab.extract.moments.lab_text", lambda *_a, **_k: list(TEXTS))


@pytest.fixture
def pico(tokenizer):
    return make_lab(build(KINDS["llama"].config), tokenizer, "llama")


@pytest.fixture
def reference(pico):
    return Reference.of(pico, TEXTS, UNRELATED)


@pytest.fixture
def run(pico, reference):
    return lambda recipe="memit", **more: sequence(pico, BATCHES, recipe, reference=reference, **SMALL | more)


def bits(lab):
    return {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}


def same(lab, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in lab.model.state_dict().items())


def equal_states(a, b):
    return len(a.states) == len(b.states) and all(
        torch.equal(x[name], y[name]) for x, y in zip(a.states, b.states, strict=True) for name in y
    )


@pytest.mark.parametrize("recipe", ["memit", "memit-seq", "ft-m"])
def test_model_comes_back_and_batches_come_off(pico, reference, recipe):
    settings = SMALL if recipe != "ft-m" else {"layers": (0,), "epochs": 2}
    before = bits(pico)
    made = sequence(pico, BATCHES, recipe, reference=reference, **settings)
    assert same(pico, before)
    assert len(made.states) == 4
    after = []
    for t in range(4):
        made.go(t)
        after.append(bits(pico))
    made.undo(to=1)
    assert same(pico, after[1])
    with made.applied():
        assert same(pico, after[3])
    assert same(pico, after[1])
    with pytest.raises(ValueError, match=r"cannot undo to 2: the model carries batches 1 to 1; apply\(\) first"):
        made.undo(to=2)
    made.undo()
    assert same(pico, before)
    assert "model at 0" in repr(made)


def test_tables(run):
    made = run()
    matrix = made.matrix()
    assert matrix.shape == (3, 3)
    assert matrix.notna().to_numpy().tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert list(made.health["after"]) == [1, 2, 3]
    assert (made.health["kl"] > 0).all()
    assert made.health["finite"].all()
    assert list(run(every=2).matrix().index) == [2, 3]


def test_one_batch_is_an_edit(run, pico):
    from kedit_lab.edit.run import edit

    made = run()
    with edit(pico, BATCHES[0], "memit", **SMALL).applied():
        assert all(torch.equal(pico.arch.weight(name).module.weight, w) for name, w in made.states[1].items())


@pytest.mark.parametrize("options", [{}, {"merge": Merge(0.5)}, {"merge": Merge(0.5, "merged")}], ids=str)
@pytest.mark.parametrize("stage", ["edit", "health", "remember", "write", "evaluate"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(run, pico, tmp_path, monkeypatch, stage, at, options):
    before, whole, calls = bits(pico), run("memit-seq", **options), []
    real = getattr(module, stage)

    def dying(*args, **kwargs):
        calls.append(stage)
        if len(calls) == at + (at if stage == "evaluate" else 0):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, stage, dying)
    with pytest.raises(KeyboardInterrupt):
        run("memit-seq", folder=tmp_path / "run", **options)
    assert same(pico, before)
    monkeypatch.setattr(module, stage, real)
    resumed = run("memit-seq", folder=tmp_path / "run", **options)
    assert equal_states(resumed, whole)
    assert resumed.matrix().equals(whole.matrix())
    assert torch.equal(resumed.memory.past[1], whole.memory.past[1])
    assert not list((tmp_path / "run").glob("*.tmp"))
    again = run("memit-seq", folder=tmp_path / "run", **options)  # nothing left to do
    assert equal_states(again, whole)


def test_batches_that_need_no_edit_change_nothing(pico, run, tmp_path):
    """With a high threshold every fact counts as said: nothing is written, nothing breaks, and the run resumes."""
    before = bits(pico)
    for _ in range(2):
        found = run(stop=1e9, every=1, folder=tmp_path / "run")
        with found.applied():
            assert same(pico, before)
        assert len(found.health) == len(BATCHES)
        assert found.matrix().shape == (3, 3)


def test_a_half_written_batch_does_not_count(run, tmp_path):
    whole = run(folder=tmp_path / "run")
    (tmp_path / "run" / "after-00003.json").unlink()
    assert equal_states(run(folder=tmp_path / "run"), whole)
    (tmp_path / "run" / "after-00002.safetensors").write_bytes(b"cut")
    with pytest.raises(
        ValueError, match=r"after-00002.safetensors is damaged .*; delete its JSON file and what follows"
    ):
        run(folder=tmp_path / "run")


def flip(folder):
    path = folder / "after-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def told(text):
    return lambda folder: (folder / "after-00002.json").write_text(text)


def moved(*kinds):
    return lambda folder: [
        shutil.copy(folder / f"after-00001.{kind}", folder / f"after-00002.{kind}") for kind in kinds
    ]


def other_rows(folder):
    path = folder / "after-00002.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": []}))


@pytest.mark.parametrize(
    "harm",
    [flip, moved("safetensors"), moved("safetensors", "json"), other_rows, *map(told, ("{}", "[]", "null", "3", "{"))],
)
def test_a_damaged_batch_is_refused(run, tmp_path, harm):
    run(folder=tmp_path / "run")
    harm(tmp_path / "run")
    (tmp_path / "run" / "after-00003.json").unlink()
    with pytest.raises(ValueError, match=r"after-00002.safetensors is damaged \(.*\); delete its JSON file"):
        run(folder=tmp_path / "run")


def test_a_folder_with_somebodys_files_is_left_alone(run, tmp_path):
    mine = tmp_path / "batch-00001" / "mine.csv"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(ValueError, match=r"does not say what it holds \(no plan.json, but batch-00001\)"):
        run(folder=tmp_path)
    assert mine.read_text() == "precious"
    run(folder=tmp_path / "run")
    (tmp_path / "run" / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"does not say what it holds \(no plan.json, but after-00001.json\)"):
        run("alphaedit", folder=tmp_path / "run")


def test_a_folder_of_another_run_is_refused(run, tmp_path):
    run(folder=tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(other recipe\); give another folder"):
        run(folder=tmp_path / "run", lam=2.0)
    with pytest.raises(ValueError, match=r"other merge"):
        run(folder=tmp_path / "run", merge=Merge())


def test_merging_by_its_identities(run):
    """r = 0 is plain; r = 1 never moves; the first merged batch is M_0 + prune(Δ_1); M̃ + e = M (error feedback)."""
    plain = run()
    assert equal_states(run(merge=Merge(0.0)), plain)
    still = run(merge=Merge(1.0))
    assert all(torch.equal(state[name], still.states[0][name]) for state in still.states for name in still.states[1])
    half = run(merge=Merge(0.5))
    for name, original in half.states[0].items():
        change = half.states[1][name] - original
        full = plain.states[1][name] - original
        assert int((change != 0).sum()) <= full.numel() // 2
        moved = change != 0
        torch.testing.assert_close(half.states[1][name][moved], plain.states[1][name][moved])
        assert full[~moved].abs().max() <= full[moved].abs().min() * (1 + 1e-4)
        # what was dropped comes back: the last merged state is nearer to the plain one than pruned steps alone would be
        assert (half.states[3][name] - plain.states[3][name]).norm() < (plain.states[3][name] - original).norm()
    other = run(merge=Merge(0.5, "merged"))
    assert not equal_states(other, half)
    assert equal_states(run(merge=Merge(0.0, "merged")), plain)


def test_router_sends_prompts_where_they_belong(run, pico):
    made = run(router=UNRELATED)
    before = bits(pico)
    told = made.ask("John Smith's employer is")
    assert told.decision.edited
    with made.applied():
        assert told.continuations.equals(pico.ask("John Smith's employer is"))
    away = made.ask("Soup needs salt")
    assert not away.decision.edited
    assert away.continuations.equals(pico.ask("Soup needs salt"))
    assert "unedited model: nearest prompts are 'Soup needs salt'" in str(away)
    assert same(pico, before)


def test_a_sick_batch_is_rolled_back(run, pico):
    seen = []

    def until(state):
        seen.append(state)
        return len(seen) == 2

    before = bits(pico)
    made = run(until=until)
    assert same(pico, before)
    assert len(made.states) == 2
    assert made.stopped.startswith("batch 2 was rolled back")
    assert "stopped" in repr(made)


def test_a_run_that_ends_between_two_measurements_is_measured(run):
    calls = []
    until = lambda health: calls.append(health) or len(calls) == 2  # noqa: E731
    made = run(every=3, until=until)
    assert len(made.states) == 2
    assert list(made.matrix().index) == [1]
    whole = run()
    assert made.matrix()[1][1] == whole.matrix()[1][1]
    none = run(until=lambda _: True)
    assert none.matrix().empty
    assert "rolled back" in none.stopped


def test_not_a_number_is_rolled_back(run, pico, monkeypatch):
    real, calls = module.write, []

    def poison(arch, deltas):
        originals = real(arch, deltas)
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                arch.mlp[1].module.weight[0, 0] = float("nan")
        return originals

    monkeypatch.setattr(module, "write", poison)
    before = bits(pico)
    made = run()
    assert same(pico, before)
    assert len(made.states) == 3
    assert "finite" in made.stopped


def test_health_of_an_unedited_model(pico, reference):
    found = health(pico, reference)
    assert found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["growth"] == 1.0
    logits = [pico.model(**pico.batch([pico.tokenizer(text)["input_ids"]])).logits[0].double() for text in TEXTS]
    ids = [pico.tokenizer(text)["input_ids"] for text in TEXTS]
    said = [row.log_softmax(-1)[range(len(i) - 1), i[1:]] for row, i in zip(logits, ids, strict=True)]
    assert found["perplexity"] == pytest.approx(float((-torch.cat(said).mean()).exp()), rel=1e-4)
    assert perplexity(pico, TEXTS) == found["perplexity"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "0 batches given"),
        ({"batches": [BATCHES[0], []]}, "2 batches given, 1 of them empty"),
        ({"every": 0}, "every is 0; measure after every 1, 2, ... batches"),
        ({"recipe": "memitt"}, "unknown recipe 'memitt'"),
    ],
)
def test_bad_input(pico, reference, change, message):
    given = {"batches": BATCHES, "recipe": "memit"} | change
    batches, recipe = given.pop("batches"), given.pop("recipe")
    with pytest.raises(ValueError, match=message):
        sequence(pico, batches, recipe, reference=reference, **SMALL | given)


def test_bad_merges():
    with pytest.raises(ValueError, match=r"ratio is 1\.5; it is a share"):
        Merge(1.5)
    with pytest.raises(ValueError, match="base is 'both'; choose plain or merged"):
        Merge(base="both")


def test_recipes_that_change_other_weights_each_time(pico, reference):
    """Knowledge neurons sit in other layers for other facts; all come back, and every state holds all of them."""
    before = bits(pico)
    made = sequence(pico, BATCHES, "kn", reference=reference, threshold=0.9, steps=4)
    assert same(pico, before)
    assert all(set(state) == set(made.states[0]) for state in made.states)
    with made.applied():
        assert not same(pico, before)
    assert same(pico, before)
