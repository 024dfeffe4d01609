"""The live panels: widgets that set a state, run it and show what it returns. No maths here; see ``show.states``."""

from kedit_lab.show.panels.collision import CollisionPanel

__all__ = ["CollisionPanel"]
