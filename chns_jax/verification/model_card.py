"""The card of a published model: what it is, how well it does, and what it is not for.

Its front matter is what huggingface_hub's ModelCardData reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import read_text
from chns_jax.config import Config
from chns_jax.scoring.calibration import Calibration

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,50}")  # as the hub names them: apache-2.0
LONGEST_LINE = 1000  # characters of what a model was trained on, or of a list's name
NO_LICENCE = "unknown"  # the hub's own word
LIBRARY = "chns_jax"
TAGS = ["speaker-verification", "speaker-recognition", "speaker-embedding", "audio", "jax"]
NAMES = {"eer": "EER (%)", "min_dcf": "minDCF at p = {prior}"}
UNSAFE = re.compile(r"([\\`*_\[\]<>|#])")  # in Markdown


@dataclass(frozen=True)
class About:
    """What whoever publishes a model knows of it, and its run does not."""

    license: str | None = None  # by its name on the hub, such as apache-2.0
    trained_on: str | None = None  # speech, in words
    # By the names of the lists: what chns_jax.evaluate prints.
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def check(about: About) -> None:
    """Raises UserError for a licence that is no name, and for what is no line of text."""
    if about.license is not None and not LICENCE.fullmatch(about.license):
        raise UserError(
            f"the licence {shortened(about.license)} is no name of the hub: give one such as "
            "apache-2.0 or cc-by-4.0"
        )
    said = about.trained_on
    if said is not None and not (0 < len(said.strip()) <= LONGEST_LINE and said.isprintable()):
        raise UserError(
            f"what the model was trained on must be a line of {LONGEST_LINE} characters at most"
        )
    for name, result in about.results.items():
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_LINE:
            raise UserError(f"the name {shortened(name)!r} of a result must be a line of text")
        if not _is_result(result):
            raise UserError(
                f"the result of {shortened(name)} is not what chns_jax.evaluate prints: give its "
                "output as it is"
            )


def read_result(path: str | Path) -> dict[str, Any]:
    """What chns_jax.evaluate printed, of a file. Raises UserError for anything else."""
    text = read_text(path, "what chns_jax.evaluate printed")
    wrong = UserError(f"{path} is not what chns_jax.evaluate prints: give its output as it is")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if not _is_result(found):
        raise wrong
    return found


def make_card(
    name: str,
    about: About,
    config: Config,
    *,
    step: int,
    parameters: int,
    calibration: Calibration | None,
) -> str:
    """The card as Markdown with front matter. Raises UserError as `check` does."""
    check(about)
    front = {
        "library_name": LIBRARY,
        "license": about.license or NO_LICENCE,
        "pipeline_tag": "audio-classification",
        "tags": TAGS,
    }
    if about.trained_on:
        front["trained_on"] = about.trained_on
    if about.results:
        results = [_indexed(of, result) for of, result in about.results.items()]
        front["model-index"] = [{"name": name, "results": results}]
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    features = config.features
    trained_on = _plain(about.trained_on) if about.trained_on else "its publisher does not say"
    return f"""---
{matter}---

# {_plain(name)}

