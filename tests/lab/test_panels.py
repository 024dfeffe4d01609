"""The panels without a browser: setting a widget's value runs the state at once, and the lab is as it was."""

import base64
import io
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import kedit_lab as kl
from kedit_lab.show.panels.base import Panel
from kedit_lab.show.panels.gate import Gate, gate
from kedit_lab.show.states import playground
from kedit_lab.show.states.alignment import AlignmentState
from kedit_lab.show.states.base import State
from kedit_lab.show.states.beta import BetaState
from kedit_lab.study.sweep import misaligned

VIEW = "application/vnd.jupyter.widget-view+json"
SMALL = {
    kl.AkdPanel: {"size": 3},
    kl.AlignmentPanel: {"size": 2},
    kl.BetaPanel: {"size": 4},
    kl.CollisionPanel: {"size": 1},
    kl.DensityPanel: {"size": 2},
    kl.Playground: {},
    kl.RouterPanel: {"size": 2},
}
EDITING = [kl.AlignmentPanel, kl.CollisionPanel, kl.DensityPanel, kl.Playground]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def weights(lab):
    """Every test leaves the weights bit for bit as they were."""
    before = lab.fingerprint()
    yield before
    assert lab.fingerprint() == before


def small(cls, lab, **options):
    return cls(lab, **SMALL[cls] | options)


def started(panel):
    """Begin what the panel is for."""
    panel.act("edit") if isinstance(panel, kl.Playground) else panel.update()


def picture(panel) -> Image.Image:
    data = panel.picture.value.partition("base64,")[2].partition('"')[0]
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("cls", SMALL)
def test_the_first_view_and_its_static_twin(lab, cls):
    panel = small(cls, lab)
    frame, figure = panel.to_frame(), panel.to_figure()
    assert len(frame) > 0
    assert len(figure.axes) > 0
    assert panel.picture.value == panel.table.value == "", "no widget was needed"
    found = panel.latest
    shown = panel._repr_mimebundle_()
    assert panel.latest is found, "nothing is computed twice"
    assert shown[VIEW]["model_id"] == panel.view.model_id
    assert shown["text/plain"] == repr(panel)
    assert repr(panel).endswith("); run this cell to use it")
    assert picture(panel).width > 500
    assert panel.table.value.count("<tr") > len(frame)
    assert 'role="status" aria-live="polite"' in panel.status.value
    assert panel.stop.disabled


@pytest.mark.parametrize("cls", SMALL)
def test_every_control_has_a_name_a_hint_and_the_page_keeps_its_height(lab, cls):
    panel = small(cls, lab)
    for control in (*panel.controls.values(), panel.stop):
        assert control.description
        assert control.tooltip
        assert not getattr(control, "continuous_update", False)
    assert all(shown.layout.height for shown in (panel.picture, panel.table))


@pytest.mark.parametrize("cls", SMALL)
def test_an_error_is_a_sentence(lab, cls, monkeypatch):
    panel = small(cls, lab)

    def fail(state):
        raise ValueError(f"no {SCRIPT} here.")

    monkeypatch.setattr(type(panel.state), "run", fail)
    started(panel)
    assert "This did not work: no &lt;script&gt;" in panel.status.value
    assert "here. The model is unchanged" in panel.status.value
    assert "Traceback" not in panel.status.value
    assert panel.picture.value == panel.table.value == ""
    assert panel.stop.disabled


@pytest.mark.parametrize("cls", EDITING)
@pytest.mark.parametrize("after", [1, 3])
def test_cancel_stops_at_a_safe_point(lab, weights, cls, after, monkeypatch):
    panel = small(cls, lab, **({"method": "eamet"} if cls is kl.AlignmentPanel else {}))  # it takes more steps
    seen, check = [], Panel.watch

    def watch(self, job, *told):
        seen.append(1)
        if len(seen) > after:
            panel.cancel()
        check(self, job, *told)

    monkeypatch.setattr(Panel, "watch", watch)
    started(panel)
    assert len(seen) == after + 1, "nothing is done behind the safe point"
    assert lab.fingerprint() == weights
    assert "Cancelled. The model is unchanged" in panel.status.value
    assert panel.picture.value == ""
    assert panel.latest is None
    assert panel.stop.disabled
    monkeypatch.undo()
    panel.update()
    assert picture(panel).width > 500, "the next run works again"


def test_an_interrupt_is_said_and_passed_on(lab, monkeypatch):
    panel = small(kl.AkdPanel, lab)

    def interrupted(state):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(panel.state), "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        panel.update()
    assert "Interrupted. The model is unchanged." in panel.status.value


