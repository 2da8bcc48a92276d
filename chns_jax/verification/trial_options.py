"""The options of commands that score trial lists, and the scores that they ask for."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Annotated, Literal

from chns_jax.common.command_line import Parser, add_cache, add_model, add_segments, changed
from chns_jax.common.errors import UserError
from chns_jax.common.values import between
from chns_jax.config import UtterancesPerSpeaker
from chns_jax.runs.published import find_model

if TYPE_CHECKING:
    from chns_jax.embedding.model import Model
    from chns_jax.verification.cohort import Cohort
    from chns_jax.verification.evaluation import Scores


OF_NORM = {"cohort": None, "cohort_size": 300, "cohort_utterances": 5}  # with their defaults


def add_trial_arguments(parser: Parser, *, model_required: bool = False) -> None:
    """What `score_trials` reads."""
    add_model(parser, required=model_required)
    parser.add_argument(
        "--trials",
        type=str,
        required=True,
        help='Lines of "<1 or 0> <enrolment> <test>", or "<enrolment> <test> <target or '
        'nontarget>".',
    )
    parser.add_argument(
        "--root", type=str, required=True, help="Folder of the files that the list names."
    )
    parser.add_argument(
        "--enrolment",
        type=str | None,
        default=None,
        help='Lines of "<model> <utterance> <utterance> ...": the trials name models.',
    )
    add_segments(parser)
    add_norm_arguments(parser)
    add_cache(parser)


def add_norm_arguments(parser: Parser) -> None:
    """What `make_cohort_for` reads."""
    parser.add_argument(
        "--norm",
        type=Literal["as-norm"] | None,
        default=None,
        help="Normalise scores by those of the nearest impostors.",
    )
    parser.add_argument(
        "--cohort",
        type=str | None,
        default=OF_NORM["cohort"],
        help="Folder of the impostors' speech, of other speakers than the trials'; the run's "
        "training speakers when not given.",
    )
    parser.add_argument(
        "--cohort_size",
        type=Annotated[int, between(2, 10_000_000)],
        default=OF_NORM["cohort_size"],
        help="Nearest impostors that count, or all of fewer.",
    )
    parser.add_argument(
        "--cohort_utterances",
        type=UtterancesPerSpeaker,
        default=OF_NORM["cohort_utterances"],
        help="Utterances of each impostor.",
    )


def check_trial_arguments(chosen: Namespace) -> None:
    """Raises UserError for what is wrong with the arguments and can be known before JAX is
    imported."""
    check_norm_arguments(chosen)

    from chns_jax.corpus import trials as trial_lists

    chosen.model = find_model(chosen.model)
    trial_lists.read(chosen.trials)
    if chosen.enrolment:
        trial_lists.read_enrolment(chosen.enrolment)


def check_norm_arguments(chosen: Namespace) -> None:
    """Raises UserError for options of the norm without it, and for a cohort that is not there."""
    option = changed(chosen, OF_NORM)
    if option and not chosen.norm:
        raise UserError(f"--{option} is for --norm as-norm: give both or neither")

    from chns_jax.corpus import index, storage

    if chosen.cohort and not storage.is_url(chosen.cohort):
        index.check_folder(chosen.cohort)


def describe_norm(chosen: Namespace) -> str:
    """A sentence about the scores of a table; empty where they are cosines."""
    if not chosen.norm:
        return ""
    whom = f"speakers of {chosen.cohort}" if chosen.cohort else "training speakers of the run"
    return (
        f"Scores: AS-norm by the {chosen.cohort_size} nearest {whom}, or all of fewer, with "
        f"{chosen.cohort_utterances} utterances of each."
    )


def make_cohort_for(
    chosen: Namespace, model: Model, cache: str, segments: float | None = None
) -> Cohort | None:
    """The impostors of a command's --norm, embedded by `model`; None without one.

    Raises UserError as `make_cohort`.
    """
    from chns_jax.verification.cohort import make_cohort

    if not chosen.norm:
        return None
    return make_cohort(
        model,
        cache,
        root=chosen.cohort,
        top=chosen.cohort_size,
        per_speaker=chosen.cohort_utterances,
        segments=segments,
    )


def score_trials(chosen: Namespace, *, by_speaker: bool) -> tuple[Scores, Cohort | None, Model]:
    """The scores of the trials that a command's arguments name, the cohort of their norm, and the
    model."""
    from chns_jax.embedding import model
    from chns_jax.verification import evaluation

    encoder = model.load(chosen.model, chosen.checkpoint)
    cohort = make_cohort_for(chosen, encoder, chosen.cache, chosen.segments)
    scored = evaluation.score(
        encoder,
        chosen.trials,
        chosen.root,
        chosen.cache,
        enrolment=chosen.enrolment,
        segments=chosen.segments,
        cohort=cohort,
        by_speaker=by_speaker,
    )
    return scored, cohort, encoder
