"""Several hosts that train one run together, by JAX's runtime: each is a process, the first is 0.

With one host, nothing here talks to anybody. Everything that the hosts do together they do in the
same order, or they wait for each other in vain.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from chns_jax.common.console import be_silent
from chns_jax.common.errors import UserError, leave
from chns_jax.config import Hosts
from chns_jax.devices.sharding import put, replicated

LAST_WORDS = 3.0  # seconds that host 0, whose end ends all, leaves the others to say what is wrong
LONGEST_ENDING = 3600  # seconds that the others wait for host 0 to write the summary
SEEN_WITHIN = 60.0  # seconds after which a network file system shows a new file everywhere
# What JAX calls its errors when a host that takes part in a sum or a barrier is gone.
LOST = ("Gloo", "NCCL", "CoordinationService", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")


@contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Join the other hosts, if there are any; before anything uses a device.

    An error on one host ends its process at once, with status 2 for a UserError: the others, whom
    it may keep waiting, end when they lose it, by their connections or by `hosts.heartbeat`.
    """
    if not hosts.several:
        yield
        return
    explain_aborts()
    try:
        _initialize(hosts)
    except UserError as error:
        leave(error)
    if not is_first():
        be_silent()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        lost = not isinstance(error, UserError) and any(word in str(error) for word in LOST)
        said = _lost(_first_line(error)) if lost else error
        leave(said, patience=LAST_WORDS if is_first() else 0)


def explain_aborts() -> None:
    """Let an abort, by which JAX ends a process that loses host 0, be said in a sentence: one that
    follows JAX's own stack trace.

    A handler in Python may wait for ever for the lock that some thread holds. So the handler is
    C's: it tells a thread by a pipe, and sleeps for 6 seconds, the number of the signal, after
    which the process is aborted if that thread could not end it.
    """
    reading, writing = os.pipe()

    def explain() -> None:
        said = b""
        while b"Aborted" not in said:
            said += os.read(reading, 1 << 16)
        leave(_lost("JAX says above how it found out"))

    Thread(target=explain, daemon=True).start()
    libc = ctypes.CDLL(None)
    faulthandler.disable()
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    faulthandler.enable(writing, all_threads=False)  # then goes on to the handler before it


def is_first() -> bool:
    """Whether this is host 0, which alone writes the logs and all files of a run but checkpoints.

    Of the only host it is true.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def own_file(path: Path) -> Path:
    """The name of a file of which every host writes one: that of host 0 is `path` itself."""
    if is_first():
        return path
    return path.with_name(f"{path.stem}_host{jax.process_index()}{path.suffix}")


def barrier(what: str) -> None:
    """Wait until all hosts have come to this place, which `what` names."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def broadcast(arrays: Any) -> Any:
    """Host 0's arrays, a tree of them, on every host; all hosts give some of the same shapes."""
    return multihost_utils.broadcast_one_to_all(arrays)


def check_same(digest: str, what: str, key: str) -> None:
    """Raises UserError where host 0 has another hexadecimal digest of `what`, which `key` names."""
    if not jax.distributed.is_initialized():
        return
    mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
    if not np.array_equal(mine, broadcast(mine)):
        raise UserError(
            f"host {jax.process_index()} has other {what} than host 0: give all hosts the same "
            f"files as {key}"
        )


def check_seen(path: Path) -> None:
    """Raises UserError when a file that host 0 has written is not seen here."""
    until = time.monotonic() + SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"host {jax.process_index()} does not see {path}, which host 0 has written: "
                "give an --out on a file system that all hosts share"
            )
        time.sleep(1)


class Agreement:
    """agreement(signals): the number of a signal that some host caught, 0 when none did.

    To be called by all hosts after each step. It answers with what the hosts knew one step before,
    so that the device need not wait; all get the same answer at the same step. The only host gets
    its own at once.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.highest = jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))
        self.before = 0

    def __call__(self, signals: list[int]) -> int:
        number = signals[0] if signals else 0
        if not jax.distributed.is_initialized():
            return number
        mine = np.full(len(self.mesh.local_devices), number, np.int32)
        before, self.before = self.before, self.highest(put(self.mesh, mine))
        return int(before)


def _initialize(hosts: Hosts) -> None:
    where = hosts.coordinator or "the coordinator that JAX detects"

    def give_up() -> None:  # JAX's own timeout aborts with a stack trace
        sentence = (
            f"the other hosts were not there within hosts.timeout {hosts.timeout} seconds: start "
            "the same command on all of them, each with a hosts.index of its own, and see whether "
            f"they reach {where}"
        )
        leave(UserError(sentence))

    timer = Timer(hosts.timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.count,
            hosts.index,
            cluster_detection_method=None if hosts.detect else "deactivate",
            initialization_timeout=hosts.timeout + 60,
            heartbeat_timeout_seconds=hosts.heartbeat,
            shutdown_timeout_seconds=LONGEST_ENDING,
        )
    except ValueError as error:
        raise UserError(
            "hosts.detect finds no cluster that JAX knows: give hosts.coordinator, hosts.count and "
            "hosts.index"
        ) from error
    except RuntimeError as error:
        raise UserError(f"the hosts cannot meet at {where}: {_first_line(error)}") from error
    finally:
        timer.cancel()
    # JAX takes SIGTERM for a notice of preemption from here on, and would not end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _lost(how: str) -> UserError:
    return UserError(
        "another host has stopped, cannot be reached or was given the hosts.index of this one "
        f"({how}): see what it says, and run the same command on all hosts to go on"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
