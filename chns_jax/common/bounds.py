"""Numbers within bounds, which jsonargparse checks; plain numbers to those who check types."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from builtins import float as ClosedUnitInterval
    from builtins import float as NonNegativeFloat
    from builtins import float as OpenUnitInterval
    from builtins import float as PositiveFloat
    from builtins import int as NonNegativeInt
    from builtins import int as PositiveInt
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        OpenUnitInterval,
        PositiveFloat,
        PositiveInt,
    )

__all__ = [
    "ClosedUnitInterval",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFloat",
    "PositiveInt",
]
