"""The collision panel without a browser: setting a widget's value edits the real model again, and undoes it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import kedit_lab as kl
from kedit_lab.show.panels import CollisionPanel
from kedit_lab.show.states.collision import ARMS, CollisionState

DISTINCT, SAME, MERGE = ARMS
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def weights(lab):
    """Every weight is bit for bit what it was when the test ends."""
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    yield lab.fingerprint()
    after = lab.model.state_dict()
    assert all(np.array_equal(before[name].numpy(), after[name].numpy()) for name in before)


@pytest.fixture
def panel(lab, weights):
    return CollisionPanel(lab, size=2)


def picture(panel) -> Image.Image:
    """The figure that the panel shows, decoded."""
    data = panel.picture.value.partition("base64,")[2].partition('"')[0]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_panel_starts_idle_and_works_when_shown(panel):
    assert panel.latest is None
    assert panel.picture.value == ""
    shown = panel._repr_mimebundle_()
    assert shown[VIEW]["model_id"] == panel.view.model_id
    assert shown["text/plain"] == "CollisionPanel(2 facts, one subject · memit, seed 0); run this cell to use it"
    assert picture(panel).width > 500
    assert "2 of 2 facts share a key" in panel.status.value
    assert panel.table.value.count("<tr") == 3


def test_every_control_edits_again(panel, monkeypatch):
    ran = []
    run = CollisionState.run
    monkeypatch.setattr(
        CollisionState, "run", lambda state: (ran.append((state.size, state.arm, state.seed)), run(state))[1]
    )
    panel.update()
    first = panel.picture.value
    panel.size.value = 3
    panel.arm.value = MERGE
    panel.seed.value = 4
    assert ran == [(2, SAME, 0), (3, SAME, 0), (3, MERGE, 0), (3, MERGE, 4)]
    assert panel.picture.value != first
    assert panel.table.value.count("<tr") == 4
    assert [*panel.state.history()["size"]] == [2, 3, 3, 3]
    panel.seed.value = 4
    assert len(ran) == 4, "a value that does not change runs nothing"


def test_the_arms_differ(panel):
    """What the paper says, on ten facts: distinct subjects work, one subject collides, one joint value mends it."""
    panel.size.value = 10
    found = {}
    for arm in ARMS:
        panel.arm.value = arm
        found[arm] = panel.result
    assert found[SAME].efficacy < found[MERGE].efficacy
    assert found[SAME].efficacy < found[DISTINCT].efficacy
    assert found[DISTINCT].efficacy >= 0.8
    assert found[SAME].cosine.min() > 0.999
    off = found[DISTINCT].cosine[~np.eye(10, dtype=bool)]
    assert np.abs(off).mean() < 0.5
    assert [fact.target_new for fact in found[SAME].facts] == [fact.target_new for fact in found[DISTINCT].facts]


def test_the_state_asks_the_edited_model(lab, weights):
    state = CollisionState(lab, size=1, arm=DISTINCT)
    result = state.run()
    (row,) = result.frame.to_dict("records")
    assert row["prompt"] == result.facts[0].text
    assert row["before"] == lab.ask(row["prompt"], k=1)["continuation"][0].split(".")[0]
    assert row["done"] == (result.efficacy == 1)
    assert not row["done"] or row["after"].startswith(row["wanted"])
    assert state.tried == {
        (DISTINCT, 1, 0): {"efficacy": result.efficacy, "specificity": result.specificity}
    }  # fmt: skip


def test_answers_before_the_edit_are_asked_once(lab, weights, monkeypatch):
    state = CollisionState(lab, size=2)
    facts = kl.facts.same_subject(3)
    first = state.answers_before(facts[:2])
    asked = []
    module = "kedit_lab.show.states.batch"
    monkeypatch.setattr(f"{module}.answers", lambda lab, new: asked.extend(new) or ("new",) * len(new))
    assert state.answers_before(facts) == (*first, "new")
    assert asked == facts[2:]


def test_the_answers_end_with_the_sentence(monkeypatch, lab):
    from kedit_lab.show.states import batch

    fact = kl.facts.same_subject(1)[0]
    said = {" Kyoto. The name": "Kyoto", " vexalia.net. It": "vexalia.net", " a\n\nb": "a", " long name": "long name",
            " Kyoto.": "Kyoto"}  # fmt: skip
    for text, answer in said.items():
        monkeypatch.setattr(type(lab), "generate", lambda lab, prompts, tokens, text=text: [prompts[0] + text])
        assert batch.answers(lab, [fact]) == (answer,)


@pytest.mark.parametrize("error", [ValueError("no <b>such</b> thing"), RuntimeError()])
def test_an_error_is_a_sentence(panel, monkeypatch, error):
    panel.update()
    assert panel.picture.value

    def fail(state):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(CollisionState, "run", fail)
        panel.size.value = 3
    assert "This did not work: " in panel.status.value
    assert "&lt;b&gt;such&lt;/b&gt;" in panel.status.value or "RuntimeError" in panel.status.value
    assert "Traceback" not in panel.status.value
    assert panel.picture.value == panel.table.value == ""
    panel.size.value = 2
    assert picture(panel).width > 500, "the next change works again"


def test_an_error_while_the_edit_is_in_is_undone(panel, weights, lab, monkeypatch):
    def fail(*_):
        assert lab.fingerprint() != weights, "the edit is in the model here"
        raise RuntimeError("a broken measurement")

    monkeypatch.setattr("kedit_lab.show.states.batch.evaluate", lambda *args, **options: fail())
    panel.update()
    assert "a broken measurement" in panel.status.value
    assert lab.fingerprint() == weights


def test_the_busy_state_is_announced(panel, monkeypatch):
    seen = []
    run = CollisionState.run
    monkeypatch.setattr(CollisionState, "run", lambda state: (seen.append(panel.status.value), run(state))[1])
    panel.size.value = 1
    assert len(seen) == 1
    assert "editing 1 fact (one subject · memit, seed 0) …" in seen[0]
    assert "editing" not in panel.status.value
    assert 'role="status" aria-live="polite"' in panel.status.value


def test_the_static_twin(panel):
    frame = panel.to_frame()
    assert list(frame.columns) == ["prompt", "before", "wanted", "after", "done"]
    assert len(frame) == 2
    assert len(panel.to_figure().axes) == 3
    assert panel.picture.value == "", "no widget was needed"
    assert panel.state.history().shape == (1, 5), "table and figure share one edit"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"size": 0}, "size is 0"), ({"size": 51}, "size is 51"), ({"arm": "memit"}, "arm is 'memit'")],
)
def test_impossible_settings_are_refused(lab, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        CollisionPanel(lab, **options)


def test_what_the_reader_of_the_page_is_told(panel):
    panel.update()
    assert 'alt="one subject · memit: ' in panel.picture.value
    for control in (panel.size, panel.arm, panel.seed):
        assert control.description
        assert control.tooltip
    assert not panel.size.continuous_update
    assert all(shown.layout.height for shown in (panel.picture, panel.table))
