"""Grids of edits: one measured point, and a sweep over many that survives being killed and runs in parallel."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from importlib.metadata import version
from itertools import product
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed
from torch import Tensor
from tqdm.auto import tqdm

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.run import attempt
from kedit_lab.extract.documents import Documents
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.geometry import misalignment
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import Source, results, share, worker
from kedit_lab.paths import Log
from kedit_lab.study.collision import draw
from kedit_lab.study.sequence import Run, lab_reference, sequence
from kedit_lab.types import Fact

MODES = ("batch", "sequential")
KINDS = ("rewrite", "paraphrase", "neighborhood")
HEAD = ("axes", "base", "measure", "fixed")  # what the first line of a sweep's file must say; others are optional
NAN = float("nan")


def point(lab: Lab, method: str = "memit", size: int = 10, per_subject: int = 1, subjects: str = "", seed: int = 0,
          mode: str = "batch", contexts: int = 0, length: int = 20, layer: int | None = None,
          **overrides: Any) -> dict[str, float]:  # fmt: skip
    """One edit, measured: ``size`` facts, all metrics of rewrite, paraphrase and neighbourhood prompts, ``load``, and
    ``seconds`` without statistics.

    ``per_subject`` facts each (``kl.facts.by_density``), or the sets of one and many persons if ``subjects`` is "same"
    or "distinct". ``mode`` is "batch" or "sequential" (one after another, measured at the end). With ``contexts``,
    ``prefixed`` is the efficacy behind so many sampled texts of ``length`` tokens. A batch of a locate-then-edit recipe
    also has ``misalignment``, the sum of A(i). ``layer`` and every other keyword change the recipe.
    """
    facts = draw(subjects, size, seed) if subjects else by_density(size, per_subject, seed)
    made = written(lab, facts, method, mode, **overrides | ({} if layer is None else {"layers": (layer,)}))
    told: dict[str, float] = {"load": size / lab.arch.d_k}
    if isinstance(made, Edit):
        told |= {"seconds": sum(t for stage, t in made.seconds.items() if stage != "statistics")}
        told |= {"misalignment": misaligned(lab, facts, made)}
    texts = lab.prefixes(contexts, length, seed=1)
    with made.applied():
        told |= evaluate(lab, facts, kinds=KINDS).summary().dropna().to_dict()
        behind = [evaluate(lab, facts, kinds=("rewrite",), prefix=text).summary()["efficacy"] for text in texts]
    return told | ({"prefixed": sum(behind) / len(behind)} if behind else {})


def written(lab: Lab, facts: Sequence[Fact], method: str, mode: str, **overrides: Any) -> Edit | Run:
    """Facts edited at once ("batch") or one after another ("sequential"); the model is unedited until ``applied``."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    if mode == "batch":
        return attempt(lab, facts, method, **overrides)
    brief = lab_reference(lab, 1)  # nobody reads the health here
    return sequence(lab, [[fact] for fact in facts], method, every=len(facts), reference=brief, **overrides)


def misaligned(lab: Lab, facts: Sequence[Fact], made: Edit) -> float:
    """ΣA(i) of a batch: how differently its residuals and its keys see each other (EAMET, Section 3)."""
    if len(facts) < 2 or not made.deltas or not isinstance(made.recipe, Recipe) or made.recipe.post != "none":
        return NAN
    layer = made.recipe.layers[-1]
    k = keys(lab, facts, layer, lab.prefixes(made.recipe.prefixes, made.recipe.prefix_length), made.recipe.token)
    return float(misalignment(made.at(layer).left.T.float().to(k), k).sum())


def sweep(lab: Lab, grid: Mapping[str, Iterable[Any]], path: str | Path | None = None, jobs: int = 1,
          backend: str = "loky", measure: Callable[..., dict[str, Any]] = point, progress: bool = False,
          **fixed: Any) -> pd.DataFrame:  # fmt: skip
    """Every point of a grid, measured: one row each, the axes first, in the grid's order.

    ``measure(lab, **axes, **fixed)`` returns a row's numbers. Rows are appended to ``path`` (JSON lines behind one line
    that says what ran) as they come, so a killed sweep goes on where it was. With ``jobs`` above one, processes of
    joblib's ``backend`` load the model anew by its name and share the cores. Raises ValueError for an axis that is
    empty or no list, a file that is damaged, not of this sweep or being written by another run, and a model that other
    processes cannot load.

    On a cluster the backend is "dask" or "ray", ``jobs`` the number of its workers; the model's folder (or the hub's
    cache) must be there under the same name for all of them, ``path`` for this process alone. Threads of one worker
    take turns, so give each worker one thread (Dask's ``threads_per_worker=1``)::

        from distributed import Client
        with Client("scheduler:8786"):
            kl.sweep(lab, {"size": [10, 100]}, "out/sweep.jsonl", jobs=8, backend="dask")

        from ray.util.joblib import register_ray
        register_ray()
        kl.sweep(lab, {"size": [10, 100]}, "out/sweep.jsonl", jobs=8, backend="ray")
    """
    threads, points = share(jobs), points_of(grid)
    told = {"axes": list(points[0]), "base": lab.fingerprint(), "chat": lab.chat is not None, "fixed": fixed,
            "measure": getattr(measure, "__qualname__", type(measure).__qualname__),
            "versions": {name: version(name) for name in ("kedit-lab", "torch", "transformers")}}  # fmt: skip
    with closing(Rows(Path(path), told)) if path else nullcontext() as file:
        rows = {name_of({axis: row[axis] for axis in told["axes"]}): row for row in file.records} if file else {}
        todo = list({name_of(at): at for at in points if name_of(at) not in rows}.values())
        found = measured(lab, todo, fixed, measure, jobs, threads, backend)
        for at, numbers in tqdm(found, total=len(todo), disable=not progress):
            rows[name_of(at)] = at | numbers
            if file:
                file.append(at | numbers)
    return pd.DataFrame([rows[name_of(at)] for at in points])


