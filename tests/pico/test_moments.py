"""Second moments: equal to a naive sum, cached by content, resumed after an interruption, refused when damaged."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from kedit_lab.extract import moments, running
from kedit_lab.extract.documents import documents
from kedit_lab.model.lab import make_lab
from tests.pico.tiny import INNER, KINDS, TEXTS, build

DOCUMENTS = [*TEXTS, "Paris", "London is the capital.", "", "I think so."]


@pytest.fixture(params=["gpt2", "llama"])
def pico(make, request):
    return make(request.param)


@pytest.fixture
def work(monkeypatch):
    """Documents that were really read, in order; two between checkpoints."""
    read, real = [], moments.moments

    def counted(lab, layer, texts):
        read.extend(texts)
        return real(lab, layer, texts)

    monkeypatch.setattr(moments, "moments", counted)
    monkeypatch.setattr(running, "PIECE", 2)
    monkeypatch.setattr(running, "SAVE_EVERY", 0.0)
    return read


def naive(lab, layer, texts, length=200):
    """Σ k kᵀ / T, one text and one token at a time."""
    total, tokens = torch.zeros(INNER, INNER, dtype=torch.float64), 0
    for text in texts:
        ids = lab.tokenizer(text)["input_ids"][:length]
        if not ids:
            continue
        seen = []
        handle = lab.arch.mlp[layer].module.register_forward_hook(
            lambda _m, args, _out, seen=seen: seen.append(args[0])
        )
        try:
            lab.model(input_ids=torch.tensor([ids]))
        finally:
            handle.remove()
        for key in seen[0][0].double():
            total += torch.outer(key, key)
            tokens += 1
    return (total / tokens).float()


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_equals_a_naive_sum(pico, tmp_path, layer):
    found = moments.second_moment(pico, layer, DOCUMENTS, tmp_path)
    torch.testing.assert_close(found, naive(pico, layer, DOCUMENTS), rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.T)
    assert torch.linalg.eigvalsh(found.double()).min() > -1e-6


def test_long_documents_are_cut(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "LENGTH", 5)
    found = moments.second_moment(pico, 1, DOCUMENTS, tmp_path)
    torch.testing.assert_close(found, naive(pico, 1, DOCUMENTS, 5), rtol=1e-4, atol=1e-5)


def test_cached_by_content(pico, tmp_path, work):
    first = moments.second_moment(pico, 1, DOCUMENTS, tmp_path)
    assert work == DOCUMENTS
    assert torch.equal(moments.second_moment(pico, 1, DOCUMENTS, tmp_path), first)
    assert torch.equal(moments.second_moment(pico, -2, DOCUMENTS, tmp_path), first)
    assert work == DOCUMENTS  # nothing was read again
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("moment-")


def test_other_content_is_another_file(pico, tokenizer, tmp_path):
    moments.second_moment(pico, 1, DOCUMENTS, tmp_path)
    moments.second_moment(pico, 0, DOCUMENTS, tmp_path)
    moments.second_moment(pico, 1, DOCUMENTS[::-1], tmp_path)
    moments.second_moment(pico, 1, DOCUMENTS[:-1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    other = make_lab(build(KINDS[pico.name].config, seed=1), tokenizer)
    moments.second_moment(other, 1, DOCUMENTS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_model_that_is_configured_otherwise_is_another(tokenizer, tmp_path):
    """The same weights behind other norms, or other rotations, have other keys; a name says nothing of them."""
    config = KINDS["llama"].config
    told = [{}, {"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}]
    labs = [make_lab(build(type(config)(**config.to_dict() | other)), tokenizer) for other in (*told, {})]
    for name, value in (("name_or_path", "elsewhere"), ("pad_token_id", 3), ("pretraining_tp", 2)):
        setattr(labs[-1].model.config, name, value)
    assert len({lab.fingerprint() for lab in labs}) == 1
    found = [moments.second_moment(lab, 1, DOCUMENTS, tmp_path) for lab in labs]
    assert len(list(tmp_path.iterdir())) == 3
    assert torch.equal(found[0], found[-1])
    assert not any(torch.equal(found[0], other) for other in found[1:-1])


def test_an_edited_model_has_other_statistics(pico, tokenizer, tmp_path):
    fresh = make_lab(build(KINDS[pico.name].config), tokenizer)
    before = moments.second_moment(fresh, 1, DOCUMENTS, tmp_path)
    fresh.arch.mlp[0].module.weight.mul_(2.0)
    assert not torch.allclose(moments.second_moment(fresh, 1, DOCUMENTS, tmp_path), before)


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_interrupted_run_resumes(pico, tmp_path, work, monkeypatch, survived):
    whole = moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "whole")
    work.clear()
    counted, calls = moments.moments, []

    def failing(lab, layer, texts):
        calls.append(texts)
        if len(calls) > survived:
            raise KeyboardInterrupt
        return counted(lab, layer, texts)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "moments", failing)
        with pytest.raises(KeyboardInterrupt):
            moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "part")
    assert work == DOCUMENTS[: 2 * survived]
    assert torch.equal(moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "part"), whole)
    assert work == DOCUMENTS  # the second run read only what the first had not


def test_interrupted_in_the_middle_of_a_part(pico, tmp_path, work, monkeypatch):
    """What was counted since the last checkpoint is not counted twice."""
    whole = moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "whole")
    counted = moments.moments

    def broken(lab, layer, texts):
        yield next(iter(counted(lab, layer, texts)))
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(moments, "moments", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "part")
    assert torch.equal(moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "part"), whole)


def stored(lab, folder):
    moments.second_moment(lab, 1, DOCUMENTS, folder)
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other names"])
def test_damaged_cache_is_refused(pico, tmp_path, damage):
    path = stored(pico, tmp_path)
    content = path.read_bytes()
    if damage == "other names":
        save_file({"sum": torch.zeros(3)}, path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"not a moment", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"moment-.* is not a readable second moment .*; delete it to compute it anew"):
        moments.second_moment(pico, 1, DOCUMENTS, tmp_path)
    path.unlink()
    moments.second_moment(pico, 1, DOCUMENTS, tmp_path)


def test_wrong_shape_is_refused(pico, tmp_path):
    path = stored(pico, tmp_path)
    save_file(load_file(path) | {"total": torch.zeros(3, 3, dtype=torch.float64)}, path)
    with pytest.raises(ValueError, match=r"holds a \(3, 3\) moment but the layer needs \(48, 48\); delete it"):
        moments.second_moment(pico, 1, DOCUMENTS, tmp_path)


def test_errors(pico, tmp_path):
    with pytest.raises(ValueError, match="texts is empty; a second moment needs at least one document"):
        moments.second_moment(pico, 1, [], tmp_path)
    with pytest.raises(ValueError, match="texts hold no tokens"):
        moments.second_moment(pico, 1, ["", ""], tmp_path)
    with pytest.raises(ValueError, match="layer 3 is not one of this model's 3 layers"):
        moments.second_moment(pico, 3, DOCUMENTS, tmp_path)


def test_cache_folder(pico, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_LAB_CACHE", str(tmp_path / "here"))
    assert moments.cache_dir() == tmp_path / "here"
    moments.second_moment(pico, 1, DOCUMENTS)
    assert len(list((tmp_path / "here").iterdir())) == 1
    monkeypatch.delenv("KEDIT_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert moments.cache_dir() == tmp_path / "kedit-lab"


def test_default_corpus():
    texts = moments.lab_text(20)
    assert len(texts) == 20
    assert texts == moments.lab_text(20) != moments.lab_text(20, seed=2)
    assert all(isinstance(text, str) and text for text in texts)


def test_a_stream_is_the_list(pico, tmp_path, work, monkeypatch):
    """A file gives what its lines give as a list, also when the run is cut and goes on."""
    lines = [text for text in DOCUMENTS if text]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines))
    listed = moments.second_moment(pico, 1, lines, tmp_path / "list")
    assert torch.equal(moments.second_moment(pico, 1, documents(path), tmp_path / "stream"), listed)
    work.clear()
    read = moments.moments

    def failing(lab, layer, texts):
        if len(work) == 4:
            raise KeyboardInterrupt
        return read(lab, layer, texts)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "moments", failing)
        with pytest.raises(KeyboardInterrupt):
            moments.second_moment(pico, 1, documents(path), tmp_path / "cut")
    assert torch.equal(moments.second_moment(pico, 1, documents(path), tmp_path / "cut"), listed)
    assert work == lines
    short = moments.second_moment(pico, 1, documents(path, limit=3), tmp_path / "cut")
    assert torch.equal(short, moments.second_moment(pico, 1, lines[:3], tmp_path / "list"))


def test_drift_is_the_way_since_half_as_many(pico, tmp_path, work):
    texts = DOCUMENTS[:1] * 4 + DOCUMENTS[1:2] * 4
    rows = moments.moment_drift(pico, 1, texts, tmp_path)
    assert list(rows["documents"]) == [4, 8]
    at = {n: naive(pico, 1, texts[:n]).double() for n in (2, 4, 8)}
    wanted = [float((at[n] - at[n // 2]).norm() / at[n].norm()) for n in (4, 8)]
    assert list(rows["drift"]) == pytest.approx(wanted, abs=1e-5)
    assert rows["drift"][0] < 1e-6 < rows["drift"][1]


def test_stops_once_the_drift_is_small(pico, tmp_path, work):
    texts = DOCUMENTS[:1] * 16
    found = moments.second_moment(pico, 1, texts, tmp_path, tolerance=0.01)
    assert work == texts[:4]  # the first drift is known after two pieces of two
    torch.testing.assert_close(found, moments.second_moment(pico, 1, texts, tmp_path), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"tolerance is 1\.0; it is a share of"):
        moments.second_moment(pico, 1, texts, tmp_path, tolerance=1.0)


def test_single_precision_is_close(pico, monkeypatch):
    """C as a device without float64 adds it up, over a whole piece of documents, against float64."""
    texts = 32 * TEXTS
    exact, tokens, _ = moments.piece(pico, 1, texts)
    monkeypatch.setattr(moments, "precision", lambda _device: torch.float32)
    single, _, count = moments.piece(pico, 1, texts)
    assert not torch.equal(single, exact)
    assert (single - exact).norm() < 1e-5 * exact.norm()
    assert (count, single.dtype) == (running.PIECE, torch.float64)
    assert tokens > 10 * count


def test_single_precision_is_taken_where_it_is_single(monkeypatch):
    """PyTorch may be told to multiply float32 with fewer digits; then it is float64."""
    assert moments.precision(torch.device("cpu")) == torch.float64
    assert moments.precision(torch.device("meta")) == torch.float32
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert moments.precision(torch.device("meta")) == torch.float64


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu", "cpu")])
def test_copies_on_devices_give_the_same_bits(pico, tmp_path, work, devices):
    alone = moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "alone")
    assert torch.equal(moments.second_moment(pico, 1, DOCUMENTS, tmp_path / "several", devices=devices), alone)
    assert sorted(work) == sorted(2 * DOCUMENTS)


def test_progress_knows_the_end_and_shows_the_drift(pico, tmp_path, work, capsys):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(text for text in DOCUMENTS if text))
    moments.second_moment(pico, 1, documents(path), tmp_path / "shown", progress=True)
    told = capsys.readouterr().err
    assert "second moment, layer 1: 100%" in told
    assert "7/7" in told
    assert "drift=0." in told
    moments.second_moment(pico, 1, documents(path), tmp_path / "silent")
    assert capsys.readouterr().err == ""
