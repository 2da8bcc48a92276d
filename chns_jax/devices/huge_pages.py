"""Huge pages for commands that compute on CPUs.

XLA's CPU backend takes the memory of a program's intermediate values from the C library whenever
the program runs, and gives it back: the kernel has to find and zero it again for every step, which
with pages of 4 KB is a tenth to a fifth of a training step. glibc (2.35 and later) asks for pages
of 2 MB when GLIBC_TUNABLES says so as a process starts, and no later.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from chns_jax.devices.xla_flags import computes_on_cpus

TUNABLE = "glibc.malloc.hugetlb=1"
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # of Linux


def ask_for_huge_pages() -> None:
    """Replace this process by the same command with `TUNABLE` in its environment.

    Only where it makes a difference: where the kernel gives huge pages to those who ask, JAX will
    compute on CPUs, and GLIBC_TUNABLES is not set, be it to nothing. For the start of a command,
    when nothing was done yet.
    """
    if "GLIBC_TUNABLES" in os.environ or not sys.executable:
        return
    with suppress(OSError):
        if "[madvise]" in MODE.read_text() and computes_on_cpus():  # which takes longer to say
            command = [sys.executable, *sys.orig_argv[1:]]
            # Ctrl-C waits until interrupt.py is imported again: Python would show a traceback.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            os.execve(sys.executable, command, {**os.environ, "GLIBC_TUNABLES": TUNABLE})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
