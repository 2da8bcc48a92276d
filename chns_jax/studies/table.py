"""The table of a study: every arm on every list, with intervals over speakers and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chns_jax.embedding import model
from chns_jax.scoring import comparison
from chns_jax.scoring.comparison import ComparedMetric
from chns_jax.studies.definition import Run, TrialList
from chns_jax.verification import evaluation


def score_runs(
    runs: Sequence[Run],
    lists: Mapping[str, TrialList],
    *,
    baseline: str,
    checkpoint: str,
    replicates: int,
    seed: int,
) -> list[ComparedMetric]:
    """The rows of trained runs, which are of the same seeds for each arm, as `comparison.compare`.

    Embeddings are kept in the runs' cache, so that a list costs little the second time.
    """
    scored: dict[str, dict[str, list[evaluation.Scores]]] = {name: {} for name in lists}
    for one in runs:
        encoder = model.load(one.config.out, checkpoint)
        for name, (trials, root) in lists.items():
            of_run = evaluation.score(encoder, trials, root, one.config.data.cache)
            scored[name].setdefault(one.arm, []).append(of_run)
    rows = []
    for name, by_arm in scored.items():
        of_list = by_arm[baseline][0]
        enrolment, test = of_list.enrolment_speaker, of_list.test_speaker
        assert enrolment is not None and test is not None  # `score` says who speaks
        rows += comparison.compare(
            name,
            of_list.trials.labels,
            enrolment,
            test,
            {arm: [of_run.scores for of_run in of_arm] for arm, of_arm in by_arm.items()},
            baseline=baseline,
            seed=seed,
            count=replicates,
            paired=True,
        )
    return rows
