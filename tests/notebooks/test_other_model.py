"""Notebook 11 on a model that no recipe was tuned for: one line is changed, as its text says, and it runs through."""

import nbformat
import torch
from nbclient import NotebookClient
from transformers import AutoConfig, AutoModelForCausalLM

from kedit_lab.paths import data_dir

NOTEBOOK = data_dir().parent / "notebooks" / "11_your_own_model.ipynb"


def deeper(lab, folder):
    """The lab model with one more block that writes nothing, in a folder: it knows the same, its shape is unknown."""
    config = AutoConfig.from_pretrained(data_dir() / "lab-model")
    config.num_hidden_layers += 1
    config.layer_types = [*config.layer_types, config.layer_types[-1]]
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(lab.model.state_dict(), strict=False)
    added = model.model.layers[-1]
    with torch.no_grad():
        added.self_attn.o_proj.weight.zero_()
        added.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    lab.tokenizer.save_pretrained(folder)
    return folder


def test_notebook_11_runs_on_another_model(lab, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "MODEL = None" in cell.source)
    cell.source = cell.source.replace("MODEL = None", f"MODEL = {str(deeper(lab, tmp_path / 'deeper'))!r}")
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "said as claimed: 0 of 6" in said  # it asked about Einstein, not about the lab world
    assert "the exported model says the same: True" in said
    assert "the model in memory is untouched: True" in said
