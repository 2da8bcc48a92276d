"""Files of embeddings: .npz, Kaldi's .ark with .scp, and the parts of a job that goes on later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.files import UNFINISHED, remove_leftovers, replacing, without_links
from chns_jax.embedding import cache as embedding_cache
from chns_jax.embedding.cache import Key

EXTENSIONS = (".npz", ".ark", ".scp")
JOB, PARTS = "job.json", "part-*.npz"  # in the folder of parts


def check(path: Path, names: Sequence[str]) -> None:
    """Raises UserError where embeddings of these names cannot be written to `path`."""
    if path.suffix not in EXTENSIONS:
        raise UserError(f"{path} has none of the extensions {', '.join(EXTENSIONS)}")
    if path.suffix == ".npz":
        return
    try:
        import kaldiio  # noqa: F401
    except ImportError:
        raise UserError(
            f'{path} is written by kaldiio: pip install "chns_jax[kaldi]", or write .npz'
        ) from None
    for name in names:
        if name.split() != [name] or not name.isprintable():
            raise UserError(
                f"Kaldi's files cannot hold the name {name!r}: rename the file, give a wav.scp, "
                "or write .npz"
            )


def written(path: Path) -> tuple[Path, ...]:
    """The files that `write` makes."""
    if path.suffix == ".npz":
        return (path,)
    return path.with_suffix(".ark"), path.with_suffix(".scp")


def write(
    path: Path,
    names: Sequence[str],
    embeddings: np.ndarray,
    about: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write embeddings (n, d): .npz with `names`, `embeddings` and what is known `about` them, each
    (n,), by name; or the pair .ark and .scp, which hold nothing of that.

    Each file is complete or not there.
    """
    if path.suffix == ".npz":
        with replacing(without_links(path), "wb") as file:
            arrays = {
                "names": np.array(names, dtype=str),
                "embeddings": embeddings,
                **(about or {}),
            }
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return
    import kaldiio

    (ark, scp), lines = written(path), []
    with replacing(without_links(ark), "wb") as file:
        for name, embedding in zip(names, embeddings, strict=True):
            lines.append(f"{name} {ark}:{file.tell() + len(name.encode()) + 1}\n")
            kaldiio.save_ark(file, {name: embedding})
    with replacing(without_links(scp)) as file:
        file.writelines(lines)


def open_parts(folder: Path, job: dict[str, Any]) -> None:
    """Make `folder` for the parts of a job. Raises UserError when it holds those of another or
    anything else, or is a link: the folder is removed at the end."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: remove it, or give another --out")
    about, text = folder / JOB, json.dumps(job)
    for path in folder.glob("*"):
        if not (path.name == JOB or path.match(PARTS) or path.name.endswith(UNFINISHED)):
            raise UserError(
                f"{folder} is where parts of the embeddings are kept, and holds {path.name}: move "
                "that away, or give another --out"
            )
    if about.exists() and not about.is_file():
        raise UserError(f"{about} is no regular file: remove it")
    if about.exists() and about.read_text(encoding="utf-8", errors="replace") != text:
        raise UserError(
            f"{folder} holds embeddings of another model or other --segments: remove it, or give "
            "another --out"
        )
    with replacing(about) as file:
        file.write(text)
    remove_leftovers(folder)


def add_part(folder: Path, done: dict[Key, np.ndarray]) -> None:
    """Keep embeddings (d,) that are done, by the files that they are of."""
    number = sum(1 for _ in folder.glob(PARTS))
    embedding_cache.save(folder / f"part-{number:06d}.npz", done)


def read_parts(folder: Path, dimension: int) -> dict[Key, np.ndarray]:
    """The embeddings (d,) of all parts."""
    done = {}
    for path in sorted(folder.glob(PARTS)):
        done |= embedding_cache.load(path, dimension)
    return done


def close_parts(folder: Path) -> None:
    """Remove `folder` where nothing is done."""
    if not any(folder.glob(PARTS)):
        shutil.rmtree(folder)
