"""What a model is edited in: the lab world, the sets of facts drawn from it, and readers of published sets."""

from kedit_lab.facts.readers import counterfact, knowedit, mquake, multi_counterfact, s2rke, wiki_recent, zsre
from kedit_lab.facts.sets import (
    at_random,
    by_density,
    distinct_subject,
    lab_world,
    pair,
    related,
    same_subject,
    to_frame,
    twins,
)
from kedit_lab.facts.validation import FactList, Validation

__all__ = [
    "FactList",
    "Validation",
    "at_random",
    "by_density",
    "counterfact",
    "distinct_subject",
    "knowedit",
    "lab_world",
    "mquake",
    "multi_counterfact",
    "pair",
    "related",
    "s2rke",
    "same_subject",
    "to_frame",
    "twins",
    "wiki_recent",
    "zsre",
]
