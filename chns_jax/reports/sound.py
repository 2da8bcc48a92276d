"""Players of utterances, for HTML pages."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from urllib.parse import quote

from chns_jax.common.errors import UserError
from chns_jax.corpus.audio import AudioError
from chns_jax.corpus.reader import Reader
from chns_jax.reports.pages import Html, escape


def embedded(reader: Reader, utterance: int, seconds: float) -> Html:
    """A player that holds the middle of an utterance, as FLAC. Raises UserError if unreadable."""
    import soundfile

    samples = round(min(seconds, float(reader.corpus.seconds[utterance])) * reader.sample_rate)
    try:
        crop = reader.crop(utterance, 0.5, samples)
    except AudioError as error:
        raise UserError(f"{error}: replace the file or leave it out") from error
    file = io.BytesIO()
    soundfile.write(file, crop, reader.sample_rate, format="FLAC")
    return _player(f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}")


def linked(path: str, page: Path) -> Html:
    """A player of the file `path`, which `page` names relative to itself."""
    relative = os.path.relpath(path, page.resolve().parent)
    return _player(quote(os.fsencode(relative)))


def _player(source: str) -> Html:
    return Html(f'<audio controls preload="none" src="{escape(source)}"></audio>')
