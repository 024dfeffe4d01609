"""The recorded numbers are the printed ones, complete and each recorded once."""

import pytest

from kedit_lab.study.papers import numbers, paper

COLUMNS = ["paper", "item", "model", "method", "dataset", "setting", "metric", "value", "unit"]
UNITS = {"fraction", "percent", "distance", "count", "nats", "cosine", "score", "seconds"}


def one(frame, **where):
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    (value,) = frame["value"]
    return value


def test_every_row_has_all_fields():
    frame = numbers()
    assert list(frame.columns) == COLUMNS
    texts = frame.drop(columns="value")
    assert (texts != "").all(axis=None)
    assert (texts == texts.apply(lambda column: column.str.strip())).all(axis=None)
    assert frame["value"].notna().all()
    assert set(frame["unit"]) == UNITS
    assert frame["item"].str.fullmatch(r"(Table|Fig\.) \d+[a-z]?").all()


def test_no_number_is_recorded_twice():
    assert not numbers().duplicated(COLUMNS[:7]).any()


def test_values_fit_their_unit():
    frame = numbers()
    assert frame[frame["unit"] == "fraction"]["value"].between(0, 1).all()
    assert frame[frame["unit"] == "percent"]["value"].between(0, 100).all()
    assert frame[frame["unit"] == "fraction"]["value"].gt(0).all()


SPOTS = [
    ("memit-merge", {"table": 1}, {"method": "MEMIT", "dataset": "same", "metric": "efficacy"}, 0.41),
    ("memit-merge", {"table": 1}, {"method": "MEMIT-Merge", "dataset": "same", "metric": "paraphrase"}, 0.48),
    ("memit-merge", {"table": 1}, {"method": "AlphaEdit", "dataset": "distinct", "metric": "specificity"}, 0.98),
    ("memit-merge", {"table": 2}, {"dataset": "same", "setting": "The name of the {r} of {s} is"}, 10.5),
    ("memit-merge", {"table": 3}, {"model": "GPT-J-6B", "method": "FT", "dataset": "same", "metric": "efficacy"}, 0.73),
    ("s2rke", {"table": 1}, {"dataset": "S2RKE", "metric": "subjects"}, 4503),
    ("eamet", {"table": 4}, {"model": "Llama-3-8B", "method": "MEMIT", "dataset": "ZsRE", "metric": "efficacy"}, 78.4),
    ("eamet", {"table": 2}, {"model": "DeepSeek-7B", "setting": "200 facts, prefix 50, ten of highest A"}, 47),
    ("eamet", {"table": 11}, {"setting": "10000 facts"}, 1076),
    ("eamet", {"table": 13}, {"method": "MEMIT", "setting": "1000 facts"}, 49.98),
    ("eamet", {"table": "14"}, {"model": "Falcon-7B", "dataset": "CounterFact"}, 0.192),
    ("eamet", {"figure": 5}, {"model": "DeepSeek-7B", "setting": "200 facts, prefix 200"}, 82.25),
    ("mm4ke", {"table": "3a"}, {"setting": "threshold none, 1 epoch x 30 steps"}, 68.9),
    ("mm4ke", {"table": 1}, {"method": "R-SFT merged", "dataset": "CoQA", "metric": "F1"}, 75.18),
    ("seqmmr", {"table": 1}, {"method": "SeqMMR_MEMIT", "metric": "score"}, 85.15),
    ("seqmmr", {"table": 6}, {"dataset": "neighborhood prompts", "setting": "k = 10"}, 65.56),
]  # fmt: skip


@pytest.mark.parametrize(("name", "item", "where", "value"), SPOTS)
def test_a_number_is_the_printed_one(name, item, where, value):
    assert one(paper(name, **item), **where) == value


def test_merging_is_read_as_the_paper_means_it():
    """Same subject: merging gains; distinct subjects: it changes nothing (Table 1)."""
    table = paper("memit-merge", table=1).pivot_table("value", ["dataset", "metric"], "method")
    assert table.loc[("same", "efficacy"), "MEMIT-Merge"] - table.loc[("same", "efficacy"), "MEMIT"] > 0.5
    assert (table.loc["distinct", "MEMIT-Merge"] == table.loc["distinct", "MEMIT"]).all()
    assert len(paper("memit-merge")) == 36 + 4 + 54


@pytest.mark.parametrize(
    ("name", "item", "complaint"),
    [
        ("memit", {}, "the papers are memit-merge, s2rke, eamet, mm4ke, seqmmr"),
        ("memit-merge", {"table": 9}, "there are Table 1, Table 2, Table 3"),
        ("memit-merge", {"figure": 1}, "no recorded Fig. 1; there are Table 1"),
        ("eamet", {"table": 1, "figure": 5}, "both given"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(name, item, complaint):
    with pytest.raises(ValueError, match=complaint):
        paper(name, **item)
