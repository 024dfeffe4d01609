"""Whatever ends an edit, wherever: the weights are as they were, bit for bit, and files are whole or not there."""

import re
import signal
from contextlib import ExitStack

import pytest
import torch
from peft.tuners.lora.model import LoraModel
from torch.utils.hooks import RemovableHandle

from kedit_lab.edit import edit as module
from kedit_lab.edit import targets
from kedit_lab.edit.edit import Edit, read
from kedit_lab.edit.run import edit
from kedit_lab.measure.health import Reference
from kedit_lab.paths import Log
from kedit_lab.study.sequence import sequence
from tests.pico.dying import (
    FACTS,
    SETTINGS,
    at,
    bits,
    changed,
    edit_killed,
    elsewhere,
    full_disk,
    long_edit,
    small_lab,
    starved,
    use_killed,
)
from tests.pico.tiny import TEXTS

ERRORS = [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError]
COMPUTING = [("targets", 1), ("targets", 5), ("keys", 2), ("solve", 1), ("solve", 2), ("write", 1)]
USING = [("apply", 1), ("apply", 2), ("check", 1), ("check", 2)]


@pytest.fixture(scope="module")
def pico():
    return small_lab()


@pytest.fixture(scope="module")
def whole(pico):
    """The edit that nothing ends."""
    return long_edit(pico, None)


def same(a, b):
    return all(torch.equal(delta.matrix(), b.deltas[name].matrix()) for name, delta in a.deltas.items())


def raising(error):
    def act(*_args):
        raise error

    return act


# an exception, Ctrl-C


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("point", "call"), COMPUTING)
def test_computing(pico, whole, tmp_path, point, call, error):
    before = bits(pico)
    with at(point, call, raising(error)), pytest.raises(error):
        long_edit(pico, tmp_path)
    assert changed(pico, before) == []
    assert same(long_edit(pico, tmp_path), whole)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("point", "call"), USING)
def test_applying(pico, whole, point, call, error):
    before = bits(pico)
    with at(point, call, raising(error)), pytest.raises(error):
        whole.apply()
    assert changed(pico, before) == []
    with whole.applied():
        assert changed(pico, before)
    assert changed(pico, before) == []


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", [1, 2])
def test_undoing(pico, whole, monkeypatch, call, error):
    """An interruption waits until all weights are back, and what was undone so may be undone again."""
    before, real, calls = bits(pico), pico.arch.weight, []

    def interrupted(_arch, name):
        calls.append(name)
        if len(calls) == call:
            raise error
        return real(name)

    whole.apply()
    with monkeypatch.context() as patch:
        put_back = module.put_back
        patch.setattr(module, "put_back", lambda *args: (patch.setattr(type(pico.arch), "weight", interrupted),
                                                         put_back(*args)))  # fmt: skip
        with pytest.raises(error):
            whole.undo()
    assert changed(pico, before) == []
    whole.undo()
    assert changed(pico, before) == []
    with pytest.raises(RuntimeError, match="not applied"):
        whole.undo()


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_leaving(pico, whole, call):
    """Ctrl-C while the weights go back, first looked at and then copied, waits until they are back."""
    before = bits(pico)

    def leave():
        with whole.applied(), ExitStack() as stack:
            stack.push(lambda *_seen: outer.enter_context(at("check", call, raising(KeyboardInterrupt))) and None)

    with ExitStack() as outer, pytest.raises(KeyboardInterrupt):
        leave()
    assert changed(pico, before) == []
    assert whole.originals is None


@pytest.mark.parametrize("error", [*ERRORS, OSError])
@pytest.mark.parametrize("point", ["save", "move"])
def test_saving(pico, whole, tmp_path, point, error):
    path = whole.save(tmp_path / "my.edit")
    content = path.read_bytes()
    for name in ("my.edit", "new.edit"):
        with at(point, 1, raising(error)), pytest.raises(error):
            (0.5 * whole).save(tmp_path / name)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", ["lora", "sft"])
@pytest.mark.parametrize("at_call", [1, 2, 3, 4])
def test_training_that_is_interrupted_leaves_nothing(method, at_call, tmp_path, monkeypatch):
    """Peft's modules are out again, however far they had come in; hooks and weights too, if their going is cut."""
    lab = small_lab()
    before, names, calls = bits(lab), [name for name, _ in lab.model.named_modules()], []
    owner, name = (LoraModel, "_replace_module") if method == "lora" else (RemovableHandle, "remove")
    real = getattr(owner, name)

    def cut(*args, **more):
        calls.append(1)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(owner, name, cut)
    with pytest.raises(KeyboardInterrupt):
        edit(lab, FACTS[:2], method, layers=(0, 1), epochs=1)
    monkeypatch.undo()
    assert [name for name, _ in lab.model.named_modules()] == names
    assert changed(lab, before) == []
    assert not any(p.requires_grad or p._post_accumulate_grad_hooks for p in lab.model.parameters())
    assert not lab.model.training
    assert not hasattr(lab.model, "peft_config")
    assert edit(lab, FACTS[:2], method, layers=(0, 1), epochs=1).deltas


@pytest.mark.parametrize("at_call", [1, 2, 3, 4, 7, 11])
def test_blocks_that_are_passed_over_are_as_before(at_call, monkeypatch):
    """Ctrl-C while modules are taken out of a pass, or put back into it."""
    lab, calls, real = small_lab(), [], torch.nn.Module.__setattr__
    wanted = lab.hidden(**lab.batch([[1, 2, 3]]))

    def cut(module, name, value):
        if name == "forward":
            calls.append(1)
            if len(calls) == at_call:
                real(module, name, value)
                raise KeyboardInterrupt
        real(module, name, value)

    monkeypatch.setattr(torch.nn.Module, "__setattr__", cut)
    with pytest.raises(KeyboardInterrupt):
        edit(lab, FACTS[:2], "memit", **SETTINGS | {"layers": (1, 2)})
    monkeypatch.undo()
    assert not any("forward" in vars(module) for module in lab.model.modules())
    assert torch.equal(lab.hidden(**lab.batch([[1, 2, 3]])), wanted)


