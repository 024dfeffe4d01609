"""The metrics: their formulas, and the table that they are read from, against naive computations."""

from dataclasses import replace
from math import isnan, log2

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_lab.measure.metrics import KINDS, Report, entropy, evaluate, harmonic_mean, ngram_entropy, score, summarise
from kedit_lab.model import tokens
from kedit_lab.model.hooks import record
from kedit_lab.model.hooks import replace as patched
from kedit_lab.model.lab import make_lab
from kedit_lab.model.spots import instead
from kedit_lab.types import Fact, Probe
from tests.pico.tiny import KINDS as MODELS
from tests.pico.tiny import build, byte_level

settings.register_profile("algebra", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("algebra")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pico():
    return make_lab(build(MODELS["qwen2"].config), byte_level(), "qwen2")


PAIRS = [
    ("John Smith's employer is", "Greek"),
    ("The native language of Mary Jones is", "Zoë in London"),
    ("I", "think so"),
    ("Paris", " London"),
]
FACTS = (
    Fact("John Smith", "{}'s employer is", "Greek", "London", "employer", ("John Smith works at", "Ask John Smith:"),
         (Probe("Mary Jones's employer is", "London"), Probe("The city is", "London")), (Probe("Greek has", "John"),),
         (Probe("The city of Mary Jones is", "Paris"),)),
    Fact("Mary Jones", "{} is in", "Paris", relation="place"),
)  # fmt: skip


# formulas


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_harmonic_mean(values):
    found = harmonic_mean(values)
    assert found == pytest.approx(len(values) / sum(1 / v for v in values))
    assert min(values) - 1e-9 <= found <= sum(values) / len(values) + 1e-9
    assert harmonic_mean(values[:1] * 3) == pytest.approx(values[0])


def test_harmonic_mean_at_its_ends():
    assert harmonic_mean([1.0, 1.0, 1.0]) == 1.0
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert isnan(harmonic_mean([1.0, float("nan"), 0.0]))


def test_entropy_of_repetition_is_zero():
    assert ngram_entropy("the " * 20) == 0.0
    assert ngram_entropy("") == ngram_entropy("one") == 0.0


@pytest.mark.parametrize("count", [4, 9, 32])
def test_entropy_of_distinct_ngrams(count):
    words = [str(i) for i in range(count)]
    assert entropy(words, 2) == pytest.approx(log2(count - 1))
    assert entropy(words, 3) == pytest.approx(log2(count - 2))
    assert ngram_entropy(" ".join(words)) == pytest.approx(log2(count - 1) / 3 + 2 * log2(count - 2) / 3)


def test_entropy_by_hand():
    assert entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1.0)  # ab, ba, ab, ba
    assert entropy(["a", "b", "a", "b"], 2) == pytest.approx(-(2 / 3 * log2(2 / 3) + 1 / 3 * log2(1 / 3)))


def test_summary_means():
    """Prompts of a fact count equally, then facts count equally."""
    rows = [(0, "rewrite", 1.0, 1.0), (1, "rewrite", 0.0, 1.0), (0, "neighborhood", 0.5, 0.0)]
    rows += [(0, "paraphrase", 1.0, None)] * 3 + [(1, "paraphrase", 0.0, None)]
    found = summarise(pd.DataFrame(rows, columns=["fact", "kind", "exact", "wins"]))
    names = "efficacy success paraphrase specificity preference portability fluency score"
    assert list(found.index) == names.split()
    assert found["efficacy"] == found["paraphrase"] == found["specificity"] == found["score"] == 0.5
    assert (found["success"], found["preference"]) == (1.0, 0.0)
    assert isnan(found["portability"])
    assert isnan(found["fluency"])


# scores


def naive(lab, prompt, answer):
    """(mean nll, exact, accuracy) of one pair from the model's own logits, token by token."""
    ids = lab.tokenizer(prompt)["input_ids"]
    target = lab.tokenizer(answer if answer[0] == " " else f" {answer}")["input_ids"]
    nll, hits = [], []
    for token in target:
        logits = lab.model(input_ids=torch.tensor([ids])).logits[0, -1]
        nll.append(-float(logits.log_softmax(-1)[token]))
        hits.append(int(logits.argmax()) == token)
        ids = [*ids, token]
    return sum(nll) / len(nll), float(all(hits)), sum(hits) / len(hits)


