"""`make notebooks`: run notebooks from a clean kernel, each in its own folder, and save their outputs; then the
register of claims, data/claims.csv.

A notebook that fails or writes to stderr is left as it was.
"""

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.notebooks.claims import register  # noqa: E402

CLAIMS = ROOT / "data" / "claims.csv"
KEPT_CELL_METADATA = {"tags", "slideshow", "jupyter"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Fill the outputs of `notebook` anew; its kernel starts in `folder`."""
    NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout=1200,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    ).execute()


def stderr_of(notebook: nbformat.NotebookNode) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stderr"]


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Leave nothing that differs between machines or runs: times, widget models, the editor's state."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """All of the file or nothing of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    os.replace(draft, path)


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    run(notebook, path.parent)
    if seen := stderr_of(notebook):
        raise RuntimeError(f"{path} writes to stderr, so it was not saved; silence the cause: {seen[0]}")
    normalise(notebook)
    nbformat.validate(notebook)
    write(notebook, path)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; by default all below notebooks/")
    paths = parser.parse_args(arguments).paths or sorted((ROOT / "notebooks").rglob("*.ipynb"))
    for path in paths:
        if ".ipynb_checkpoints" not in path.parts:
            print(path, flush=True)
            execute(path.resolve())
    CLAIMS.write_text(register(sorted((ROOT / "notebooks").glob("*.ipynb"))))


if __name__ == "__main__":
    main(sys.argv[1:])
