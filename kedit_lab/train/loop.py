"""The training loop of the lab model: language modelling plus the read-out that makes storage like a real model's.

Trained on text alone, a small model looks a fact up at the last prompt token, and every locate-then-edit method
fails on it. A linear read-out at each subject mention's last token, thrown away afterwards, makes the early layers
gather a subject's attributes there, as ROME's causal traces show for large models.
"""

import copy
import json
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from kedit_lab.facts.corpus import ANSWER, LONG, SHORT, Piece, Writer
from kedit_lab.facts.world import World
from kedit_lab.paths import whole
from kedit_lab.train.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Plan:
    """Everything that decides the trained weights, written beside them as ``training.json``."""

    seed: int = 0
    width: int = 192
    layers: int = 6
    heads: int = 4
    inner: int = 768
    steps: int = 4000
    rows: int = 16
    length: int = 128
    short_steps: int = 1500
    short_rows: int = 64
    short_length: int = 32
    matrix_lr: float = 0.012
    matrix_decay: float = 0.1
    other_lr: float = 3e-3
    warmup: int = 100
    decay_share: float = 0.4
    answer_weight: float = 5.0
    grown_steps: int = 300
    grown_share: float = 0.1
    polish_steps: int = 600
    readout_layer: int = 2
    readout_weight: float = 1.0
    threads: int = 2


@dataclass(frozen=True)
class Batch:
    """Token rows, what each token's loss weighs, and where mentions of subjects end (row, position, subject)."""

    ids: Int[Tensor, "rows length"]
    weights: Float[Tensor, "rows length"]
    mentions: Int[Tensor, "mentions 3"]


def batches(world: World, tokenizer: Any, plan: Plan) -> Iterator[Batch]:
    """An endless, seeded stream of batches: short rows at first, in which a fact's subject is easy to find, then long.

    A row is documents one after another, cut at its length.
    """
    writer = Writer(world, random.Random(plan.seed))
    whole = plan.steps + plan.grown_steps
    number = {name: i for i, name in enumerate(world.subjects)}
    for step in count():
        short, writer.polished = step < plan.short_steps, step >= whole
        rows, length = (plan.short_rows, plan.short_length) if short else (plan.rows, plan.length)
        documents = writer.documents(SHORT if short else LONG)
        yield batch(documents, tokenizer, number, rows, length, plan.answer_weight)


def batch(documents: Iterator[list[Piece]], tokenizer: Any, number: dict[str, int], rows: int, length: int,
          answer_weight: float) -> Batch:  # fmt: skip
    """One batch of token rows; ``number`` gives each subject its row in the read-out."""
    ids, weights = torch.full((rows, length), tokenizer.eos_token_id), torch.ones(rows, length)
    mentions = []
    for row in range(rows):
        filled = 0
        while filled < length:
            pieces = next(documents)
            encoded = tokenizer("".join(text for text, _ in pieces), return_offsets_mapping=True)
            tokens = torch.tensor(encoded["input_ids"])[: length - filled]
            ids[row, filled : filled + len(tokens)] = tokens
            for first, last, mark in spans(pieces, encoded["offset_mapping"]):
                if mark == ANSWER:
                    weights[row, filled + first : filled + last + 1] = answer_weight
                elif filled + last < length:
                    mentions.append((row, filled + last, number[mark]))
            filled += len(tokens) + 1
    return Batch(ids, weights, torch.tensor(mentions).reshape(-1, 3))


def spans(pieces: list[Piece], offsets: list[tuple[int, int]]) -> Iterator[tuple[int, int, str]]:
    """(first token, last token, mark) of every marked piece, by character offsets."""
    at, starts = 0, [start for start, _ in offsets]
    for text, mark in pieces:
        if mark is not None:
            begin = at + len(text) - len(text.lstrip())
            yield bisect_right(starts, begin) - 1, bisect_left(starts, at + len(text)) - 1, mark
        at += len(text)


