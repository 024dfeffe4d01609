"""What users do by mistake, in a process without type checks: each is refused with a sentence, and nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kedit_lab as kl
from kedit_lab.cli import main
from kedit_lab.edit import weights
from kedit_lab.edit.recipes import find

ROOT = Path(__file__).parents[2]
SLIPS = """
import socket, sys
import numpy
from pathlib import Path
import torch
import kedit_lab as kl

def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
lab, here = kl.load(), Path(sys.argv[1])
base, facts = lab.fingerprint(), kl.facts.distinct_subject(2)
edit = kl.edit(lab, facts, "memit", steps=2, cache=str(here))
alone = kl.Fact("Mary", "{} is from", "Rome")
spaced = kl.Fact(alone.subject, alone.prompt + " ", "Paris")
k, nan = kl.keys(lab, facts, 2), float("nan")
slips = {
    "facts is Fact(": lambda: kl.edit(lab, alone),
    "facts is Fact(sub": lambda: kl.evaluate(lab, alone),
    "facts[0] is {'a': 1}; give a list of Facts": lambda: kl.edit(lab, [{"a": 1}]),
    "batches is Fact(": lambda: kl.sequence(lab, alone),
    "facts is Fact(subject": lambda: kl.keys(lab, alone, 2),
    "facts is Fact(subje": lambda: kl.groups(lab, alone),
    "batch 1 is Fact(": lambda: kl.sequence(lab, facts),
    "recipe is None; give a name or a Recipe": lambda: kl.edit(lab, facts, None),
    "memory is 3; it is True or False": lambda: kl.edit(lab, facts, memory=None, recipe=edit.recipe.with_(memory=3)),
    "merge is 0.85; give kl.Merge(0.85)": lambda: kl.sequence(lab, [facts], merge=0.85),
    "router is empty; give prompts": lambda: kl.sequence(lab, [facts], router=[]),
    "router is 'who is'; give a list of texts": lambda: kl.sequence(lab, [facts], router="who is"),
    "k is 0; 1, 2, ... nearest": lambda: kl.sequence(lab, [facts], router=["who is"], k=0),
    "kinds is empty; the kinds are rewrite": lambda: kl.sequence(lab, [facts], kinds=()),
    "kinds is 'rewrite'; give a list": lambda: kl.evaluate(lab, facts, kinds="rewrite"),
    "no prompts of the kinds paraphrase": lambda: kl.evaluate(lab, [alone], kinds=["paraphrase"]),
    "texts is 'wiki.jsonl'; give a list": lambda: kl.second_moment(lab, 2, "wiki.jsonl"),
    "texts is 'some text'; give a list": lambda: kl.edit(lab, facts, moment_texts="some text"),
    "jobs is 0; give 1, 2": lambda: kl.second_moment(lab, 2, ["one"], cache=here, jobs=0),
    "paraphrases is 'John'; give a list of texts": lambda: kl.Fact("a", "{} is", "b", paraphrases="John"),
    "locality[0] is 'John'; give a list of Probes": lambda: kl.Fact("a", "{} is", "b", locality=["John"]),
    "target_true is 5; give a text": lambda: kl.Fact("a", "{} is", "b", target_true=5),
    "should be both 'Rome' and 'Paris'": lambda: kl.edit(lab, [alone, spaced]),
    "pairs is 0; exchange": lambda: kl.suggest(lab, facts, pairs=0),
    "rates is (0,); give step sizes": lambda: kl.suggest(lab, facts, rates=[0]),
    "pairs is empty; give": lambda: kl.interchange(lab, []),
    "prompt is ' ', of no token": lambda: lab.ask(" "),
    "k is 100000; the model knows": lambda: lab.ask("John", k=100_000),
    "prompts is 'John'; give a list": lambda: lab.generate("John"),
    "similarity is 2; it is a cosine": lambda: kl.groups(lab, facts, similarity=2),
    "layer (1, 2) is not one of": lambda: kl.collisions(lab, facts, layer=(1, 2)),
    "sizes, seeds or arms is empty": lambda: kl.collision_study(lab, []),
    "layers is (0,), but": lambda: kl.edit(lab, facts, "mend", layers=(0,)),
    "the factor is nan": lambda: float("nan") * edit,
    "is a folder; give the path of a file": lambda: edit.save(here),
    "is not a readable saved edit": lambda: kl.Edit.load(kl.paths.data_dir() / "lab-model/model.safetensors", lab),
    "cannot be written to": lambda: edit.export("/proc/here"),
    "there is no folder /nowhere": lambda: kl.load("/nowhere"),
    "dtype is 'bogus'; give a dtype": lambda: kl.load(dtype="bogus"),
    "device is 'ipu', which cannot be used": lambda: kl.load(device="ipu"),
    "work is 'a'; give the bytes": lambda: kl.load(work="a"),
    "dtype is 'int8'; give a dtype of torch that weights can be edited in": lambda: kl.load(dtype="int8"),
    "device is 'ipu', which": lambda: kl.load(device_map="ipu"),
    "path is a Qwen2ForCausalLM; give a folder or a name (a loaded model goes into kl.wrap": lambda: kl.load(lab.model),
    "device is 'ipu', which cannot": lambda: kl.second_moment(lab, 2, ["one"], cache=here, devices=("ipu",)),
    "jobs is 2 and devices are ('cpu',); give one": lambda: kl.second_moment(lab, 2, ["one"], here, jobs=2,
                                                                              devices=("cpu",)),
    "limit is '5'; read at least one": lambda: kl.documents(sys.argv[2], limit="5"),
    "limit is 1.5; give 1 or more": lambda: kl.facts.counterfact(kl.paths.data_dir(), limit=1.5),
    "couldn't find them in the cached files": lambda: kl.load("nobody/has-this", local_only=True),
    "file= and revision=": lambda: kl.facts.zsre(Path(__file__ if "__file__" in globals() else sys.argv[2]), file="x"),
    "layer None is not one of": lambda: kl.keys(lab, facts, None),
    "layer 1.5 is not one of": lambda: kl.keys(lab, facts, 1.5),
    "second_moment is (3, 3); these keys need 768 x 768": lambda: kl.betas(k, torch.eye(3), 1.0),
    "keys or second_moment hold NaN": lambda: kl.betas(k * nan),
    "lam is nan; the ridge weight": lambda: kl.betas(k, lam=nan),
    "threshold is nan; it is a cosine": lambda: kl.collisions(lab, facts, threshold=nan),
    "prompt is '', of no token": lambda: lab.generate(["John", ""]),
    "prompt is None; give a text": lambda: lab.ask(None),
    "k is 1.5; the model knows": lambda: lab.ask("John", k=1.5),
    "n is 1.5; give a whole number": lambda: kl.facts.same_subject(1.5),
    "n is '3'; give a whole number": lambda: kl.facts.distinct_subject("3"),
    "per_subject is 1.5; give a whole number": lambda: kl.facts.by_density(3, 1.5),
    "n is '2'; give a whole number": lambda: kl.facts.twins("2"),
    "pairs[0] is Fact(": lambda: kl.interchange(lab, facts),
    "pairs[0] is 3; give pairs of facts": lambda: kl.interchange(lab, 3),
    "fact is 'x'; give one Fact": lambda: kl.trace(lab, "x"),
    "baseline is 3; give what evaluate returned": lambda: kl.evaluate(lab, facts, 3),
    "1 residuals for 2 keys": lambda: kl.misalignment(k[:1], k),
    "NoneType gives no character offsets": lambda: kl.wrap(lab.model, None),
    "work is True; give the bytes": lambda: kl.load(work=True),
    "prompt is 3; give a text": lambda: kl.Probe(3, "4"),
    "answer is 4; give a text": lambda: kl.Probe("3", 4),
    "relation is 3; give a text": lambda: kl.Fact("a", "{} is", "b", relation=3),
    "scale is 'x'; it must be a finite number": lambda: kl.merge(edit, scale="x"),
    "density is 'x'; it is a share": lambda: kl.merge(edit, density="x"),
    "ratio is 'x'; it is a share": lambda: kl.Merge("x"),
    "keep is 'x'; it is a share": lambda: kl.rect(edit, "x"),
    "log_base is inf; the base": lambda: kl.prune(edit, float("inf")),
    "watch is 3; give a function": lambda: kl.edit(lab, facts, watch=3),
    "edits is Edit(": lambda: kl.combine(edit),
    "weights are [nan, 1.0]; give finite": lambda: kl.combine([edit, edit], weights=[nan, 1]),
    "weights sum to 0; 'linear' divides": lambda: kl.combine([edit, edit], "linear", [1, -1]),
    "weights sum to 0; 'slerp' divides": lambda: kl.combine([edit, edit], "slerp", [0, 0]),
    "would hold NaN or infinite values with this edit": lambda: (1e308 * edit).apply(),
    "similarity is None; it must be": lambda: edit.recipe.with_(similarity=None),
    "temperature is inf; it must be": lambda: edit.recipe.with_(temperature=float("inf")),
    "log_base is 'x'; it must be": lambda: edit.recipe.with_(log_base="x"),
    "log_base is 1; the base": lambda: edit.recipe.with_(log_base=1),
    "settled is 1e+300; it must be": lambda: edit.recipe.with_(settled=1e300),
}
for field in ("lr", "clamp", "kl", "decay", "lam", "stop", "settled", "align_kl"):
    slips[field + " is 1000000"] = lambda field=field: edit.recipe.with_(**{field: 10**30})
