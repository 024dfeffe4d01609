"""MEND: a small trained network turns the gradient of one fact into a weight change (Mitchell et al. 2022).

The gradient of a weight is Σ_t δ_t u_tᵀ, inputs u and output gradients δ of every token t; the network maps (u, δ) to
(ũ, δ̃), and the edit is ΔW = -s Σ_t δ̃_t ũ_tᵀ with a learned step s per weight. Trained by ``train/mend.py``.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kedit_lab.edit.finetune import loss
from kedit_lab.edit.recipe import Hyper
from kedit_lab.edit.weights import Change
from kedit_lab.model.arch import Projection
from kedit_lab.model.lab import Lab
from kedit_lab.model.process import own_chance
from kedit_lab.model.tokens import Row
from kedit_lab.paths import data_dir, whole
from kedit_lab.types import Delta, Fact

RANK = 96


class Editor(nn.Module):
    """One network per weight shape, shared between layers that differ in a scale and a shift (MEND, section 3.2).

    At first it is the identity on normalised inputs, so that the edit is a gradient step.
    """

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, int]], rank: int = RANK) -> None:
        super().__init__()
        self.names, self.shapes = list(names), list(shapes)
        kinds = sorted(set(self.shapes))
        self.kind = [kinds.index(shape) for shape in self.shapes]
        sizes = [sum(shape) for shape in kinds]
        self.down = nn.ParameterList([nn.Parameter(torch.randn(2, rank, n) / n**0.5) for n in sizes])
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(2, n, rank)) for n in sizes])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(2, n)) for n in sizes])
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(2, sum(shape))) for shape in self.shapes])
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(2, sum(shape))) for shape in self.shapes])
        self.rate = nn.Parameter(torch.full((len(names),), 1e-2))
        for i, shape in enumerate(self.shapes):
            self.register_buffer(f"mean{i}", torch.zeros(sum(shape)))
            self.register_buffer(f"std{i}", torch.ones(sum(shape)))

    def forward(self, index: int, u: Float[Tensor, "... d_in"], d: Float[Tensor, "... d_out"]) -> tuple[Tensor, Tensor]:
        """(ũ, δ̃ times its step) of one weight."""
        kind = self.kind[index]
        x = (torch.cat([u, d], -1) - self.get_buffer(f"mean{index}")) / self.get_buffer(f"std{index}")
        for layer in range(2):
            inner = x @ self.down[kind][layer].T @ self.up[kind][layer].T + self.bias[kind][layer]
            x = x + torch.relu(inner * self.scale[index][layer] + self.shift[index][layer])
        return x[..., : u.shape[-1]], -self.rate[index] * x[..., u.shape[-1] :]

    def write(self, path: Path, base: str) -> None:
        """Weights, names and the fingerprint of the model this was trained for, in one file, whole or not at all."""
        told = {"base": base, "names": self.names, "shapes": self.shapes, "rank": self.down[0].shape[1]}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with whole(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"told": json.dumps(told)}))


def load_editor(lab: Lab, path: Path) -> Editor:
    """The editor in a file, for the model that it was trained for; anything else raises a ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no trained MEND editor at {path}; run `kedit-lab train-mend`")
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["told"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable MEND editor ({error!r}); train it again") from error
    if told["base"] != lab.fingerprint():
        raise ValueError(f"{path} was trained for weights {told['base']}, this lab's are {lab.fingerprint()}; "
                         "undo any edit, or run `kedit-lab train-mend` for this model")  # fmt: skip
    with own_chance():
        editor = Editor(told["names"], [tuple(shape) for shape in told["shapes"]], told["rank"])
    editor.load_state_dict(tensors)
    return editor.to(lab.anchor.device).eval()


@dataclass(frozen=True)
class Gradient:
    """A weight's inputs u and output gradients δ, row by token, and which tokens have a gradient at all."""

    u: Float[Tensor, "rows tokens d_in"]
    d: Float[Tensor, "rows tokens d_out"]
    mask: Bool[Tensor, "rows tokens"]


def gradients(lab: Lab, rows: Sequence[Row], weights: Sequence[Projection]) -> list[Gradient]:
    """The factors of every weight's gradient of the mean target loss over the rows."""
    seen: list[tuple[Tensor, Tensor]] = []
    shape = (len(rows), max(len(row.ids) for row in rows))

    def watch(_module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        probe = torch.zeros_like(out, requires_grad=True)
        seen.append((args[0].detach(), probe))
        return out + probe

    with ExitStack() as stack:
        for projection in weights:
            stack.callback(projection.module.register_forward_hook(watch).remove)
        with torch.enable_grad():
            found = torch.autograd.grad(loss(lab, rows, "target") * len(rows), [probe for _, probe in seen])
    here = lambda x: x.float().view(*shape, -1).to(lab.anchor.device)  # noqa: E731 - where the editor is
    pairs = [(here(u), here(d)) for (u, _), d in zip(seen, found, strict=True)]
    return [Gradient(u, d, d.norm(dim=-1) > 0) for u, d in pairs]


@contextmanager
def edited(editor: Editor, found: Sequence[Gradient], weights: Sequence[Projection]) -> Iterator[None]:
    """Inside the context every row runs with its own edit; gradients flow into the editor. Used in training."""
    with ExitStack() as stack:
        for index, (gradient, projection) in enumerate(zip(found, weights, strict=True)):
            u, d = editor(index, gradient.u, gradient.d)
            d = d * gradient.mask[..., None]

            def change(_module: nn.Module, args: tuple, out: Tensor, u: Tensor = u, d: Tensor = d) -> Tensor:
                x = args[0].reshape(len(u), -1, u.shape[-1]).float()  # OPT's MLP sees all tokens as one long row
                return out + ((x @ u.to(x).transpose(1, 2)) @ d.to(x)).reshape(out.shape).to(out)

            stack.callback(projection.module.register_forward_hook(change).remove)
        yield


def edited_weights(lab: Lab, layers: Sequence[int]) -> list[Projection]:
    """What MEND edits: every projection of the MLPs of some blocks."""
    return [projection for layer in layers for projection in lab.arch.ffn(layer)]


def editor_file(recipe: Hyper) -> Path:
    """Where a recipe's editor lies."""
    return Path(recipe.path) if recipe.path else data_dir() / "mend" / "editor.safetensors"


@torch.no_grad()
def apply(lab: Lab, facts: Sequence[Fact], recipe: Hyper) -> tuple[dict[str, Change], list]:
    """The summed edits of all facts, each from the gradient on the unedited model."""
    editor = load_editor(lab, editor_file(recipe))
    weights = [lab.arch.weight(name) for name in editor.names]
    found = gradients(lab, [lab.row(fact) for fact in facts], weights)
    deltas: dict[str, Change] = {}
    for index, (gradient, projection) in enumerate(zip(found, weights, strict=True)):
        u, d = editor(index, gradient.u[gradient.mask], gradient.d[gradient.mask])
        deltas[projection.name] = Delta(d.T.double().contiguous(), u.T.double().contiguous())
    return deltas, []
