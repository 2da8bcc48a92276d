"""A trained run or a published model as a Python object: speech in, speaker embeddings out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from chns_jax.common.errors import UserError
from chns_jax.common.files import new_folder
from chns_jax.common.prefetch import ahead
from chns_jax.common.vectors import means
from chns_jax.corpus import records
from chns_jax.corpus.audio import RATES, AudioError, fault, read_whole, to_int16
from chns_jax.embedding import model
from chns_jax.embedding.embedder import SHORTEST_SECONDS, segment_samples
from chns_jax.embedding.model import Model
from chns_jax.embedding.utterances import embed_waveforms
from chns_jax.runs import published
from chns_jax.runs.folder import RunFolder
from chns_jax.scoring import calibration as calibrations
from chns_jax.scoring.calibration import Calibration
from chns_jax.scoring.norm import Statistics, as_norm, statistics
from chns_jax.verification import cohort as cohorts
from chns_jax.verification import hub
from chns_jax.verification.cohort import Cohort
from chns_jax.verification.model_card import About, make_card

Speech = np.ndarray | str | PathLike


class Decision(NamedTuple):
    """Whether two recordings are of one speaker, by a calibrated run."""

    cosine: float
    log_likelihood_ratio: float  # natural logarithm
    same_speaker: bool
    threshold: float  # of the log-likelihood ratio
    set_for: dict[str, float]  # {"false_accept_rate": r} or {"prior": p}


class Voiceprint(NamedTuple):
    """What is compared: an enrolled speaker, or the recording of someone."""

    embedding: np.ndarray  # (d,) L2-normalised
    seconds: float  # of speech


@dataclass(frozen=True)
class SpeakerEncoder:
    """Embeds recordings and compares them: `SpeakerEncoder.load("runs/chns").embed("a.wav")`.

    A recording is an audio file, or a waveform with its `sample_rate`: (s,) or (s, channels), int16
    or float in [-1, 1]. Channels are averaged, and other rates than the model's are resampled.
    Raises UserError for what is no speech: a file that cannot be read, NaN, no samples.
    """

    model: Model
    calibration: Calibration | None = None
    cohort: Cohort | None = None  # of the calibration's norm
    uncalibrated: str = "the run is not calibrated"  # why, where there is no calibration
    texts: published.Texts | None = None  # of a published model

    @classmethod
    def load(
        cls,
        run: str | Path | None = None,
        checkpoint: str | int = "last",
        *,
        quick: bool = False,
    ) -> SpeakerEncoder:
        """The encoder of a run folder or of a published model; without one, or for "box", that of
        the model in the box. `checkpoint` is "last", "best" (lowest EER), a step, or "average:N",
        the mean of the last N that were kept. A `quick` one embeds its first recordings sooner on a
        CPU, and the others later."""
        run = Path(published.find_model(None if run is None else str(run))).expanduser()
        loaded = model.load(run, str(checkpoint), quick=quick)
        texts = published.read_texts(run) if loaded.published else None
        made = calibrations.load(RunFolder(run).calibration)
        if made is None:
            return cls(loaded, texts=texts)
        if made.scores["checkpoint"] != model.checkpoint_digest(loaded):
            why = "the run's calibration is for another checkpoint"
            return cls(loaded, uncalibrated=why, texts=texts)
        dimension = loaded.config.encoder.embedding
        return cls(loaded, made, cohorts.load(run, made.scores, dimension), texts=texts)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> SpeakerEncoder:
        """The encoder of a published model: of its folder, or of its name on Hugging Face's hub,
        "org/name". Raises UserError when there is neither, and for one that is damaged."""
        return cls.load(hub.find(str(name)))

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: Literal["float32", "float16"] = "float32",
        about: About | None = None,
        onnx: str | Path | None = None,
    ) -> None:
        """Publish the encoder as a new folder, complete or not at all.

        With float32 `from_pretrained` gives the same embeddings and the same digest, with float16
        such as differ little, in half the size. The card says what `about` says; without it, that
        of a published model stays. `onnx`: a file of the encoder, which becomes speaker.onnx.
        Raises UserError when the folder exists, and for an `about` that is wrong.
        """
        folder, loaded = Path(folder).expanduser(), self.model
        text, card = self.texts or ("", "")
        variables = published.for_publishing(loaded.variables, dtype)
        with new_folder(folder) as inside:
            published.write(
                inside, loaded.config, loaded.step, variables, dtype=dtype, text=text or None
            )
            if self.calibration is not None:
                digest = model.checkpoint_digest(loaded._replace(variables=variables))
                made_by = {**self.calibration.scores, "checkpoint": digest}
                made = replace(self.calibration, scores=made_by)
                calibrations.save(RunFolder(inside).calibration, made)
                if self.cohort is not None:
                    cohorts.save(inside, self.cohort, made_by)
            if about is not None or not card:
                card = make_card(
                    folder.name,
                    about or About(),
                    loaded.config,
                    step=loaded.step,
                    parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
                    calibration=self.calibration,
                )
            (inside / published.CARD).write_text(card, encoding="utf-8")
            if onnx is not None:
                shutil.copyfile(onnx, inside / published.ONNX)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        dtype: Literal["float32", "float16"] = "float32",
        about: About | None = None,
        onnx: str | Path | None = None,
    ) -> None:
        """Publish the encoder on Hugging Face's hub as `name`, "org/name", as `save_pretrained`
        does in a folder. Raises UserError when the card would have no licence, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as beside:
            folder = Path(beside) / hub.check_name(name).partition("/")[2]
            self.save_pretrained(folder, dtype=dtype, about=about, onnx=onnx)
            hub.upload(folder, name, private=private)

    def embed(self, speech: Speech | list[Speech], *, sample_rate: int | None = None) -> np.ndarray:
        """L2-normalised embedding (d,) float32 of a recording, or (n, d) of a list of them.

        A recording's embedding does not depend on what else is in the list.
        """
        if not isinstance(speech, list | tuple):
            return self.embed([speech], sample_rate=sample_rate)[0]
        rate = self.model.config.features.sample_rate
        return self._embed(len(speech), lambda i: _waveform(speech[i], sample_rate, rate), None)

    def similarity(self, one: Speech, other: Speech, *, sample_rate: int | None = None) -> float:
        """Cosine, -1 to 1, of the embeddings of two recordings: higher for the same speaker."""
        embeddings = self.embed([one, other], sample_rate=sample_rate)
        return float(embeddings[0] @ embeddings[1])

    def verify(self, one: Speech, other: Speech, *, sample_rate: int | None = None) -> Decision:
        """Whether two recordings are of one speaker, as `chns_jax.calibrate` set it.

        Also raises UserError when the run is not calibrated, or its calibration is for another
        checkpoint; and for silence, or less than 0.2 s.
        """
        self.check_calibrated()
        return self.decide(*self.voiceprints([[one], [other]], sample_rate=sample_rate))

    def check_calibrated(self) -> Calibration:
        """The calibration. Raises UserError, which says what to do, when there is none."""
        if self.calibration is None:
            raise UserError(
                f"{self.uncalibrated}, so that no score means the same speaker: python -m "
                "chns_jax.calibrate --model RUN --trials LIST --root DIR sets a threshold, on "
                "trials of speakers who were not trained on"
            )
        return self.calibration

    def voiceprint(
        self, recordings: Sequence[Speech], *, sample_rate: int | None = None
    ) -> Voiceprint:
        """The voice of a speaker, from recordings of nobody else: the mean of their embeddings.

        They are embedded as the calibration has it. Also raises UserError for silence, and for a
        recording of less than 0.2 s.
        """
        return self.voiceprints([recordings], sample_rate=sample_rate)[0]

    def voiceprints(
        self, speakers: Sequence[Sequence[Speech]], *, sample_rate: int | None = None
    ) -> list[Voiceprint]:
        """The voices of speakers of some recordings each, as `voiceprint`, embedded together."""
        rate = self.model.config.features.sample_rate
        waveforms, owner = [], []
        for number, recordings in enumerate(speakers):
            if not len(recordings):
                raise UserError("there are no recordings: give one at least")
            for speech in recordings:
                waveforms.append(_of_a_voice(speech, sample_rate, rate))
                owner.append(number)
        lengths, of_speaker = np.array([len(waveform) for waveform in waveforms]), np.array(owner)
        embeddings = self._embed(
            len(waveforms), waveforms.__getitem__, self.segments, longest=int(lengths.max())
        )
        seconds = np.bincount(of_speaker, lengths) / rate
        return list(map(Voiceprint, means(embeddings, of_speaker), seconds.tolist()))

    @property
    def segments(self) -> float | None:
        """Seconds of the segments that the calibration averages; None: recordings are whole."""
        return self.calibration and self.calibration.scores["segments"]

    @property
    def checkpoint(self) -> str:
        """Digest of the checkpoint: embeddings of one digest may be compared."""
        return model.checkpoint_digest(self.model)

    def decide(self, one: Voiceprint, other: Voiceprint) -> Decision:
        """Whether two voices are of one speaker. Raises UserError as `check_calibrated`."""
        calibration = self.check_calibrated()
        cosine = float(one.embedding @ other.embedding)
        score, qualities = np.array([cosine]), {}
        if self.cohort is not None:
            both = np.stack([one.embedding, other.embedding])
            mean, deviation = statistics(both, self.cohort.embeddings, self.cohort.top)
            sides = [Statistics(mean[[i]], deviation[[i]]) for i in (0, 1)]
            score = as_norm(score, *sides)
            qualities["cohort_mean"] = mean.mean(keepdims=True)
        qualities["duration"] = np.log([min(one.seconds, other.seconds)])
        (llr,) = calibration.log_likelihood_ratios(score, qualities).tolist()
        threshold = calibration.threshold
        return Decision(cosine, llr, llr >= threshold, threshold, calibration.set_for)

    def _embed(
        self,
        count: int,
        read: Callable[[int], np.ndarray],
        segments: float | None,
        longest: int | None = None,
    ) -> np.ndarray:
        """(n, d), of waveforms (s,) int16 that threads read; `longest` as of embed_waveforms."""
        config, embedder, variables = self.model.config, self.model.embedder, self.model.variables
        rate = config.features.sample_rate
        segment = segment_samples(embedder, rate, segments)
        waveforms = ahead(lambda i: (i, read(i)), range(count), config.data.threads)
        embeddings = np.zeros((count, config.encoder.embedding), np.float32)
        made = embed_waveforms(
            embedder,
            variables,
            waveforms,
            sample_rate=rate,
            segment=segment,
            longest=None if segment else longest,
        )
        for i, embedding in made:
            embeddings[i] = embedding
        return embeddings