for wanted, slip in slips.items():
    try:
        slip()
    except (ValueError, OSError) as error:
        told = str(error)
    else:
        told = "nothing was said"
    if wanted not in told:
        print(f"wanted: {wanted!r}, told: {told!r}")
assert lab.generate([]) == []
assert kl.keys(lab, facts, numpy.int64(2)).equal(kl.keys(lab, facts, 2))
assert hash(kl.Fact("a", "{} is", "b", aliases=["c"])) == hash(kl.Fact("a", "{} is", "b", aliases=("c",)))
assert lab.fingerprint() == base
print("done")
"""


def test_slips_are_refused_with_a_sentence(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", SLIPS, str(tmp_path), __file__], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
    )  # fmt: skip
    assert ran.stdout == "done\n", ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def two(lab):
    return [kl.edit(lab, kl.facts.distinct_subject(2, seed=seed), "memit", steps=3) for seed in (0, 1)]


def test_a_run_does_not_wipe_an_edit_that_is_applied(lab, two):
    base, run = lab.fingerprint(), kl.sequence(lab, [two[1].facts], "memit", steps=3)
    with two[0].applied():
        edited = lab.fingerprint()
        for slip in (run.apply, lambda: run.ask("John Smith is"), lambda: run.applied().__enter__()):
            with pytest.raises(RuntimeError, match="is not as this run knows it: another edit"):
                slip()
            assert lab.fingerprint() == edited
    run.apply()
    later = kl.sequence(lab, [two[0].facts], "memit", steps=3)
    run.undo()
    with pytest.raises(RuntimeError, match="one that was applied when it was made is not"):
        later.apply()
    assert lab.fingerprint() == base
    with run.applied():
        pass
    assert lab.fingerprint() == base


def test_a_run_whose_undo_is_cut_is_undone_by_the_next(lab, two, monkeypatch):
    base, run = lab.fingerprint(), kl.sequence(lab, [two[1].facts], "memit", steps=3).apply()
    copied = weights.copy_back

    def cut(arch, originals):
        copied(arch, originals)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "copy_back", cut)
    with pytest.raises(KeyboardInterrupt):
        run.undo()
    monkeypatch.undo()
    assert (run.at, lab.fingerprint()) == (0, base)
    run.apply()
    name, first = next(iter(run.states[0].items()))
    lab.arch.weight(name).module.weight.copy_(first)  # where an undo is cut for good
    run.undo()
    assert lab.fingerprint() == base


def test_an_edit_leaves_the_model_with_its_own_change_alone(lab, two, tmp_path):
    """Written while another edit is applied it would hold both."""
    base = lab.fingerprint()
    with two[0].applied(), pytest.raises(ValueError, match="are not those that this edit was computed on"):
        two[1].export(tmp_path / "both")
    assert list(tmp_path.iterdir()) == []
    with two[0].applied():
        on_top = kl.edit(lab, two[1].facts, "memit", steps=3)
        stood = lab.fingerprint()
        two[0].export(tmp_path / "applied")
    assert kl.load(tmp_path / "applied").fingerprint() == stood
    with pytest.warns(UserWarning, match=r"is not as it was when memit of 2 facts was computed"), on_top.applied():
        pass
    assert lab.fingerprint() == base


def test_export_touches_nothing_beside_its_folder(lab, two, tmp_path):
    (tmp_path / "mine.tmp" / "precious").mkdir(parents=True)
    two[0].export(tmp_path / "mine")
    two[0].to_peft(tmp_path / "mine.adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.adapter", "mine.tmp"]
    assert (tmp_path / "mine.tmp" / "precious").is_dir()


def test_a_suggested_recipe_keeps_what_is_known_for_the_model(lab):
    facts = kl.facts.by_density(8)
    advice = kl.suggest(lab, facts, pairs=20, rates=(0.3,))
    known, recipe = find("memit").on(lab.arch), advice.recipe()
    assert (recipe.lam, recipe.clamp, recipe.decay) == (known.lam, known.clamp, known.decay)
    assert (recipe.layers, recipe.lr) == (advice.values["layers"], 0.3)
    assert advice.recipe("rome").name == "rome"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doctor", "/nowhere"], "there is no folder /nowhere"),
        (["doctor", "--facts", "0"], "n is 0; give the number of facts"),
        (["reproduce", "LAB-0"], "LAB-0"),
        (["bench", "--shape", "nobody"], "nobody"),
        (["bench", "--sizes", "2", "--tables", "plain", "--method", "ft"], "ft locates no keys; the recipes"),
        (["bench", "--sizes", "2", "--tables", "methods", "--methods", "ft"], "ft locates no keys; the recipes"),
        (["train-mend", "--steps", "0", "--out", "nowhere.safetensors"], "steps is 0; train for at least one"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_command_line_answers_a_mistake_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("kedit-lab: ")
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_a_short_training_of_mend_tells_its_loss(tmp_path, capsys):
    main(["train-mend", "--steps", "2", "--out", str(tmp_path / "editor.safetensors")])
    assert "loss " in capsys.readouterr().out
    assert (tmp_path / "editor.safetensors").is_file()


def test_the_memory_table_measures_the_facts_that_are_asked_for(capsys):
    main(["bench", "--sizes", "3", "--tables", "memory"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("memit")]
    assert [float(row[1]) for row in rows] == [3, 3]
