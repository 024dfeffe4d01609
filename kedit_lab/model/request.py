"""What is asked of ``load`` is looked at before anything is read or fetched."""

from pathlib import Path

import torch


def check_request(path: str | Path, dtype: torch.dtype, device: str | torch.device) -> None:
    """Raise a FileNotFoundError for a path that is no folder (a name with at most one slash may be one of the hub), a
    ValueError for what is no dtype and for a device that this machine does not have."""
    local = isinstance(path, Path) or str(path).startswith((".", "~", "/")) or str(path).count("/") > 1
    if local and not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path}; give a model's folder, or its name on the hub")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; give a dtype of torch, such as torch.bfloat16")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device is {str(device)!r}, which cannot be used here ({error}); give cpu, say") from error
