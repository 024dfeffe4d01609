"""What is found in any model, what edits of it are estimated to cost, and what is suggested for it."""

import pandas as pd
import pytest

import kedit_lab as kl
from kedit_lab.show import suggestion
from kedit_lab.study.doctor import doctor
from kedit_lab.study.estimate import METHODS, estimate, operations
from kedit_lab.study.suggest import decisive, quickest
from tests.pico.tiny import sentence_piece

RATE = (1e9, 1e8)


def test_doctor_reports_every_part(pico):
    found = doctor(pico, rate=RATE)
    assert found["layers"] == pico.arch.layers
    assert found["edited weight (layer 0)"].endswith(".weight")
    assert found["tokenizer self-test"] == "passed"
    assert found["chat template"] == "no"
    assert found["shape known as"] == "none of the published ones"
    assert found["layers of memit"].endswith("(fallback: no values are published for this shape)")
    assert found["estimate, 100 facts with memit"].startswith("at most ")


def test_doctor_tells_tokenizers_apart(make):
    lab = make("llama")
    plain, pieces = (doctor(kl.wrap(lab.model, t), rate=RATE) for t in (lab.tokenizer, sentence_piece()))
    assert plain["beginning-of-text token"] == plain["special tokens added"] == "none"
    assert (pieces["beginning-of-text token"], pieces["special tokens added"]) == ("added", "<s>")
    assert plain['the target " Greek"'][0] == "Ġ"
    assert pieces['the target " Greek"'][0] == "▁"


def test_doctor_sees_a_tokenizer_that_is_too_large(make):
    lab = make("llama")
    assert doctor(lab, rate=RATE)["vocabulary"] == len(lab.arch.head.weight)
    tokenizer = sentence_piece()
    tokenizer.add_tokens([f"word{i}" for i in range(len(lab.arch.head.weight))])
    told = doctor(kl.wrap(lab.model, tokenizer), rate=RATE)["vocabulary"]
    assert (
        told == f"{len(lab.arch.head.weight)}, but the tokenizer has {len(tokenizer)}: it may belong to another model"
    )


def test_doctor_sees_a_chat_template(make):
    tokenizer = sentence_piece()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert doctor(kl.wrap(make("llama").model, tokenizer), rate=RATE)["chat template"].startswith("yes")


def test_estimates_grow_with_facts_and_come_from_shapes(make):
    lab = make("llama")
    small, large = (estimate(lab, n, rate=RATE) for n in (10, 1000))
    assert list(small.index) == list(METHODS)
    assert (large["seconds"] > 50 * small["seconds"]).all()
    assert (small["model"] == sum(p.numel() for p in lab.model.parameters()) * 4e-6).all()
    assert small.loc["memit", "statistics"] == pytest.approx(2 * 8 * lab.arch.d_k**2 / 1e6)
    layers = len(kl.Recipe("memit").on(lab.arch).layers)
    assert large.loc["memit", "keys"] == pytest.approx(8 * 1000 * layers * (lab.arch.d_k + lab.arch.d_model) / 1e6)
    parts = small[["model", "statistics", "keys", "work"]].sum(axis=1)
    pd.testing.assert_series_equal(parts, small["total"], check_names=False)


def test_operations_count_what_is_run(make):
    """Targets written higher up run fewer blocks; without steps only the passes that read remain."""
    arch = make("gpt2").arch
    low, high = (kl.Recipe("memit", layers=(layer,), steps=20) for layer in (0, 2))
    assert operations(arch, low, 50)[0] > operations(arch, high, 50)[0]
    still = operations(arch, low, 50, steps=0)[0]
    assert operations(arch, low, 50, steps=10)[0] - still == (operations(arch, low, 50)[0] - still) // 2
    assert operations(arch, kl.Tuning("ft", layers=(0,), epochs=4), 50)[1] == 0
    some, more = (operations(arch, low, facts * arch.d_k)[1] for facts in (1, 3))
    assert more - some == 2 * 2 * arch.d_k**2 * (arch.d_k + arch.d_model), "K Kᵀ and R Kᵀ of every further fact"


def test_estimates_are_refused_where_there_is_nothing_to_count(make):
    with pytest.raises(ValueError, match="n is 0; give the number of facts"):
        estimate(make("gpt2"), 0)
    with pytest.raises(ValueError, match="mend needs a hypernetwork trained for this model"):
        estimate(make("gpt2"), 1, ["mend"], RATE)


def test_the_last_of_the_best_layers_and_the_smallest_of_the_quick_steps():
    assert decisive(pd.Series([0.4, 0.8, 0.78, 0.3, 0.0])) == 2
    tried = pd.DataFrame({"reached": [0.5, 1.0, 1.0, 1.0], "steps": [2.0, 9.0, 5.0, 4.5]}, index=[0.05, 0.1, 0.3, 0.8])
    assert quickest(tried) == 0.3


def test_anything_can_be_suggested_for(make):
    """A model that knows nothing gets a suggestion too, as tables say on what ground."""
    lab = make("gpt2")
    facts = [kl.Fact(name, "{} works in", "Paris") for name in ("John Smith", "Mary Jones", "Greek", "London")]
    made = kl.suggest(lab, facts, pairs=4, rates=(0.1, 0.3))
    assert made.recipe("pmet").layers == made.values["layers"]
    assert set(made.layers.columns) == {"flipped", "kept"}
    left, right, *_ = suggestion(made.layers, made.steps, made.values).axes
    assert [len(line.get_xdata()) for line in left.lines] == [lab.arch.layers] * 2
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0.1", "0.3"]
