"""Compare two recordings with a trained run: `python -m chns_jax.verify`."""

from __future__ import annotations

import json
from pathlib import Path

from chns_jax.command_line import make_parser, parse
from chns_jax.errors import run


def similarity(run_folder: str | Path, one: str | Path, other: str | Path) -> float:
    """Cosine, -1 to 1, of the embeddings of two files: higher for the same speaker.

    Raises UserError when a file cannot be read or the folder is no run.
    """
    import numpy as np

    from chns_jax import model
    from chns_jax.corpus.index import of_files
    from chns_jax.embed import embed_utterances
    from chns_jax.sampling.pipeline import Reader

    corpus = of_files([one, other])
    encoder = model.load(run_folder)
    config = encoder.config
    embeddings = embed_utterances(
        encoder.encode,
        encoder.variables,
        Reader(corpus, config.features.sample_rate, config.data.threads),
        np.arange(2),
        samples=config.segment_samples,
    )
    return float(embeddings[0] @ embeddings[1])


def main(argv: list[str]) -> None:
    parser = make_parser("Print the cosine of the speaker embeddings of two recordings.")
    parser.add_argument("one", type=str, help="An audio file.")
    parser.add_argument("other", type=str, help="Another one.")
    parser.add_argument("--model", type=str, required=True, help="Run folder of chns_jax.train.")
    chosen = parse(parser, argv)
    print(json.dumps({"cosine": similarity(chosen.model, chosen.one, chosen.other)}))


if __name__ == "__main__":
    run(main)
