"""A trained run as a Python object: speech in, speaker embeddings out."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from chns_jax import model
from chns_jax.corpus.audio import AudioError, read_whole, to_int16
from chns_jax.embedding import embed_waveforms
from chns_jax.errors import UserError
from chns_jax.model import Model
from chns_jax.threads import ahead

LARGEST_FLOAT = 16.0  # full scale is 1, which sums and filters exceed
Speech = np.ndarray | str | PathLike


@dataclass(frozen=True)
class SpeakerEncoder:
    """Embeds recordings and compares them: `SpeakerEncoder.load("runs/chns").embed("a.wav")`.

    A recording is an audio file, or a waveform with its `sample_rate`: (s,) or (s, channels), int16
    or float in [-1, 1]. Channels are averaged, and other rates than the model's are resampled.
    Raises UserError for what is no speech: a file that cannot be read, NaN, no samples.
    """

    model: Model

    @classmethod
    def load(cls, run: str | Path, checkpoint: str = "last") -> SpeakerEncoder:
        """The encoder of a run folder; `checkpoint` is "last", "best" (lowest EER) or a step."""
        return cls(model.load(run, checkpoint))

    def embed(self, speech: Speech | list[Speech], *, sample_rate: int | None = None) -> np.ndarray:
        """L2-normalised embedding (d,) float32 of a recording, or (n, d) of a list of them.

        A recording's embedding does not depend on what else is in the list.
        """
        if not isinstance(speech, list | tuple):
            return self.embed([speech], sample_rate=sample_rate)[0]
        config, encode, variables = self.model.config, self.model.encode, self.model.variables
        rate = config.features.sample_rate

        def waveform(i: int) -> tuple[int, np.ndarray]:
            return i, _waveform(speech[i], sample_rate, rate)

        waveforms = ahead(waveform, range(len(speech)), config.data.threads)
        embeddings = np.zeros((len(speech), config.encoder.embedding), np.float32)
        for i, embedding in embed_waveforms(encode, variables, waveforms, sample_rate=rate):
            embeddings[i] = embedding
        return embeddings

    def similarity(self, one: Speech, other: Speech, *, sample_rate: int | None = None) -> float:
        """Cosine, -1 to 1, of the embeddings of two recordings: higher for the same speaker."""
        embeddings = self.embed([one, other], sample_rate=sample_rate)
        return float(embeddings[0] @ embeddings[1])


def _waveform(speech: Speech, rate: int | None, sample_rate: int) -> np.ndarray:
    """(s,) int16 at `sample_rate`, of a file or of a waveform at `rate`."""
    if isinstance(speech, str | PathLike):
        try:
            return read_whole(str(speech), sample_rate)
        except AudioError as error:
            raise UserError(str(error)) from error
    if not isinstance(speech, np.ndarray):
        raise UserError(f"a recording is a path or a NumPy array, not a {type(speech).__name__}")
    if rate is None:
        raise UserError("a waveform needs its sample_rate, in hertz")
    if rate <= 0:
        raise UserError(f"sample_rate {rate} is no rate in hertz")
    is_float = np.issubdtype(speech.dtype, np.floating)
    if not (is_float or speech.dtype == np.int16):
        raise UserError(f"a waveform is float in [-1, 1] or int16, not {speech.dtype}")
    block = speech[:, None] if speech.ndim == 1 else speech
    if block.ndim != 2 or block.shape[1] > max(1, len(block)):
        raise UserError(f"a waveform has the shape (s,) or (s, channels), not {speech.shape}")
    if block.size == 0:
        raise UserError("the waveform holds no samples")
    if is_float and not np.isfinite(block).all():
        raise UserError("the waveform holds NaN or infinity")
    if is_float and np.abs(block).max() > LARGEST_FLOAT:
        raise UserError("the waveform is far from [-1, 1]: divide it by its full scale")
    return to_int16(block, rate, sample_rate)
