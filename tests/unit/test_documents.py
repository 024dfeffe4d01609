"""Corpora as streams: every kind of file, the same documents each time, and errors that name the place."""

import gzip
import json
import sys
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from kedit_lab.extract.documents import documents

TEXTS = ["Ein Käse.", 'He said "no".', "last one"]


@pytest.fixture(params=["txt", "jsonl", "txt.gz", "jsonl.gz"])
def corpus(request, tmp_path):
    """A file of each kind that is read without another package, with a byte-order mark, CRLF and an empty line."""
    rows = TEXTS if "txt" in request.param else [json.dumps({"text": text, "n": 1}) for text in TEXTS]
    content = ("\ufeff" + "\r\n".join([*rows[:2], "", rows[2]]) + "\r\n").encode()
    path = tmp_path / f"corpus.{request.param}"
    path.write_bytes(gzip.compress(content) if request.param.endswith("gz") else content)
    return path


def test_reads_every_kind_again_and_again(corpus):
    found = documents(corpus)
    assert list(found) == TEXTS == list(found)
    assert list(documents(corpus, limit=2)) == TEXTS[:2]


def test_the_digest_follows_the_content(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, text in zip(paths, ("a\n", "a\n", "b\n"), strict=True):
        path.write_text(text)
    first, same, other = (documents(path).digest for path in paths)
    assert first == same != other


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", r"line 2: not JSON .*; mend or remove the line"),
        ('{"body": "x"}', r"line 2 has no text in the field 'text'; its fields are body"),
        ('["x"]', r"line 2 has no text in the field 'text'; it is a list"),
        ('{"text": "\\ud800"}', r"line 2: the field 'text' is no Unicode text; mend or remove it"),
        ("[" * 100_000, r"line 2: not JSON"),
        ('{"text": 3}', r"line 2 has no text in the field 'text'"),
    ],
)
def test_a_bad_record_is_named(tmp_path, line, complaint):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    found = iter(documents(path))
    assert next(found) == "fine"
    with pytest.raises(ValueError, match=complaint):
        next(found)


def test_bad_calls(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text("a")
    with pytest.raises(ValueError, match=r"corpus.csv is not .txt, .jsonl or .parquet"):
        documents(path)
    for name in ("corpus.jsonl.bz2", "corpus.txt.csv", "corpus.parquet.gz", "txt"):
        (tmp_path / name).write_text("a")
        with pytest.raises(ValueError, match=rf"{name} is not .txt, .jsonl or .parquet"):
            documents(tmp_path / name)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match=r"folder.parquet is not .txt"):
        documents(tmp_path / "folder.parquet")
    with pytest.raises(ValueError, match="limit is 0; read at least one document"):
        documents(path, limit=0)
    with pytest.raises(ValueError, match="someone/texts is no file, and a data set of the hub needs revision="):
        documents("someone/texts")


def table(path, texts, field="text", groups=2):
    """A parquet file with so many rows in a row group."""
    pyarrow.parquet.write_table(pyarrow.table({"n": range(len(texts)), field: texts}), path, row_group_size=groups)
    return path


def test_reads_parquet(tmp_path):
    """Over the borders of row groups, again and again, in the file's order."""
    texts = [f"document {i} Käse" for i in range(5000)]
    found = documents(table(tmp_path / "corpus.parquet", texts, "body", 100), "body")
    assert list(found) == texts
    assert list(documents(tmp_path / "corpus.parquet", "body", limit=3)) == texts[:3]
    other = documents(table(tmp_path / "other.parquet", texts[:-1], "body"), "body")
    assert found.digest != other.digest


def test_a_bad_parquet_file_is_named(tmp_path):
    path = table(tmp_path / "corpus.parquet", ["fine", None, "last"])
    with pytest.raises(ValueError, match="row 2 has no text in the field 'text'; it holds None"):
        list(documents(path))
    with pytest.raises(ValueError, match="has no column 'body'; its columns are n, text"):
        list(documents(path, "body"))
    path.write_bytes(path.read_bytes()[:-20])
    for look in (list, lambda found: found.total()):
        with pytest.raises(ValueError, match=r"corpus.parquet is damaged, or no parquet \(.*\); fetch the file again"):
            look(documents(path))


def test_a_text_file_may_be_named_after_another(tmp_path):
    """The last suffix counts."""
    path = tmp_path / "corpus.txt.jsonl"
    path.write_text('{"text": "one"}\n')
    assert list(documents(path)) == ["one"]


