"""Files are written whole or not at all, or line by line; a folder belongs to one run and has room for it."""

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from kedit_lab import paths
from kedit_lab.paths import Log, claim, opened, room, sealed, whole

RECORDS = [{"text": "Zoë\n\u2028 line"}, {"number": 0.1, "none": None}, {"list": [1, [2.5]], "nan": float("inf")}]


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def interrupted():
        with whole(path) as temporary:
            temporary.write_text("half of")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_name_gets_one(tmp_path):
    def full():
        with whole(tmp_path / "file.txt"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*file.txt'"):
        full()


@pytest.fixture
def path(tmp_path):
    """A log of three records."""
    log = Log(tmp_path / "a.log")
    assert log.records == []
    for record in RECORDS:
        log.append(record)
    log.close()
    return log.path


def read(path):
    log = Log(path)
    log.close()
    return log.records


def test_records_come_back(path):
    assert read(path) == RECORDS
    assert path.read_bytes() == b"".join(map(sealed, RECORDS))
    assert path.read_bytes().count(b"\n") == 3


def test_wherever_it_is_cut_the_whole_records_are_there(path):
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        kept = sum(end <= length for end in ends)
        assert read(path) == RECORDS[:kept]
        assert path.read_bytes() == content[: ([0, *ends])[kept]]


def test_whatever_bit_is_wrong_is_seen(path):
    content = path.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        if at >= last:
            assert read(path) == RECORDS[:2]
        else:
            with pytest.raises(
                ValueError, match=r"line [12] of .*a.log is damaged; delete the file to compute it anew"
            ):
                Log(path)


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff\x00 {}", b"0 {}", b"\x00" * 80])
def test_no_record(line):
    assert opened(line) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt("Ctrl-C")])
def test_an_append_that_fails_leaves_what_was_there(path, monkeypatch, error):
    def fail(file):
        raise error

    content, log = path.read_bytes(), Log(path)
    told = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else "what was found before is kept, so make room"
    with monkeypatch.context() as patch:
        patch.setattr(paths.os, "fsync", fail)
        with pytest.raises(type(error), match=told):
            log.append({"more": 1})
    assert path.read_bytes() == content
    log.append({"more": 2})
    log.close()
    assert read(path) == [*RECORDS, {"more": 2}]


def test_a_real_full_disk():
    """/dev/full refuses every byte."""
    log = Log.__new__(Log)
    with Path("/dev/full").open("r+b", buffering=0) as log.file:
        log.path = Path("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device; what was found before is kept, so make room"):
            log.append({"more": 1})


def test_one_writer_at_a_time(path):
    log = Log(path)
    with pytest.raises(ValueError, match=r"another run is writing .*a.log; wait for it, or give another folder"):
        Log(path)
    log.append({"more": 1})
    log.close()
    assert len(read(path)) == 4


def test_a_folder_belongs_to_one_plan(tmp_path):
    claim(tmp_path, {"a": (1, 2), "b": None})
    claim(tmp_path, {"a": [1, 2], "b": None})
    with pytest.raises(ValueError, match=r"holds another run \(other a\); give another folder"):
        claim(tmp_path, {"a": [1, 3], "b": None})
    with pytest.raises(ValueError, match=r"other b, c"):
        claim(tmp_path, {"a": [1, 2], "b": 1, "c": 0})
    assert os.listdir(tmp_path) == ["plan.json"]
    (tmp_path / "plan.json").write_text('{"a": [1')
    with pytest.raises(ValueError, match=r"plan.json cannot be read \(.*\); give another folder"):
        claim(tmp_path, {"a": [1, 2], "b": None})


def test_room(tmp_path):
    room(tmp_path / "new" / "folder", 1)
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(ValueError, match=r"folder has [\d,.]+ MB free, but about 1,000,000,000,000.0 MB will"):
        room(tmp_path / "new" / "folder", 10**18)


def test_a_read_only_folder(tmp_path):
    """Root may write anywhere, so that it is another user who tries."""
    me, folder = os.geteuid(), tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o555)
    if me == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(
            ValueError, match=r"cannot be written to \(.*[Pp]ermission denied.*\); give a folder that can"
        ):
            room(folder, 1)
    finally:
        os.seteuid(me)
        folder.chmod(0o755)


@pytest.mark.skipif(paths.fcntl is None, reason="this system has no such locks")
def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(paths.fcntl, "flock", flock)
    log = Log(tmp_path / "a.log")
    log.append(RECORDS[0])
    log.close()
    with closing(Log(tmp_path / "a.log")) as again:
        assert again.records == RECORDS[:1]


def test_a_new_folder_may_hold_what_systems_leave(tmp_path):
    (tmp_path / ".DS_Store").touch()
    claim(tmp_path, {"a": 1})
    assert (tmp_path / "plan.json").exists()
