"""Configs that come with the package: by name where it is installed, and in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

from chns_jax.common.errors import UserError, shortened

CONFIG, STUDY = ".yaml", ".study.yaml"


def find(given: str, ending: str = CONFIG) -> str:
    """The file that is given, or else that of the package which has the name, such as "lab/folder".

    Raises UserError for a word that is neither; what is wrong with a path, reading it will say.
    """
    path = os.path.expanduser(given)
    named = {} if os.path.isfile(path) else names(ending)
    if given in named:
        return str(named[given])
    if named and given and not os.path.exists(path) and "." not in given and "/" not in given:
        raise UserError(f"{shortened(given)} is neither a file nor one of {', '.join(named)}")
    return given


def names(ending: str = CONFIG) -> dict[str, Path]:
    """What there is, by name."""
    package = Path(__file__).parents[1]
    # A wheel has them inside; a checkout, which may be installed as it is, beside.
    folder = next(at for at in (package / "configs", package.parent / "configs") if at.is_dir())
    files = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    kinds = {path: STUDY if path.name.endswith(STUDY) else CONFIG for path in files}
    return {
        path.relative_to(folder).as_posix().removesuffix(ending): path
        for path, kind in kinds.items()
        if kind == ending
    }
