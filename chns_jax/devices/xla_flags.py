"""A flag that XLA's CPU backend needs to compute right."""

from __future__ import annotations

import os
from importlib.metadata import version

# From 0.10.2 on, jaxlib hands sums and products to YNNPACK, which on several threads now and then
# answers wrongly (jax issues 39103 and 39741). An unknown flag would end the process, so that no
# release is given it which was not looked at.
WRONG = ("0.10.2", "0.11.0")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_sums() -> None:
    """Keep XLA from YNNPACK on CPUs, unless XLA_FLAGS says which fusions it may make.

    Works until JAX has computed something.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") in WRONG and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