def greedy(lab, prompt, tokens):
    """What the model says itself, as text that its tokenizer reads back."""
    ids = lab.tokenizer(prompt)["input_ids"]
    for _ in range(tokens):
        logits = lab.model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
    return ids[-tokens:]


def test_score_is_naive(pico):
    found = score(pico, PAIRS)
    assert list(found.columns) == ["nll", "exact", "accuracy"]
    for (prompt, answer), row in zip(PAIRS, found.itertuples(), strict=True):
        nll, exact, accuracy = naive(pico, prompt, answer)
        assert row.nll == pytest.approx(nll, rel=1e-4)
        assert (row.exact, row.accuracy) == (exact, pytest.approx(accuracy))


@pytest.mark.parametrize("tokens", [1, 30])
def test_chunks_do_not_matter(pico, monkeypatch, tokens):
    before = score(pico, PAIRS)
    monkeypatch.setattr("kedit_lab.model.answers.TOKENS", tokens)
    pd.testing.assert_frame_equal(score(pico, PAIRS), before, rtol=1e-4)


class Said:
    """A lab whose target tokens are what the model says itself, with the last one wrong where asked."""

    def __init__(self, lab, wrong):
        self.lab, self.wrong = lab, wrong

    def ids(self, answer):
        said = greedy(self.lab, "Paris is", 3)
        return (*said[:2], said[2] + 1) if self.wrong else tuple(said)


def spelled(monkeypatch, ids):
    """Let answers have these ids, whatever the tokenizer says."""
    monkeypatch.setattr(tokens, "targets_ids", lambda _tokenizer, answers, _chat=None: {a: ids(a) for a in answers})


@pytest.mark.parametrize(("wrong", "exact", "accuracy"), [(False, 1.0, 1.0), (True, 0.0, 2 / 3)])
def test_exact_needs_every_token(pico, monkeypatch, wrong, exact, accuracy):
    spelled(monkeypatch, Said(pico, wrong).ids)
    (row,) = score(pico, [("Paris is", "whatever")]).itertuples()
    assert (row.exact, row.accuracy) == (exact, pytest.approx(accuracy))


def positions(lab, pairs):
    """(how many positions enter the first block while pairs are scored, the scores)."""
    block, seen = lab.arch.blocks[0], []

    def counted(forward, hidden, *args, **kwargs):
        seen.append(hidden.shape[0] * hidden.shape[1])
        return forward(hidden, *args, **kwargs)

    with instead(block, counted):
        found = score(lab, pairs)
    return sum(seen), found


def test_a_prompt_is_run_once_for_all_its_answers(pico, monkeypatch):
    """Wherever its pairs stand, as passes are small; hooked models see whole rows, and say the same."""
    monkeypatch.setattr("kedit_lab.model.answers.TOKENS", 80)
    prompts = [f"{name}'s employer is" for name in ("John Smith", "Mary Jones", "Ann Marie")]
    pairs = [(prompt, answer) for answer in ("Greek", "London", "Paris") for prompt in prompts]
    shared, found = positions(pico, pairs)
    assert positions(pico, pairs * 2)[0] == shared
    with patched(pico, "mlp", 1, lambda hidden: hidden):
        whole, plain = positions(pico, pairs)
    length = len(pico.encode(prompts[0])[0]) - 1
    assert whole - shared > 5 * length  # six of nine prompts less, but for padding
    pd.testing.assert_frame_equal(found, plain, rtol=1e-4)


def test_whoever_hooks_sees_whole_rows(pico):
    pairs = [(PAIRS[0][0], answer) for answer in ("Greek", "Zoë in London")]
    width = max(len(row.ids) for row in pico.answer_rows(pairs))
    with record(pico, "key", [0]) as seen:
        score(pico, pairs)
    assert seen["key", 0].shape[:2] == (2, width)


