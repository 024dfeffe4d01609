"""The live panels: widgets that set a state, run it and show what it returns. No maths here; see ``show.states``."""

from kedit_lab.show.panels.alignment import AlignmentPanel
from kedit_lab.show.panels.beta import BetaPanel
from kedit_lab.show.panels.collision import CollisionPanel
from kedit_lab.show.panels.density import DensityPanel
from kedit_lab.show.panels.distance import AkdPanel
from kedit_lab.show.panels.playground import Playground
from kedit_lab.show.panels.routing import RouterPanel

__all__ = [
    "AkdPanel",
    "AlignmentPanel",
    "BetaPanel",
    "CollisionPanel",
    "DensityPanel",
    "Playground",
    "RouterPanel",
]
