"""Long edits survive: a folder holds what was found, whatever ends the run, and the edit is the same bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kedit_lab.edit import journal, run, targets
from kedit_lab.edit.recipes import find
from kedit_lab.edit.run import Basis, edit
from kedit_lab.model.lab import make_lab
from kedit_lab.paths import Log
from kedit_lab.train.mend import train_mend
from kedit_lab.types import Fact, Memory
from tests.pico.dying import FACTS, SETTINGS, long_edit, small_lab
from tests.pico.tiny import KINDS, TEXTS, build

CASES = {
    "memit": {},
    "memit-merge": {},
    "pmet": {},
    "alphaedit": {},
    "eamet": {"block": 2},
    "alphaedit-aligned": {},  # the third fact has its turn behind the others
    "eamet-mutual": {"block": 3},
    "rome": {"block": 2},
    "r-rome": {"block": 1},
    "rect": {},
    "prune": {},
}


@pytest.fixture(scope="module")
def pico():
    return small_lab()


@pytest.fixture
def found(monkeypatch):
    """Sizes of the batches of groups that were really optimised."""
    sizes, real = [], targets.descend

    def counted(lab, rows, *rest):
        sizes.append(len({asked.group for asked in rows}))
        return real(lab, rows, *rest)

    monkeypatch.setattr(targets, "descend", counted)
    return sizes


def interrupt(patch, at, error=KeyboardInterrupt):
    """End the run in the middle of its batch number ``at``."""
    real, calls = targets.descend, []

    def cut(*args):
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*args)

    patch.setattr(targets, "descend", cut)


def equal(a, b):
    return a.deltas.keys() == b.deltas.keys() and all(
        torch.equal(delta.matrix(), b.deltas[name].matrix()) for name, delta in a.deltas.items()
    )


def same(a, b):
    """Two edits with nothing to tell them apart, bit for bit."""
    return equal(a, b) and (a.facts, a.recipe, a.base, a.curves, a.collisions) == (
        b.facts, b.recipe, b.base, b.curves, b.collisions)  # fmt: skip


@pytest.mark.parametrize(("recipe", "at"), [*((recipe, 3) for recipe in CASES), ("eamet", 1), ("eamet", 2)])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(pico, tmp_path, monkeypatch, found, recipe, at):
    whole = long_edit(pico, None, recipe, **CASES[recipe])
    sizes = list(found)
    assert len(sizes) >= 3
    assert max(sizes) > 1 or CASES[recipe].get("block") == 1
    found.clear()
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            long_edit(pico, tmp_path / "run", recipe, **CASES[recipe])
    assert found == sizes[: at - 1]
    assert same(long_edit(pico, tmp_path / "run", recipe, **CASES[recipe]), whole)
    assert found == sizes  # nothing was found twice
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"plan.json", "targets.log", "edit.safetensors"}


def test_a_finished_edit_comes_back_at_once(pico, tmp_path, found, monkeypatch):
    made = long_edit(pico, tmp_path)
    monkeypatch.setattr(run, "compute", None)
    monkeypatch.setattr(journal, "room", None)  # nothing is written either
    again = long_edit(pico, tmp_path)
    assert same(again, made)
    assert again.seconds == made.seconds
    with again.applied():
        assert "applied" in repr(again)


def lines(folder):
    return (folder / "targets.log").read_bytes().splitlines(keepends=True)


@pytest.fixture
def cut(pico, tmp_path, found, monkeypatch):
    """The folder of a run that was ended in its fourth batch."""
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            long_edit(pico, tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 4  # the prefixes and three batches
    found.clear()
    return tmp_path / "run"


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_last_record_is_dropped(pico, cut, found, left):
    whole = long_edit(pico, None)
    sizes = list(found)
    *kept, last = lines(cut)
    (cut / "targets.log").write_bytes(b"".join(kept) + last[: int(left * len(last))])
    found.clear()
    assert same(long_edit(pico, cut), whole)
    assert found == sizes[2:]
    assert lines(cut)[:4] == [*kept, last]


def test_a_last_record_of_zeros_is_dropped(pico, cut, found):
    """What a machine that lost power may leave: the length is there, the bytes are not."""
    whole = long_edit(pico, None)
    *kept, last = lines(cut)
    (cut / "targets.log").write_bytes(b"".join(kept) + bytes(len(last) - 1) + b"\n")
    assert same(long_edit(pico, cut), whole)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_record_is_refused(pico, cut, found, line):
    content = lines(cut)
    at = len(content[line]) // 2
    content[line] = content[line][:at] + bytes([content[line][at] ^ 1]) + content[line][at + 1 :]
    (cut / "targets.log").write_bytes(b"".join(content))
    with pytest.raises(ValueError, match=rf"line {line + 1} of .*targets.log is damaged; delete the file to compute"):
        long_edit(pico, cut)
    assert found == []


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"lam": 2.0}, "recipe"),
        ({"recipe": "eamet-mutual"}, "recipe"),
        ({"facts": FACTS[:-1]}, "facts"),
        ({"facts": (FACTS[1], FACTS[0], *FACTS[2:])}, "facts"),
        ({"moment_texts": TEXTS}, "statistics"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_the_folder_of_another_edit_is_refused(pico, cut, found, change, differs):
    with pytest.raises(ValueError, match=rf"holds another run \(other {differs}\); give another folder"):
        long_edit(pico, cut, **change)
    assert found == []
    assert len(lines(cut)) == 4


def test_other_weights_are_refused(pico, cut, found):
    other = make_lab(build(KINDS["llama"].config, seed=1), pico.tokenizer)
    with pytest.raises(ValueError, match=r"holds another run \(other base, statistics\)"):
        long_edit(other, cut)
    with edit(pico, FACTS[:1], "memit", **SETTINGS).applied(), pytest.raises(ValueError, match="holds another run"):
        long_edit(pico, cut)


def test_another_bound_of_a_pass_is_refused(pico, cut, found):
    """Other batches would be sought together than those that stand there."""
    with pytest.raises(ValueError, match=r"holds another run \(other work\)"):
        long_edit(replace(pico, work=10**6), cut)
    assert found == []


def test_other_prefixes_are_refused(pico, cut, found, monkeypatch):
    monkeypatch.setattr(type(pico), "prefixes", lambda *_a: ("Another context. ",))
    with pytest.raises(ValueError, match="holds targets found behind other prefixes; give another folder"):
        long_edit(pico, cut)
    assert found == []


def test_other_batches_of_groups_are_refused(pico, cut, found, monkeypatch):
    monkeypatch.setattr(targets, "budget", lambda *_: 1)
    with pytest.raises(ValueError, match="was written by another version, with other batches of groups"):
        long_edit(pico, cut)
    assert found == []


def test_records_of_another_form_are_refused(tmp_path):
    path = tmp_path / "targets.log"
    first = Log(path)
    first.append({"groups": [0], "delta": "", "curves": [[1.0]]})
    first.close()
    second = Log(path)
    with pytest.raises(ValueError, match=r"targets\.log was written by another version"):
        journal.Journal(second).take([0], torch.empty(0))
    second.close()


@pytest.mark.parametrize("recipe", ["memit-seq", "alphaedit"])
def test_other_memory_or_basis_is_refused(pico, tmp_path, found, recipe):
    basis = Basis.of(pico, find(recipe).on(pico.arch, **SETTINGS))
    memory = Memory({0: torch.eye(pico.arch.d_k, dtype=torch.float64)}, 1)
    made = long_edit(pico, tmp_path, recipe, basis=basis, memory=memory)
    assert same(long_edit(pico, tmp_path, recipe, basis=basis, memory=memory), made)
    with pytest.raises(ValueError, match=r"other memory"):
        long_edit(pico, tmp_path, recipe, basis=basis, memory=Memory({0: 2 * memory.past[0]}, 1))
    with pytest.raises(ValueError, match=r"other basis"):
        long_edit(pico, tmp_path, recipe, memory=memory)
    other = Basis.of(pico, find(recipe).on(pico.arch, **SETTINGS | {"lam": 2.0, "gamma": 3.0}))
    with pytest.raises(ValueError, match=r"other basis"):
        long_edit(pico, tmp_path, recipe, basis=other, memory=memory)


@pytest.mark.parametrize("name", ["targets.log", "edit.safetensors", "my.tmp"])
def test_a_folder_that_does_not_say_what_it_holds(pico, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=rf"does not say what it holds \(no plan.json, but {name}\); give another folder"
    ):
        long_edit(pico, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("told", ["[]", "null", "3"])
def test_a_plan_that_is_no_object_is_refused(pico, tmp_path, told):
    (tmp_path / "plan.json").write_text(told)
    with pytest.raises(ValueError, match=r"plan.json cannot be read \(it holds no object\); give another folder"):
        long_edit(pico, tmp_path)


def test_another_edit_in_a_finished_folder_is_refused(pico, tmp_path):
    other = edit(pico, FACTS[:2], "memit", **SETTINGS)
    long_edit(pico, tmp_path)
    other.save(tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match=r"edit.safetensors is another edit \(other .*facts\); delete it"):
        long_edit(pico, tmp_path)


def test_an_editor_that_was_trained_again_is_another(pico, tmp_path):
    """MEND's folder is bound to what its editor's file holds, not to its name."""
    for seed in (0, 1):
        train_mend(pico, tmp_path / "editor", FACTS, steps=1, rows=2, seed=seed, progress=False)
        if seed == 0:
            made = edit(pico, FACTS[:2], "mend", folder=tmp_path / "run", path=str(tmp_path / "editor"))
            again = edit(pico, FACTS[:2], "mend", folder=tmp_path / "run", path=str(tmp_path / "editor"))
            assert all(torch.equal(delta.right, again.deltas[name].right) for name, delta in made.deltas.items())
    with pytest.raises(ValueError, match=r"holds another run \(other editor\)"):
        edit(pico, FACTS[:2], "mend", folder=tmp_path / "run", path=str(tmp_path / "editor"))


def test_a_damaged_finished_edit_is_refused(pico, tmp_path):
    long_edit(pico, tmp_path)
    content = bytearray((tmp_path / "edit.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "edit.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"edit.safetensors is damaged"):
        long_edit(pico, tmp_path)


@pytest.mark.parametrize("recipe", ["ft-m", "kn"])
def test_other_recipes_keep_the_finished_edit(pico, tmp_path, monkeypatch, recipe):
    more = {"epochs": 2} if recipe == "ft-m" else {"threshold": 0.01, "steps": 4}
    made = edit(pico, FACTS[:2], recipe, folder=tmp_path, layers=(0, 1), **more)
    assert len(made.deltas) == 2
    monkeypatch.setattr(run, "compute", None)
    assert same(edit(pico, FACTS[:2], recipe, folder=tmp_path, layers=(0, 1), **more), made)


def test_one_run_at_a_time(pico, cut, found):
    log = Log(cut / "targets.log")
    with pytest.raises(ValueError, match=r"another run is writing .*targets.log; wait for it, or give another folder"):
        long_edit(pico, cut)
    log.close()
    long_edit(pico, cut)


def test_what_is_left_half_written_is_removed(pico, cut, found):
    (cut / "edit.safetensors.1.tmp").write_bytes(b"half")
    (cut / "mine.tmp").write_bytes(b"somebody's")
    long_edit(pico, cut)
    assert [path.name for path in cut.glob("*.tmp")] == ["mine.tmp"]


def test_who_watches_sees_what_was_found_before(pico, cut, found):
    seen = []
    made = long_edit(pico, cut, watch=lambda step, residuals: seen.append(residuals))
    assert (seen[0][:3].norm(dim=1) > 0).all()
    assert len(made.curves) == len(FACTS)


def test_no_room_is_said_before_anything_is_computed(pico, tmp_path, found, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("kedit_lab.paths.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"run has 0.0 MB free, but about 0.0 MB will be written; make room, or give"):
        long_edit(pico, tmp_path / "run")
    assert found == []
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "n"),
    [
        ("memit", 16),
        ("memit", 60),
        ("emmet", 60),
        ("rect", len(FACTS)),
        ("ft-m", len(FACTS)),
        ("sft", len(FACTS)),
        ("lora", len(FACTS)),
    ],
)
def test_the_room_asked_for_is_about_what_is_written(pico, tmp_path, recipe, n):
    """Also of more facts than keys have dimensions, where solvers keep ΔW itself."""
    more = SETTINGS if recipe not in ("ft-m", "sft", "lora") else {"layers": (0,), "epochs": 2}
    names = [f"{chr(65 + i % 26)}{chr(97 + i // 26)}" for i in range(n)]
    facts = FACTS if n == len(FACTS) else [Fact(name, "{} works in", "Paris") for name in names]
    made = edit(pico, facts, recipe, folder=tmp_path, **more)
    wanted = journal.needed(pico, facts, made.recipe)
    text = len(json.dumps([vars(fact) for fact in facts])) * 2  # the manifest's share matters in a small file
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["edit.safetensors"] + sizes["targets.log"] < 1.5 * wanted + 4 * text + 4000
    assert sizes["edit.safetensors"] > 0.4 * wanted


@pytest.mark.parametrize("place", ["below a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_computed(pico, tmp_path, found, place):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run" if place == "below a file" else Path(place) / "run"
    with pytest.raises(ValueError, match=r"run cannot be written to \(.*\); give a folder that can"):
        long_edit(pico, folder)
    assert found == []
