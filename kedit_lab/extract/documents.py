"""Plain text for second moments, read as a stream: text files, JSON lines, parquet, or a data set of the hub."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

from kedit_lab.facts.fields import SURROGATE
from kedit_lab.paths import file_digest


@dataclass(frozen=True)
class Documents:
    """A corpus that is never held in memory whole: iterate over it, as often as you like.

    ``digest`` stands for its content: the bits of a file, or a data set's name and revision. ``count`` goes through it
    to count documents, None where that would be a download.
    """

    source: str
    field: str
    limit: int | None
    digest: str
    read: Callable[[], Iterator[str]]
    count: Callable[[], int] | None = None

    def __iter__(self) -> Iterator[str]:
        return islice(self.read(), self.limit)

    def total(self) -> int | None:
        """How many documents there are (at most, if there is a limit), None where nobody knows."""
        return self.limit if self.limit or self.count is None else self.count()


def documents(
    source: str | Path, field: str = "text", limit: int | None = None, split: str = "train", revision: str = "",
    config: str = "",
) -> Documents:  # fmt: skip
    """Documents of a file (``.txt``: one a line; ``.jsonl``: ``field`` of each line; ``.parquet``: that column; also
    ``.gz`` of the first two), or of a hub data set (streamed with the package ``datasets``; ``revision`` pins it,
    ``config`` names one of its subsets, such as Wikipedia's "20231101.en").

    The first ``limit`` count, all if None. Raises ValueError for another kind of file, a record without the field (with
    its number), a file that is damaged or was changed since, or a data set without a revision, and ImportError with
    what to install.
    """
    if limit is not None and not (isinstance(limit, Integral) and limit >= 1):
        raise ValueError(f"limit is {limit!r}; read at least one document, or None for all")
    path = Path(source).expanduser()
    if not path.exists():
        return from_hub(str(source), field, limit, split, revision, config)
    kind = path.suffix if path.suffix != ".gz" else Path(path.stem).suffix
    if path.is_dir() or kind not in (".txt", ".jsonl", ".parquet") or path.suffixes[-2:] == [".parquet", ".gz"]:
        raise ValueError(f"{path} is not .txt, .jsonl or .parquet (.gz of the first two); convert it to one of them")
    stamp = stamp_of(path)
    whole = {".txt": lines, ".jsonl": json_lines, ".parquet": columns}[kind]
    brief = rows if kind == ".parquet" else lines
    return Documents(str(path), field, limit, file_digest(path), lambda: guarded(path, stamp, whole(path, field)),
                     lambda: sum(1 for _ in guarded(path, stamp, brief(path, field))))  # fmt: skip


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of a file: what changes when it is written."""
    return path.stat().st_size, path.stat().st_mtime_ns


def guarded(path: Path, stamp: tuple[int, int], found: Iterator[Any]) -> Iterator[Any]:
    """A file's documents, as long as it is the file that was hashed; damage is a ValueError that says where."""
    number = 0
    try:
        for number, text in enumerate(found, 1):
            if number == 1:
                same(path, stamp)
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, behind document {number}: damaged, or no UTF-8 ({error}); fetch or save the file again"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        if getattr(error, "errno", None):  # of the system, not of the file
            raise
        raise ValueError(f"{path}, behind document {number}: damaged ({error}); fetch the file again") from error
    same(path, stamp)


def same(path: Path, stamp: tuple[int, int]) -> None:
    """Raise a ValueError if a file was written since its stamp was taken: its digest would be another's."""
    if stamp_of(path) != stamp:
        raise ValueError(f"{path} was changed since kl.documents looked at it; call kl.documents again")


def opened(path: Path) -> TextIOWrapper:
    """A text file, unpacked on the way if it is a ``.gz``."""
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def lines(path: Path, _field: str) -> Iterator[str]:
    """One document a line; empty lines are none."""
    with opened(path) as file:
        yield from (line.strip() for line in file if line.strip())


def json_lines(path: Path, field: str) -> Iterator[str]:
    """The field of every line's object."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also too many digits, or brackets
                raise ValueError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from error
            yield text_of(record, field, f"{path}, line {number}")


def columns(path: Path, field: str) -> Iterator[str]:
    """The field's column, some rows at a time."""
    file = parquet(path)
    if field not in file.schema_arrow.names:
        raise ValueError(f"{path} has no column {field!r}; its columns are {', '.join(file.schema_arrow.names)}")
    texts = (text for batch in file.iter_batches(columns=[field]) for text in batch.column(0).to_pylist())
    yield from (text_of({field: text}, field, f"{path}, row {number}") for number, text in enumerate(texts, 1))


def rows(path: Path, _field: str) -> Iterator[int]:
    """As many numbers as a parquet file has rows."""
    return iter(range(parquet(path).metadata.num_rows))


def parquet(path: Path) -> Any:
    """A parquet file, opened. Raises ValueError with its name where it is none."""
    try:
        return optional("pyarrow.parquet", "pyarrow").ParquetFile(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no parquet ({error}); fetch the file again") from error


def text_of(record: Any, field: str, where: str) -> str:
    """A record's text. Raises ValueError with the place and what is there instead."""
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        there = f"it is a {type(record).__name__}"
        if isinstance(record, dict):
            there = f"it holds {record[field]!r}" if field in record else f"its fields are {', '.join(record)}"
        raise ValueError(f"{where} has no text in the field {field!r}; {there}")
    if SURROGATE.search(record[field]):
        raise ValueError(f"{where}: the field {field!r} is no Unicode text; mend or remove it")
    return record[field]


def from_hub(name: str, field: str, limit: int | None, split: str, revision: str, config: str = "") -> Documents:
    """A hub data set as a stream; its revision stands for its content."""
    if not revision:
        raise ValueError(
            f"{name} is no file, and a data set of the hub needs revision= (a commit), to be the same always"
        )
    library = optional("datasets", "datasets")

    def read() -> Iterator[str]:
        rows = library.load_dataset(name, config or None, split=split, revision=revision, streaming=True)
        return (text_of(row, field, f"{name}, record {number}") for number, row in enumerate(rows, 1))

    return Documents(name, field, limit, "/".join(filter(None, (f"{name}@{revision}", config, split))), read)


def optional(module: str, package: str, use: str = "to read this corpus") -> Any:
    """A module that kedit-lab does not require. Raises ImportError that says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is needed {use}; run: pip install '{package}'") from error
