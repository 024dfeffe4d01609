"""What is seen: figures and tables from data, and the live panel."""

from kedit_lab.show.comparison import method_map, price
from kedit_lab.show.density import facts_per_subject
from kedit_lab.show.figures import (
    bars,
    collision,
    efficacy_curve,
    grid,
    heatmap,
    layer_lines,
    loss_curves,
    scatter,
    token_strip,
    trace_map,
)
from kedit_lab.show.relations import cloud, curves, multiples
from kedit_lab.show.suggestion import suggestion
from kedit_lab.show.tables import before_after
from kedit_lab.show.tradeoff import pareto, tradeoff

__all__ = [
    "bars",
    "before_after",
    "cloud",
    "collision",
    "curves",
    "efficacy_curve",
    "facts_per_subject",
    "grid",
    "heatmap",
    "layer_lines",
    "loss_curves",
    "method_map",
    "multiples",
    "pareto",
    "price",
    "scatter",
    "suggestion",
    "token_strip",
    "trace_map",
    "tradeoff",
]
