"""An edit leaves the package: as a whole model, or as a peft adapter with the same logits."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kedit_lab.edit.post import rect
from kedit_lab.edit.run import edit
from kedit_lab.model.lab import make_lab
from kedit_lab.types import Fact
from tests.pico.dying import full_disk
from tests.pico.tiny import KINDS, TEXTS, build

FACTS = (Fact("John Smith", "{}'s employer is", "Greek"), Fact("Mary Jones", "{} works in", "Paris"))
SMALL = {"layers": (0, 1), "steps": 4, "prefixes": 0, "lam": 1.0, "stop": 0.0}


@pytest.fixture(params=["gpt2", "llama", "opt"])
def pico(tokenizer, request):
    return make_lab(build(KINDS[request.param].config), tokenizer, request.param)


@pytest.fixture
def made(pico, tmp_path_factory):
    return edit(pico, FACTS, "memit", TEXTS, tmp_path_factory.getbasetemp() / "moments", **SMALL)


def logits(model, lab):
    with torch.no_grad():
        return model(**lab.batch([lab.tokenizer(text)["input_ids"] for text in TEXTS])).logits


def bits(lab):
    return {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}


def test_whole_model(pico, made, tmp_path):
    before = bits(pico)
    path = made.export(tmp_path / "edited")
    assert all(torch.equal(tensor, before[name]) for name, tensor in pico.model.state_dict().items())
    found = AutoModelForCausalLM.from_pretrained(path)
    with made.applied():
        assert torch.equal(logits(found, pico), logits(pico.model, pico))
        again = made.export(tmp_path / "again")  # applied already: nothing is added twice
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again), pico), logits(found, pico))
    assert AutoTokenizer.from_pretrained(path)(TEXTS[0])["input_ids"] == pico.tokenizer(TEXTS[0])["input_ids"]


def test_peft_adapter(pico, made, tmp_path):
    before, names = bits(pico), [name for name, _ in pico.model.named_modules()]
    path = made.to_peft(tmp_path / "adapter")
    assert [name for name, _ in pico.model.named_modules()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in pico.model.state_dict().items())
    with made.applied():
        wanted = logits(pico.model, pico)
    plain = logits(pico.model, pico)
    base = build(KINDS[pico.name].config)
    found = logits(PeftModel.from_pretrained(base, path).eval(), pico)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_full_rank_is_refused(pico, made, tmp_path):
    with pytest.raises(ValueError, match=r"has rank \d+, over 4; raise rank, or export the whole model"):
        rect(made, 0.4).to_peft(tmp_path / "adapter", rank=4)
    assert not list(tmp_path.iterdir())


def test_used_folders_are_refused(made, tmp_path):
    (tmp_path / "file").write_text("mine")
    for call in (made.export, made.to_peft):
        with pytest.raises(ValueError, match="exists and is not an empty folder; give a new one"):
            call(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_edit_of_other_weights_is_not_written(pico, made, tmp_path):
    """Behind an edit that is gone, neither a model nor an adapter gives what it gave."""
    with made.applied():
        over = edit(pico, FACTS[1:], "memit", TEXTS, tmp_path / "moments", **SMALL)
    for write in (over.export, over.to_peft):
        with pytest.raises(ValueError, match="are not those that this edit was computed on"):
            write(tmp_path / "over")
    with made.applied():
        assert over.to_peft(tmp_path / "over").is_dir()


def test_without_room_nothing_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr("kedit_lab.paths.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    for write in (made.export, made.to_peft):
        with pytest.raises(ValueError, match=r"has 0\.0 MB free, but about \d+\.\d MB will be written; make room"):
            write(tmp_path / "out")
    monkeypatch.undo()
    for write in (made.export, made.to_peft):
        with (
            full_disk(4000),
            pytest.raises(OSError, match=r"out could not be written \(.*\); make room, or give another"),
        ):
            write(tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_chance_is_left_alone(made, tmp_path):
    state = torch.get_rng_state()
    made.to_peft(tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), state)
