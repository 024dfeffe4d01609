"""kedit-lab: see why edits of one subject collide in a language model, and put every fix side by side."""

from kedit_lab import facts, show
from kedit_lab.edit.edit import Edit
from kedit_lab.edit.recipes import Recipe, recipes
from kedit_lab.edit.run import collisions, edit
from kedit_lab.extract.betas import betas
from kedit_lab.extract.keys import keys, values
from kedit_lab.extract.moments import second_moment
from kedit_lab.extract.trace import interchange, trace
from kedit_lab.measure.geometry import akd, cosine, misalignment
from kedit_lab.measure.metrics import evaluate
from kedit_lab.model.doctor import doctor
from kedit_lab.model.hooks import record, replace
from kedit_lab.model.lab import Lab, load
from kedit_lab.show.panels import CollisionPanel
from kedit_lab.study.collision import collision_study
from kedit_lab.study.papers import paper
from kedit_lab.types import Delta, Fact, Probe

__all__ = [
    "CollisionPanel",
    "Delta",
    "Edit",
    "Fact",
    "Lab",
    "Probe",
    "Recipe",
    "akd",
    "betas",
    "collision_study",
    "collisions",
    "cosine",
    "doctor",
    "edit",
    "evaluate",
    "facts",
    "interchange",
    "keys",
    "load",
    "misalignment",
    "paper",
    "recipes",
    "record",
    "replace",
    "second_moment",
    "show",
    "trace",
    "values",
]
