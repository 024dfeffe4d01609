"""What was found in a model: the parts that editing needs, how its tokenizer behaves, and which values apply to it."""

import pandas as pd

from kedit_lab.edit.published import SHAPES
from kedit_lab.edit.recipes import find
from kedit_lab.model.lab import Lab
from kedit_lab.model.offload import offloaded, runs_on
from kedit_lab.model.tokens import encode, self_test
from kedit_lab.study.estimate import estimate, rates

ASKED = ("memit", "pmet", "alphaedit", "eamet", "rome", "ft-m", "r-sft")


def doctor(lab: Lab, n: int = 100, rate: tuple[float, float] | None = None) -> pd.Series:
    """One finding per row: model, layers, widths, the edited and the attention projection, orientation, norm, head,
    precision, where the weights are; the tokenizer's special tokens, chat template, spaces and self-test; for some
    recipes the layers and whose values apply; and an estimate for ``n`` edits with memit.

    ``estimate`` gives the same for every method. ``rate`` is measured unless given (see there).
    """
    mlp, attention = lab.arch.mlp[0], lab.arch.attention[0]
    shape = (lab.arch.layers, lab.arch.d_model, lab.arch.d_k)
    found = {
        "model": type(lab.model).__name__,
        "parameters": f"{sum(p.numel() for p in lab.model.parameters()):,}",
        "layers": lab.arch.layers,
        "residual width d_model": lab.arch.d_model,
        "key width d_k": lab.arch.d_k,
        "shape known as": SHAPES.get(shape, "none of the published ones"),
        "edited weight (layer 0)": mlp.name,
        "stored transposed": "yes" if mlp.transposed else "no",
        "attention output (layer 0)": attention.name,
        "final norm": type(lab.arch.norm).__name__,
        "vocabulary": vocabulary(lab),
        "dtype and device": f"{str(lab.anchor.dtype).removeprefix('torch.')}, {', '.join(places(lab))}",
    }
    return pd.Series(found | tokens(lab) | recipes(lab) | costs(lab, n, rate), name="found")


def vocabulary(lab: Lab) -> int | str:
    """Tokens that the model has a row for, and a warning where its tokenizer has more."""
    rows, tokens = len(lab.arch.head.weight), len(lab.tokenizer)
    return rows if tokens <= rows else f"{rows}, but the tokenizer has {tokens}: it may belong to another model"


def places(lab: Lab) -> list[str]:
    """The devices that hold weights, and where those run that are offloaded."""
    held = [(module, p.device) for module in lab.model.modules() for p in module.parameters(recurse=False)]
    told = [f"{at} (offloaded, runs on {runs_on(module)})" if offloaded(module) else str(at) for module, at in held]
    return list(dict.fromkeys(told))


def tokens(lab: Lab) -> dict[str, str]:
    """How the tokenizer treats the start of a text and spaces, whether it has a chat template, and its self-test."""
    ids, offsets = encode(lab.tokenizer, "John Smith")
    added = [lab.tokenizer.decode([token]) for token, (start, stop) in zip(ids, offsets, strict=True) if start == stop]
    begin, odd = lab.tokenizer.bos_token_id, self_test(lab.tokenizer, lab.chat)
    pieces = lab.tokenizer.convert_ids_to_tokens(list(lab.target("Greek")))
    return {
        "special tokens added": ", ".join(added) or "none",
        "beginning-of-text token": "none" if begin is None else "added" if begin in ids else "exists, is not added",
        "chat template": template(lab),
        'the target " Greek"': " ".join(pieces),
        "tokenizer self-test": "; ".join(odd) or "passed",
    }


def template(lab: Lab) -> str:
    """Whether the tokenizer brings a chat template, and whether this lab uses it."""
    written = getattr(lab.tokenizer, "chat_template", None)
    if not written:
        return "no"
    if lab.chat is None:
        return "yes: prompts are asked without it (chat=True asks in it)"
    dated = "; it writes the day's date, so prompts change from day to day" if "strftime_now" in str(written) else ""
    return f"yes: prompts are asked in it, as {lab.chat.pose('…')!r}{dated}"


def recipes(lab: Lab) -> dict[str, str]:
    """For some recipes the layers that they would edit here, and whose values these are."""
    made = [find(name).on(lab.arch) for name in ASKED]
    return {f"layers of {recipe.name}": f"{', '.join(map(str, recipe.layers))} ({recipe.values})" for recipe in made}


def costs(lab: Lab, n: int, rate: tuple[float, float] | None) -> dict[str, str]:
    """Time and memory of ``n`` edits with memit, and the size of one layer's second moment: estimates."""
    told = estimate(lab, n, ["memit"], rate or rates(lab)).loc["memit"]
    facts = f"{n} fact{'s' if n > 1 else ''}"
    return {
        "second moment of a layer": f"{4 * lab.arch.d_k**2 / 1e6:,.1f} MB",
        f"estimate, {facts} with memit": f"at most {told['seconds']:,.1f} s, {told['total']:,.0f} MB with the model",
    }
