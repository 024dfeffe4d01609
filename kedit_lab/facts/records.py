"""Records of a published file, one at a time: a JSON array or one object a line, plain or gzipped, local or on the hub.

Only the record that is being read is in memory as JSON, so that a file of any size can be read.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from kedit_lab.paths import file_digest

CHUNK = 1 << 20  # characters read at a time
LONGEST_WORD = 12  # characters of "-Infinity" or of a "\uXXXX" that a chunk may have cut, and some
SUFFIXES = (".json", ".jsonl", ".gz")
BLANK = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
CUT = "ends in the middle: the file is truncated or damaged"
FOREIGN = {b"PAR1": "parquet", b"PK\x03\x04": "zip"}  # by their first bytes


class Foreign(ValueError):
    """A file of another kind altogether."""


class Text:
    """A file's text as it is read: ``rest`` is the piece at hand, ``at`` the place in it, ``done`` says it is the last.

    Bytes that are no UTF-8 and damaged gzip data raise in ``more``, behind all that can be read before them; a
    byte-order mark is skipped.
    """

    def __init__(self, path: Path) -> None:
        self.raw = path.open("rb")
        start = self.raw.peek(4)[:4]
        for mark, kind in FOREIGN.items():
            if start.startswith(mark):
                self.raw.close()
                raise Foreign(f"{path} is a {kind} file; give a .json or .jsonl, plain or as .gz")
        self.file = gzip.GzipFile(fileobj=self.raw) if start.startswith(b"\x1f\x8b") else self.raw
        self.decoder, self.error = codecs.getincrementaldecoder("utf-8-sig")(), None
        self.rest, self.at, self.done = "", 0, False

    def __enter__(self) -> "Text":
        return self

    def __exit__(self, *_error: object) -> None:
        self.file.close()
        self.raw.close()  # gzip leaves open what it was given

    def more(self) -> None:
        """Read on: at least as much as is at hand, so that a long record is tried a few times only."""
        unused = self.rest[self.at :]
        if self.error is not None:
            raise self.error
        pieces, wanted = [unused], max(CHUNK, len(unused))
        try:
            while wanted > 0 and not self.done:
                some = self.file.read1(CHUNK)
                self.done = not some
                pieces.append(self.decoder.decode(some, final=self.done))
                wanted -= len(pieces[-1])
        except UnicodeDecodeError as error:
            pieces.append(error.object[: error.start].decode())
            self.error = error
        except DAMAGE as error:
            self.error = error
        self.rest, self.at = "".join(pieces), 0

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            self.at = BLANK.match(self.rest, self.at).end()
            if self.at < len(self.rest) or self.done:
                return self.rest[self.at : self.at + 1]
            self.more()

    def value(self) -> Any:
        """The next JSON value; a JSONDecodeError is certain, not the end of what was read so far."""
        while True:
            try:
                found, self.at = DECODER.raw_decode(self.rest, self.at)
                return found
            except json.JSONDecodeError as error:
                if self.done or not unfinished(error):
                    raise
            self.more()


def unfinished(error: json.JSONDecodeError) -> bool:
    """Whether more text might mend this: the error lies at the end, or in a string that does not close."""
    return error.msg.startswith("Unterminated string") or len(error.doc) - error.pos <= LONGEST_WORD


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each record; anything but whole, well-formed JSON is a ValueError that says where."""
    number = 0
    try:
        with Text(path) as text:
            array = text.peek() == "["
            text.at += array
            while (char := text.peek()) and not (array and char == "]"):
                number += 1
                yield number, text.value()
                if array and text.peek() == ",":
                    text.at += 1
                    if text.peek() == "]":
                        raise ValueError("a comma with no record behind it")
                elif array and text.peek() not in ("]", ""):
                    raise ValueError("no comma between it and the next record")
            if array:
                text.at += 1
                if not char:
                    raise EOFError
                if text.peek():
                    raise ValueError("more text behind the closing bracket")
    except Foreign:
        raise
    except (json.JSONDecodeError, *DAMAGE) as error:
        cut = not isinstance(error, json.JSONDecodeError) or unfinished(error)
        said = CUT if cut else f"is not valid JSON ({error.msg})"
        raise ValueError(f"{path}: record {max(number, 1)} {said}; fetch the file again") from error
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise ValueError(f"{path}: record {max(number, 1)} {CUT}; fetch the file again") from error
        raise ValueError(
            f"{path}: near record {max(number, 1)} the bytes are no UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path}: record {number} is nested too deeply to be read; is it the right file?") from error
    except ValueError as error:
        raise ValueError(f"{path}: record {number}: {error}; fetch the file again") from error
    if not number:
        raise ValueError(f"{path} has no records; fetch the file again")


def locate(source: str | Path, files: Sequence[str], file: str | None, revision: str | None) -> Path:
    """The local file that a source means: a path, a folder with one of ``files`` (or ``file``), or a hub dataset."""
    path = Path(source).expanduser()
    wanted = [file] if file else list(files)
    if path.is_file():
        if file or revision:
            raise ValueError(
                f"{path} is a file; leave out file= and revision=, which choose one of a folder or hub set"
            )
        return path
    if path.is_dir():
        tried = [path / name for long in wanted for name in (long, Path(long).name)]
        for option in tried:
            if option.is_file():
                return option
        raise ValueError(f"{path} has none of {', '.join(wanted)}; give the path of the file itself, or file=...")
    if path.suffix in SUFFIXES or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ValueError(f"there is no file at {path}; give a path, or a hub dataset as 'owner/name' with a revision")
    return download(str(source), wanted[0], revision)


def download(name: str, file: str, revision: str | None) -> Path:
    """A file of a hub dataset at a commit, from the hub's cache or fetched with a progress bar."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"revision is {revision!r}; give the 40 digits of a commit of {name}, so that the same data is read again"
        )
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} of {name} at {revision[:8]} was not found and could not be fetched ({type(error).__name__}); "
            "check the name, the file and the network, or fetch the file by hand and give its path"
        ) from error


def sha256_of(path: Path, wanted: str | None = None) -> str:
    """The SHA-256 of a file's bytes; one that differs from ``wanted`` raises a ValueError."""
    found = file_digest(path)
    if wanted is not None and found != wanted.lower():
        raise ValueError(f"{path} has the SHA-256 {found}, not {wanted}; it is another version: fetch the one you mean")
    return found
