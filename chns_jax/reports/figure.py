"""Figures of matplotlib that are drawn into files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """matplotlib's Figure with these options. What the environment names to show figures with is
    not needed, and may not be there."""
    named = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    return Figure(**options)
