"""What checks shapes and types at every call while tests run: beartype, told what numbers are.

`python -m pytest --jaxtyping-packages=chns_jax,shape_checker.check tests/test_augment.py`
"""

import beartype
from jsonargparse import typing as bounded

NUMBERS = {
    getattr(bounded, f"{bounds}{name}"): number
    for name, number in {"Int": int, "Float": float, "UnitInterval": float}.items()
    for bounds in ("Positive", "NonNegative", "Open", "Closed")
    if hasattr(bounded, f"{bounds}{name}")
}

check = beartype.beartype(
    conf=beartype.BeartypeConf(
        is_pep484_tower=True,  # an int is a float
        hint_overrides=beartype.FrozenDict(NUMBERS),  # a config is checked when it is read
    )
)
