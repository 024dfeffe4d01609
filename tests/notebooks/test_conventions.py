"""Every notebook keeps the conventions, and every convention can be broken."""

import copy
import json
from pathlib import Path

import pytest

from tests.notebooks.conventions import IGNORE_OUTPUT, MAX_BYTES, WIDGET_VIEW, notebook_problems

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def test_notebook_keeps_the_conventions(path):
    size = path.stat().st_size
    assert notebook_problems(json.loads(path.read_text()), path.relative_to(ROOT).as_posix(), size) == []


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def display(**data) -> dict:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def code(source: str, count: int | None, *outputs: dict, tags: tuple[str, ...] = ()) -> dict:
    base = {"cell_type": "code", "id": f"c{count}", "metadata": {"tags": list(tags)}, "source": source}
    return base | {"execution_count": count, "outputs": list(outputs)}


PLOTLY = display(**{"application/vnd.plotly.v1+json": {"data": []}})
GOOD = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    },
    "cells": [
        {
            "cell_type": "markdown",
            "id": "m0",
            "metadata": {},
            "source": ["What is a key? " * 9, "https://x.org/home/a"],
        },
        code("key = 1\nprint(key)", 1, stream("1\n")),
        code("figure", 2, PLOTLY, tags=(IGNORE_OUTPUT,)),
        code(
            "draw()",
            3,
            display(**{"image/png": "a/tmp/b", "text/plain": "<Figure size 640x480 with 1 Axes>"}),
        ),
    ],
}


def broken(change) -> dict:
    notebook = copy.deepcopy(GOOD)
    change(notebook)
    return notebook


def test_a_good_notebook_is_accepted():
    assert notebook_problems(GOOD, "notebooks/00.ipynb", 5000) == []


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [("00.ipynb", MAX_BYTES, "bytes"), (".ipynb_checkpoints/00.ipynb", 1, "a checkpoint")],
)
def test_a_bad_file_is_seen(name, size, complaint):
    (seen,) = notebook_problems(GOOD, name, size)
    assert complaint in seen


def put_output(*outputs: dict, cell: int = 1):
    return lambda notebook: notebook["cells"][cell].update(outputs=list(outputs))


def put_source(source: str | list[str], cell: int = 1):
    return lambda notebook: notebook["cells"][cell].update(source=source)


BREAKS = {
    "widget state": lambda nb: nb["metadata"].update(widgets={"state": {}}),
    "kernelspec is not": lambda nb: nb["metadata"]["kernelspec"].update(name="venv"),
    "language_info is not": lambda nb: nb["metadata"].pop("language_info"),
    "stderr": put_output(stream("1\n"), stream("warning", name="stderr")),
    "an error in": put_output(
        stream("1\n"), {"output_type": "error", "ename": "ValueError", "evalue": "x", "traceback": []}
    ),
    "widget view": put_output(stream("1\n"), display(**{WIDGET_VIEW: {"model_id": "1"}})),
    "tag the cell": put_output(PLOTLY, cell=3),
    "a progress bar": put_output(stream("100%|█████| 5/5")),
    "13 lines of code": put_source("x\n" * 13),
    "a last ';'": put_source("print(key);\n"),
    "in order": lambda nb: nb["cells"][1].update(execution_count=4),
    "once": lambda nb: nb["cells"][2].update(execution_count=None),
    "no saved output": lambda nb: [cell.update(outputs=[]) for cell in nb["cells"][1:]],
    "no saved text": lambda nb: [cell["metadata"].update(tags=[IGNORE_OUTPUT]) for cell in nb["cells"][1:]],
    "outweigh": put_source("Short.", cell=0),
    "not a valid notebook": lambda nb: nb["cells"][1].pop("outputs"),
}


@pytest.mark.parametrize("complaint", BREAKS)
def test_a_bad_notebook_is_seen(complaint):
    seen = notebook_problems(broken(BREAKS[complaint]), "notebooks/00.ipynb", 5000)
    assert any(complaint in problem for problem in seen), seen


@pytest.mark.parametrize("root", ["home", "work", "root", "tmp", "Users"])
def test_an_absolute_path_is_seen(root):
    path = f"/{root}/x"
    changes = [
        put_output(stream(f"saved to {path}")),
        put_output(stream("1\n"), display(**{"text/html": ["<p>\n", f"<a href='file://{path}'>"]})),
        put_output(stream("1\n"), display(**{"application/json": {"at": path}})),
        put_source(["key = 1\n", f"open('{path}')"]),
        put_source(["A question. " * 30, f"See {path}"], cell=0),
    ]
    for change in changes:
        (seen,) = notebook_problems(broken(change), "notebooks/00.ipynb", 5000)
        assert f": {path}" in seen