A speaker encoder: speech in, a speaker embedding of {config.encoder.embedding} numbers out. The
cosine of two embeddings says how much two voices sound alike. Made by
[chns_jax](https://arxiv.org/abs/2507.17540), which trains speaker verification in JAX.

| | |
|---|---|
| encoder | {config.encoder.kind}, {parameters:,} parameters |
| input | speech at {features.sample_rate:,} Hz; {features.bands} log-mel bands ({features.kind}) |
| training | step {step:,}; `config.yaml` has every setting |
| licence | {front["license"]} |

## How to use it

```python
from chns_jax import SpeakerEncoder

encoder = SpeakerEncoder.from_pretrained("DIR or org/name")
print(encoder.similarity("a.wav", "b.wav"))
```

or `chns-jax verify a.wav b.wav --model DIR`. `speaker.onnx`, where it is here, does the same
without chns_jax: a waveform (b, s) at {features.sample_rate:,} Hz in, L2-normalised embeddings out.

## What it was trained on

Speech: {trained_on}.

## How well it does

{_table(about.results)}

{_calibrated(calibration)}

## What it is for

To tell whether two recordings are of one speaker, where both speakers know that they are recorded
and agreed to it; research; grouping one's own recordings by who speaks.

## What it is not for, and its limits

- **It does not stop a replayed or synthetic recording.** Whoever plays a recording of you sounds
  like you. Let nobody in by a voice alone.
- **Not for surveillance**: not to identify or follow people who did not agree to it. Embeddings are
  biometric, personal data.
- Languages, accents, ages, microphones and noise that it was not trained on make it worse, and not
  equally for everybody. Measure it on speech such as yours before you rely on it.
- A few seconds of speech at least; a threshold holds for conditions like those it was set on.

## How to cite

```
@inproceedings{{masztalski2025chns,
  title     = {{Clustering-based hard negative sampling for supervised contrastive speaker verification}},
  author    = {{Masztalski, Piotr and Romaniuk, Micha{{\\l}} and {{\\.Z}}ak, Jakub and Matuszewski, Mateusz and Kowalczyk, Konrad}},
  booktitle = {{Interspeech}},
  year      = {{2025}}
}}
```
"""  # noqa: E501


def _indexed(of: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a model index."""
    metrics = []
    for kind, name, value, interval in _figures(result):
        metric = {"type": kind, "name": name, "value": value}
        if interval is not None:
            metric["args"] = {"interval_95": list(interval)}
        metrics.append(metric)
    slug = re.sub(r"[^a-z0-9]+", "-", of.lower()).strip("-") or "list"
    task = {"type": "speaker-verification", "name": "Speaker verification"}
    return {"task": task, "dataset": {"type": slug, "name": of}, "metrics": metrics}


def _figures(result: Mapping[str, Any]) -> list[tuple[str, str, float, tuple[float, float] | None]]:
    """(type, name, value, 95 % interval) of the EER in per cent, and of each minDCF."""
    intervals = result.get("intervals") or {}
    eer = intervals.get("eer")
    percent = None if eer is None else (_percent(eer[0]), _percent(eer[1]))
    figures = [("eer", NAMES["eer"], _percent(result["eer"]), percent)]
    for prior, value in result["min_dcf"].items():
        interval = intervals.get("min_dcf", {}).get(prior)
        pair = None if interval is None else (interval[0], interval[1])
        figures.append(("min_dcf", NAMES["min_dcf"].format(prior=prior), value, pair))
    return figures


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    if not results:
        return "Its publisher gives no figures: measure it with `chns-jax evaluate`."
    rows = ["| trials | figure | value | 95 % interval over speakers |", "|---|---|---|---|"]
    for of, result in results.items():
        for _, name, value, interval in _figures(result):
            between = "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
            rows.append(f"| {_plain(of)} | {name} | {value:.4g} | {between} |")
    return "\n".join(rows)


def _calibrated(calibration: Calibration | None) -> str:
    if calibration is None:
        return "It is not calibrated: its cosines say who sounds alike, and decide nothing."
    ((what, value),) = calibration.set_for.items()
    return (
        f"It is calibrated on trials of {calibration.speakers} speakers who were to be no training "
        f"speakers: `verify` gives a log-likelihood ratio, and accepts from a threshold set for a "
        f"{what.replace('_', ' ')} of {value:g}."
    )


def _is_result(found: Any) -> bool:
    """Whether it has the figures that a card shows, as `chns_jax.evaluate` prints them."""
    try:
        intervals = found.get("intervals") or {}
        pairs = [intervals["eer"], *intervals["min_dcf"].values()] if intervals else []
        numbers = [found["eer"], *found["min_dcf"].values()]
        known = not intervals or intervals["min_dcf"].keys() <= found["min_dcf"].keys()
        priors = all(math.isfinite(float(prior)) for prior in found["min_dcf"])
        numbers += [bound for low, high in pairs for bound in (low, high)]
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return known and priors and all(map(_is_rate, numbers))


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _percent(rate: float) -> float:
    return float(f"{100 * rate:.4g}")


def _plain(words: str) -> str:
    """Text that Markdown takes for nothing else."""
    return UNSAFE.sub(r"\\\1", " ".join(words.split()))
