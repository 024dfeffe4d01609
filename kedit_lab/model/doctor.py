"""What was found in a model: the parts that editing needs, and how its tokenizer behaves."""

import pandas as pd

from kedit_lab.model.lab import Lab
from kedit_lab.model.tokens import encode, self_test


def doctor(lab: Lab) -> pd.Series:
    """One finding per row: model, layers, widths, the edited and the attention projection, orientation, norm, head,
    precision, whether the tokenizer adds a beginning-of-text token, and the tokenizer's self-test.
    """
    mlp, attention = lab.arch.mlp[0], lab.arch.attention[0]
    ids, offsets = encode(lab.tokenizer, "John Smith")
    added = [lab.tokenizer.decode([token]) for token, (start, stop) in zip(ids, offsets, strict=True) if start == stop]
    odd = self_test(lab.tokenizer)
    found = {
        "model": type(lab.model).__name__,
        "parameters": f"{sum(p.numel() for p in lab.model.parameters()):,}",
        "layers": lab.arch.layers,
        "residual width d_model": lab.arch.d_model,
        "key width d_k": lab.arch.d_k,
        "edited weight (layer 0)": mlp.name,
        "stored transposed": "yes" if mlp.transposed else "no",
        "attention output (layer 0)": attention.name,
        "final norm": type(lab.arch.norm).__name__,
        "vocabulary": lab.arch.head.weight.shape[0],
        "dtype and device": f"{str(lab.anchor.dtype).removeprefix('torch.')}, {lab.anchor.device}",
        "special tokens added": ", ".join(added) or "none",
        "tokenizer self-test": "; ".join(odd) or "passed",
    }
    return pd.Series(found, name="found")
