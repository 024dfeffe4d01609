"""Imports run one way: paths <- types <- model, facts <- extract <- edit, measure <- show <- train <- cli."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "kedit_lab"
# Rooms from left to right; a room may import itself and what stands left of it.
ORDER = [
    ["paths"],
    ["types"],
    ["model", "facts"],
    ["extract"],
    ["edit", "measure"],
    ["study"],
    ["show"],
    ["train"],
    ["cli"],
]
ROOMS = {room: {earlier for step in ORDER[:at] for earlier in step} for at, step in enumerate(ORDER) for room in step}
# Figures take arrays and tables, never a model.
FIGURES = f"{PACKAGE}.show.figures"
UNSEEN_BY_FIGURES = ("torch", "transformers", f"{PACKAGE}.model", f"{PACKAGE}.edit")
MAX_LINES = 300

Sources = dict[str, str]  # module name -> its text; a package's __init__ bears the package's name


def sources(root: Path) -> Sources:
    names = {path: path.relative_to(root).with_suffix("").parts for path in (root / PACKAGE).rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path.read_text() for path, parts in names.items()}


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported(module: str, tree: ast.AST, modules: Sources) -> list[str]:
    """What `module` imports; `from package import x` counts as package.x where that is a module."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            full = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if name in modules else base for name in full]
    return found


def order_problems(modules: Sources) -> list[str]:
    problems = []
    for module, text in modules.items():
        if module == PACKAGE:
            continue
        room = module.split(".")[1]
        if room not in ROOMS:
            problems.append(f"{module}: {room!r} is no room of the house; its rooms are {', '.join(ROOMS)}")
            continue
        for target in imported(module, ast.parse(text), modules):
            if target == PACKAGE and room != "cli":
                problems.append(f"{module} imports {PACKAGE} itself; import the module that is meant")
            elif within(target, PACKAGE) and target != PACKAGE and target.split(".")[1] not in ROOMS[room] | {room}:
                problems.append(f"{module} imports {target}; {room} may import {sorted(ROOMS[room])}")
            elif within(module, FIGURES) and within(target, *UNSEEN_BY_FIGURES):
                problems.append(f"{module} imports {target}; figures take arrays and tables")
    return problems


def cycle_problems(modules: Sources) -> list[str]:
    graph = {name: set(imported(name, ast.parse(text), modules)) & set(modules) for name, text in modules.items()}
    # A module without imports of its own can be in no cycle: take such modules away until none is left.
    while free := {name for name, targets in graph.items() if not targets - {name} and name not in targets}:
        graph = {name: targets - free for name, targets in graph.items() if name not in free}
    return [f"{name} is in an import cycle or imports one, through {sorted(graph[name])}" for name in sorted(graph)]


def inner_import_problems(modules: Sources) -> list[str]:
    return [
        f"{module}:{node.lineno}: an import inside {function.name}()"
        for module, text in modules.items()
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def is_device(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.match("cuda(:|$)", node.value))


def style_problems(modules: Sources) -> list[str]:
    problems = []
    for module, text in modules.items():
        if (lines := len(text.splitlines())) > MAX_LINES:
            problems.append(f"{module}: {lines} lines, more than {MAX_LINES}")
        for node in ast.walk(ast.parse(text)):
            if is_print(node) and module != f"{PACKAGE}.cli":
                problems.append(f"{module}:{node.lineno}: print(); return what happened instead")
            elif is_device(node):
                problems.append(f"{module}:{node.lineno}: {node.value!r}; take the device from a tensor")
    return problems


RULES = [order_problems, cycle_problems, inner_import_problems, style_problems]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule):
    modules = sources(ROOT)
    assert PACKAGE in modules
    assert rule(modules) == []


GOOD = {
    "kedit_lab": "from kedit_lab.show.panels import Panel\nfrom . import facts\n",
    "kedit_lab.types": "from dataclasses import dataclass\n",
    "kedit_lab.model": "from kedit_lab.model.lab import load\n",
    "kedit_lab.model.arch": "import torch\nfrom kedit_lab.types import Fact\n",
    "kedit_lab.model.lab": "from .arch import Arch\nfrom ..types import Fact\n",
    "kedit_lab.facts": "import kedit_lab.types\n",
    "kedit_lab.extract": "from kedit_lab import facts, model\n",
    "kedit_lab.edit": "from kedit_lab.extract import keys\ndevice = tensor.device\n",
    "kedit_lab.measure": "from kedit_lab.model.lab import load\n",
    "kedit_lab.show": "",
    "kedit_lab.show.figures": "import pandas as pd\nfrom kedit_lab.measure import akd\n",
    "kedit_lab.show.panels": "from kedit_lab.show import figures\nfrom kedit_lab.edit import edit\n",
    "kedit_lab.train": "from kedit_lab import extract, facts, model, show\n",
    "kedit_lab.cli": "import kedit_lab as kl\nfrom kedit_lab.train import main\nprint(1)\n",
}


@pytest.mark.parametrize("rule", RULES)
def test_a_good_house_is_accepted(rule):
    assert rule(GOOD) == []


@pytest.mark.parametrize(
    ("rule", "module", "text", "complaint"),
    [
        (order_problems, "types", "from kedit_lab.model import arch", "types may import"),
        (order_problems, "model.arch", "from kedit_lab.facts import world", "model may import"),
        (order_problems, "facts", "from kedit_lab import model", "facts may import"),
        (order_problems, "facts", "from . import model\nimport kedit_lab.model.arch", "facts may import"),
        (order_problems, "edit", "from kedit_lab.measure import akd", "edit may import"),
        (order_problems, "measure", "import kedit_lab.edit", "measure may import"),
        (order_problems, "model.lab", "from ..show import figures", "model may import"),
        (order_problems, "model.lab", "def f():\n    from kedit_lab import cli", "model may import"),
        (order_problems, "show.panels", "from kedit_lab.train import run", "show may import"),
        (order_problems, "show.panels", "import kedit_lab as kl", "imports kedit_lab itself"),
        (order_problems, "show.panels", "from kedit_lab import load", "imports kedit_lab itself"),
        (order_problems, "utils", "", "is no room of the house"),
        (order_problems, "show.figures", "import torch.nn", "figures take arrays"),
        (order_problems, "show.figures", "from transformers import AutoModel", "figures take arrays"),
        (order_problems, "show.figures", "from kedit_lab.model.lab import Lab", "figures take arrays"),
        (order_problems, "show.figures", "from kedit_lab import edit", "figures take arrays"),
        (cycle_problems, "model.arch", "from kedit_lab.model.lab import Lab", "is in an import cycle"),
        (cycle_problems, "model.arch", "from . import lab", "is in an import cycle"),
        (cycle_problems, "model.arch", "from kedit_lab.model import load", "is in an import cycle"),
        (cycle_problems, "types", "import kedit_lab.types", "is in an import cycle"),
        (inner_import_problems, "edit", "def f():\n    if x:\n        import torch", "an import inside f()"),
        (
            inner_import_problems,
            "edit",
            "class A:\n    async def g(self):\n        from os import path",
            "inside g()",
        ),
        (style_problems, "edit", "x = 1\n" * 301, "301 lines"),
        (style_problems, "edit", "def f():\n    print('x')", "edit:2: print()"),
        (style_problems, "edit", "device = 'cuda'", "take the device from a tensor"),
        (style_problems, "edit", "device = f'cuda:{i}'", "take the device from a tensor"),
    ],
)
def test_a_broken_house_is_seen(rule, module, text, complaint):
    seen = rule(GOOD | {f"{PACKAGE}.{module}": text})
    assert any(complaint in problem for problem in seen), seen
