"""General ability: the lab model's own suite, and tasks of lm-evaluation-harness on the lab's own model object."""

import json
import random
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import datasets
import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import kedit_lab as kl
from kedit_lab.measure import harness
from kedit_lab.measure.ability import COLUMNS
from kedit_lab.measure.metrics import score

HERE = Path(__file__).parents[1] / "data/harness"
NOISE = 2.0  # times the spread of a weight; as much of it in every layer leaves nothing of what a model can do
TEMPLATE = "{% for m in messages %}{{ m['content'] + (' Answer:' if m['role'] == 'user' else '') }}{% endfor %}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The task files and their data as a working directory, and a cache of data sets of its own."""
    shutil.copytree(HERE, tmp_path / "tasks")
    monkeypatch.chdir(tmp_path / "tasks")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def wreck(lab):
    """An edit that adds noise to every layer's output projection."""
    generator, changes = torch.Generator().manual_seed(0), {}
    for projection in lab.arch.mlp:
        weight = projection.stored(projection.module.weight)
        changes[projection.name] = kl.Dense(NOISE * weight.std() * torch.randn(weight.shape, generator=generator))
    return kl.Edit(lab, kl.Recipe("noise"), tuple(kl.facts.distinct_subject(1)), changes, lab.fingerprint())


def items(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def likeliest(lab, name):
    """Share of items whose answer has the highest probability among the choices, by kedit-lab's own scores."""
    hits = []
    for item in items(name):
        asked = [(f"{item['text']} {item['question']}", choice) for choice in item["choices"]]
        sums = -score(lab, asked)["nll"] * [len(lab.target(choice)) for choice in item["choices"]]
        hits.append(int(sums.argmax()) == item["answer"])
    return sum(hits) / len(hits)


def test_data_that_cannot_be_fetched_are_named(lab, folder, monkeypatch):
    def offline(**_):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(lm_eval, "simple_evaluate", offline)
    (task,) = [path.stem for path in folder.glob("*.yaml")][:1]
    with pytest.raises(
        OSError, match=r"the data of .* could not be fetched, nor found in Hugging Face's cache .no route"
    ):
        kl.ability(lab, [task], include=folder)


def test_own_suite(lab, wreck):
    """Everything the model can do is seen before an edit that wrecks it, and gone behind it."""
    before = kl.ability(lab, count=40).set_index("task")
    with wreck.applied():
        after = kl.ability(lab, count=40).set_index("task")
    assert list(before.columns) == COLUMNS[1:]
    assert list(before.index) == ["passages", "values", "text"]
    assert before.loc["passages", "value"] == kl.passage_accuracy(lab, 40)
    assert (before.loc[["passages", "values"], "value"] > 0.8).all()
    assert (after.loc[["passages", "values"], "value"] < 0.3).all()
    assert before.loc["text", "value"] < 5 < after.loc["text", "value"]
    share, n = before.loc["passages", ["value", "n"]]
    assert before.loc["passages", "stderr"] == pytest.approx((share * (1 - share) / (n - 1)) ** 0.5)
    with pytest.raises(ValueError, match="count is 0"):
        kl.ability(lab, count=0)


def test_the_harness_reads_the_model_as_it_stands(lab, folder, wreck):
    """The harness's accuracy is kedit-lab's own, before and behind an edit; nothing is changed by asking."""
    base, pads = lab.fingerprint(), lab.tokenizer.pad_token_id
    found = kl.ability(lab, "reading_one", include=folder)
    (row,) = found.itertuples(index=False)
    assert (row.task, row.metric, row.n) == ("reading_one", "acc", len(items("one_person.json")))
    assert row.value == likeliest(lab, "one_person.json") > 0.9
    assert row.stderr == pytest.approx((row.value * (1 - row.value) / (row.n - 1)) ** 0.5)
    with wreck.applied():
        edited = kl.ability(lab, "reading_one", include=folder)["value"][0]
        assert edited == likeliest(lab, "one_person.json") < 0.7
    assert (lab.fingerprint(), lab.tokenizer.pad_token_id) == (base, pads)


def test_groups_tags_limits_and_generation(lab, folder):
    """A group is one row weighted by size, a tag its tasks; the order is the one asked in."""
    rows = kl.ability(lab, ["reading_aloud", "reading"], include=folder, batch=16).set_index("task")
    assert list(rows.index) == ["reading_aloud", "reading"]
    parts = {name: len(items(name)) for name in ("one_person.json", "two_people.json")}
    assert rows.loc["reading", "n"] == sum(parts.values())
    right = sum(likeliest(lab, name) * n for name, n in parts.items())
    assert rows.loc["reading", "value"] == pytest.approx(right / sum(parts.values()))
    spoken = lab.generate([f"{item['text']} {item['question']}" for item in items("one_person.json")], 12)
    right = [text.split("Answer:")[1].split(".")[0].strip() == item["choices"][item["answer"]]
             for text, item in zip(spoken, items("one_person.json"), strict=True)]  # fmt: skip
    assert rows.loc["reading_aloud", "metric"] == "exact_match,spoken"
    assert rows.loc["reading_aloud", "value"] == np.mean(right) > 0.8
    tagged = kl.ability(lab, "reading_tag", include=folder, limit=3)
    assert list(tagged["task"]) == ["reading_aloud", "reading_one", "reading_two"]
    assert list(tagged["n"]) == [3] * 3
    with pytest.raises(ValueError, match="Duplicate task 'reading_one'"):
        kl.ability(lab, ["reading", "reading_one"], include=folder)


def test_the_global_generators_stay_as_they_were():
    draw = lambda: (random.random(), np.random.random(), float(torch.rand(())))  # noqa: E731, NPY002
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first = draw()
    for put, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
        put(state)
    with harness.undisturbed():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
    assert draw() == first


def test_the_chat_template_is_used_and_told(lab, folder, monkeypatch):
    """A template that ends every question in " Answer:" once more confuses nobody; the table says that it was there."""
    tokenizer = deepcopy(lab.tokenizer)
    tokenizer.chat_template = TEMPLATE
    chat = kl.wrap(lab.model, tokenizer, chat=True)
    read, asked = [], HFLM._model_call
    monkeypatch.setattr(HFLM, "_model_call", lambda self, ids, **more: read.append(ids) or asked(self, ids, **more))
    for asker, times in ((chat, 2), (lab, 1)):
        read.clear()
        found = kl.ability(asker, "reading_two", include=folder, limit=2)
        assert {lab.tokenizer.decode(row).count("Answer:") for ids in read for row in ids} == {times}
        assert list(found.get("chat", [])) == [True] * (times - 1)


def test_the_papers_names_are_tasks_of_the_harness():
    """Read from the folders that hold them; all 14,000 task files would take half a minute."""
    root = Path(lm_eval.__file__).parent / "tasks"
    parts = ("glue", "mmlu/default", "ceval", "coqa", "drop", "squadv2", "logiqa")
    known = TaskManager(include_path=[root / part for part in parts], include_defaults=False)
    assert set(harness.TASKS.values()) <= set(known.all_tasks)


def test_unknown_tasks_are_named(lab, folder, monkeypatch):
    small = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: small)
    with pytest.raises(ValueError, match=r"unknown tasks \['reading_won'\]; did you mean \[.*'reading_one'.*SST-2"):
        kl.ability(lab, ["reading_one", "reading_won"])
    with pytest.raises(ValueError, match=r"unknown tasks \['sst2'\]"):  # asked by the paper's name
        kl.ability(lab, "SST-2", include=folder)
    with pytest.raises(ValueError, match="tasks is empty; name at least one"):
        kl.ability(lab, [])


def test_what_to_install_is_said(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'kedit-lab\[ability\]'"):
        kl.ability(lab, "SST-2")
