"""A flag that XLA's CPU backend needs to compute right, and options with which it compiles soon.

jaxlib, the plugins of GPUs and libtpu each hold an XLA of their own, and each of them that starts
reads XLA_FLAGS and ends the process at a flag that it does not know. So the flag is set where no
other than jaxlib's can start, or all that can know it. Elsewhere CPUs keep their wrong sums: a
machine with an accelerator computes on that, and JAX_PLATFORMS=cpu is what keeps it from it.
"""

from __future__ import annotations

import os
from collections.abc import Set
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

# From 0.10.2 on, jaxlib hands sums and products to YNNPACK, which on several threads now and then
# answers wrongly (jax issues 39103 and 39741). An unknown flag would end the process, so that no
# release is given it which was not looked at.
WRONG = ("0.10.2", "0.11.0")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
TWO_EMITTERS = "0.10."  # of jaxlib
# Releases beside jaxlib's that were seen to hold the flag: those that JAX 0.10.2 asks for.
KNOWING = {("jax-cuda12-pjrt", "0.10.2"), ("jax-cuda13-pjrt", "0.10.2"), ("libtpu", "0.0.42.1")}


def avoid_wrong_sums() -> None:
    """Keep XLA from YNNPACK on CPUs, unless XLA_FLAGS says which fusions it may make.

    Works until JAX has computed something.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib") in WRONG and FLAG not in flags and _none_but(KNOWING):
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()


def quick_to_compile() -> dict[str, bool | int | float | str]:
    """Options of the CPU's compiler for programs that run a few times: no optimisations of LLVM's,
    and the emitters of XLA that compile soonest where there are two kinds."""
    options: dict[str, bool | int | float | str] = {"xla_backend_optimization_level": 0}
    if version("jaxlib").startswith(TWO_EMITTERS):  # an option that a release lacks is an error
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def computes_on_cpus() -> bool:
    """Whether JAX will compute on CPUs: it is told to, or nothing else is installed."""
    return _none_but(set())


def _none_but(accelerators: Set[tuple[str, str | None]]) -> bool:
    """Whether JAX can start nothing besides CPUs but these, by name and release."""
    if os.environ.get("JAX_PLATFORMS", "").strip() == "cpu":
        return True
    return "TPU_LIBRARY_PATH" not in os.environ and _accelerators() <= accelerators


def _accelerators() -> set[tuple[str, str | None]]:
    """Name and release of all that JAX may start beside jaxlib, found as JAX finds it."""
    plugins: set[tuple[str, str | None]] = {
        (point.dist.name, point.dist.version) if point.dist else (point.name, None)
        for point in entry_points(group="jax_plugins")
    }
    if not plugins and find_spec("jax_plugins") is not None:
        plugins = {("jax_plugins", None)}
    if find_spec("libtpu") is None:
        return plugins
    try:
        return plugins | {("libtpu", version("libtpu"))}
    except PackageNotFoundError:
        return plugins | {("libtpu", None)}
