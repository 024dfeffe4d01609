"""Whatever ends the reading of a corpus, wherever: the file is whole, nothing is read twice, and C is the same."""

import os
import shutil
import signal
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from kedit_lab.extract import moments, running
from kedit_lab.paths import clear
from tests.pico.dying import at, elsewhere, full_disk, small_lab
from tests.pico.dying_moments import DOCUMENTS, moment, moment_killed, moment_starved

POINTS = [("piece", 1, 0), ("piece", 3, 4), ("checkpoint", 2, 2), ("move", 3, 4)]  # call, documents on the disk by then


@pytest.fixture(scope="module")
def pico():
    return small_lab()


@pytest.fixture(scope="module")
def whole(pico, tmp_path_factory):
    return moment(pico, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def resumed(pico, whole, tmp_path, monkeypatch):
    """Goes on in a folder: the same bits, only what was missing is read, and one file is left."""

    def resumed(kept):
        read, real = [], moments.piece
        monkeypatch.setattr(
            moments, "piece", lambda lab, layer, texts: (read.extend(texts), real(lab, layer, texts))[1]
        )
        assert torch.equal(moment(pico, tmp_path), whole)
        assert read == DOCUMENTS[kept:]
        assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]

    return resumed


def raising(error):
    def act(*_args):
        raise error

    return act


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize(("point", "call", "kept"), POINTS)
def test_an_exception(pico, tmp_path, resumed, point, call, kept, error):
    with at(point, call, raising(error)), pytest.raises(error):
        moment(pico, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    resumed(kept)


def test_an_exception_beside_other_copies(pico, tmp_path, resumed):
    """Copies of the model that read ahead are let go; what was written is not read again."""
    with at("checkpoint", 3, raising(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
        moment(pico, tmp_path, devices=("cpu", "cpu"))
    resumed(4)


@pytest.mark.parametrize(("point", "call", "kept"), POINTS[1:])
def test_killed(tmp_path, resumed, point, call, kept):
    """What a kill leaves half written goes, once nobody can be writing it any more."""
    code, _ = elsewhere(moment_killed, tmp_path, point, call)
    assert code == -signal.SIGKILL
    left = list(tmp_path.glob("*.tmp"))
    assert len(left) == (point != "piece")
    for path in left:
        os.utime(path, (0, 0))
    resumed(kept)


def test_what_another_run_writes_now_stays(tmp_path):
    path = tmp_path / "moment-a.safetensors"
    theirs, old = (path.with_name(f"{path.name}.{i}.tmp") for i in (1, 2))
    for file in (theirs, old):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    clear(path, running.LEFT)
    assert list(tmp_path.iterdir()) == [theirs]


def test_out_of_memory(tmp_path):
    code, told = elsewhere(moment_starved, tmp_path)
    assert code == 0
    error, same = told
    assert "memory" in error
    assert same


def test_a_full_disk(pico, tmp_path, resumed):
    with ExitStack() as stack:
        with (
            at("checkpoint", 3, lambda *_: stack.enter_context(full_disk(10_000))),
            pytest.raises(OSError, match=r"moment-.* could not be written .*written before is kept, so make room"),
        ):
            moment(pico, tmp_path)
        assert not list(tmp_path.glob("*.tmp"))
    resumed(4)


def test_no_room_is_said_before_anything_is_read(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "piece", raising(AssertionError))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"file.* cannot be written to .*; give a folder that can"):
        moment(pico, tmp_path / "file" / "below")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"has 0.0 MB free, but about 0.1 MB will be written; make room"):
        moment(pico, tmp_path)


# files that are not what they should be, finished or not


def interrupted(lab, folder):
    with at("piece", 3, raising(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
        moment(lab, folder)


@pytest.fixture(params=["finished", "unfinished"])
def path(pico, tmp_path, request):
    if request.param == "finished":
        moment(pico, tmp_path)
    else:
        interrupted(pico, tmp_path)
    (path,) = tmp_path.iterdir()
    return path


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_seen(pico, path, place):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"moment-.* is damaged: its numbers are not those that were written; delete"):
        moment(pico, path.parent)


def test_a_foreign_file_is_seen(pico, path):
    """Another layer's moment has the same shape."""
    other = path.parent / "other"
    moments.second_moment(pico, 0, DOCUMENTS, other)
    (foreign,) = other.iterdir()
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(ValueError, match=rf"was written as {foreign.stem}, for other weights or texts; delete it"):
        moment(pico, path.parent)


def test_keys_that_are_no_numbers_are_refused(pico, tmp_path, monkeypatch, resumed):
    real, calls = moments.piece, []

    def broken(lab, layer, texts):
        calls.append(texts)
        total, *counts = real(lab, layer, texts)
        return total * (float("inf") if len(calls) == 2 else 1), *counts

    with monkeypatch.context() as patch:
        patch.setattr(moments, "piece", broken)
        with pytest.raises(ValueError, match="keys of documents 3 to 4 are NaN or infinite: their dtype is too narrow"):
            moment(pico, tmp_path)
    resumed(2)


def test_a_file_is_written_every_minute(pico, tmp_path, monkeypatch):
    """Eight pieces of 25 s: after 75 s, after 150 s, and at the end."""
    real, clock, saved = moments.piece, [0.0], []

    def slow(lab, layer, texts):
        clock[0] += 25
        return real(lab, layer, texts)

    monkeypatch.setattr(moments, "piece", slow)
    monkeypatch.setattr(running, "PIECE", 1)
    monkeypatch.setattr(running.time, "monotonic", lambda: clock[0])
    save = running.save_file
    monkeypatch.setattr(running, "save_file", lambda *args: (saved.append(clock[0]), save(*args)))
    moments.second_moment(pico, 1, DOCUMENTS, tmp_path)
    assert saved == [75, 150, 200]


def test_a_lack_of_memory_is_no_damage(pico, tmp_path, monkeypatch):
    """Nobody is told to delete hours of work."""
    first = moment(pico, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(running, "safe_open", raising(MemoryError("Cannot allocate memory")))
        with pytest.raises(MemoryError):
            moment(pico, tmp_path)
    assert torch.equal(moment(pico, tmp_path), first)
