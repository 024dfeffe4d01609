"""Tables that notebooks and the panel show: plain DataFrames, which are displayed escaped, and their text as text."""

import numpy as np
import pandas as pd

# Prices and the like are no mathematics: else JupyterLab's MathJax typesets what stands between two $ of a table.
pd.set_option("display.html.use_mathjax", False)


def before_after(report: pd.DataFrame) -> pd.DataFrame:
    """What an edit did, one row per edited prompt: ``prompt``, ``before``, ``wanted``, ``after``, ``done``.

    Takes a table that has these texts already, or a report with a baseline: then ``before`` and ``after`` are the
    probabilities of the wanted object (geometric mean over its tokens). A plain table, which notebooks show escaped.
    """
    if {"prompt", "before", "wanted", "after"} <= set(report.columns):
        frame = pd.DataFrame(report[["prompt", "before", "wanted", "after"]])
        done = report["done"] if "done" in report else frame["wanted"] == frame["after"]
    elif "nll_before" in report:
        rows = report[report["kind"] == "rewrite"]
        chance = {
            when: np.exp(-rows[column].astype(float)).round(2)
            for when, column in (("before", "nll_before"), ("after", "nll"))
        }
        frame = pd.DataFrame(
            {"prompt": rows["prompt"], "before": chance["before"], "wanted": rows["answer"], "after": chance["after"]}
        )
        done = rows["exact"] == 1
    else:
        raise ValueError("the report has no baseline; pass baseline=kl.evaluate(lab, facts) from before the edit")
    return frame.assign(done=np.where(done, "yes", "no")).reset_index(drop=True)