def _of_a_voice(speech: Speech, rate: int | None, sample_rate: int) -> np.ndarray:
    """`_waveform`, of speech that is long enough. Raises UserError for other."""
    waveform = _waveform(speech, rate, sample_rate)
    name = "a waveform" if isinstance(speech, np.ndarray) else speech
    if len(waveform) < SHORTEST_SECONDS * sample_rate:
        raise UserError(
            f"{name} has {len(waveform) / sample_rate:.2g} s, too short to tell who speaks: give "
            f"{SHORTEST_SECONDS:g} s at least, better several seconds"
        )
    if waveform.min() == waveform.max():
        raise UserError(f"{name} is silent in the mean of its channels: give a recording of speech")
    return waveform


def _waveform(speech: Speech, rate: int | None, sample_rate: int) -> np.ndarray:
    """(s,) int16 at `sample_rate`, of a file or of a waveform at `rate`."""
    if isinstance(speech, str | PathLike):
        if not records.names_file(str(speech)):
            raise UserError(f"{str(speech)!r} is no file: give an audio file")
        try:
            return read_whole(str(speech), sample_rate)
        except AudioError as error:
            raise UserError(str(error)) from error
    if not isinstance(speech, np.ndarray):
        raise UserError(f"a recording is a path or a NumPy array, not a {type(speech).__name__}")
    if rate is None:
        raise UserError("a waveform needs its sample_rate, in hertz")
    lowest, highest = RATES
    if not isinstance(rate, Real) or not lowest <= rate <= highest:
        raise UserError(f"sample_rate {rate!r} is no number of hertz from {lowest} to {highest}")
    is_float = np.issubdtype(speech.dtype, np.floating)
    if not (is_float or speech.dtype == np.int16):
        raise UserError(f"a waveform is float in [-1, 1] or int16, not {speech.dtype}")
    block = speech[:, None] if speech.ndim == 1 else speech
    if block.ndim != 2 or block.shape[1] > max(1, len(block)):
        raise UserError(f"a waveform has the shape (s,) or (s, channels), not {speech.shape}")
    if block.size == 0:
        raise UserError("the waveform holds no samples")
    wrong = fault(block) if is_float else None
    if wrong:
        raise UserError(f"the waveform {wrong}")
    return to_int16(block, rate, sample_rate)
