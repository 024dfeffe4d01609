"""Figures show what they are given: the right number of lines and bars, names where one looks for them, no warnings."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from kedit_lab import show
from kedit_lab.show import style

SIZES = (1, 2, 5, 10)
ARMS = (("memit", "distinct", 1.0), ("memit", "same", 0.4), ("memit-merge", "same", 0.9))
TOKENS = ["Jo", "hn", " Smith", "'s", " native", " language", " is"]


@pytest.fixture
def study():
    """A study whose efficacies are known: (arm's level) - 0.01 * size, the seeds 0.02 apart."""
    rows = [
        {"method": method, "subjects": subjects, "size": size, "seed": seed,
         "efficacy": level - 0.01 * size - 0.02 * seed}
        for method, subjects, level in ARMS
        for size in SIZES
        for seed in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def papers():
    return pd.DataFrame({"label": "MEMIT-Merge, Fig. 1", "size": [1, 5, 10], "value": [1.0, 0.6, 0.4]})


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Every figure is closed, and no figure changes the style of the next one."""
    plt.get_backend()  # chosen on first use, which is no change of style
    before = plt.rcParams.copy()
    yield
    assert plt.get_fignums() == []
    assert plt.rcParams == before


def texts(figure) -> list[str]:
    """All words of a figure: titles, labels, ticks, legends, annotations."""
    found = [text.get_text() for axes in figure.axes for text in axes.findobj(plt.Text)]
    return [text for text in found if text]


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_efficacy_curve(study, papers):
    figure = show.efficacy_curve(study, papers=papers, title="Efficacy against batch size")
    (axes,) = figure.axes
    assert len(axes.lines) == 4
    assert len(axes.collections) == 3, "one band for each arm"
    merged = axes.lines[2]
    assert merged.get_ydata() == pytest.approx([0.9 - 0.01 * size - 0.02 for size in SIZES])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "10"]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] <= 0 < 1 <= axes.get_ylim()[1]
    assert {"memit, distinct subjects", "memit, one subject", "memit-merge, one subject"} <= set(texts(figure))
    assert {"MEMIT-Merge, Fig. 1", "Efficacy against batch size", "efficacy"} <= set(texts(figure))
    assert to_hex(axes.lines[3].get_color()) == style.PAPER
    assert png(figure).startswith(b"\x89PNG")


def test_a_lone_point_of_a_paper_is_named_away_from_the_lines(study):
    lone = pd.DataFrame({"label": ["paper"], "size": [5], "value": [0.6]})
    (axes,) = show.efficacy_curve(study, papers=lone).axes
    (name,) = [text for text in axes.texts if text.get_text() == "paper"]
    assert (name.get_ha(), name.get_va()) == ("right", "top")


def test_another_metric_is_drawn(study):
    study["specificity"] = 0.5
    (axes,) = show.efficacy_curve(study, "specificity").axes
    assert axes.get_ylabel() == "specificity"
    assert all(set(line.get_ydata()) == {0.5} for line in axes.lines)


def test_colours_are_told_apart():
    assert len(set(style.COLORS)) == len(style.MARKERS) == 8
    assert all(to_hex(color) == color.lower() for color in style.COLORS)


def test_a_method_looks_the_same_in_every_figure():
    all_of_them = style.looks(["rome", "memit-merge", "ft-m", "MEMIT"])
    assert all_of_them["MEMIT"] == style.looks(["memit"])["memit"] == {"color": style.COLORS[0], "marker": "o"}
    assert all_of_them["memit-merge"]["color"] == style.COLORS[1]
    assert len({look["color"] for look in all_of_them.values()}) == 4, "others take what is left"
    many = style.looks(range(20))
    assert len({tuple(look.values()) for look in many.values()}) == 20, "a colour that comes again has another marker"
    crowd = style.looks([*style.METHODS, "rome", "ft", "kn", "mend"])
    assert len({tuple(look.values()) for look in crowd.values()}) == 10


def test_one_colour_a_method_and_dots_for_distinct_subjects(study):
    (axes,) = show.efficacy_curve(study).axes
    spread, shared, merged = axes.lines
    assert spread.get_color() == shared.get_color() != merged.get_color()
    assert (spread.get_linestyle(), shared.get_linestyle(), merged.get_linestyle()) == (":", "-", "-")
    (axes,) = show.efficacy_curve(study[study["subjects"] == "same"]).axes
    assert [text.get_text() for text in axes.texts] == ["memit", "memit-merge"], "the title says which subjects"


def test_a_name_that_had_to_move_is_led_to_its_line(study):
    close = study[study["subjects"] == "same"].assign(efficacy=0.5)
    for frame, moved in ((close, 1), (study[study["subjects"] == "same"], 0)):
        (axes,) = show.efficacy_curve(frame).axes
        assert sum(text.arrow_patch is not None for text in axes.texts) == moved


@pytest.mark.parametrize(
    ("matrix", "options", "colors"),
    [
        (np.eye(3), {}, "RdBu_r"),
        (np.eye(20), {"labels": [f"fact {i}" for i in range(20)]}, "RdBu_r"),
        (np.eye(4), {"vmin": 0, "label": "β"}, "cividis"),
        (np.eye(1), {}, "RdBu_r"),
    ],
)
def test_heatmap(matrix, options, colors):
    figure = show.heatmap(matrix, title="Keys", **options)
    axes, bar = figure.axes
    assert axes.images[0].get_array().tolist() == matrix.tolist()
    assert axes.images[0].cmap.name == colors
    assert axes.images[0].get_clim() == (options.get("vmin", -1), 1)
    assert bar.get_ylabel() == options.get("label", "cosine")
    written = [label.get_text() for label in axes.get_yticklabels() if label.get_text()]
    assert 1 <= len(written) <= style.LABELS_SHOWN
    assert len(axes.texts) == (matrix.size if len(matrix) <= 6 else 0), "few cells bear their numbers"


def test_a_table_is_drawn_with_its_names_and_gaps():
    table = pd.DataFrame([[1.0, np.nan], [0.25, 0.5]], pd.Index([1, 2], name="after_batch"), ["first", "second"])
    axes, bar = show.grid(table, "efficacy", "Kept").axes
    assert axes.get_ylabel() == "after batch"
    assert axes.get_xlabel() == ""
    assert [label.get_text() for label in axes.get_xticklabels()] == ["first", "second"]
    assert bar.get_ylabel() == "efficacy"
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.25", "0.50"], "no number where there is none"


def test_a_tensor_is_drawn_too():
    torch = pytest.importorskip("torch")
    figure = show.heatmap(torch.eye(3))
    assert figure.axes[0].images[0].get_array().shape == (3, 3)


def test_bars(study, papers):
    theirs = pd.DataFrame({"size": SIZES, "method": "memit-merge", "value": 0.8})
    (axes,) = show.bars(study, "size", "efficacy", "method", papers=theirs, title="By size").axes
    containers = [c for c in axes.containers if isinstance(c, BarContainer)]
    assert [len(container) for container in containers] == [4, 4]
    assert containers[1][0].get_height() == pytest.approx(0.9 - 0.01 - 0.02)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["memit", "memit-merge", "paper"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "5", "10"]


def test_bars_beside_the_unedited_model(study):
    (axes,) = show.bars(study, "size", "efficacy", "method", unedited=0.7).axes
    assert [line.get_ydata()[0] for line in axes.lines] == [0.7]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["memit", "memit-merge", "unedited"]


def test_long_names_stand_below_the_bars(study):
    study["told"] = "a name of " + study["method"] + ", told at length"
    drawn = [show.bars(study, "size", "efficacy", hue).axes[0] for hue in ("method", "told")]
    beside, below = (axes.get_legend().get_window_extent().x0 / axes.bbox.x1 for axes in drawn)
    assert below < 0.7 < 1 <= beside


@pytest.mark.parametrize(("values", "lines"), [([0.5, 0.2], 0), ([-0.5, 0.0], 1)])
def test_bars_below_zero_hang_from_a_line(values, lines):
    (axes,) = show.bars(pd.DataFrame({"method": ["a", "b"], "sd": values}), "method", "sd").axes
    assert len(axes.lines) == lines


def test_bars_without_groups(study):
    (axes,) = show.bars(study, "method", "efficacy").axes
    assert [len(container) for container in axes.containers] == [2]
    assert axes.get_legend() is None


@pytest.mark.parametrize(("kinds", "legend"), [(3, True), (20, False)])
def test_scatter(kinds, legend):
    rng = np.random.default_rng(0)
    points = pd.DataFrame(rng.normal(size=(60, 2)), columns=["PC 1", "PC 2"])
    points["subject"] = [f"s{i % kinds}" for i in range(60)]
    figure = show.scatter(points, "PC 1", "PC 2", "subject", "PCA")
    (axes,) = figure.axes
    assert len(axes.collections) == kinds
    assert sum(len(c.get_offsets()) for c in axes.collections) == 60
    assert (axes.get_legend() is not None) == legend
    assert legend or "20 subjects, one colour each" in texts(figure)


def test_trace_map():
    rows = [
        {"layer": layer, "position": i, "token": token, "is_subject": i < 3, "restored": 0.1 * layer, "clean": 0.9,
         "corrupted": 0.05}
        for layer in range(6)
        for i, token in enumerate(TOKENS)
    ]  # fmt: skip
    figure = show.trace_map(pd.DataFrame(rows))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()][:5] == ["Jo*", "hn*", "·Smith*", "'s", "·native"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["5", "4", "3", "2", "1", "0"]
    assert axes.images[0].get_array()[0].tolist() == pytest.approx([0.5] * 7), "the last layer is on top"
    assert axes.get_title(loc="left") == "P(answer): 0.90 clean, 0.05 with noise on the subject (*)"


def test_layer_lines():
    frame = pd.DataFrame(
        [{"pair": p, "layer": layer, "flipped": layer < 2, "kept": layer > 3} for p in range(4) for layer in range(6)]
    )
    figure = show.layer_lines(frame, ["flipped", "kept"], "Interchange")
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert {"flipped", "kept", "layer", "share of pairs"} <= set(texts(figure))


@pytest.mark.parametrize("groups", [1, 3, 20])
def test_loss_curves(groups):
    losses = pd.DataFrame(
        [{"group": g, "step": s, "loss": 5 / (s + 1)} for g in range(groups) for s in range(9 - g % 3)]
    )
    figure = show.loss_curves(losses)
    (axes,) = figure.axes
    assert len(axes.lines) == 2 * groups, "each curve and its end"
    assert axes.get_yscale() == "log"
    assert any(text.startswith(f"{groups} curve") for text in texts(figure))
    assert not any("mathdefault" in text for text in texts(figure))


@pytest.mark.parametrize(("highlight", "colored"), [(2, [2]), (-1, [6]), ([0, 1, 2], [0, 1, 2])])
def test_token_strip(highlight, colored):
    figure = show.token_strip(TOKENS, highlight, "Where the key is read")
    (axes,) = figure.axes
    fills = [to_hex(box.get_facecolor()) for box in axes.patches]
    assert len(fills) == len(TOKENS)
    assert [i for i, fill in enumerate(fills) if fill == style.COLORS[1].lower()] == colored
    assert {"·Smith", "Where the key is read"} <= set(texts(figure))


def test_collision():
    tried = pd.DataFrame({"arm": ["a", "b"], "size": [10, 20], "seed": [0, 0], "efficacy": [0.9, 0.2]})
    left, right, _ = show.collision(np.eye(10), tried, ("b", 20, 0)).axes
    assert left.images[0].get_array().shape == (10, 10)
    assert left.xaxis.get_major_formatter()(0, 0) == "1", "facts are counted from 1"
    assert [c.get_offsets().tolist() for c in right.collections] == [[[10, 0.9]], [[20, 0.2]], [[20, 0.2]]]


def test_arms_keep_their_colours():
    tried = pd.DataFrame({"arm": pd.Categorical(["b"], ["a", "b"]), "size": 10, "seed": 0, "efficacy": 0.5})
    right = show.collision(np.eye(2), tried, ("b", 10, 0)).axes[1]
    assert to_hex(right.collections[1].get_facecolor()[0]) == style.COLORS[1].lower()


def test_text_is_never_read_as_mathematics():
    figure = show.token_strip(["$x", "_1$", "<b>", "%"], 0, "costs $5 or $6")
    assert "costs $5 or $6" in texts(figure)
    assert png(figure)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([1.0, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([0.0, 0.0, 0.5], [0.0, 0.1, 0.5]),
        ([0.99, 0.2, 0.98], [1.0, 0.2, 0.9]),
        ([], []),
    ],
)
def test_labels_keep_apart(ends, expected):
    assert style.spread(ends, 0.1, 0.0, 1.0) == pytest.approx(expected)


def test_before_after_of_texts():
    told = pd.DataFrame(
        {"prompt": ["<b>A</b> is", "B is"], "before": ["x", "y"], "wanted": ["u", "v"], "after": ["u", "w"]}
    )
    frame = show.before_after(told)
    assert list(frame.columns) == ["prompt", "before", "wanted", "after", "done"]
    assert list(frame["done"]) == ["yes", "no"]
    assert "<b>" not in frame._repr_html_()


def test_before_after_of_a_report():
    report = pd.DataFrame(
        {"kind": ["rewrite", "paraphrase"], "prompt": ["A is", "What is A?"], "answer": "u", "exact": 1.0,
         "nll": [0.0, 1.0], "nll_before": [np.log(4), 1.0]}
    )  # fmt: skip
    frame = show.before_after(report)
    assert frame.to_dict("records") == [{"prompt": "A is", "before": 0.25, "wanted": "u", "after": 1.0, "done": "yes"}]
    with pytest.raises(ValueError, match="pass baseline"):
        show.before_after(report.drop(columns="nll_before"))