@pytest.fixture
def behind(monkeypatch):
    """Panels work in a thread, as they do when a reader moves a control."""
    monkeypatch.setattr(Gate, "inside", False)


def test_behind_the_page_the_last_choice_counts(lab, behind):
    panel = small(kl.AkdPanel, lab)
    with gate().turn(lambda: None, lambda: None):  # as a cell that runs
        panel.update()
        first = panel.job
        panel.layer.value = 4
        assert panel.job is not first
        assert first.done.wait(30), "what was overtaken ends without a turn"
        assert not panel.wait(0), "the other one waits for its turn"
        assert panel.latest is None
        assert not panel.stop.disabled
    assert panel.wait(30)
    assert panel.latest.layer == 4
    assert "in layer 4 keys are" in panel.status.value
    assert panel.stop.disabled


def test_behind_the_page_waiting_is_said_and_can_be_cancelled(lab, behind, monkeypatch):
    panel = small(kl.AkdPanel, lab)
    said, queue = threading.Event(), Panel.queue
    monkeypatch.setattr(Panel, "queue", lambda self, job: (queue(self, job), said.set()))
    with gate().turn(lambda: None, lambda: None):
        panel.update()
        assert said.wait(30)
        assert "waits for a running cell or panel" in panel.status.value
        panel.stop.click()
        assert panel.wait(30)
    assert "Cancelled." in panel.status.value
    panel.close()


class Shell:
    """As much of IPython as the gate asks for."""

    def __init__(self, kind="execute_request"):
        self.hooks, self.events, self.kernel, self.kind = {}, self, self, kind

    def register(self, name, hook):
        self.hooks[name] = hook

    def get_parent(self):
        return {"header": {"msg_type": self.kind}}


class Cell:
    def __init__(self):
        self.info = object()


