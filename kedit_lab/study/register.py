"""The large grids behind the committed figures, by id: those of the papers' experiments, and ``LAB-`` for our own.

What is stored of them, and what reads it, is in ``stored``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kedit_lab.study.aligned import BATCHES, aligned, prepared
from kedit_lab.study.compare import CASES, METHODS, compared, tuned
from kedit_lab.study.distance import KINDS, apart
from kedit_lab.study.eamet import batched, behind, by_relation, ordered, priced
from kedit_lab.study.forgetting import forgetting
from kedit_lab.study.related import first_of
from kedit_lab.study.remerge import remerged
from kedit_lab.study.routing import EMBEDDERS, routing
from kedit_lab.study.sweep import MODES, point


@dataclass(frozen=True)
class Experiment:
    """A grid with what it asks in one sentence, and what measures a point."""

    question: str
    grid: dict[str, Sequence[Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    measure: Callable[..., dict[str, Any]] = point


LOCATE = ("memit", "memit-merge", "pmet", "alphaedit", "eamet", "eamet-mutual", "eamet-merge")
S2RKE = ("memit", "pmet", "alphaedit", "rome", "ft-l", "ft-m", "kn", "memit-merge")
BEHIND = {"contexts": 1, "length": 20}
CROWDED = {"setting": "distinct", "layers": (3,)}  # the keys of 200 subjects crowd at layer 3, not at layer 2
ALIKE = {"steps": 30, "reuse": 1, "lr": 0.3}  # one search for all: a step a pass, as memit has it
SEVERAL = {"layers": (2, 3, 4), "written": True}  # written one after another, as the papers write five
FIG5 = ("memit", "memit-merge", "pmet", "pmet-merge", "alphaedit", "rome", "ft-m")
EXPERIMENTS = {
    "MM-1": Experiment(
        "MEMIT-Merge, Figs. 1, 3 and 5: what do batches about one subject, and about many, keep as they grow?",
        {"method": FIG5, "size": (1, 2, 5, 10, 20, 50), "subjects": ("same", "distinct"), "seed": (0, 1, 2)},
    ),
    "MM-4": Experiment(
        "MEMIT-Merge, Fig. 4: what do batches keep whose keys lie nearer to each other, or farther apart?",
        {"kind": KINDS, "size": (2, 5, 10), "seed": tuple(range(5))},
        measure=apart,
    ),
    "S2-1": Experiment(
        "S2RKE, Figs. 2 and 8a: what do twelve facts keep, the more of them share a subject?",
        {"mode": MODES, "per_subject": (1, 2, 3, 4, 6), "method": ("memit", "memit-merge"), "seed": tuple(range(5))},
        {"size": 12},
    ),
    "S2-3": Experiment(
        "S2RKE, Figs. 3 and 8b: which methods treat facts of one subject worse than facts of several?",
        {"mode": MODES, "method": S2RKE, "subjects": ("same", "distinct"), "seed": tuple(range(5))},
        {"size": 4},
    ),
    "S2-5": Experiment(
        "S2RKE, Figs. 4, 7 and 8c: does the last of five edits cost the first more if it has the same subject?",
        {"mode": MODES, "homogeneous": (True, False), "method": ("memit", "memit-merge"), "seed": tuple(range(10))},
        {"size": 5},
        first_of,
    ),
    "EA-1": Experiment(
        "EAMET, Tables 1 and 2: what do misalignment and long prefixes cost MEMIT as a batch grows?",
        {"batch": BATCHES, "size": (50, 200, 500), "seed": (0, 1)},
        measure=aligned,
    ),
    "EA-7": Experiment(
        "EAMET, Table 6: does it matter in which order the facts are aligned?",
        {"order": (0, 1, 2), "method": ("eamet", "eamet-mutual"), "seed": (0, 1)},
        {"size": 24, "per_subject": 3},
        ordered,
    ),
    "EA-8": Experiment(
        "EAMET, Fig. 5: what is left behind texts of up to 200 tokens, and whose edits suffer most?",
        {"per_subject": (1, 3), "method": ("memit", "memit-merge", "eamet", "eamet-mutual"), "seed": (0, 1)},
        {"size": 24, "lengths": (0, 5, 50, 100, 200)},
        behind,
    ),
    "EA-9": Experiment(
        "EAMET, Fig. 6: what do 300 facts keep, the more of them share a subject?",
        {"per_subject": (1, 2, 3, 4, 5), "method": LOCATE, "size": (300,), "seed": (0, 1)},
        BEHIND,
    ),
    "EA-10": Experiment(
        "EAMET, Table 7: does spreading the change over more layers help or hurt?",
        {
            "layers": ((2,), (1, 2), (0, 1, 2, 3, 4)),
            "per_subject": (1, 3),
            "method": ("memit", "eamet"),
            "seed": (0, 1),
        },
        {"size": 24},
    ),
    "EA-12": Experiment(
        "EAMET, Fig. 8: which relations are easily edited, and where does EAMET gain?",
        {"per_subject": (1, 3), "method": ("memit", "pmet", "eamet"), "seed": (0, 1, 2, 3)},
        {"size": 30},
        by_relation,
    ),
    "EA-15": Experiment(
        "EAMET, Table 9: do aligned targets help AlphaEdit, whatever the size of its batches?",
        {"batch": (3, 6, 24), "per_subject": (1, 3), "method": ("alphaedit", "alphaedit-aligned"), "seed": (0, 1)},
        {"size": 24},
        batched,
    ),
    "EA-18": Experiment(
        "EAMET, Table 12: what does EAMET cost beside MEMIT, as shipped and at equal steps?",
        {"size": (10, 40), "method": ("eamet",), "seed": (0, 1)},
        measure=priced,
    ),
    "EA-19": Experiment(
        "EAMET, Tables 3 and 13: what is kept as N / d_k grows beyond one, three facts a subject?",
        {"size": (100, 1000), "method": LOCATE, "per_subject": (3,), "seed": (0, 1)},
        BEHIND,
    ),
    "EA-17": Experiment(
        "EAMET, Table 11: what does it take to read the keys of N facts, and to compare them?",
        {"size": (10, 100, 1000, 3000), "run": (0, 1, 2)},
        measure=prepared,
    ),
    "RS-1": Experiment(
        "MM4KE, Table 1: what do locate-then-edit methods and R-SFT keep of two hundred facts, one after another?",
        {"method": ("memit", "rome", "r-sft"), "size": (200,), "mode": ("sequential",), "seed": (0, 1)},
    ),
    "RS-2": Experiment(
        "MM4KE, Table 1: what do fine-tuning and locate-then-edit methods keep and cost, and what does merging return?",
        {"mode": MODES, "method": ("memit", "rome", "sft", "lora", "r-sft"), "seed": (0, 1, 2)},
        measure=remerged,
    ),
    "RS-4": Experiment(
        "MM4KE, Table 3a: how low must a fact's loss be before R-SFT leaves it?",
        {"stop": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), "schedule": ((1, 30),), "seed": (0, 1, 2)},
        measure=tuned,
    ),
    "RS-5": Experiment(
        "MM4KE, Tables 3b and 7: how many epochs, and how many consecutive steps in each?",
        {"schedule": ((1, 30), (2, 15), (3, 10), (5, 6), (10, 3), (30, 1), (1, 60), (1, 90)), "seed": (0, 1)},
        measure=tuned,
    ),
    "RS-7": Experiment(
        "MM4KE, Figs. 2 and 3, Table 4: what do scaling and pruning R-SFT's change keep and give back?",
        {"scale": (1.0, 0.9, 0.8, 0.6, 0.4), "density": (1.0, 0.5, 0.2, 0.1, 0.05), "seed": (0, 1)},
        {"questions": 400},
        measure=tuned,
    ),
    "RS-8": Experiment(
        "MM4KE, Table 4: what do consecutive steps and the early stop do for R-SFT?",
        {"schedule": ((5, 6), (30, 1)), "stop": (0.0, 0.01, 0.1), "seed": (0, 1)},
        measure=tuned,
    ),
    "RS-9": Experiment(
        "MM4KE, Tables 6 and 8: which layers should R-SFT train?",
        {"layers": (*((i,) for i in range(7)), (3, 4, 5), tuple(range(7))), "schedule": ((1, 30),), "seed": (0, 1)},
        measure=tuned,
    ),
    "RS-12": Experiment(
        "MM4KE, Table 9: what does a smaller learning rate spare?",
        {"lr": (5e-4, 1e-4, 5e-5), "schedule": ((1, 30),), "seed": (0, 1)},
        measure=tuned,
    ),
    "SQ-1": Experiment(
        "SeqMMR, Tables 1, 5, 7 and 8: what do ten batches keep, merged, routed, both or neither?",
        {"seed": (0, 1, 2), "method": ("memit", "rect", "prune")},
        CROWDED | {"bases": ("plain",)},
        forgetting,
    ),
    "SQ-7": Experiment(
        "SeqMMR, Tables 1 and 8: the same for AlphaEdit, with a threshold and γ that suit layer 3's short keys",
        {"seed": (0, 1, 2), "method": ("alphaedit",)},
        CROWDED | {"bases": ("plain",), "threshold": 0.1, "gamma": 10.0},
        forgetting,
    ),
    "SQ-8": Experiment(
        "SeqMMR, Fig. 3: what does every batch keep, the more of each change is pruned before it is merged?",
        {"seed": (0, 1, 2)},
        CROWDED | {"ratios": (0.5, 0.85, 0.95), "bases": ("plain",)},
        forgetting,
    ),
    "SQ-9": Experiment(
        "SeqMMR, Table 6: which prompts reach the edited model, the more neighbours vote?",
        {"setting": ("distinct", "shared"), "embedder": EMBEDDERS, "k": (1, 2, 3, 5, 10, 20), "seed": (0, 1, 2)},
        measure=routing,
    ),
    "LAB-1": Experiment(
        "How much do the preserved keys' weight λ and the subject's density decide?",
        {"lam": (2.0, 20.0, 200.0), "per_subject": (1, 3), "method": ("memit", "memit-merge", "eamet"), "seed": (0, 1)},
        {"size": 150},
    ),
    "LAB-2": Experiment(
        "How much does the early stop decide, beside the alignment, where both search alike?",
        {"stop": (0.0, 0.01, 0.05, 0.2), "per_subject": (3,), "method": ("memit", "eamet"), "seed": (0, 1)},
        {"size": 150} | ALIKE,
    ),
    "LAB-3": Experiment(
        "What does every method keep, spare and cost: distinct subjects, one subject, many facts, one after another?",
        {"case": CASES, "method": METHODS, "seed": (0,)},
        measure=compared,
    ),
    "LAB-4": Experiment(
        "EAMET, Tables 10 and 15, Fig. 10: what do the two alignment weights and the number of neighbours decide?",
        {"align_kl": (0.0, 0.5, 2.0, 8.0), "align_mse": (0.0, 2.0, 8.0, 32.0), "top": (5, 50), "seed": (0, 1)},
        {"method": "eamet", "size": 36, "per_subject": 3, "stop": 0.01} | ALIKE,
    ),
    "LAB-5": Experiment(
        "SeqMMR, Table 1, at the layer that suits the lab model: what do ten batches keep where keys have room?",
        {"seed": tuple(range(20)), "method": ("memit", "alphaedit")},
        {"setting": "distinct", "layers": (2,), "bases": ("plain",)},
        forgetting,
    ),
    "LAB-6": Experiment(
        "The same where facts are drawn at random, so that a few subjects come back: what is written, and lost again?",
        {"seed": tuple(range(20)), "method": ("memit", "alphaedit")},
        {"setting": "random", "layers": (2,), "bases": ("plain",), "written": True},
        forgetting,
    ),
    "LAB-7": Experiment(
        "Do EAMET's blocks end where one fact at a time, the order of the paper, ends, and how much sooner?",
        {"block": (0, 1), "per_subject": (1, 3), "seed": tuple(range(5))},
        {"method": "eamet", "size": 300},
    ),
    "LAB-8": Experiment(
        "Ten batches where MEMIT writes several layers, as published: what is lost, at which λ, what does SeqMMR mend?",
        {"seed": tuple(range(20)), "setting": ("distinct", "random"), "lam": (2.0, 20.0, 600.0)},
        {"method": "memit"} | SEVERAL,
        forgetting,
    ),
    "LAB-9": Experiment(
        "The same for AlphaEdit, with a threshold and γ that suit those layers",
        {"seed": tuple(range(20)), "setting": ("distinct", "random")},
        {"method": "alphaedit", "threshold": 0.2, "gamma": 30.0, "bases": ("plain",)} | SEVERAL,
        forgetting,
    ),
}


def experiment(name: str) -> Experiment:
    """A registered grid. Raises ValueError for an unknown name and lists those that exist."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; registered are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
