"""Corpora as streams: every kind of file, the same documents each time, and errors that name the place."""

import gzip
import json
import sys

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
    with pytest.raises(ValueError, match="limit is 0; read at least one document"):
        documents(path, limit=0)
    with pytest.raises(ValueError, match="someone/texts is no file, and a data set of the hub needs revision="):
        documents("someone/texts")


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