class ReadOut(nn.Module):
    """A read-out of all attributes of a subject from one hidden state, linear in it; used in training only.

    For relation r the score of object v is e_v · norm(P (silu(g_r) * U h)): a gate per relation, and for each object
    the mean of the model's own embeddings of its tokens. So attributes are stored in a form that the upper blocks can
    look up again by copying; with free vectors per object they store faster, but learn to read very much later.
    """

    def __init__(self, world: World, tokenizer: Any, width: int, asked: int = 10) -> None:
        super().__init__()
        values = {value: i for i, value in enumerate(sorted(set().union(*world.objects.values())))}
        size = max(map(len, world.objects.values()))
        column = {id: {value: i for i, value in enumerate(world.objects[id])} for id in world.relations}
        rows, relations = ({key: i for i, key in enumerate(table)} for table in (world.subjects, world.relations))
        answers = torch.full((len(world.subjects), len(world.relations)), -100)
        for (subject, relation), value in world.known.items():
            answers[rows[subject], relations[relation]] = column[relation][value]
        listed = [[values[value] for value in world.objects[id]] for id in world.relations]
        tokens = [tokenizer(f" {value}")["input_ids"] for value in values]
        starts = list(accumulate(map(len, tokens), initial=0))[:-1]
        self.before, self.after = nn.RMSNorm(width), nn.RMSNorm(width)
        self.reader, self.writer = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.gates = nn.Parameter(1 + 0.3 * torch.randn(len(world.relations), 2 * width))
        self.asked = asked
        self.register_buffer("answers", answers)
        self.register_buffer("tokens", torch.tensor(list(chain(*tokens))))
        self.register_buffer("starts", torch.tensor(starts))
        self.register_buffer("columns", torch.tensor([row + [0] * (size - len(row)) for row in listed]))
        self.register_buffer("absent", torch.tensor([[i >= len(row) for i in range(size)] for row in listed]))

    def forward(
        self, hidden: Float[Tensor, "mentions width"], subjects: Int[Tensor, " mentions"], embeddings: Tensor
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over some of the attributes that each mentioned subject is known to have."""
        known = self.answers[subjects] >= 0
        lot = torch.rand(known.shape).masked_fill(~known, 2.0)
        row, relation = ((lot < lot.kthvalue(self.asked, dim=1, keepdim=True).values) & known).nonzero(as_tuple=True)
        gated = self.reader(self.before(hidden))[row] * nn.functional.silu(self.gates[relation])
        objects = nn.functional.embedding_bag(self.tokens, embeddings, self.starts, mode="mean")
        scores = (self.after(self.writer(gated)) @ objects.T).gather(1, self.columns[relation]).float()
        wanted = self.answers[subjects[row], relation]
        return nn.functional.cross_entropy(scores.masked_fill(self.absent[relation], float("-inf")), wanted)


def blank_model(tokenizer, plan: Plan) -> Qwen2ForCausalLM:
    """The untrained lab model."""
    torch.manual_seed(plan.seed)
    end = tokenizer.eos_token_id
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=plan.width, num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads, num_key_value_heads=plan.heads, intermediate_size=plan.inner,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def optimizers(model: nn.Module, readout: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon (with weight decay, or norms explode) for the blocks' matrices, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = set(map(id, matrices))
    rest = [p for p in [*model.parameters(), *readout.parameters()] if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.matrix_decay),
        torch.optim.AdamW(rest, lr=plan.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, plan: Plan) -> float:
    """Warm-up, then constant, then linear decay to zero; two short descents behind it, grown and polished."""
    for begin, length in ((plan.steps + plan.grown_steps, plan.polish_steps), (plan.steps, plan.grown_steps)):
        if step >= begin:
            return plan.grown_share * (1 - (step - begin) / length)
    left = (plan.steps - step) / (plan.steps * plan.decay_share)
    return min(1.0, (step + 1) / plan.warmup, left)


def grow(model: Qwen2ForCausalLM) -> None:
    """Append a block that at first passes its input through, so that no fact is looked up in the last two blocks."""
    blocks, config = model.model.layers, model.config
    block = copy.deepcopy(blocks[-1])
    block.self_attn.layer_idx = len(blocks)
    for projection in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(projection.weight)
    blocks.append(block)
    config.num_hidden_layers = len(blocks)
    config.layer_types = [*config.layer_types, config.layer_types[-1]]


class Training:
    """A training run's state: model, read-out, optimisers, loss curve and step; saved and restored as one file."""

    def __init__(self, world: World, tokenizer: Any, plan: Plan) -> None:
        self.plan, self.step, self.curve = plan, 0, []
        self.model, self.readout = blank_model(tokenizer, plan), ReadOut(world, tokenizer, plan.width)
        self.captured: dict[str, Tensor] = {}
        self.model.model.layers[plan.readout_layer].register_forward_hook(
            lambda _module, _inputs, out: self.captured.update(h=out if torch.is_tensor(out) else out[0])
        )
        self.arm()

    def arm(self) -> None:
        """Fresh optimisers for the model as it is."""
        self.optimizers = optimizers(self.model, self.readout, self.plan)
        self.rates = [[group["lr"] for group in opt.param_groups] for opt in self.optimizers]

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "readout": self.readout} | {f"opt{i}": o for i, o in enumerate(self.optimizers)}

    def save(self, path: Path) -> None:
        """Write everything that a later run needs to go on, atomically."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        with whole(path) as temporary:
            torch.save(state | {"step": self.step, "curve": self.curve}, temporary)

    def restore(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.step, self.curve = saved["step"], saved["curve"]
        if self.step > self.plan.steps:
            grow(self.model)
            self.arm()
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])

    def losses(self, given: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(weighted text loss, mean loss of the answers' tokens, read-out loss) of a batch."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(given.ids).logits[:, :-1].flatten(0, 1).float()
            each = nn.functional.cross_entropy(logits, given.ids[:, 1:].flatten(), reduction="none")
            weight = given.weights[:, 1:].flatten()
            row, position, subject = given.mentions.T
            embeddings = self.model.get_input_embeddings().weight
            stored = self.readout(self.captured["h"][row, position], subject, embeddings)
        return (each * weight).sum() / weight.sum(), each[weight > 1].mean(), stored

    def advance(self, given: Batch) -> tuple[float, float, float]:
        """One optimisation step; returns the three losses."""
        polishing = self.step >= self.plan.steps + self.plan.grown_steps
        if self.step == self.plan.steps:
            grow(self.model)
        if self.step in (self.plan.steps, self.plan.steps + self.plan.grown_steps):
            self.arm()
        for opt, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(self.step, self.plan)
        text, answers, stored = self.losses(given)
        (text + (0.0 if polishing else self.plan.readout_weight) * stored).backward()
        for opt in self.optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        self.step += 1
        return float(text.detach()), float(answers.detach()), float(stored.detach())


def train(world: World, folder: Path, plan: Plan | None = None) -> Qwen2ForCausalLM:
    """Train tokenizer and model into ``folder``; a run that was cut goes on from its last checkpoint."""
    plan = plan or Plan()
    torch.set_num_threads(plan.threads)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(world, folder)
    run, checkpoint = Training(world, tokenizer, plan), folder / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(checkpoint)
    stream = islice(batches(world, tokenizer, plan), run.step, None)
    before = run.curve[-1][-1] if run.curve else 0.0
    began, total = time.time() - before, plan.steps + plan.grown_steps + plan.polish_steps
    for step in tqdm(range(run.step, total), initial=run.step, total=total, mininterval=5):
        found = run.advance(next(stream))
        if step % 20 == 0:
            run.curve.append((step, *found, time.time() - began))
        if step % 250 == 249:
            run.save(checkpoint)
            write_log(folder, plan, run.curve)
    run.model.eval().save_pretrained(folder)
    write_log(folder, plan, run.curve)
    checkpoint.unlink(missing_ok=True)
    return run.model


def write_log(folder: Path, plan: Plan, curve: list) -> None:
    """Plan and loss curve (step, weighted loss, loss of answer tokens, read-out loss, seconds) as JSON."""
    rows = ",\n".join(json.dumps([row[0], *(round(x, 4) for x in row[1:])]) for row in curve)
    with whole(folder / "training.json") as temporary:
        temporary.write_text(f'{{"plan": {json.dumps(asdict(plan))},\n"curve": [\n{rows}\n]}}\n')
