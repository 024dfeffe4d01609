"""kedit-lab: see why edits of one subject collide in a language model, and put every fix side by side."""

from kedit_lab import facts, show
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.groups import collisions, groups
from kedit_lab.edit.merging import combine, interference, merge
from kedit_lab.edit.post import prune, rect
from kedit_lab.edit.recipe import Recipe, Tuning
from kedit_lab.edit.recipes import recipes
from kedit_lab.edit.router import Router
from kedit_lab.edit.run import edit, remember
from kedit_lab.extract.betas import betas
from kedit_lab.extract.documents import documents
from kedit_lab.extract.keys import keys, values
from kedit_lab.extract.moments import moment_drift, second_moment
from kedit_lab.extract.trace import interchange, trace
from kedit_lab.measure.ability import ability, passage_accuracy
from kedit_lab.measure.geometry import akd, cosine, misalignment
from kedit_lab.measure.health import Reference, health
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab, load
from kedit_lab.model.lab import make_lab as wrap
from kedit_lab.show.panels import (
    AkdPanel,
    AlignmentPanel,
    BetaPanel,
    CollisionPanel,
    DensityPanel,
    Playground,
    RouterPanel,
)
from kedit_lab.study.choose import choose, scorecard
from kedit_lab.study.collision import collision_study
from kedit_lab.study.compare import compared
from kedit_lab.study.course import check, claim, claims
from kedit_lab.study.doctor import doctor
from kedit_lab.study.estimate import estimate
from kedit_lab.study.load import load_study
from kedit_lab.study.papers import paper
from kedit_lab.study.related import density_study, pair_study, subject_study
from kedit_lab.study.sequence import Merge, sequence
from kedit_lab.study.stored import rerun, results
from kedit_lab.study.suggest import Suggestion, suggest
from kedit_lab.study.sweep import point, sweep
from kedit_lab.types import Delta, Dense, Fact, Memory, Probe

__all__ = [
    "AkdPanel",
    "AlignmentPanel",
    "BetaPanel",
    "CollisionPanel",
    "Delta",
    "Dense",
    "DensityPanel",
    "Edit",
    "Fact",
    "Lab",
    "Memory",
    "Merge",
    "Playground",
    "Probe",
    "Recipe",
    "Reference",
    "Router",
    "RouterPanel",
    "Suggestion",
    "Tuning",
    "ability",
    "akd",
    "betas",
    "check",
    "choose",
    "claim",
    "claims",
    "collision_study",
    "collisions",
    "combine",
    "compared",
    "cosine",
    "density_study",
    "doctor",
    "documents",
    "edit",
    "estimate",
    "evaluate",
    "facts",
    "groups",
    "health",
    "interchange",
    "interference",
    "keys",
    "load",
    "load_study",
    "merge",
    "misalignment",
    "moment_drift",
    "pair_study",
    "paper",
    "passage_accuracy",
    "point",
    "prune",
    "recipes",
    "record",
    "rect",
    "remember",
    "replace",
    "rerun",
    "results",
    "scorecard",
    "second_moment",
    "sequence",
    "show",
    "subject_study",
    "suggest",
    "sweep",
    "trace",
    "values",
    "wrap",
]
