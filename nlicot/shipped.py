"""Files that come with nlicot: configs and the sample data, at the top of a clone or inside the package.

`pyproject.toml` puts `configs/` and `data/sample/` of the repository into an installed package as
`nlicot/shipped/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "shipped"
CONFIGS = _INSTALLED / "configs" if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
SAMPLE = _INSTALLED / "sample" if _INSTALLED.is_dir() else _PACKAGE.parent / "data" / "sample"
RECIPE = CONFIGS / "recipe.yaml"
TEACHER_RECIPE = CONFIGS / "teacher.yaml"


def find_config(path: Path) -> Path:
    """Return the file itself if it exists, else the shipped one of the same name under `configs/`."""
    path = path.expanduser()
    if not path.exists() and path.parts[:1] == ("configs",):
        shipped = CONFIGS.joinpath(*path.parts[1:])
        if shipped.exists():
            return shipped
    return path
