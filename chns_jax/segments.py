"""Embed a recording window by window, and say who speaks when: `python -m chns_jax.segments`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from chns_jax.common.command_line import add_model, make_parser, parse
from chns_jax.common.errors import UserError, run
from chns_jax.common.reading import check_readable
from chns_jax.common.values import between
from chns_jax.runs.published import find_model

MOST_WINDOWS = 200_000  # of one recording: their embeddings are in memory

Seconds = Annotated[float, between(0.05, 60)]
Speakers = Literal["auto"] | Annotated[int, between(1, 100)]


def main(argv: list[str]) -> None:
    parser = make_parser(
        "Write the speaker embeddings of windows that slide over the speech of a recording, with "
        "their times; with --speakers also who speaks when, as RTTM and as a picture. Silence is "
        "left out by its level; voices that overlap are one."
    )
    parser.add_argument("file", type=str, help="An audio file, of hours if need be.")
    add_model(parser)
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help='File to write: .npz ("names", "embeddings", and "start" and "end" in seconds), or '
        "the recording's name with that extension, here, when not given. The RTTM and the picture "
        "have its name with .rttm and .png.",
    )
    parser.add_argument("--window", type=Seconds, default=1.5, help="Seconds of a window.")
    parser.add_argument("--step", type=Seconds, default=0.75, help="Seconds from one to the next.")
    parser.add_argument(
        "--speakers",
        type=Speakers | None,
        default=None,
        help='Label the windows by clustering: how many people speak, or "auto" to find that out.',
    )
    chosen = parse(parser, argv)
    chosen.model = find_model(chosen.model)  # what is wrong is said before JAX is imported
    file = check_readable(chosen.file, "an audio file")
    out = Path(chosen.out or f"{file.stem}.npz").expanduser()
    if out.suffix != ".npz":
        raise UserError(f"{chosen.out} has not the extension .npz")
    if chosen.step > chosen.window:
        raise UserError(
            f"--step {chosen.step:g} is longer than --window {chosen.window:g}, which leaves "
            "speech out: give a shorter one"
        )

    import numpy as np

    from chns_jax.common.files import check_file, without_links
    from chns_jax.common.progress import progress_bar
    from chns_jax.corpus.audio import AudioError, read_blocks
    from chns_jax.diarisation import gate, speakers, turns, windows
    from chns_jax.embedding import files as embedding_files
    from chns_jax.embedding import model
    from chns_jax.embedding.embedder import checked_samples
    from chns_jax.reports.segments_picture import segments_picture

    written = [out]
    if chosen.speakers is not None:
        written += [out.with_suffix(".rttm"), out.with_suffix(".png")]
    for path in written:
        check_file(path, [file, chosen.model])
    encoder = model.load(chosen.model, chosen.checkpoint)
    sample_rate = encoder.config.features.sample_rate
    length = checked_samples(encoder.embedder, sample_rate, chosen.window, "--window")
    step = round(chosen.step * sample_rate)

    # Twice through the file: where speech is, which depends on all of it, and then its windows.
    samples = 0

    def counted():
        nonlocal samples
        for block in read_blocks(str(file), sample_rate):
            samples += len(block)
            yield block

    try:
        levels = gate.levels(counted(), sample_rate)
        spoken = gate.speech(levels, sample_rate, samples)
        if not len(spoken):
            raise UserError(f"{file} holds no speech: nothing in it is loud for long enough")
        count = windows.count(spoken, length, step)
        if count > MOST_WINDOWS:
            raise UserError(
                f"{file} has {count:,} windows, more than {MOST_WINDOWS:,}: give a longer --step"
            )
        placed = windows.place(spoken, length, step)
        embeddings = np.zeros((count, encoder.config.encoder.embedding), np.float32)
        with progress_bar(what="embedding windows", unit="window", total=count) as bar:
            blocks = read_blocks(str(file), sample_rate)
            for places, embedded in windows.embed(encoder, blocks, placed, length):
                embeddings[places] = embedded
                bar.update(len(places))
    except AudioError as error:
        raise UserError(str(error)) from error

    start, end = placed.start / sample_rate, placed.end / sample_rate
    about = {"start": start, "end": end}
    said = ""
    if chosen.speakers is not None:
        given = None if chosen.speakers == "auto" else chosen.speakers
        about["speaker"] = labels = speakers.label(embeddings, given)
        who = turns.turns(spoken, placed, labels, sample_rate)
        turns.write_rttm(without_links(written[1]), file.stem, who)
        segments_picture(without_links(written[2]), levels, gate.threshold(levels), who)
        said = f", {labels.max() + 1} speakers in {len(who)} turns: {written[1]}, {written[2]}"
    names = [
        f"{file.stem}-{1000 * a:08.0f}-{1000 * b:08.0f}" for a, b in zip(start, end, strict=True)
    ]
    embedding_files.write(out, names, embeddings, about)
    print(f"{count} embeddings: {out}{said}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
