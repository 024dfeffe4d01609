"""Where SeqMMR's router sends prompts after many batches (SeqMMR, Table 6); no model is edited for it."""

from kedit_lab.edit.router import hidden_states
from kedit_lab.model.lab import Lab
from kedit_lab.study.forgetting import batches_of, unrelated
from kedit_lab.study.sequence import route

EMBEDDERS = ("letters", "hidden states")


def routing(lab: Lab, k: int = 2, embedder: str = "letters", setting: str = "shared", seed: int = 0, count: int = 10,
            size: int = 20) -> dict[str, float]:  # fmt: skip
    """Share of prompts that a router over all batches sends the right way: edited and paraphrased ones to the edited
    model, neighbours' to the unedited one (SeqMMR, Table 6). No model is edited.

    ``embedder`` is "letters" (TF-IDF of letter n-grams) or "hidden states" (the model's own, averaged over tokens).
    """
    if embedder not in EMBEDDERS:
        raise ValueError(f"embedder is {embedder!r}; choose one of {', '.join(EMBEDDERS)}")
    batches = batches_of(setting, seed, count, size)
    facts = [fact for batch in batches for fact in batch]
    router = route(batches, unrelated(batches, seed), k, hidden_states(lab) if embedder == "hidden states" else None)
    return {
        "edit": float(router.decide([fact.text for fact in facts]).mean()),
        "paraphrase": float(router.decide([text for fact in facts for text in fact.paraphrases]).mean()),
        "neighborhood": float((~router.decide([p.prompt for fact in facts for p in fact.neighborhood])).mean()),
    }