def points_of(grid: Any) -> list[dict[str, Any]]:
    """Every point of a grid, in its order. Raises ValueError where there is none, or for an axis that is no list."""
    if not isinstance(grid, Mapping):
        raise ValueError(f"the grid is {short(grid)}; give a dict of axes, each with its values")
    axes = {axis: values_of(axis, values) for axis, values in grid.items()}
    if not axes or not all(axes.values()):
        raise ValueError(f"the grid {axes} has no points; give every axis at least one value")
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def values_of(axis: str, values: Any) -> list[Any]:
    """An axis's values, numpy's numbers as Python's. Raises ValueError for one value, or a text, in their place."""
    if isinstance(values, str | bytes) or not np.iterable(values):
        raise ValueError(f"axis {axis!r} is {short(values)}; give a list of its values: [{short(values)}]")
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def measured(lab: Lab, points: Sequence[dict[str, Any]], fixed: dict[str, Any], measure: Callable[..., dict[str, Any]],
        jobs: int, threads: int, backend: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:  # fmt: skip
    """(point, its numbers) as they are found; in other processes if ``jobs`` is above one."""
    if jobs == 1 or not points:
        yield from ((at, measure(lab, **at, **fixed)) for at in points)
        return
    source = Source.of(lab)
    work = (delayed(remote)(source, threads, measure, at, fixed) for at in points)
    yield from results(work, jobs, backend, ordered=False)


def remote(source: Source, threads: int, measure: Callable[..., dict[str, Any]], at: dict[str, Any],
           fixed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """One point in a worker process, on its share of the cores."""
    with worker(source, threads) as lab:
        return at, measure(lab, **at, **fixed)


def name_of(at: Mapping[str, Any]) -> str:
    """A point's axes as one text, equal for equal points (tuples and lists, 1 and 1.0 alike)."""
    return json.dumps(json.loads(json.dumps(at, default=plain), parse_float=number), sort_keys=True)


def number(text: str) -> int | float:
    """A JSON number, an int if it is whole."""
    return int(float(text)) if float(text).is_integer() else float(text)


def plain(value: Any) -> Any:
    """What JSON has for a value that it does not know: numpy's and torch's as Python's, ranges and sets as lists."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, Documents):
        return {"documents": value.digest, "field": value.field, "limit": value.limit}
    if not isinstance(value, range | set | frozenset):
        raise ValueError(f"{short(value)} is no JSON; give numbers, texts, and lists of them")
    return sorted(value)


class Rows(Log):
    """The file of a sweep: a line that says what ran (``told``), then a line per point. ``records`` are the rows.

    It is begun if it is missing, empty, or was cut in the first line. Raises ValueError for a file that is damaged or
    not of this sweep, and leaves it as it is.
    """

    elsewhere = "another path"

    def __init__(self, path: Path, told: dict[str, Any]) -> None:
        self.told = told
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path)

    def line(self, record: dict[str, Any]) -> bytes:
        """A record as JSON."""
        return json.dumps(record, default=plain).encode() + b"\n"

    def read(self) -> list[dict[str, Any]]:
        """The rows of an earlier run of this sweep; what a kill left of the last line is cut off."""
        self.file.seek(0)
        first, *rest = self.file.readall().split(b"\n")
        if rest or not self.line(self.told).startswith(first):
            self.check(parsed(self.path, 1, first, HEAD))
        if not rest:
            self.file.truncate(0)
            self.append(self.told)
            return []
        *rest, cut = rest
        rows = [parsed(self.path, number, line, self.told["axes"]) for number, line in enumerate(rest, 2)]
        if cut:
            self.file.truncate(self.file.tell() - len(cut))
        return rows

    def check(self, head: dict[str, Any]) -> None:
        """Raise ValueError where another sweep began the file."""
        head, told = {"chat": False} | head, json.loads(self.line(self.told))
        changed = [key for key in ("axes", "base", "chat", "measure", "fixed") if head[key] != told[key]]
        if changed:
            differ = ", ".join(changed)
            raise ValueError(f"{self.path} holds another sweep ({differ} differ); give another path, or delete it")


def parsed(path: Path, number: int, line: bytes, names: Sequence[str]) -> dict[str, Any]:
    """What a line of a sweep's file says. Raises ValueError where it is no JSON object, or lacks one of ``names``."""
    do = "remove the line, or give another path" if number > 1 else "give another path; no sweep's file begins so"
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is damaged ({error}); {do}") from error
    lacks = [name for name in names if name not in found] if isinstance(found, dict) else names
    if lacks:
        raise ValueError(f"line {number} of {path} lacks {', '.join(lacks)}; {do}")
    return found
