"""Files that are complete or not there: written beside, then renamed."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chns_jax.common.errors import UserError

UNFINISHED = ".chns_jax"  # no file of the user's ends so
DEVICES = ("/dev/", "/proc/", "/sys/")  # where names such as /dev/stdout may lead to files
# What no output takes the place of in a folder that is read: a run's, Kaldi's, one of shards.
IN_FOLDERS = (
    "config.yaml", "metrics.jsonl", "summary.json", "calibration.json", "training.png",
    "skipped.txt", "model.safetensors", "wav.scp", "utt2spk", "spk2utt", "utt2dur", "index.npz",
)  # fmt: skip
FOLDERS_OF_A_RUN = ("checkpoints", "tables", "tensorboard")
# Nor anywhere in it.
OF_SPEECH = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".array_record")


@contextmanager
def replacing(path: Path | str, mode: str = "w", *, new: bool = False) -> Iterator[IO]:
    """A file to write to, which takes the place of `path` when the block ends without an error.

    A `new` one takes nobody's place: raises FileExistsError where there is a file by then.
    """
    path = Path(os.path.expanduser(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    # File names may hold bytes that are no UTF-8; they are written as they are.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "surrogateescape")
    try:
        # "x" follows no link, and opens nothing that is there already.
        exclusive = mode.replace("w", "x")
        with _named(path):
            opened = open(beside, exclusive, encoding=encoding, errors=errors)
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            path.touch(exist_ok=False)
        with _named(path):
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file beside name the one that is asked for, which its user knows."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def check_new(path: Path) -> None:
    """Raises UserError when there is something of that name, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists, and is not overwritten: give another name")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside, which becomes `folder` when the block ends without an error. Raises
    UserError as `check_new`."""
    folder = folder.expanduser().absolute()
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _named(folder):
        temporary = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.")
    with temporary as beside:
        made = Path(beside) / folder.name
        made.mkdir()
        yield made
        made.rename(folder)


def check_file(path: Path | str, others: Iterable[Path | str | None] = ()) -> None:
    """Raises UserError when no file can be written to `path` or what it leads to, when that is a
    run's own file, or when `check_spares` does; makes its folder."""
    check_spares(path, others)
    ends, path = os.fspath(path)[-1:], Path(os.path.expanduser(path))
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if ends == "/":
        raise UserError(f"{path}/ is the name of a folder: give that of a file")
    there = Path(without_links(path))
    if there.is_symlink():  # a circle of them
        raise UserError(f"{path} is a link that leads nowhere: give another name")
    if (
        _is_device(os.path.abspath(path))
        or _is_device(str(there))
        or (path.exists() and not path.is_file())
    ):
        raise UserError(f"{path} is a device or the like, not a file: give another name")
    for folder in there.parents:
        if is_run(folder) and _is_read(str(there), str(folder)):
            raise UserError(f"{path} is the place of a run's own files: give another name")
    check_place(there, shown=path)


def check_place(path: Path, shown: Path | None = None) -> None:
    """Raises UserError, about the `shown` name, when no file can be written beside `path`, whose
    folder is made."""
    shown = shown or path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(path)
        beside.touch(exist_ok=False)
        beside.unlink()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{shown.parent} is not a folder: give another name") from None
    except OSError as error:
        raise UserError(
            f"{shown} cannot be written: {error.strerror}: give another name, or the right to it"
        ) from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, be it without anything learnt."""
    return os.path.isdir(folder / "checkpoints") and os.path.isfile(folder / "config.yaml")


def check_spares(path: Path | str, others: Iterable[Path | str | None]) -> None:
    """Raises UserError when `path` is one of the other files of a command, or one that is read of
    those that are folders; None is a file that was not given."""
    real = without_links(path)
    there = os.path.exists(real)
    for other in others:
        if other is None:
            continue
        given = os.path.expanduser(other)
        if there and os.path.exists(given):
            same = os.path.samefile(real, given)
        else:
            same = not there and not os.path.exists(given) and real == without_links(given)
        if same or (os.path.isdir(given) and _is_read(real, given)):
            raise UserError(
                f"{path} is read or written for something else, which it would overwrite: give "
                "another name"
            )


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` left in `folder` when it was killed, but not what others of this
    machine are writing."""
    for leftover in folder.glob(f".*{UNFINISHED}"):
        if not _is_being_written(leftover):
            leftover.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Where `replacing` writes: a name that nobody can foresee."""
    # Of two hosts that share the folder, the processes may have one number.
    process = f"{socket.gethostname()}.{os.getpid()}"
    return path.with_name(f".{path.name}.{process}.{secrets.token_hex(8)}{UNFINISHED}")


def _is_read(real: str, folder: str) -> bool:
    """Whether the file `real` is one that is read of a folder, or in its place."""
    inside = os.path.relpath(real, os.path.realpath(folder)).split(os.sep)
    if inside[0] == os.pardir:
        return False
    return (
        inside[0] in FOLDERS_OF_A_RUN
        or (len(inside) == 1 and inside[0] in IN_FOLDERS)
        or os.path.splitext(real)[1].lower() in OF_SPEECH
    )


def _is_being_written(beside: Path) -> bool:
    """Whether another process of this machine lives that `_beside` named the file for."""
    named = beside.name.removesuffix(UNFINISHED).rpartition(".")[0]
    name, _, process = named.rpartition(".")
    here = name.endswith(f".{socket.gethostname()}") and process.isdecimal()
    if not here or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


def without_links(path: Path | str) -> str:
    """Where an output that a user names is written, so that a link to it stays one."""
    return os.path.realpath(os.path.expanduser(path))


def _is_device(path: str) -> bool:
    return path.startswith(DEVICES) and not path.startswith("/dev/shm/")  # of files in memory