def test_prompt_without_tokens_is_refused(pico):
    with pytest.raises(ValueError, match="prompt '' gives no tokens"):
        score(pico, [("", "Greek")])


def test_nothing_to_score(pico):
    assert score(pico, []).empty


# the table


@pytest.fixture(scope="module")
def report(pico):
    return evaluate(pico, FACTS, tokens=5)


def test_columns_and_kinds(report):
    columns = "fact subject relation kind prompt answer rival exact accuracy nll rival_nll wins fluency"
    assert set(report.columns) == set(columns.split())
    assert isinstance(report, Report)
    assert list(report["kind"]) == ["rewrite", *["paraphrase"] * 2, *["neighborhood"] * 2, "portability", "locality",
                                    "rewrite", *["generation"] * 2]  # fmt: skip
    assert list(report["fact"]) == [0] * 7 + [1] + [0, 1]
    assert set(report["kind"]) == set(KINDS)
    assert list(report["prompt"])[:2] == ["John Smith's employer is", "John Smith works at"]
    assert list(report["subject"][:6]) == ["John Smith"] * 6


def test_rivals(report):
    """The edit's own prompts compete with the old object, neighbours' with the new one, consequences with nothing."""
    pairs = [(row.answer, row.rival if isinstance(row.rival, str) else None) for row in report[:8].itertuples()]
    assert pairs == [*[("Greek", "London")] * 3, *[("London", "Greek")] * 2, ("John", None), *[("Paris", None)] * 2]
    assert report["wins"].notna().tolist() == [True] * 5 + [False] * 5
    for row in report[:5].itertuples():
        assert row.wins == float(row.nll < row.rival_nll)


def test_scores_in_the_table(report, pico):
    for row in report[:8].itertuples():
        nll, exact, accuracy = naive(pico, row.prompt, row.answer)
        assert row.nll == pytest.approx(nll, rel=1e-4)
        assert (row.exact, row.accuracy) == (exact, pytest.approx(accuracy))
        if isinstance(row.rival, str):
            assert row.rival_nll == pytest.approx(naive(pico, row.prompt, row.rival)[0], rel=1e-4)


def test_generation(report, pico):
    rows = report[report["kind"] == "generation"]
    assert list(rows["prompt"]) == ["John Smith", "Mary Jones"]
    assert list(rows["answer"]) == pico.generate(["John Smith", "Mary Jones"], 5)
    assert [ngram_entropy(text) for text in rows["answer"]] == list(rows["fluency"])
    assert rows["exact"].isna().all()


def test_generation_prompts(pico):
    """A fact's own generation prompts are continued in the subject's place; their entropies are averaged."""
    fact = Fact("John Smith", "{}'s employer is", "Greek", generation=("I think", "Paris and"))
    found = evaluate(pico, [fact], kinds=["generation"], tokens=5)
    assert list(found["prompt"]) == ["I think", "Paris and"]
    assert list(found["answer"]) == pico.generate(["I think", "Paris and"], 5)
    assert found.summary()["fluency"] == pytest.approx(found["fluency"].mean())


def test_locality(report):
    """A mean of its own, and only where something was asked."""
    rows = report[report["kind"] == "locality"]
    assert report.summary()["locality"] == rows["exact"].mean()
    assert "locality" not in report[report["kind"] != "locality"].summary()


def test_other_spellings(pico, monkeypatch):
    """Any spelling that the model says makes a row exact, if asked for; nothing else changes."""
    says = tuple(greedy(pico, "The city is", 2))
    own = {answer: pico.target(answer) for answer in ("Paris", "Greek", "London")}
    spelled(monkeypatch, lambda answer: says if answer == "right" else own[answer])
    plain = Fact("John Smith", "{} is in", "Paris", locality=(Probe("The city is", "London", "", ("Greek", "right")),))
    facts = [replace(plain, aliases=("Greek",)), plain]
    strict, lenient = (evaluate(pico, facts, kinds=["rewrite", "locality"], aliases=a) for a in (False, True))
    assert list(lenient["exact"] - strict["exact"]) == [0, 1, 0, 1]
    assert lenient.drop(columns="exact").equals(strict.drop(columns="exact"))


