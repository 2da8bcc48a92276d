"""The MFCC baseline: what a verifier that learnt nothing about speakers scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import AudioError, read_whole
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.trials import Trials
from chns_jax.scoring import metrics

COEFFICIENTS = 20
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010


def mfcc_eer(reader: Reader, trials: Trials) -> float:
    """EER of the cosine between the utterances' `mfcc_embeddings`."""
    utterances = trials.utterances()
    embeddings = mfcc_embeddings(reader, utterances)
    return metrics.eer(trials.labels, trials.scores(utterances, embeddings))


def mfcc_embeddings(reader: Reader, utterances: np.ndarray) -> np.ndarray:
    """L2-normalised means and deviations (v, 40) of the MFCCs of whole utterances, rows (v,).

    Each of the 40 statistics is standardised over the utterances, without which the mean of the
    energy outweighs all others and the EER is several percent higher. Raises UserError when a file
    cannot be read.
    """

    def statistics(utterance: np.integer) -> np.ndarray:
        try:
            waveform_s = read_whole(reader.corpus.path(int(utterance)), reader.sample_rate)
        except AudioError as error:
            raise UserError(f"{error}: replace the file or leave it out") from error
        return mfcc_statistics(waveform_s, reader.sample_rate)

    with ThreadPoolExecutor(reader.threads) as pool:
        embeddings = np.stack(list(pool.map(statistics, utterances)))
    embeddings -= embeddings.mean(axis=0)
    embeddings /= np.maximum(embeddings.std(axis=0), 1e-9)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    return embeddings


def mfcc_statistics(waveform_s: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean and deviation over time of 20 MFCCs (librosa's), (40,), of an int16 signal."""
    import librosa

    mfcc_cxt = librosa.feature.mfcc(
        y=waveform_s.astype(np.float32) / 32768,
        sr=sample_rate,
        n_mfcc=COEFFICIENTS,
        n_fft=round(WINDOW_SECONDS * sample_rate),
        hop_length=round(HOP_SECONDS * sample_rate),
        n_mels=40,
    )
    return np.concatenate([mfcc_cxt.mean(axis=1), mfcc_cxt.std(axis=1)])
