"""Compiled programs kept on disk, so that a second start of a run begins quickly."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from chns_jax.common.console import say

SHORTEST_SECONDS = 0.1  # to compile; JAX keeps nothing below a second unless told


def keep_compiled(folder: Path) -> None:
    """Let JAX keep what it compiles in `folder`, and read it there the next time.

    The environment variable JAX_COMPILATION_CACHE_DIR names another folder and wins. A folder that
    cannot be written is said, and everything is compiled; so it is where a kept file is broken.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"compiled programs are not kept in {folder}: {error.strerror}")
        return
    if not os.access(folder, os.W_OK):
        say(f"compiled programs are not kept in {folder}: it cannot be written")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
