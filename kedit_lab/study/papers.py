"""The papers' printed numbers, to be laid beside the lab's: data/papers/numbers.csv, one row per number.

Papers: ``memit-merge`` (MEMIT-Merge), ``s2rke`` (S2RKE), ``eamet`` (EAMET), ``mm4ke`` (R-SFT and model merging),
``seqmmr`` (SeqMMR). Numbers stand as printed, with their ``unit`` (fraction or percent). The papers' names for one
thing are brought to one word (Succ, Rewrite: efficacy; Gen: paraphrase; Spe, Loc: specificity), but each paper measures
it in its own way: compare shapes, not digits. "unstated" marks what the paper, as recorded here, does not say.
"""

import pandas as pd

from kedit_lab.paths import data_dir


def numbers() -> pd.DataFrame:
    """Every recorded number: ``paper, item, model, method, dataset, setting, metric, value, unit``."""
    texts = ["paper", "item", "model", "method", "dataset", "setting", "metric", "unit"]
    return pd.read_csv(data_dir() / "papers" / "numbers.csv", dtype=dict.fromkeys(texts, str), keep_default_na=False)


def paper(name: str, table: int | str | None = None, figure: int | str | None = None) -> pd.DataFrame:
    """The recorded numbers of a paper, or of one of its tables or figures: ``paper("memit-merge", table=1)``.

    Raises ValueError for an unknown paper, table or figure, and lists those that exist.
    """
    frame = numbers()
    if name not in set(frame["paper"]):
        raise ValueError(f"unknown paper {name!r}; the papers are {', '.join(frame['paper'].unique())}")
    frame = frame[frame["paper"] == name]
    if table is not None and figure is not None:
        raise ValueError(f"table={table!r} and figure={figure!r} are both given; ask for one of them")
    if table is not None or figure is not None:
        item = f"Table {table}" if figure is None else f"Fig. {figure}"
        if item not in set(frame["item"]):
            raise ValueError(f"{name} has no recorded {item}; there are {', '.join(frame['item'].unique())}")
        frame = frame[frame["item"] == item]
    return frame.reset_index(drop=True)
