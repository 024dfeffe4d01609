"""The register of claims is what the notebooks printed, and README counts it."""

from pathlib import Path

import nbformat
import pytest

from kedit_lab.study.course import claim, claims
from tests.notebooks.claims import count, printed, register

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def saved(folder: Path, name: str, *texts: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell("x", execution_count=i + 1, outputs=[nbformat.v4.new_output("stream", text=text)])
        for i, text in enumerate(texts)
    ]
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_register_is_what_the_notebooks_printed():
    """`make notebooks` writes data/claims.csv; it was forgotten if this fails."""
    assert (ROOT / "data" / "claims.csv").read_text() == register(NOTEBOOKS)


def test_what_does_not_hold_has_a_reason():
    told = claims()
    assert not set(told.index[(told["verdict"] != "holds") & (told["why"] == "")])


def test_readme_counts_the_claims():
    assert count((ROOT / "data" / "claims.csv").read_text()) in " ".join((ROOT / "README.md").read_text().split())


def test_a_printed_claim_is_read_back(tmp_path):
    held = claim("MM-1", {"it falls (fast)": True}, {"efficacy": [0.1, 0.3]})
    part = claim("EA-7", {"a": True, "b": False}, {"spread": 0.25}, "the lab (here) is small")
    path = saved(tmp_path, "02_x", "hello", f"{held!r}\n", repr(part))
    rows = {row["id"]: row for row in printed(path)}
    assert rows["MM-1"] == {"id": "MM-1", "notebook": "02_x", "cell": "2", "verdict": "holds", "why": "",
                            "measured": "efficacy 0.2 (0.1 to 0.3, 2 seeds)"}  # fmt: skip
    assert (rows["EA-7"]["verdict"], rows["EA-7"]["why"]) == ("partly", "the lab (here) is small")
    text = register([path])
    assert count(text).startswith("1 holds, 1 partly, ")
    assert len(text.splitlines()) == 1 + len(claims())
    with pytest.raises(ValueError, match="MM-1: tested in more than one cell"):
        register([path, saved(tmp_path, "03_x", repr(held))])
