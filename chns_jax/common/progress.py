"""Progress bars."""

from __future__ import annotations

import os

from chns_jax.common.errors import UserError

try:
    from tqdm import tqdm
except ValueError as error:  # tqdm reads its defaults from the environment when it is imported
    names = ", ".join(sorted(name for name in os.environ if name.startswith("TQDM_")))
    raise UserError(f"{names} in the environment: {error}: give a number, or unset it") from error

__all__ = ["tqdm"]