def free(found: Gate) -> bool:
    """Whether another thread would get its turn."""
    got = []
    thread = threading.Thread(target=lambda: got.append(found.lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    return got[0]


def test_a_cell_keeps_the_gate_closed():
    found = Gate(Shell("comm_msg"))
    assert not found.inside
    outer, inner = Cell(), Cell()
    found.enter(outer.info)
    found.enter(inner.info)  # a cell that runs another
    assert found.inside
    found.leave(inner)
    assert not free(found)
    found.leave(Cell())  # an empty cell, which never began
    assert not free(found)
    found.leave(outer)
    assert not found.inside
    assert free(found)


def test_the_cell_that_makes_the_first_panel_counts():
    found = Gate(Shell())
    assert found.inside
    found.leave(Cell())
    assert not found.inside
    assert free(found)
    assert Gate(None).inside, "without a notebook nobody waits"


def test_a_cell_that_waits_for_a_panel_can_be_interrupted(monkeypatch):
    found = Gate(Shell("comm_msg"))
    stopped = []

    class Lock:
        def acquire(self):
            if not stopped:
                raise KeyboardInterrupt

    found.cancel = partial(stopped.append, True)
    monkeypatch.setattr(found, "lock", Lock())
    found.enter(object())
    assert stopped == [True]


def test_a_state_must_run(lab):
    with pytest.raises(NotImplementedError, match="State says nothing"):
        State(lab).run()


def test_density_measures_what_the_study_measures(lab):
    panel = small(kl.DensityPanel, lab, size=4, per_subject=1)
    panel.per_subject.value = 2
    panel.mode.value = "sequential"
    found = panel.state.history()
    assert list(found["mode"]) == ["batch", "sequential"]
    for row in found.itertuples():
        told = kl.point(lab, "memit", 4, 2, mode=row.mode, prefixes=0)
        assert row.efficacy == pytest.approx(told["efficacy"])
    assert panel.result.cosine[0, 1] > 0.999
    assert list(panel.to_frame().columns) == ["prompt", "before", "wanted", "after", "done"]
    panel.method.value = "memit-merge"
    assert panel.result.at == ("memit-merge", "sequential", 2, 4, 0)


def test_a_sequence_is_cancelled_between_two_facts(lab, weights):
    panel = small(kl.DensityPanel, lab, size=3, mode="sequential")
    edited = []

    class Stop(Exception):
        pass

    def watch():
        edited.append(lab.fingerprint() != weights)
        if edited[-1]:
            raise Stop

    panel.state.watch = watch
    with pytest.raises(Stop):
        panel.state.run()
    assert edited[-1], "the first fact was in the weights"
    assert lab.fingerprint() == weights


def test_distances_are_those_of_the_keys(lab, monkeypatch):
    panel = small(kl.AkdPanel, lab, size=4)
    assert max(panel.result.akd) < 1e-4, "behind the subject nothing is known of the relation"
    panel.template.value = "relation first"
    found = panel.result
    keys = kl.keys(lab, found.facts, 2, prefixes=None)
    assert found.akd[2] == pytest.approx(kl.akd(keys)) != 0
    assert found.distance[np.triu_indices(4, 1)].mean() == pytest.approx(found.akd[2])
    monkeypatch.setattr("kedit_lab.show.states.distance.keys", None)
    panel.layer.value = 5
    assert panel.result.layer == 5, "no key is read twice"
    assert list(panel.to_frame().columns) == ["template", "subjects", *(f"layer {i}" for i in range(7))]
    assert len(panel.to_frame()) == 2


def test_alignment_follows_the_optimisation(lab, monkeypatch):
    glimpses = []
    glimpse = kl.AlignmentPanel.glimpse
    monkeypatch.setattr(
        kl.AlignmentPanel,
        "glimpse",
        lambda self, seen: (glimpse(self, seen), glimpses.append((seen.step, self.picture.value))),
    )
    panel = small(kl.AlignmentPanel, lab, size=4, every=2)
    panel.update()
    memit = panel.result
    assert [step for step, _ in glimpses] == [*range(0, memit.step + 1, 2)]
    assert len({shown for _, shown in glimpses}) == len(glimpses), "each shows something else"
    panel.method.value = "eamet"
    eamet = panel.result
    assert eamet.misaligned[-1] < memit.misaligned[-1]
    for found in (memit, eamet):
        made = kl.edit(lab, found.facts, found.method, prefixes=0)
        assert found.misaligned[-1] == pytest.approx(misaligned(lab, found.facts, made), rel=1e-3, abs=1e-5)
        assert found.key.shape == (6,)
        assert found.related.sum() == 2
    assert list(panel.to_frame()["method"]) == ["memit", "eamet"]


def test_the_optimisation_is_watched(lab, weights):
    """The last δ that is told is what is written; what is raised on the way ends the edit."""
    facts = kl.facts.by_density(3, 3)
    told = []
    made = kl.edit(lab, facts, "memit-merge", prefixes=0, watch=lambda step, delta: told.append((step, delta)))
    assert [step for step, _ in told] == [*range(len(made.curves[0]))]
    assert told[0][1].shape == (1, lab.arch.d_model)
    left = made.at(made.recipe.layers[-1]).left
    torch.testing.assert_close(left[:, :1].float(), told[-1][1].T, rtol=1e-3, atol=1e-4)

    def stop(step, delta):
        raise InterruptedError(step)

    for method in ("memit", "rome", "pmet"):
        with pytest.raises(InterruptedError):
            kl.edit(lab, facts, method, prefixes=0, watch=stop)
        assert lab.fingerprint() == weights


def test_beta_shows_the_row_of_a_fact(lab):
    panel = small(kl.BetaPanel, lab, size=6, per_subject=3)
    panel.fact.value = 4
    found = panel.result
    recipe = kl.edit(lab, found.facts[:1], "memit", prefixes=0).recipe
    layer = recipe.layers[-1]
    keys = kl.keys(lab, found.facts, layer, prefixes=None)
    np.testing.assert_allclose(
        found.beta, kl.betas(keys, kl.second_moment(lab, layer), recipe.lam_of(layer)), atol=1e-6
    )
    panel.form.value = "pseudo-inverse"
    row = panel.to_frame()
    np.testing.assert_allclose(row["β"], kl.betas(keys)[4], atol=1e-6)
    assert list(row["who"]) == ["another subject"] * 3 + ["its subject", "itself", "its subject"]
    panel.size.value = 3
    assert panel.fact.value == panel.state.fact == panel.result.fact == 2, "the last one that is left"
    assert len(panel.fact.options) == 3
    panel.size.value = 5
    assert panel.fact.value == 2


def test_the_router_says_where_and_why(lab):
    panel = small(kl.RouterPanel, lab)
    fact = panel.state.facts()[0]
    assert panel.result.decision.edited
    assert panel.result.nearest["prompt"].iloc[0] == fact.text
    assert panel.result.edited["continuation"].iloc[0].startswith(fact.target_new)
    assert panel.result.unedited["continuation"].iloc[0].startswith(fact.target_true)
    panel.k.value = 1
    other = panel.state.unrelated()[0]
    panel.prompt.value = other
    assert not panel.result.decision.edited
    assert list(panel.to_frame()["votes"]) == ["yes", "no", "no", "no"]
    assert "The unedited model answers" in panel.status.value
    assert len(panel.state.runs) == 1, "the edits are made once"
    panel.example.value = panel.state.examples()[0]
    assert panel.prompt.value == fact.text
    panel.prompt.value = " "
    assert "This did not work: the prompt is empty" in panel.status.value


def test_the_playground_does_and_undoes(lab, weights):
    panel = small(kl.Playground, lab)
    panel.update()
    assert [panel.buttons[name].disabled for name in ("undo", "redo", "reset")] == [True, True, True]
    plain = panel.result.before["continuation"].iloc[0]
    panel.act("edit")
    assert panel.result.after["continuation"].iloc[0] == "Greek"
    assert panel.result.before["continuation"].iloc[0] == plain
    panel.target.value, panel.method.value = "Finnish", "memit-merge"
    panel.buttons["edit"].click()
    assert panel.result.after["continuation"].iloc[0] == "Finnish"
    assert list(panel.history()["state"]) == ["in", "in"]
    with panel.applied():
        assert lab.ask("John Smith's native language is", 1)["continuation"][0].startswith("Finnish")
    panel.act("undo")
    assert panel.result.after["continuation"].iloc[0] == "Greek"
    assert list(panel.history()["state"]) == ["in", "undone"]
    panel.act("redo")
    assert panel.result.after["continuation"].iloc[0] == "Finnish"
    panel.act("undo")
    panel.act("undo")
    assert panel.result.after["continuation"].iloc[0] == plain
    panel.act("undo")
    assert "there is nothing to undo" in panel.status.value
    panel.act("edit")
    assert len(panel.history()) == 1, "what was undone is gone"
    panel.act("reset")
    assert panel.history().empty
    assert "0 edits in effect" in panel.status.value


def test_the_playground_explains_what_is_wrong(lab, weights, monkeypatch):
    panel = small(kl.Playground, lab)
    panel.prompt.value = "no slot"
    assert "0 slots, not one" in panel.status.value
    panel.prompt.value = "{}'s native language is"
    panel.target.value = ""
    panel.act("edit")
    assert "target_new is ''" in panel.status.value.replace("&#x27;", "'")
    panel.target.value = "Greek"
    asked = playground.likeliest
    with monkeypatch.context() as patch:
        patch.setattr(
            playground, "likeliest", lambda lab, *a: asked(lab, *a) if lab.fingerprint() == weights else 1 / 0
        )
        panel.act("edit")
    assert "division by zero" in panel.status.value
    assert panel.history().empty, "an edit that could not be shown is not kept"
    assert panel.to_frame()["before"].equals(panel.to_frame()["after"]), "a failed edit is not tried again"


def test_typed_text_is_escaped(lab, monkeypatch):
    playground = small(kl.Playground, lab)
    playground.subject.value = SCRIPT
    playground.target.value = SCRIPT
    playground.act("edit")
    router = small(kl.RouterPanel, lab)
    router.prompt.value = SCRIPT
    facts = tuple(kl.Fact(SCRIPT, "{}'s hobby is", target) for target in ("chess", "golf"))
    monkeypatch.setattr(BetaState, "facts", lambda state: facts)
    beta = small(kl.BetaPanel, lab, size=2)
    beta.update()
    for panel in (playground, router, beta):
        shown = panel.status.value + panel.table.value + panel.picture.value
        assert "<script" not in shown
        assert picture(panel).width > 500
    assert "&lt;script&gt;" in playground.status.value
    assert "&lt;script&gt;" in playground.table.value
    assert "&lt;script&gt;" in router.status.value
    assert "&lt;script&gt;" in beta.table.value


@pytest.mark.parametrize(
    ("cls", "options", "complaint"),
    [
        (kl.AkdPanel, {"layer": 7}, "layer is 7"),
        (kl.AkdPanel, {"template": "none"}, "template is 'none'"),
        (kl.AlignmentPanel, {"method": "rome"}, "method is 'rome'"),
        (kl.BetaPanel, {"fact": 10}, "fact is 10; give a number from 0 to 9"),
        (kl.DensityPanel, {"per_subject": 6}, "per_subject is 6; give a number from 1 to 5"),
        (kl.DensityPanel, {"mode": "both"}, "mode is 'both'"),
        (kl.Playground, {"method": "none"}, "method is 'none'"),
        (kl.RouterPanel, {"k": 0}, "k is 0"),
    ],
)
def test_impossible_settings_are_refused(lab, cls, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        cls(lab, **options)


def test_every_fact_of_an_alignment_is_compared(lab):
    with pytest.raises(ValueError, match="size is 1"):
        AlignmentState(lab, size=1).check()
