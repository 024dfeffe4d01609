"""Grids of edits: one measured point, and a sweep over many that survives being killed and runs in parallel."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import delayed
from tqdm.auto import tqdm

from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipe import Recipe
from kedit_lab.edit.run import attempt
from kedit_lab.extract.keys import keys
from kedit_lab.facts.sets import by_density
from kedit_lab.measure.geometry import misalignment
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import Source, results, share, worker
from kedit_lab.study.collision import draw
from kedit_lab.study.sequence import Run, lab_reference, sequence
from kedit_lab.types import Fact

MODES = ("batch", "sequential")
KINDS = ("rewrite", "paraphrase", "neighborhood")
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


def sweep(lab: Lab, grid: Mapping[str, Sequence[Any]], path: str | Path | None = None, jobs: int = 1,
          backend: str = "loky", measure: Callable[..., dict[str, Any]] = point, progress: bool = False,
          **fixed: Any) -> pd.DataFrame:  # fmt: skip
    """Every point of a grid, measured: one row each, the axes first, in the grid's order.

    ``measure(lab, **axes, **fixed)`` returns a row's numbers. Rows are appended to ``path`` (JSON lines behind one line
    that says what ran) as they come, so a killed sweep goes on where it was. With ``jobs`` above one, processes of
    joblib's ``backend`` load the model anew by its name and share the cores. Raises ValueError for an empty axis, a
    file of another sweep, or a model that other processes cannot load.

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
    empty = [axis for axis, values in grid.items() if not list(values)]
    if not grid or empty:
        raise ValueError(f"the grid {dict(grid)} has no points; give every axis at least one value")
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    told = {"axes": list(grid), "base": lab.fingerprint(), "chat": lab.chat is not None, "fixed": fixed,
            "measure": getattr(measure, "__qualname__", type(measure).__qualname__),
            "versions": {name: version(name) for name in ("kedit-lab", "torch", "transformers")}}  # fmt: skip
    rows = restore(Path(path), told) if path else {}
    todo = [at for at in points if name_of(at) not in rows]
    for at, found in tqdm(measured(lab, todo, fixed, measure, jobs, backend), total=len(todo), disable=not progress):
        rows[name_of(at)] = at | found
        if path:
            append(Path(path), at | found)
    return pd.DataFrame([rows[name_of(at)] for at in points])


def measured(lab: Lab, points: Sequence[dict[str, Any]], fixed: dict[str, Any], measure: Callable[..., dict[str, Any]],
        jobs: int, backend: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:  # fmt: skip
    """(point, its numbers) as they are found; in other processes if ``jobs`` is above one."""
    if jobs == 1 or not points:
        yield from ((at, measure(lab, **at, **fixed)) for at in points)
        return
    threads, source = share(jobs), Source.of(lab)
    work = (delayed(remote)(source, threads, measure, at, fixed) for at in points)
    yield from results(work, jobs, backend, ordered=False)


def remote(source: Source, threads: int, measure: Callable[..., dict[str, Any]], at: dict[str, Any],
           fixed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """One point in a worker process, on its share of the cores."""
    with worker(source, threads) as lab:
        return at, measure(lab, **at, **fixed)


def name_of(at: Mapping[str, Any]) -> str:
    """A point's axes as one text, equal for equal points (tuples and lists, ints and floats alike)."""
    return json.dumps(at, sort_keys=True, default=list)


def restore(path: Path, told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run of this sweep; a line that was cut by a kill is dropped. Begins the file otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().split("\n") if path.exists() else []
    if len(lines) < 2:
        path.write_text(json.dumps(told) + "\n")
        return {}
    head, *rows = [record(path, number, line) for number, line in enumerate(lines[:-1], 1)]
    head = {"chat": False} | head
    names = ("axes", "base", "chat", "measure", "fixed")
    changed = [key for key in names if head.get(key) != json.loads(json.dumps(told[key]))]
    if changed:
        raise ValueError(f"{path} holds another sweep ({', '.join(changed)} differ); give another path, or delete it")
    path.write_text("\n".join(lines[:-1]) + "\n")
    return {name_of({axis: row[axis] for axis in head["axes"]}): row for row in rows}


def record(path: Path, number: int, line: str) -> dict[str, Any]:
    """What a line of a sweep's file holds. Raises ValueError where it is no JSON."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"line {number} of {path} is damaged ({error}); remove the line, or give another path"
        ) from error


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line, on the disk before this returns."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
