"""Tasks of lm-evaluation-harness (the optional package lm-eval) on a lab's own model object."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from difflib import get_close_matches
from io import StringIO
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from kedit_lab.extract.documents import optional
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import own_chance

# The papers' names and the harness's. "NLI" is taken to be MultiNLI, C-Eval is asked on its validation part.
TASKS = {
    "SST-2": "sst2", "MRPC": "mrpc", "CoLA": "cola", "RTE": "rte", "NLI": "mnli", "MMLU": "mmlu",
    "C-Eval": "ceval-valid", "CoQA": "coqa", "DROP": "drop", "SQuAD 2.0": "squadv2", "LogiQA": "logiqa",
}  # fmt: skip
BOOTSTRAP = 1000  # resamples for the standard error of F1 and the like; means have a formula
NOT_METRICS = ("alias", "name", "sample_len", "samples")
Row = tuple[str, str, float, float, int]  # task, metric, value, standard error, items


def run(lab: Lab, tasks: str | Sequence[str], limit: int | None, shots: int | None, include: str | Path | None,
        batch: int) -> list[Row]:  # fmt: skip
    """Rows of every task's metrics, in the order asked. The model is read as it stands and not changed.

    The harness gets a copy of the tokenizer (it sets a padding token where there is none) and asks in the chat template
    if the lab does. Its prints and its seeding of the global generators do not reach outside.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError(f"tasks is empty; name at least one, such as {', '.join(TASKS)}")
    harness, wrapper = needed("lm_eval"), needed("lm_eval.models.huggingface")
    asked = {name: TASKS.get(name, name) for name in names}
    with undisturbed():
        manager = index(list(asked.values()), include)
        model = wrapper.HFLM(pretrained=lab.model, tokenizer=deepcopy(lab.tokenizer), batch_size=batch)
        try:
            told = harness.simple_evaluate(
                model=model, tasks=list(dict.fromkeys(asked.values())), num_fewshot=shots, limit=limit,
                task_manager=manager, apply_chat_template=lab.chat is not None, bootstrap_iters=BOOTSTRAP,
                log_samples=False,
            )  # fmt: skip
        except (ConnectionError, FileNotFoundError) as error:
            raise OSError(
                f"the data of {', '.join(names)} could not be fetched, nor found in Hugging Face's cache ({error}); "
                "check the network, or fetch it once where there is one"
            ) from error
    return [row for name, known in asked.items() for row in rows(told, name, known, manager)]


def needed(module: str) -> Any:
    """A module of the harness. Raises ImportError with what to install."""
    return optional(module, "kedit-lab[ability]", "to run tasks of lm-evaluation-harness")


def index(names: Sequence[str], include: str | Path | None) -> Any:
    """The harness's list of tasks that holds all names: of the folder alone where that is enough, else with its own.

    The harness has some 14,000 task files, and reading them takes half a minute. Raises ValueError for unknown names.
    """
    manager = needed("lm_eval.tasks").TaskManager
    for defaults in (False, True) if include is not None else (True,):
        found = manager(include_path=None if include is None else str(include), include_defaults=defaults)
        unknown = [name for name in names if name not in found.all_tasks]
        if not unknown:
            return found
    near = [other for name in unknown for other in get_close_matches(name, found.all_tasks, 3)]
    raise ValueError(
        f"unknown tasks {unknown}; {f'did you mean {near}? ' if near else ''}the papers' are {', '.join(TASKS)}, "
        "every name of the harness works too, and include= takes a folder with task files of your own"
    )


def rows(told: dict[str, Any], name: str, known: str, manager: Any) -> Iterator[Row]:
    """The metrics of a task, or of a group as a whole; a tag, which only collects tasks, gives those of its tasks.

    A metric that the harness reports for several filters of the answer has the filter's name behind a comma.
    """
    if known in manager.all_tags:
        for member in sorted(manager.task_index[known].tags):
            yield from rows(told, member, member, manager)
        return
    found = told["results"][known] | told.get("groups", {}).get(known, {})
    for key, value in found.items():
        metric, _, kind = key.partition(",")
        if key in NOT_METRICS or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{metric}_stderr,{kind}")
        shown = metric if kind in ("", "none") else key
        yield name, shown, float(value), float(error) if isinstance(error, int | float) else nan, found["sample_len"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """The harness seeds the global generators, prints, and warns in its log of what is meant here: kept inside."""
    log = logging.getLogger("lm_eval")
    level, plain = log.level, random.getstate()
    arrays = np.random.get_state()  # noqa: NPY002 - the old global generator is the one that the harness seeds
    log.setLevel(logging.ERROR)
    try:
        with own_chance(), redirect_stdout(StringIO()):
            yield
    finally:
        log.setLevel(level)
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002
