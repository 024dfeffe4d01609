"""`make notebooks` saves a clean notebook or changes nothing."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.notebooks.conventions import notebook_problems
from tests.notebooks.execute import METADATA, execute


def save(path, *sources):
    cells = [new_code_cell(source, execution_count=9, metadata={"tags": ["x"], "papermill": {}}) for source in sources]
    notebook = new_notebook(cells=[new_markdown_cell("A question. " * 30), *cells], metadata={"widgets": {}, "a": 1})
    path.write_text(nbformat.writes(notebook))
    return path


def test_a_saved_notebook_is_clean(tmp_path):
    (tmp_path / "beside.txt").write_text("read from its own folder")
    widget = "import ipywidgets\nipywidgets.IntSlider(3)"
    path = save(tmp_path / "good.ipynb", "print(1)\nprint(2)", "open('beside.txt').read()", widget)
    execute(path)
    saved = nbformat.read(path, as_version=4)
    assert notebook_problems(saved, path.name, path.stat().st_size) == []
    assert saved.metadata == METADATA
    assert [cell.metadata for cell in saved.cells[1:]] == [{"tags": ["x"]}] * 3
    assert [output.get("text") for output in saved.cells[1].outputs] == ["1\n2\n"]
    assert saved.cells[2].outputs[0].data["text/plain"] == "'read from its own folder'"
    assert list(saved.cells[3].outputs[0].data) == ["text/plain"]
    before = path.read_bytes()
    execute(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["beside.txt", "good.ipynb"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("import sys; print('x', file=sys.stderr)", "stderr"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_bad_notebook_is_left_alone(tmp_path, source, complaint):
    path = save(tmp_path / "bad.ipynb", source)
    before = path.read_bytes()
    with pytest.raises(Exception, match=complaint):
        execute(path)
    assert path.read_bytes() == before
