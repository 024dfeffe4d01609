"""What is asked of ``load`` is looked at before anything is read or fetched."""

from pathlib import Path

import torch


def local(path: str | Path) -> str | Path:
    """A model's folder, or a name that may be one of the hub (at most one slash); a FileNotFoundError for a path that
    is no folder."""
    if isinstance(path, str) and not path.startswith((".", "~", "/")) and path.count("/") < 2:
        return path
    found = Path(path).expanduser()
    if not found.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; give a model's folder, or its name on the hub")
    return found


def usable(device: str | torch.device) -> torch.device:
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
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; give a dtype of torch, such as torch.bfloat16, or 'auto'")
    return found
