"""Where the committed data lies, and how a file is written: whole or not at all, or line by line for a long run."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

try:
    import fcntl
except ImportError:  # not on every system; two runs in one folder are not told apart there
    fcntl = None


def data_dir() -> Path:
    """The folder ``data``: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "_data"
    return inside if inside.is_dir() else package.parent / "data"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear(path: Path, age: float = 0.0) -> None:
    """Remove what runs that were killed while they wrote this file have left beside it: all of it where nobody else may
    be writing, else what is older than an ``age`` in seconds."""
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime >= age:
                left.unlink()


def temporary_beside(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to: moved into place at the end of the block, removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):  # a full disk does not say which file it was
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def room(folder: Path, needed: int) -> None:
    """Make a folder if need be; raise a ValueError unless it can be written to and ``needed`` bytes are free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error}); give a folder that can") from error
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 1e6:,.1f} MB free, but about {needed / 1e6:,.1f} MB will be written; make room, or "
            "give another folder"
        )


def claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write down what a folder is for, in ``plan.json``; raise a ValueError if it was begun for something else, or if
    it holds files already and does not say for what."""
    path = folder / "plan.json"
    if not path.exists():
        own = ("plan.json.*.tmp", ".*")  # what was killed here, and what systems leave everywhere
        others = [other.name for other in sorted(folder.iterdir()) if not any(map(other.match, own))]
        if others:
            raise ValueError(
                f"{folder} does not say what it holds (no plan.json, but {others[0]}); give another folder"
            )
        with whole(path) as temporary:
            temporary.write_text(json.dumps(plan), encoding="utf-8")
        return
    try:
        found, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(plan))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} cannot be read (it holds no object); give another folder")
    differ = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if differ:
        raise ValueError(f"{folder} holds another run (other {', '.join(differ)}); give another folder")


class Log:
    """A file of JSON records that only grows, each on a line behind its SHA-256, on the disk when ``append`` returns.

    ``records`` is what stood there when it was opened. A last line that does not match its checksum was cut short and
    is taken off; any other raises a ValueError, and so does a file that another run is writing. Close it when done.
    """

    elsewhere = "another folder"  # what whoever finds another run here may give

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a+b", buffering=0)
        try:
            self.lock()
            self.records = self.read()
        except BaseException:
            self.file.close()
            raise

    def lock(self) -> None:
        """Keep other runs out until this one closes the file or dies."""
        try:
            if fcntl is not None:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing {self.path}; wait for it, or give {self.elsewhere}") from error
        except OSError:  # a file system without locks: two runs are not told apart
            pass

    def read(self) -> list[dict[str, Any]]:
        """All whole records; what a kill left of another is cut off the file."""
        self.file.seek(0)
        lines = self.file.readall().split(b"\n")[:-1]
        records = [opened(line) for line in lines]
        if records and records[-1] is None:
            lines, records = lines[:-1], records[:-1]
        if None in records:
            raise ValueError(
                f"line {records.index(None) + 1} of {self.path} is damaged; delete the file to compute it anew"
            )
        self.file.truncate(sum(len(line) + 1 for line in lines))
        return [record for record in records if record is not None]

    def line(self, record: dict[str, Any]) -> bytes:
        """A record as it stands in the file."""
        return sealed(record)

    def append(self, record: dict[str, Any]) -> None:
        """One more line; if it cannot be written whole, the file stays as it was and an OSError says so."""
        end, line = self.file.seek(0, os.SEEK_END), memoryview(self.line(record))
        try:
            while line:
                line = line[self.file.write(line) :]
            os.fsync(self.file.fileno())
        except BaseException as error:
            with suppress(OSError):
                self.file.truncate(end)
            if isinstance(error, OSError):
                told = f"{error.strerror}; what was found before is kept, so make room and start again"
                raise OSError(error.errno, told, str(self.path)) from error
            raise

    def close(self) -> None:
        """Let others write."""
        self.file.close()


def sealed(record: dict[str, Any]) -> bytes:
    """A record as one line: the SHA-256 of its JSON form, a space, that form."""
    text = json.dumps(record).encode()
    return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"


def opened(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where it does not match its checksum."""
    seal, _, text = line.partition(b" ")
    return json.loads(text) if seal.decode("ascii", "replace") == hashlib.sha256(text).hexdigest() else None
