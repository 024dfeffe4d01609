"""Published hyperparameters by model shape (fact: layers, d_model, d_k), and those tuned once for the lab model."""

from typing import Any

Shape = tuple[int, int, int]

SHAPES: dict[Shape, str] = {
    (7, 192, 768): "lab",
    (48, 1600, 6400): "gpt2-xl",
    (28, 4096, 16384): "gpt-j",
    (44, 6144, 24576): "gpt-neox-20b",
    (32, 4096, 11008): "llama-2-7b",
    (40, 5120, 13824): "llama-2-13b",
    (32, 4096, 14336): "llama-3-8b",
    (28, 3584, 18944): "qwen2.5-7b",
    (28, 1536, 8960): "qwen2.5-1.5b",
    (32, 4544, 18176): "falcon-7b",
    (30, 4096, 11008): "deepseek-7b",
    (28, 3072, 24576): "gemma-7b",
    (24, 2048, 8192): "phi-1.5",
}

EASYEDIT = {"decay": 1e-3, "clamp": 4.0, "values": "EasyEdit"}
EAMET = {"layers": (3, 4), "values": "EAMET's MEMIT baseline"}
MEMIT: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"layers": (13, 14, 15, 16, 17), "steps": 20, "lam": 20000.0, "values": "MEMIT"},
    "gpt-j": {"layers": (3, 4, 5, 6, 7, 8), "values": "MEMIT"},
    "gpt-neox-20b": {"layers": (6, 7, 8, 9, 10), "steps": 20, "clamp": 0.8, "lam": 6000.0, "values": "PMET's code"},
    "llama-2-7b": EASYEDIT | {"layers": (4, 5, 6, 7, 8)},
    "llama-2-13b": EAMET | {"lam": 20000.0},
    "llama-3-8b": {"layers": (4, 5, 6, 7, 8), "lr": 0.1, "values": "AlphaEdit's code"},
    "qwen2.5-7b": EASYEDIT | {"layers": (4, 5, 6, 7, 8)},
    "qwen2.5-1.5b": EASYEDIT | {"layers": (4, 5, 6, 7, 8), "values": "none published; EasyEdit's Qwen2.5-7B"},
    "falcon-7b": EAMET | {"lam": 5000.0},
    "deepseek-7b": EAMET | {"lam": 20000.0},
    "gemma-7b": EAMET | {"lam": 4000.0},
    "phi-1.5": EAMET | {"lam": 2000.0},
}
LAB = {
    "layers": (2,),
    "lr": 0.3,
    "lr_unit": "hidden",
    "decay": 0.0,
    "lam": 20.0,
    "clamp": 4.0,
    "steps": 30,
    "prefixes": 2,
    "values": "tuned for the lab model",
}

VALUES: dict[str, dict[str, dict[str, Any]]] = {
    "memit": MEMIT | {"lab": LAB},
    "memit-merge": MEMIT | {"lab": LAB},
}


def published(recipe: str, shape: Shape) -> dict[str, Any] | None:
    """The values of a recipe for a model of this shape (layers, d_model, d_k), or None."""
    return VALUES.get(recipe, {}).get(SHAPES.get(shape, ""))


def fallback(layers: int) -> dict[str, Any]:
    """Values for a shape nobody published: layers at a sixth of the depth, steps and clamp relative to ‖h‖."""
    last = max(0, round(layers / 6))
    return {"layers": tuple(range(max(0, last - 1), last + 1)), "lr": 0.1, "lr_unit": "hidden", "decay": 0.0,
            "clamp": 1.5, "values": "fallback: no values are published for this shape"}  # fmt: skip
