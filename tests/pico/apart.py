"""What a model that is spread over devices gives, beside the same model on one; run in a process of its own.

``python -m tests.pico.apart KIND LOWER UPPER MAIN FOLDER``: the lower blocks on one device, the upper ones on another,
and where ``MAIN`` is not the CPU, what is said to lie on the CPU is offloaded to it. One line of JSON for each thing
that was tried: its name, and what went wrong (nothing, if all is well).
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import dispatch_model
from torch import Tensor

import kedit_lab as kl
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipes import find
from kedit_lab.edit.router import hidden_states
from kedit_lab.extract import moments
from kedit_lab.model.arch import find_blocks
from kedit_lab.study.plain import plain_keys, plain_target
from tests.pico import pretend
from tests.pico.test_methods import FACTS, make
from tests.pico.tiny import KINDS, LAYERS, TEXTS, build, byte_level

HALF = LAYERS // 2
BOTH = {"layers": (HALF - 1, HALF)}  # one in each half
METHODS = ("memit", "pmet", "alphaedit", "eamet-merge", "r-rome", "memit-last", "ft-m", "lora", "kn", "mend")
SEQUENCE = {**BOTH, "steps": 2, "prefixes": 1, "prefix_length": 3, "lam": 1.0, "threshold": 1e9, "stop": 0.0}


def spread(kind: str, lower: str, upper: str, main: str) -> kl.Lab:
    """The model with its embedding and first blocks on one device, the others, norm and head (if untied) on another."""
    model = build(KINDS[kind].config)
    high = {KINDS[kind].norm} | (set() if model.config.tie_word_embeddings else {KINDS[kind].head})
    path, _ = find_blocks(model, LAYERS)
    places = {f"{path}.{i}": lower if i < HALF else upper for i in range(LAYERS)}
    for name, module in model.named_modules():
        inside = any(name == place or name.startswith(f"{place}.") for place in places)
        if not inside and not name.startswith(path) and not list(module.children()):
            places[name] = upper if name in high else lower
    return kl.wrap(dispatch_model(model, places, main, force_hooks=True), byte_level())


def edited(method: str) -> Callable[[kl.Lab, Path], Any]:
    """ΔW of an edit, and what the model then answers."""

    def run(lab: kl.Lab, folder: Path) -> Any:
        made = make(lab, method, folder, **({} if method == "mend" else BOTH))
        before = lab.fingerprint()
        with made.applied():
            told = kl.evaluate(lab, FACTS)["nll"]
        assert lab.fingerprint() == before
        return [delta.matrix() for delta in made.deltas.values()], told

    return run


def kept(lab: kl.Lab, folder: Path) -> Any:
    """An edit through its file, as a whole model and as an adapter."""
    made = make(lab, "memit", folder, **BOTH)
    again = Edit.load(made.save(folder / "an.edit"), lab)
    with again.applied():
        now = kl.evaluate(lab, FACTS)["nll"]
    if any(isinstance(p, pretend.Pretended) for p in lab.model.parameters()):  # safetensors asks for their address
        return now, now
    made.to_peft(folder / "peft", rank=8)
    return now, kl.evaluate(kl.load(made.export(folder / "whole")), FACTS)["nll"]


def in_sequence(method: str) -> Callable[[kl.Lab, Path], Any]:
    """Batches with their memory, measured, merged and routed."""

    def run(lab: kl.Lab, _folder: Path) -> Any:
        reference = kl.Reference.of(lab, TEXTS, ("The rain stopped", "Soup needs salt"))
        made = kl.sequence(lab, [FACTS[:1], FACTS[2:]], method, reference=reference, merge=kl.Merge(), **SEQUENCE)
        made.apply()
        told = kl.health(lab, reference)
        made.undo()
        return list(told.values()), made.retention

    return run


TOOLS: dict[str, Callable[[kl.Lab, Path], Any]] = {
    "fingerprint": lambda lab, _: [int(lab.fingerprint(), 16) % 2**40],
    "keys": lambda lab, _: kl.keys(lab, FACTS, [HALF - 1, HALF], TEXTS[:2]),
    "values": lambda lab, _: kl.values(lab, FACTS, HALF),
    "generate": lambda lab, _: [list(text.encode()) for text in lab.generate(list(TEXTS), 4)],
    "prefixes": lambda lab, _: [list(text.encode()) for text in lab.prefixes()],
    "ask": lambda lab, _: lab.ask("The rain")["probability"],
    "second moment": lambda lab, folder: [kl.second_moment(lab, i, TEXTS, cache=folder) for i in (HALF - 1, HALF)],
    "trace": lambda lab, _: kl.trace(lab, FACTS[0], samples=2).select_dtypes("number"),
    "interchange": lambda lab, _: kl.interchange(lab, [(FACTS[1], FACTS[2])]),
    "mean hidden states": lambda lab, _: hidden_states(lab)(TEXTS),
    "plain keys": lambda lab, _: plain_keys(lab, FACTS, HALF, TEXTS[:1]),
    "plain target": lambda lab, _: plain_target(lab, FACTS[0], find("memit").with_(layers=(HALF,), steps=3), ()),
    "doctor": lambda lab, _: [len(kl.doctor(lab, 10, (1e12, 1e11)))],
    "files": kept,
    **{f"sequence, {method}": in_sequence(method) for method in ("memit-seq", "alphaedit")},
    **{method: edited(method) for method in METHODS},
    "groups in parts": lambda lab, folder: edited("memit-merge")(replace(lab, work=1), folder),
}


def numbers(found: Any) -> Iterator[float]:
    """All numbers of a result, in order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (pd.DataFrame, pd.Series)):
        found = found.to_numpy(float)
    if isinstance(found, Tensor):
        found = found.detach().double().cpu().numpy()
    if isinstance(found, (np.ndarray, np.generic, float, int)):
        yield from np.ravel(np.asarray(found, float)).tolist()
    else:
        for part in found:
            yield from numbers(part)


def alone(tool: Callable[[kl.Lab, Path], Any], lab: kl.Lab, folder: Path) -> Any:
    """What a tool gives with a folder of its own for all that is kept: labs of the same weights would share it."""
    folder.mkdir(exist_ok=True)
    os.environ["KEDIT_LAB_CACHE"] = str(folder)
    return tool(lab, folder)


def main(kind: str, lower: str, upper: str, main_device: str, folder: str) -> None:
    """Try everything on both, and print what is not the same."""
    torch.set_num_threads(1)
    moments.lab_text = lambda *_, **__: list(TEXTS)
    device = pretend.register()
    with pretend.pretending():
        plain = kl.wrap(build(KINDS[kind].config), byte_level())
        labs = {Path(folder, "spread"): spread(kind, lower, upper, main_device), Path(folder, "plain"): plain}
        for name, tool in TOOLS.items():
            wrong = ""
            try:
                ours, theirs = (np.array(list(numbers(alone(tool, lab, own)))) for own, lab in labs.items())
                np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=5e-5)
            except Exception:
                wrong = traceback.format_exc()
            print(json.dumps([name, wrong]), flush=True)
    del device


if __name__ == "__main__":
    main(*sys.argv[1:])
