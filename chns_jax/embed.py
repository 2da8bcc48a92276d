"""Embed utterances with a trained run: `python -m chns_jax.embed`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chns_jax.common.command_line import add_model, add_segments, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.runs.published import find_model

SECONDS_BETWEEN_PARTS = 30


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write the L2-normalised speaker embeddings of utterances. The same command goes on with a "
        "job that was stopped or killed; OUT.skipped.txt lists files that could not be used."
    )
    parser.add_argument(
        "inputs",
        type=str,
        nargs="+",
        help="Audio files, folders, Kaldi wav.scp, or lists of paths (.txt, .lst).",
    )
    add_model(parser)
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        help='File to write: .npz ("names", "embeddings"), or .ark or .scp for both of them.',
    )
    add_segments(parser)
    chosen = parse(parser, argv)
    chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported

    import numpy as np

    from chns_jax.common.console import say
    from chns_jax.common.files import check_file
    from chns_jax.common.prefetch import ahead
    from chns_jax.common.progress import progress_bar
    from chns_jax.corpus import skipped
    from chns_jax.corpus.audio import AudioError, read_whole
    from chns_jax.corpus.inputs import utterances
    from chns_jax.embedding import cache as embedding_cache
    from chns_jax.embedding import files as embedding_files
    from chns_jax.embedding import model
    from chns_jax.embedding.embedder import segment_samples
    from chns_jax.embedding.utterances import embed_waveforms
    from chns_jax.runs.state import sha256

    out = Path(chosen.out).expanduser()
    listed = out.with_name(f"{out.name}.skipped.txt")
    path_of = utterances(chosen.inputs)
    names = list(path_of)
    embedding_files.check(out, names)
    for path in (*embedding_files.written(out), listed):
        listed_there = path_of.values() if path.exists() else ()
        check_file(path, [*chosen.inputs, chosen.model, *listed_there])
    encoder = model.load(chosen.model, chosen.checkpoint)
    config = encoder.config
    sample_rate = config.features.sample_rate
    segment = segment_samples(encoder.embedder, sample_rate, chosen.segments)

    # Embeddings that are done, from an earlier start on.
    parts = out.with_name(f"{out.name}.partial")
    embedding_files.open_parts(
        parts, {"model": sha256(encoder.variables), "segments": chosen.segments}
    )
    embeddings = np.zeros((len(names), config.encoder.embedding), np.float32)
    done = np.zeros(len(names), bool)
    keys = [embedding_cache.key(os.path.abspath(path)) for path in path_of.values()]
    known = embedding_files.read_parts(parts, config.encoder.embedding)
    for i, file in enumerate(keys):
        if file is not None and file in known:
            embeddings[i], done[i] = known[file], True

    # The others: waveforms -> embeddings -> parts.
    why: dict[str, str] = {}
    already = int(done.sum())
    bar = progress_bar(what="embedding", unit="utterance", total=len(names), done=already)

    def read_one(i: int) -> tuple[int, np.ndarray | AudioError]:
        try:
            return i, read_whole(path_of[names[i]], sample_rate)
        except AudioError as error:
            return i, error

    def readable() -> Iterator[tuple[int, np.ndarray]]:
        for i, waveform in ahead(read_one, np.flatnonzero(~done).tolist(), config.data.threads):
            if isinstance(waveform, AudioError):
                why[waveform.path] = waveform.why
                say(f"skipped: {waveform}")
                bar.update()
            else:
                yield i, waveform

    fresh: dict[embedding_cache.Key, np.ndarray] = {}
    saved = time.monotonic()
    made = embed_waveforms(
        encoder.embedder, encoder.variables, readable(), sample_rate=sample_rate, segment=segment
    )
    try:
        for i, embedding in made:
            embeddings[i], done[i] = embedding, True
            file = keys[i]
            if file is not None:
                fresh[file] = embedding
            bar.update()
            if fresh and time.monotonic() - saved > SECONDS_BETWEEN_PARTS:
                embedding_files.add_part(parts, fresh)
                fresh, saved = {}, time.monotonic()
    finally:
        bar.close()
        if fresh:
            embedding_files.add_part(parts, fresh)
        embedding_files.close_parts(parts)

    skipped.write(listed, why)
    if not done.any():
        path, reason = min(why.items())
        raise UserError(f"none of {len(names)} files can be used: {path} {reason}")
    embedding_files.write(out, [name for i, name in enumerate(names) if done[i]], embeddings[done])
    if parts.exists():
        shutil.rmtree(parts)
    left_out = f"; {len(why)} files were skipped, which {listed} lists" if why else ""
    print(f"{done.sum()} embeddings: {out}{left_out}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
