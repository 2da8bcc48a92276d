"""The table of a study: every arm on every list, with intervals over speakers and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from chns_jax.embedding import model
from chns_jax.embedding.model import Model
from chns_jax.scoring.comparison import ComparedMetric
from chns_jax.studies.definition import Run, TrialList
from chns_jax.verification import evaluation
from chns_jax.verification.cohort import Cohort


def score_runs(
    runs: Sequence[Run],
    lists: Sequence[Mapping[str, TrialList]],
    *,
    baseline: str,
    checkpoint: str,
    cohort_for: Callable[[Model, str], Cohort | None],
    replicates: int,
    seed: int,
) -> list[ComparedMetric]:
    """The rows of trained runs, which are of the same seeds for each arm, as `evaluation.compare`.

    `lists` are those of each fold, of the same names. `cohort_for` gives the impostors of AS-norm
    for a model and a cache. Embeddings are kept in the runs' cache, so that a list costs little the
    second time.
    """
    scored: dict[str, list[dict[str, list[evaluation.Scores]]]]  # by list, fold and arm
    scored = {name: [{} for _ in lists] for name in lists[0]}
    for one in runs:
        encoder = model.load(one.config.out, checkpoint)
        cache = one.config.data.cache
        cohort = cohort_for(encoder, cache)
        for name, (trials, root) in lists[one.fold].items():
            of_run = evaluation.score(encoder, trials, root, cache, cohort=cohort)
            scored[name][one.fold].setdefault(one.arm, []).append(of_run)
    return [
        row
        for name, folds in scored.items()
        for row in evaluation.compare_folds(
            name, folds, baseline=baseline, seed=seed, count=replicates, paired=True
        )
    ]
