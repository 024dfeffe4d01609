"""What an edit's arithmetic needs and does, on the lab model."""

import pytest

from kedit_lab.facts.sets import by_density
from kedit_lab.study.cost import stages


@pytest.mark.parametrize("stopping", [{"stop": 0.0, "steps": 4}, {}], ids=["all steps", "as shipped"])
def test_all_that_is_needed_is_done_and_little_more(lab, stopping):
    """Also with many facts and steps, where what is run once weighs little."""
    table, told = stages(lab, by_density(60), **stopping)
    blocks = table.loc[["lower blocks", "upper blocks", "head"]]
    assert (blocks["needed"] <= blocks["done"]).all()
    assert told["floor"] <= told["stands"] <= 1.2 * told["floor"]