def test_streams_a_data_set(tmp_path, monkeypatch):
    """What the package datasets streams (from a file that stands for the hub) comes as it is, as often as asked."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    real, asked = datasets.load_dataset, []

    def load(name, config, **options):
        asked.append((name, config, options.pop("revision")))
        return real("json", data_files={"test": str(tmp_path / "rows.jsonl")}, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = documents("someone/texts", "body", split="test", revision="abc")
    assert list(found) == TEXTS == list(found)
    assert asked == [("someone/texts", None, "abc")] * 2
    assert list(documents("someone/texts", "body", 2, "test", "abc")) == TEXTS[:2]
    assert found.digest != documents("someone/texts", "body", split="test", revision="abd").digest
    subset = documents("someone/texts", "body", split="test", revision="abc", config="20231101.en")
    assert next(iter(subset)) == TEXTS[0]
    assert asked[-1] == ("someone/texts", "20231101.en", "abc")
    assert subset.digest != found.digest
    with pytest.raises(ValueError, match=r"someone/texts, record 1 has no text in .* its fields are body"):
        list(documents("someone/texts", split="test", revision="abc"))


def test_what_to_install_is_said(tmp_path, monkeypatch):
    path = tmp_path / "corpus.parquet"
    path.write_bytes(b"PAR1")
    refuse = {"pyarrow": None, "pyarrow.parquet": None, "datasets": None}
    for name, module in refuse.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match="pip install 'pyarrow'"):
        next(iter(documents(path)))
    with pytest.raises(ImportError, match="pip install 'datasets'"):
        documents("someone/texts", revision="abc")


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl"])
def test_damage_is_named(tmp_path, name):
    """A download that was cut, and bytes that are no text: what came before is read."""
    rows = [json.dumps({"text": f"{i} {i**9}"}) if "jsonl" in name else f"{i} {i**9}" for i in range(3000)]
    content = "\n".join(rows).encode()
    packed, plain = tmp_path / f"{name}.gz", tmp_path / name
    packed.write_bytes(gzip.compress(content)[:-2000])
    plain.write_bytes(content[:-2000] + b"\xff\xfe" + content[-2000:])
    for path in (packed, plain):
        found = iter(documents(path))
        assert next(found) == "0 0"
        with pytest.raises(ValueError, match=rf"{path.name}, behind document \d+: damaged"):
            list(found)


def test_a_file_that_was_written_since_is_refused(tmp_path):
    """Its statistics would be kept under the digest of another text."""
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\n")
    found = documents(path)
    assert list(found) == ["one", "two"]
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match=r"corpus.txt was changed since kl.documents looked at it; call kl.documents"):
        list(found)
    assert list(documents(path)) == ["one", "two", "three"]


def test_a_file_that_is_gone_is_not_called_damaged(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("one\n")
    found = documents(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(found)


def test_how_many_there_are(corpus):
    assert documents(corpus).total() == len(TEXTS)
    assert documents(corpus, limit=2).total() == 2


class Parquet:
    """As much of pyarrow's ParquetFile as is used, over rows."""

    def __init__(self, rows):
        self.rows = rows
        self.schema_arrow = SimpleNamespace(names=["text", "id"])
        self.metadata = SimpleNamespace(num_rows=len(rows))

    def iter_batches(self, columns):
        assert columns == ["text"]
        for at in range(0, len(self.rows), 2):
            part = self.rows[at : at + 2]
            yield SimpleNamespace(column=lambda _, part=part: SimpleNamespace(to_pylist=lambda: part))


def test_parquet(tmp_path, monkeypatch):
    path = tmp_path / "corpus.parquet"
    path.write_bytes(b"PAR1")
    rows = [*TEXTS, None]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace(ParquetFile=lambda _: Parquet(rows)))
    assert list(documents(path, limit=3)) == TEXTS
    assert documents(path).total() == 4
    with pytest.raises(ValueError, match=r"corpus.parquet, row 4 has no text in the field 'text'"):
        list(documents(path))
    with pytest.raises(ValueError, match=r"has no column 'body'; its columns are text, id"):
        list(documents(path, field="body"))


def test_a_hub_data_set_is_streamed_at_its_revision(monkeypatch):
    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, options | {"config": config}))
        return ({"text": text} for text in TEXTS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = documents("someone/texts", revision="abc", limit=2)
    assert (found.digest, asked) == ("someone/texts@abc/train", [])
    assert list(found) == TEXTS[:2]
    how = {"config": None, "split": "train", "revision": "abc", "streaming": True}
    assert asked == [("someone/texts", how)]
    assert documents("someone/texts", revision="abc").total() is None
