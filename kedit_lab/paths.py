"""Where the committed data lies."""

from pathlib import Path


def data_dir() -> Path:
    """The folder ``data``: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "_data"
    return inside if inside.is_dir() else package.parent / "data"
