"""What is asked of ``load`` is looked at before anything is read or fetched, and what is read before it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from kedit_lab.model.arch import CODES, EDITABLE

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # what accelerate may be told instead of devices


def local(path: str | Path) -> str | Path:
    """A model's folder, or a name that may be one of the hub (at most one slash); a FileNotFoundError for a path that
    is no folder, a ValueError for what is no path, and for an adapter's folder."""
    if not isinstance(path, str | Path):
        raise ValueError(
            f"path is a {type(path).__name__}; give a folder or a name (a loaded model goes into "
            "kl.wrap(model, tokenizer))"
        )
    found = Path(path).expanduser()
    if (found / "adapter_config.json").exists():
        raise ValueError(
            f"{found} holds a peft adapter; merge it into its model, PeftModel.from_pretrained(base, {str(found)!r})"
            ".merge_and_unload(), and give that to kl.wrap(model, tokenizer)"
        )
    if isinstance(path, str) and not path.startswith((".", "~", "/")) and path.count("/") < 2:
        return path
    if not found.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; give a model's folder, or its name on the hub")
    return found


def checkpoint(path: str | Path, dtype: str | torch.dtype, options: dict[str, Any], placed: dict[str, Any]) -> Any:
    """A causal language model from its safetensors. Raises ValueError where its configuration tells that its weights
    are codes or those of an encoder-decoder, and for files that are damaged or lack weights."""
    config = AutoConfig.from_pretrained(path, **options)
    told = getattr(config, "quantization_config", None)
    if told:
        method = told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", None)
        raise ValueError(f"{path} is quantised ({getattr(method, 'value', method) or 'unknown method'}): {CODES}")
    if getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise ValueError(
            f"{path} is an encoder-decoder ({config.model_type}); kedit-lab edits decoder-only transformers"
        )
    adapter = {"adapter_kwargs": {"local_files_only": options["local_files_only"]}}  # transformers looks for adapters
    how = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, **how, **options, **placed, **adapter)
    except SafetensorError as error:
        raise ValueError(f"the weights of {path} cannot be read ({error}); fetch or save the model again") from error
    complete(path, found)
    return model


def complete(path: str | Path, told: Mapping[str, Any]) -> None:
    """A ValueError where a checkpoint lacks weights, or has them of other sizes: they would be random."""
    if told["missing_keys"]:
        first, *more = sorted(told["missing_keys"])
        raise ValueError(
            f"{path} lacks {1 + len(more)} of the model's weights, {first} the first, which would be random; fetch or "
            "save a whole causal language model"
        )
    for name, saved, wanted in sorted(told["mismatched_keys"]):
        raise ValueError(
            f"{name} of {path} is of size {tuple(saved)}, and config.json asks for {tuple(wanted)}; fetch or save both "
            "again"
        )


def placed(device_map: str | dict[str, Any] | None) -> dict[str, Any]:
    """What transformers is told of devices; a ValueError for one that this machine does not have."""
    if device_map is None:
        return {}
    named = device_map.values() if isinstance(device_map, dict) else [device_map]
    for device in set(named) - {*SPREAD, "disk"}:
        usable(device)
    return {"device_map": device_map}


def usable(device: str | int | torch.device) -> torch.device:
    """A device; a ValueError for one that this machine does not have."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device is {str(device)!r}, which cannot be used here ({error}); give cpu, say") from error


def known(dtype: str | torch.dtype) -> str | torch.dtype:
    """A dtype of torch, or one by name, or "auto" as it is; a ValueError for anything else."""
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in EDITABLE:
        names = ", ".join(map(str, EDITABLE))
        raise ValueError(
            f"dtype is {dtype!r}; give a dtype of torch that weights can be edited in ({names}), or 'auto'"
        )
    return found
