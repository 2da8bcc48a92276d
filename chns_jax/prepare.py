"""Pack a folder of speech into shards: `python -m chns_jax.prepare ROOT OUT`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from chns_jax.common.command_line import add_cache, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.values import PositiveInt, between


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Pack a folder of speech into ArrayRecord shards, which data.root of chns_jax.train reads "
        "in place of the folder. The same command goes on where it was stopped, and verifies what "
        "is complete."
    )
    parser.add_argument("root", type=str, help="Folder of the speech; with --verify, of shards.")
    parser.add_argument("out", type=str, nargs="?", help="Folder to write; not with --verify.")
    parser.add_argument(
        "--format",
        type=Literal["flac", "pcm16"],
        default="flac",
        help="Of a record: FLAC is half as large, raw samples are faster to read.",
    )
    parser.add_argument(
        "--shard_mb",
        type=Annotated[int, between(1, 100_000)],
        default=256,
        help="Megabytes of samples in a shard; FLAC makes it about half as large.",
    )
    parser.add_argument(
        "--sample_rate", type=PositiveInt, default=16_000, help="Hertz; others are resampled."
    )
    parser.add_argument(
        "--threads",
        type=Annotated[int, between(1, 1000)],
        default=os.cpu_count(),
        help="That decode.",
    )
    add_cache(parser)
    parser.add_argument(
        "--verify", action="store_true", help="Check every shard of ROOT, which may be a URL."
    )
    chosen = parse(parser, argv)
    if chosen.verify == (chosen.out is not None):
        raise UserError("give two folders, ROOT and OUT, or one with --verify")

    from chns_jax.corpus import shards
    from chns_jax.corpus.open import open_corpus

    if chosen.verify:
        print(shards.verify(chosen.root), file=sys.stderr)
        return
    out = _checked_out(chosen.root, chosen.out)
    shards.check_folder(out)  # what is wrong with it waits for no corpus
    corpus = open_corpus(chosen.root, chosen.cache)
    was_complete = (out / shards.INDEX).exists()
    options = shards.Options(chosen.format, chosen.sample_rate, chosen.shard_mb)
    shards.write(corpus, out, options, chosen.threads)
    if was_complete:
        print(shards.verify(out), file=sys.stderr)
        return
    packed = shards.load(out)
    print(
        f"{out} holds {len(packed)} utterances of {len(packed.speakers)} speakers, "
        f"{packed.seconds.sum() / 3600:.1f} hours",
        file=sys.stderr,
    )


def _checked_out(root: str, out: str) -> Path:
    """The folder to write. Raises UserError when it is a URL, or inside `root`, or around it."""
    from chns_jax.corpus import storage

    if storage.is_url(out):
        raise UserError(f"{out} is a URL: give a folder, and copy it there when it is complete")
    if not storage.is_url(root):
        inner, outer = (Path(os.path.realpath(os.path.expanduser(path))) for path in (out, root))
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise UserError(f"{out} and {root} lie within each other: give another folder")
    return Path(out).expanduser()


if __name__ == "__main__":
    run(main)