# kill -9


@pytest.mark.parametrize(
    ("recipe", "more", "point", "call"),
    [
        ("eamet", {"block": 2}, "targets", 5),
        ("eamet", {"block": 2}, "record", 3),
        ("memit-merge", {}, "solve", 2),
        ("rome", {"block": 2}, "record", 4),
        ("rect", {}, "save", 1),
        ("prune", {}, "move", 2),
    ],
)
def test_killed_while_computing(pico, tmp_path, monkeypatch, recipe, more, point, call):
    code, _ = elsewhere(edit_killed, tmp_path, point, call, recipe, more)
    assert code == -signal.SIGKILL
    log = Log(tmp_path / "targets.log")
    before = len(log.records) - 1
    log.close()
    found, real = [], targets.descend
    monkeypatch.setattr(targets, "descend", lambda *args: (found.append(1), real(*args))[1])
    resumed = long_edit(pico, tmp_path, recipe, **more)
    again = len(found)
    assert same(resumed, long_edit(pico, None, recipe, **more))
    assert len(found) == again + before + again  # what stood there was not found again
    assert before >= 1
    assert {file.name for file in tmp_path.iterdir()} == {"plan.json", "targets.log", "edit.safetensors"}


@pytest.mark.parametrize(("point", "call"), [("apply", 2), ("save", 1), ("move", 1)])
def test_killed_while_applying_or_saving(pico, whole, tmp_path, point, call):
    path = whole.save(tmp_path / "my.edit")
    code, _ = elsewhere(use_killed, path, point, call)
    assert code == -signal.SIGKILL
    assert same(Edit.load(path, pico), whole)


# out of memory


@pytest.mark.parametrize(("point", "call"), [("solve", 1), ("solve", 2), ("apply", 2)])
def test_out_of_memory(tmp_path, point, call):
    code, (error, differs, files) = elsewhere(starved, point, call, tmp_path)
    assert code == 0
    assert re.search("can't allocate memory|MemoryError", error)
    assert differs == []
    assert files == []


def test_without_memory_an_edit_is_saved_and_undone(tmp_path):
    code, told = elsewhere(starved, "digest", 1, tmp_path)
    assert code == 0
    assert told == ("none", [], ["my.edit"])
    assert read(tmp_path / "my.edit")[0]["recipe"]["name"] == "rect"


# a full disk


def test_full_while_targets_are_found(pico, whole, tmp_path):
    before = bits(pico)
    folder = tmp_path / "run"
    with full_disk(1500), pytest.raises(OSError, match=r"what was found before is kept, so make room and start again"):
        long_edit(pico, folder)
    assert changed(pico, before) == []
    log = Log(folder / "targets.log")
    assert len(log.records) > 1
    log.close()
    assert (folder / "targets.log").read_bytes().endswith(b"\n")  # no half record
    assert same(long_edit(pico, folder), whole)


def test_full_while_the_edit_is_saved(pico, whole, tmp_path):
    """Targets fit, the edit does not: only the solve is done again."""
    before = bits(pico)
    with full_disk(4000), pytest.raises(OSError, match=r"edit.safetensors could not be written: .*File too large"):
        long_edit(pico, tmp_path)
    assert changed(pico, before) == []
    assert {file.name for file in tmp_path.iterdir()} == {"plan.json", "targets.log"}
    with at("targets", 1, raising(AssertionError)):
        assert same(long_edit(pico, tmp_path), whole)


def test_full_while_saving_by_hand(whole, tmp_path):
    path = whole.save(tmp_path / "my.edit")
    content = path.read_bytes()
    for name in ("my.edit", "new.edit"):
        with full_disk(4000), pytest.raises(OSError, match=rf"{name} could not be written: .*File too large"):
            (0.5 * whole).save(tmp_path / name)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def run(pico):
    reference = Reference.of(pico, TEXTS, ("The rain stopped",))
    return lambda folder: sequence(
        pico, [FACTS[:2], FACTS[2:4]], "memit", reference=reference, folder=folder, **SETTINGS
    )


def test_full_in_a_sequence(pico, run, tmp_path):
    before, unbroken = bits(pico), run(None)
    with full_disk(6000), pytest.raises(OSError, match=r"what was found before is kept|File too large"):
        run(tmp_path)
    assert changed(pico, before) == []
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob("*/*.tmp")]
    resumed = run(tmp_path)
    assert all(torch.equal(resumed.states[-1][name], tensor) for name, tensor in unbroken.states[-1].items())


def test_ended_within_a_batch_of_a_sequence(pico, run, tmp_path, monkeypatch):
    """The targets that were found are there; once the batch is done its folder goes."""
    monkeypatch.setattr(targets, "budget", lambda *_: 20)  # every group fills a batch
    unbroken = run(None)
    with at("targets", 3 * 4 - 1, raising(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert [path.name for path in tmp_path.glob("batch-*")] == ["batch-00002"]
    found, real = [], targets.descend
    monkeypatch.setattr(targets, "descend", lambda *args: (found.append(1), real(*args))[1])
    resumed = run(tmp_path)
    assert len(found) == 1
    assert all(torch.equal(resumed.states[-1][name], tensor) for name, tensor in unbroken.states[-1].items())
    assert list(tmp_path.glob("batch-*")) == []
