"""The notebooks are one course: each says how long it takes, ends in exercises, and has its solutions beside it."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kedit_lab.study.course import answers
from tests.notebooks.conventions import output_texts

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = ROOT / "notebooks" / "solutions"
CHECKED = re.compile(r"""kl\.check\(\s*["'](\d\d\.\d+)["']""")
EXERCISE = re.compile(r"^(\d+)\. ", re.MULTILINE)
MINUTES = re.compile(r"\b(\d+) minutes\b")


def solutions_of(path: Path) -> Path:
    return SOLUTIONS / f"{path.stem}_solutions.ipynb"


def source(notebook: dict) -> str:
    return "\n\n".join(cell["source"] for cell in notebook["cells"])


def course_problems(notebook: dict) -> list[str]:
    """In what a notebook is no lesson of the course; empty for a good one."""
    text, problems = source(notebook), []
    opening = notebook["cells"][0]["source"]
    if not opening.startswith("# ") or "?" not in opening:
        problems.append("the first cell has no title or asks no question")
    if not MINUTES.search(opening):
        problems.append("the first cell does not say how many minutes it takes")
    learned, exercises = text.find("## What we learned"), text.find("## Exercises")
    if not 0 <= learned < exercises:
        return [*problems, 'it does not end with "What we learned" and "Exercises"']
    ending = text[exercises:].removeprefix("## Exercises")
    if re.search(r"^#+ ", ending, re.MULTILINE):
        problems.append("something follows the exercises")
    numbers = [int(number) for number in EXERCISE.findall(ending)]
    if numbers != list(range(1, len(numbers) + 1)) or not 3 <= len(numbers) <= 5:
        problems.append(f"its exercises are numbered {numbers}; give 3 to 5, from 1 on")
    if outside := set(CHECKED.findall(text)) - set(CHECKED.findall(ending)):
        problems.append(f"{', '.join(sorted(outside))}: checked outside the exercises")
    return problems


def answer_problems(number: str, notebook: dict, solutions: dict, sealed: set[str]) -> list[str]:
    """Where the exercises of notebook ``number``, its solutions and the sealed answers do not name the same ones."""
    own = {name for name in sealed if name.startswith(f"{number}.")}
    problems = [] if len(own) >= 2 else [f"{len(own)} sealed answers; a notebook has at least two"]
    for what, text in (("the notebook", source(notebook)), ("its solutions", source(solutions))):
        named = set(CHECKED.findall(text))
        problems += [f"{name} is checked in {what} but not sealed" for name in sorted(named - own)]
        problems += [f"{name} is sealed but not checked in {what}" for name in sorted(own - named)]
    printed = "".join(text for c in solutions["cells"] for o in c.get("outputs", []) for text in output_texts(o))
    return problems + [f"{name}: the solution is not right" for name in sorted(own) if f"{name}: right" not in printed]


def test_there_is_one_solution_for_each_notebook():
    assert {path.name for path in SOLUTIONS.glob("*.ipynb")} == {solutions_of(path).name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_lesson(path):
    assert course_problems(nbformat.read(path, 4)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_solutions_and_sealed_answers_agree(path):
    notebook, solutions = nbformat.read(path, 4), nbformat.read(solutions_of(path), 4)
    assert answer_problems(path.stem[:2], notebook, solutions, set(answers())) == []


def test_every_sealed_answer_belongs_to_a_notebook():
    assert {name[:2] for name in answers()} == {path.stem[:2] for path in NOTEBOOKS}


OPENING = "# 99 · Why?\n\n*A figure. About 5 minutes to read.*"
ENDING = (
    '## What we learned\n\nMuch.\n\n## Exercises\n\n1. A? `kl.check("99.1", 1)`\n2. B? `kl.check("99.2", 2)`\n3. C?'
)
SOLVED = ("kl.check('99.1', 1)\nkl.check('99.2', 2)", "99.1: right\n99.2: right\n")


def lesson(opening: str = OPENING, ending: str = ENDING) -> dict:
    return new_notebook(cells=[new_markdown_cell(opening), new_markdown_cell(ending)])


def solved(code: str = SOLVED[0], printed: str = SOLVED[1]) -> dict:
    return new_notebook(cells=[new_code_cell(code, outputs=[new_output("stream", text=printed)])])


def test_a_good_lesson_is_accepted():
    assert course_problems(lesson()) == []
    assert answer_problems("99", lesson(), solved(), {"99.1", "99.2", "98.1"}) == []


@pytest.mark.parametrize(
    ("notebook", "complaint"),
    [
        (lesson(opening=OPENING.replace("?", ".")), "asks no question"),
        (lesson(opening=OPENING.replace("minutes", "pages")), "how many minutes"),
        (lesson(ending=ENDING.replace("## What", "## Not what")), "does not end with"),
        (lesson(ending=ENDING + "\n\n## Postscript"), "something follows"),
        (lesson(ending=ENDING.replace("3. ", "")), "numbered [1, 2]"),
        (lesson(ending=ENDING.replace("3. ", "4. ")), "numbered [1, 2, 4]"),
        (lesson(opening=OPENING + 'kl.check("99.3", 1)'), "99.3: checked outside"),
    ],
)
def test_a_bad_lesson_is_seen(notebook, complaint):
    (seen,) = course_problems(notebook)
    assert complaint in seen


@pytest.mark.parametrize(
    ("solutions", "sealed", "complaint"),
    [
        (solved(), {"99.1", "99.2", "99.3"}, "99.3 is sealed but not checked in the notebook"),
        (solved(SOLVED[0] + "\nkl.check('99.4', 1)"), {"99.1", "99.2"}, "99.4 is checked in its solutions but not"),
        (solved(printed="99.1: right\n99.2: not yet"), {"99.1", "99.2"}, "99.2: the solution is not right"),
        (solved(), {"99.1"}, "1 sealed answers"),
    ],
)
def test_answers_that_do_not_agree_are_seen(solutions, sealed, complaint):
    assert any(complaint in problem for problem in answer_problems("99", lesson(), solutions, sealed))
