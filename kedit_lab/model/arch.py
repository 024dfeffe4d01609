"""From a causal LM's module tree to the parts that editing names: blocks, attention output, MLP output, norm, head.

Everything is asked of the tree, nothing of the model's name. GPT-2's transposed ``Conv1D`` is turned once, here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PROJECTIONS = (nn.Linear, Conv1D)
EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CODES = (
    "its weights are codes, not numbers to add to; load the model unquantised (float32, bfloat16 or float16) to edit it"
)


@dataclass(frozen=True)
class Projection:
    """A linear map v = W k inside a block: its weight's full name, the module, and whether W is stored transposed."""

    name: str
    module: nn.Module
    transposed: bool

    @property
    def d_in(self) -> int:
        return self.module.weight.shape[0 if self.transposed else 1]

    @property
    def d_out(self) -> int:
        return self.module.weight.shape[1 if self.transposed else 0]

    def stored(self, matrix: Float[Tensor, "d_out d_in"]) -> Tensor:
        """A d_out x d_in matrix in the orientation in which this module stores its weight."""
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True)
class Arch:
    """The named parts of a causal LM; lists are indexed by layer.

    ``mlp`` and ``attention`` are the output projections; ``inner`` lists every projection of a block, in tree order.
    """

    blocks: nn.ModuleList
    mlp: list[Projection]
    attention: list[Projection]
    norm: nn.Module
    head: nn.Module
    d_model: int
    softcap: float | None = None
    head_scale: float = 1.0
    inner: list[list[Projection]] = field(default_factory=list)
    positions: int | None = None  # of a text's tokens, where a table of them ends

    @classmethod
    def of(cls, model: nn.Module) -> "Arch":
        """Find the parts; a tree without them (encoder, mixture of experts, quantised MLP), or with adapters beside
        them, raises a ValueError."""
        if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None):
            method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "unknown method")
            raise ValueError(f"{type(model).__name__} is quantised ({getattr(method, 'value', method)}): {CODES}")
        if any(isinstance(module, PeftModel | BaseTunerLayer) for module in model.modules()):
            raise ValueError(
                f"{type(model).__name__} carries a peft adapter, whose matrices are none of the model's; merge it "
                "first: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
            )
        config = model.config.get_text_config()
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} is an encoder-decoder; kedit-lab edits decoder-only transformers")
        width = config.hidden_size
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embedding; load a causal language model")
        path, blocks = find_blocks(model, config.num_hidden_layers)
        norm = find_norm(model.get_submodule(path.rpartition(".")[0]), path)
        pairs = [find_projections(block, f"{path}.{i}", width) for i, block in enumerate(blocks)]
        inner = [list(projections(block, f"{path}.{i}")) for i, block in enumerate(blocks)]
        return cls(
            blocks=blocks,
            attention=[attention for attention, _ in pairs],
            mlp=[mlp for _, mlp in pairs],
            norm=norm,
            head=head,
            d_model=width,
            inner=inner,
            positions=find_positions(model, getattr(config, "max_position_embeddings", None)),
            softcap=getattr(config, "final_logit_softcapping", None),
            # Cohere multiplies its logits by logit_scale, Granite divides them by logits_scaling
            head_scale=(getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0),
        )

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def d_k(self) -> int:
        return self.mlp[0].d_in

    def ffn(self, layer: int) -> list[Projection]:
        """Every projection of a block's MLP: gate (where there is one), up and down."""
        inside = attention_child(self.blocks[layer])
        return [p for p in self.inner[layer] if f".{inside}." not in p.name]

    def attention_inner(self, layer: int) -> list[Projection]:
        """The projections inside a block's attention but its output: queries, keys and values, and seldom others."""
        inside, out = attention_child(self.blocks[layer]), self.attention[layer].module
        return [p for p in self.inner[layer] if f".{inside}." in p.name and p.module is not out]

    def attention_module(self, layer: int) -> nn.Module:
        """A block's child that is its attention."""
        return self.blocks[layer].get_submodule(attention_child(self.blocks[layer]) or "")

    def mlp_module(self, layer: int) -> nn.Module | None:
        """A block's child that is its MLP, or None where the MLP's projections are children of the block itself."""
        down = self.mlp[layer].module
        child = next(child for child in self.blocks[layer].children() if any(m is down for m in child.modules()))
        return None if child is down else child

    def weight(self, name: str) -> Projection:
        """The projection inside a block whose weight has this full name; a ValueError if there is none."""
        for projection in chain(*self.inner):
            if projection.name == name:
                return projection
        raise ValueError(f"no block of this model has a projection {name!r}; layer 0 has "
                         f"{', '.join(p.name for p in self.inner[0])}")  # fmt: skip

    def logits(self, normed: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Head (and soft cap) on final-norm hidden states: what the model itself returns as logits."""
        logits = self.head(normed)
        logits = logits if self.head_scale == 1 else logits * self.head_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def fit(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise a ValueError for a row with more tokens than positions, or with one that the model has no row for."""
        longest, highest = (max(map(of, filter(None, rows)), default=0) for of in (len, max))
        self.reach(longest)
        if highest >= len(self.head.weight):
            raise ValueError(
                f"a text has token {highest}, and this model knows {len(self.head.weight)}; load the tokenizer that "
                "belongs to it"
            )

    def reach(self, tokens: int) -> None:
        """Raise a ValueError where so many tokens are more than the model has positions for."""
        if self.positions is not None and tokens > self.positions:
            raise ValueError(f"a text has {tokens} tokens, and this model has {self.positions} positions; shorten it")

    def layer(self, layer: int) -> int:
        """``layer`` as a non-negative index, or an error that says which layers there are."""
        if not isinstance(layer, Integral) or not -self.layers <= layer < self.layers:
            raise ValueError(
                f"layer {layer!r} is not one of this model's {self.layers} layers (0 to {self.layers - 1})"
            )
        return int(layer) % self.layers


def find_blocks(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """(path, blocks): the outermost ModuleList of ``num_hidden_layers`` blocks that hold attention."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and attention_child(module[0]):
            return path, module
    raise ValueError(
        f"{type(model).__name__} has no list of {count} decoder blocks with attention; "
        "kedit-lab edits decoder-only transformers"
    )


def find_positions(model: nn.Module, count: int | None) -> int | None:
    """How many positions a model has where they stand in a table (of its own, or GPT-J's of sines), else None: rotary
    ones go on behind what it was trained with."""
    words = model.get_input_embeddings()
    tables = [len(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [len(buffer) for name, buffer in model.named_buffers() if name.endswith("embed_positions")]
    return count if count is not None and any(rows >= count for rows in tables) else None


def find_norm(parent: nn.Module, path: str) -> nn.Module:
    """The norm beside the blocks: the last direct child that is one."""
    norms = [m for m in parent.children() if "norm" in type(m).__name__.lower()]
    if not norms:
        raise ValueError(
            f"no final norm beside {path!r} in {type(parent).__name__}; kedit-lab edits decoder-only transformers"
        )
    return norms[-1]


def attention_child(block: nn.Module) -> str | None:
    """Name of the block's (self-)attention child, by its class or attribute name."""
    for name, child in block.named_children():
        label = f"{name} {type(child).__name__}".lower()
        if not list(child.children()) or "norm" in label or "cross" in label:
            continue  # GPT-NeoX's post_attention_dropout and everybody's post_attention_layernorm hold no projections
        if "attention" in label or "attn" in label:
            return name
    return None


def projections(block: nn.Module, path: str) -> Iterator[Projection]:
    """Every linear map inside a block."""
    for name, module in block.named_modules():
        if isinstance(module, PROJECTIONS):
            yield Projection(f"{path}.{name}.weight", module, isinstance(module, Conv1D))


def find_projections(block: nn.Module, path: str, width: int) -> tuple[Projection, Projection]:
    """(attention output, MLP output) of a block: the last projection to ``width`` inside and outside its attention."""
    inside = attention_child(block)
    for name, module in block.named_modules():
        if "expert" in name.lower() or "expert" in type(module).__name__.lower():
            raise ValueError(f"{path}.{name} holds experts; a mixture-of-experts MLP has no single matrix to edit")
    found: dict[bool, Projection] = {}
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if list(module.children()) or weight is None or "norm" in type(module).__name__.lower():
            continue
        if not isinstance(module, PROJECTIONS) or weight.dtype not in EDITABLE:
            if isinstance(module, nn.Linear) or weight.ndim != 1:
                raise ValueError(
                    f"{path}.{name} is a {type(module).__name__} with {weight.dtype} weights; "
                    "load the model unquantised (float32, bfloat16 or float16) to edit it"
                )
            continue
        projection = Projection(f"{path}.{name}.weight", module, isinstance(module, Conv1D))
        if projection.d_out == width:
            found[name.split(".")[0] == inside] = projection
    if True not in found or False not in found:
        missing = "attention" if True not in found else "MLP"
        raise ValueError(f"{path} ({type(block).__name__}) has no {missing} output projection to width {width}")
    return found[True], found[False]
