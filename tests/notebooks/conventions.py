"""What every notebook of this repository keeps to: one function from a notebook to its list of problems."""

import re

import nbformat

MAX_BYTES = 1_000_000
MAX_CODE_LINES = 12
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
IGNORE_OUTPUT = "nbval-ignore-output"
# nbval compares these although two runs of the same figure differ in them (ids, dates).
FIGURES_COMPARED = ("application/vnd.plotly.v1+json", "image/svg+xml")
ABSOLUTE_PATH = re.compile(r"(?<![\w.-])/(?:home|work|root|tmp|Users)/")
PROGRESS_BAR = re.compile(r"\d%\|")


def joined(text: str | list[str]) -> str:
    """The file format allows a text to be a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def output_texts(output: dict) -> list[str]:
    """All that a reader could find a word in; base64 images hold no words."""
    data = {mime: value for mime, value in output.get("data", {}).items() if mime not in ("image/png", "image/jpeg")}
    texts = [output.get("text", ""), *data.values(), *output.get("traceback", [])]
    return [joined(text) if isinstance(text, str | list) else str(text) for text in texts]


def is_compared(cell: dict) -> bool:
    """Whether nbval holds any text of this cell against the saved one."""
    texts = (output.get("text") or output.get("data", {}).get("text/plain") for output in cell["outputs"])
    return IGNORE_OUTPUT not in cell["metadata"].get("tags", []) and any(texts)


def file_problems(name: str, size: int) -> list[str]:
    problems = []
    if size >= MAX_BYTES:
        problems.append(f"{size} bytes; a notebook stays under {MAX_BYTES}")
    if "ipynb_checkpoints" in name:
        problems.append("a checkpoint; delete it")
    return problems


def metadata_problems(metadata: dict) -> list[str]:
    problems = []
    if "widgets" in metadata:
        problems.append("widget state in the metadata; run `make notebooks`")
    if metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernelspec is not python3")
    if metadata.get("language_info", {}).get("name") != "python":
        problems.append("the language_info is not python")
    return problems


def output_problems(output: dict, tags: list[str]) -> list[str]:
    problems = []
    if output.get("name") == "stderr":
        problems.append("stderr in the outputs")
    if output["output_type"] == "error":
        problems.append(f"an error in the outputs: {output.get('ename')}")
    if WIDGET_VIEW in output.get("data", {}):
        problems.append("a saved widget view points to a widget that is gone; run `make notebooks`")
    if any(mime in output.get("data", {}) for mime in FIGURES_COMPARED) and IGNORE_OUTPUT not in tags:
        problems.append(f"nbval would compare this figure; tag the cell {IGNORE_OUTPUT}")
    for text in output_texts(output):
        if found := ABSOLUTE_PATH.search(text):
            problems.append(f"an absolute path in the outputs: {text[found.start() :][:40]}")
        if PROGRESS_BAR.search(text):
            problems.append("a progress bar in the outputs")
    return problems


def cell_problems(cell: dict) -> list[str]:
    problems = []
    source = joined(cell["source"])
    if found := ABSOLUTE_PATH.search(source):
        problems.append(f"an absolute path in the source: {source[found.start() :][:40]}")
    if cell["cell_type"] == "code":
        if (lines := len(source.splitlines())) > MAX_CODE_LINES:
            problems.append(f"{lines} lines of code; a cell has at most {MAX_CODE_LINES}")
        if source.rstrip().endswith(";"):  # nbval runs cells without a history, where IPython looks for the ";"
            problems.append("a last ';' hides no output from nbval; assign the value to _")
        for output in cell["outputs"]:
            problems += output_problems(output, cell["metadata"].get("tags", []))
    return problems


def whole_problems(cells: list[dict]) -> list[str]:
    problems = []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"not every code cell was run once, in order, from a clean kernel: {counts}")
    if not any(cell["outputs"] for cell in code):
        problems.append("no saved output")
    elif not any(is_compared(cell) for cell in code):
        problems.append("no saved text that nbval compares")
    length = {
        kind: sum(len(joined(c["source"])) for c in cells if c["cell_type"] == kind) for kind in ("markdown", "code")
    }
    if length["markdown"] <= length["code"]:
        problems.append(f"{length['code']} characters of code outweigh {length['markdown']} of markdown")
    return problems


def notebook_problems(notebook: dict, name: str, size: int) -> list[str]:
    """Every way in which a notebook, as read from its JSON, breaks the conventions; empty for a good one."""
    if error := next(nbformat.validator.iter_validate(notebook), None):
        return [f"not a valid notebook: {error.message}"]
    problems = file_problems(name, size) + metadata_problems(notebook["metadata"])
    for index, cell in enumerate(notebook["cells"]):
        problems += [f"cell {index}: {problem}" for problem in cell_problems(cell)]
    return problems + whole_problems(notebook["cells"])
