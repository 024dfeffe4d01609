"""Where a fact is stored: causal tracing (noise and restore) and interchange of the subject's last token."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from reprlib import repr as short
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab, chunks
from kedit_lab.model.tokens import Row
from kedit_lab.types import SLOT, Fact

NOISE = 3.0  # standard deviations of the embeddings, as in ROME
CHUNK = 256


def answer_of(fact: Fact) -> str:
    """What the model is taken to say today: target_true, or target_new where nothing is known."""
    return fact.target_true or fact.target_new


@torch.no_grad()
def trace(lab: Lab, fact: Fact, samples: int = 8, noise: float = NOISE, seed: int = 0) -> pd.DataFrame:
    """Causal tracing (ROME, section 2): noise on the subject's embeddings, one clean state restored at a time.

    One row per layer and prompt token: ``layer``, ``position``, ``token``, ``is_subject``, ``restored`` (probability of
    the answer's first token with that block output restored, mean over ``samples`` noises), and the constants ``clean``
    and ``corrupted``. The answer is ``target_true``, or ``target_new`` where there is none. Raises ValueError for
    what is no Fact.
    """
    if not isinstance(fact, Fact):
        raise ValueError(f"fact is {short(fact)}; give one Fact")
    ids, offsets = lab.encode(fact.text)
    start = fact.prompt.index(SLOT)
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(fact.subject) and b > start]
    answer = lab.target(answer_of(fact))[0]
    layers = range(lab.arch.layers)
    with record(lab, ["block", "input"], layers) as seen:
        logits = lab.arch.logits(lab.hidden(**lab.batch([ids]))[:, -1])
        clean = {layer: seen["block", layer][0] for layer in layers}
        spread = float(seen["input", 0].float().std())
    generator = torch.Generator().manual_seed(seed)
    shifts = noise * spread * torch.randn(samples, len(inside), lab.arch.d_model, generator=generator)
    shifts = shifts.to(lab.anchor)

    def corrupt(hidden: Tensor, rows: Sequence[tuple[int, int]]) -> Tensor:
        noisy = hidden.clone()
        for i, (_, sample) in enumerate(rows):
            noisy[i, inside] += shifts[sample]
        return noisy

    def run(rows: Sequence[tuple[int, int]], layer: int | None) -> Float[Tensor, " rows"]:
        def restore(hidden: Tensor) -> Tensor:
            mended = hidden.clone()
            for i, (position, _) in enumerate(rows):
                mended[i, position] = clean[layer][position]
            return mended

        with ExitStack() as stack:
            stack.enter_context(replace(lab, "input", 0, lambda hidden: corrupt(hidden, rows)))
            if layer is not None:
                stack.enter_context(replace(lab, "block", layer, restore))
            normed = lab.hidden(**lab.batch([ids] * len(rows)))[:, -1]
        return lab.arch.logits(normed).float().softmax(-1)[:, answer]

    every = [(position, sample) for position in range(len(ids)) for sample in range(samples)]
    known = float(logits[0].float().softmax(-1)[answer])
    floor = float(run([(0, sample) for sample in range(samples)], None).mean())
    rows = []
    for layer in layers:
        found = torch.cat([run(part, layer) for part in chunks(every, CHUNK)]).view(len(ids), samples).mean(1)
        for position, probability in enumerate(found.tolist()):
            token = lab.tokenizer.decode([ids[position]])
            rows.append((layer, position, token, position in inside, probability, known, floor))
    columns = ["layer", "position", "token", "is_subject", "restored", "clean", "corrupted"]
    return pd.DataFrame(rows, columns=columns)


def paired(pairs: Iterable[Any]) -> list[Any]:
    """Pairs of facts as a list; a ValueError for anything else, or for none."""
    found = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    if not found:
        raise ValueError("pairs is empty; give at least one pair of facts")
    for i, pair in enumerate(found):
        if not isinstance(pair, tuple | list) or [type(fact) for fact in pair] != [Fact, Fact]:
            raise ValueError(f"pairs[{i}] is {short(pair)}; give pairs of facts, such as kl.facts.twins(2)")
    return found


@torch.no_grad()
def interchange(
    lab: Lab, pairs: Iterable[tuple[Fact, Fact]], layers: Sequence[int] | None = None, token: str = "subject_last"
) -> pd.DataFrame:
    """Run the first fact's prompt with the second's state at the lookup token: whose answer comes out?

    One row per pair and layer: ``pair``, ``layer``, ``flipped`` (the arg-max is the first token of the second fact's
    answer), ``kept`` (it still is the first's). Where storage is like a large model's, early layers flip and late ones
    do not. Pairs must have answers with different first tokens; others raise a ValueError.
    """
    pairs = paired(pairs)
    layers = list(range(lab.arch.layers)) if layers is None else [lab.arch.layer(layer) for layer in layers]
    read, give = ([lab.row(pair[side], rule=token) for pair in pairs] for side in (0, 1))
    wanted = torch.tensor([[lab.target(answer_of(fact))[0] for fact in pair] for pair in pairs])
    for i in (wanted[:, 0] == wanted[:, 1]).nonzero()[:, 0].tolist():
        raise ValueError(f"pair {i} has answers that begin with the same token: {[answer_of(f) for f in pairs[i]]}")
    frames = []
    for part in chunks(range(len(pairs)), CHUNK):
        donors, takers = [give[i] for i in part], [read[i] for i in part]
        with record(lab, "block", layers, stop=True) as seen:
            seen.forward(**lab.batch([row.prompt for row in donors]), use_cache=False)
            states = {layer: pick(seen["block", layer], donors) for layer in layers}
        for layer in layers:
            index = torch.arange(len(part)), torch.tensor([row.lookup for row in takers])
            swap = lambda hidden, at=index, new=states[layer]: hidden.index_put(at, new)  # noqa: E731
            with replace(lab, "block", layer, swap):
                normed = lab.hidden(**lab.batch([row.prompt for row in takers]))
            last = torch.tensor([len(row.prompt) - 1 for row in takers])
            said = lab.arch.logits(normed[index[0], last]).argmax(-1).cpu()
            rows = {"pair": list(part), "layer": layer, "flipped": (said == wanted[list(part), 1]).tolist(),
                    "kept": (said == wanted[list(part), 0]).tolist()}  # fmt: skip
            frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)


def pick(hidden: Float[Tensor, "rows tokens width"], rows: Sequence[Row]) -> Float[Tensor, "rows width"]:
    """The states at the rows' lookup tokens."""
    return hidden[torch.arange(len(rows)), torch.tensor([row.lookup for row in rows])].clone()
