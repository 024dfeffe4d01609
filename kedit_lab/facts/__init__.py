"""What a model is edited in: the lab world and the sets of facts drawn from it."""

from kedit_lab.facts.sets import by_density, distinct_subject, lab_world, pair, related, same_subject, to_frame, twins

__all__ = ["by_density", "distinct_subject", "lab_world", "pair", "related", "same_subject", "to_frame", "twins"]