def test_swapped_roles_cannot_both_win(pico):
    """P(a) > P(b) and P(b) > P(a) exclude each other; a tie counts for neither."""
    swapped = Fact("John Smith", "{}'s employer is", "London", "Greek")
    wins = [evaluate(pico, [fact], kinds=["rewrite"]).summary()["success"] for fact in (FACTS[0], swapped)]
    assert sum(wins) == 1.0


@pytest.mark.parametrize("kinds", [["rewrite"], ["neighborhood", "rewrite"], ["generation"]])
def test_only_what_is_asked(pico, kinds):
    found = evaluate(pico, FACTS, kinds=kinds, tokens=3)
    assert set(found["kind"]) == set(kinds)
    assert found.summary().notna()["efficacy"] == ("rewrite" in kinds)


def test_prefix(pico):
    found = evaluate(pico, FACTS, kinds=["rewrite", "neighborhood"], prefix="I think so. ")
    assert list(found["prompt"][:1]) == ["I think so. John Smith's employer is"]
    assert found["prompt"].str.startswith("I think so. ").all()
    assert found["nll"][0] == pytest.approx(naive(pico, "I think so. John Smith's employer is", "Greek")[0], rel=1e-4)


def test_unedited_model_beside_itself(report, pico):
    found = evaluate(pico, FACTS, baseline=report, tokens=5)
    for column in ("exact", "accuracy", "nll", "rival_nll", "wins", "fluency"):
        pd.testing.assert_series_equal(found[column], found[f"{column}_before"], check_names=False, rtol=1e-5)
    summary = found.summary()
    for name, value in report.summary().items():
        assert summary[name] == summary[f"{name}_before"] == pytest.approx(value, nan_ok=True)
    assert "efficacy_before" not in report.summary()


def test_model_that_says_what_it_is_asked_is_specific(pico, monkeypatch):
    """Neighbours' answers that are what the model says: specificity 1."""
    spelled(monkeypatch, lambda _answer: tuple(greedy(pico, "The city is", 2)))
    fact = Fact("John Smith", "{} is in", "Paris", neighborhood=(Probe("The city is", "London"),))
    assert evaluate(pico, [fact], kinds=["neighborhood"]).summary()["specificity"] == 1.0


@pytest.mark.parametrize(
    "change", [{"facts": FACTS[:1]}, {"facts": FACTS[::-1]}, {"kinds": ["rewrite"]}], ids=["fewer", "other", "kinds"]
)
def test_baseline_of_something_else(report, pico, change):
    with pytest.raises(
        ValueError, match="the baseline is of other facts, answers or kinds; evaluate the same ones before the edit"
    ):
        evaluate(pico, **{"facts": FACTS, "tokens": 5} | change, baseline=report)


def test_baseline_of_another_answer(report, pico):
    """The prompts agree, what is asked of them does not."""
    other = [replace(FACTS[0], target_new="Europe"), *FACTS[1:]]
    assert [fact.text for fact in other] == [fact.text for fact in FACTS]
    with pytest.raises(ValueError, match="the baseline is of other facts, answers or kinds"):
        evaluate(pico, other, baseline=report, tokens=5)


def test_a_space_behind_a_prompt_is_the_answers(pico):
    """As in Fact and in what lab.ask answers."""
    probe = Probe("The city is", "London")
    fact = Fact("John Smith", "{} is in", "Paris", paraphrases=("John Smith lives in",), neighborhood=(probe,))
    spaced = replace(
        fact, paraphrases=("John Smith lives in ",), neighborhood=(replace(probe, prompt="The city is \n"),)
    )
    pd.testing.assert_frame_equal(*(evaluate(pico, [f], kinds=KINDS[:3]) for f in (fact, spaced)))


def test_report_stays_a_report(report):
    assert isinstance(report[report["fact"] == 0], Report)
    assert report[report["fact"] == 0].summary()["efficacy"] == report["exact"][0]
