import numpy as np
import pytest

from chns_jax.corpus.reader import Reader
from chns_jax.corpus.trials import Trials
from chns_jax.embedding.embedder import Embedder
from chns_jax.training import validate


@pytest.fixture
def embedded(monkeypatch):
    """The utterances that were embedded, of whom the first and the last two sound alike."""
    asked = []

    def embed(embedder, variables, reader, utterances, *, samples):
        asked.append(utterances.tolist())
        return np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

    monkeypatch.setattr(validate, "embed_utterances", embed)
    return asked


def test_lists_are_scored_each_and_their_utterances_embedded_once(embedded):
    labels = np.array([True, False])
    easy = Trials(labels, np.array([2, 2]), np.array([3, 5]))
    wrong = Trials(labels, np.array([2, 5]), np.array([5, 9]))
    embedder, reader = (kind.__new__(kind) for kind in (Embedder, Reader))  # nobody asks them
    lists = {"easy": easy, "wrong": wrong}
    results = validate.validate(embedder, {}, reader, lists, samples=1)
    assert embedded == [[2, 3, 5, 9]]
    assert (results["easy"]["eer"], results["wrong"]["eer"]) == (0, 1)
    assert results["wrong"]["targets"] == results["wrong"]["nontargets"] == 1
    scalars = validate.scalars(results)
    assert (scalars["eer"], scalars["eer/easy"], scalars["eer/wrong"]) == (0, 0, 1)
    assert scalars["min_dcf_0.01"] == scalars["min_dcf_0.01/easy"] == 0
    assert validate.in_words(results) == "EER easy 0.00 %, wrong 100.00 %"


def test_the_only_list_is_not_named():
    rates = {"eer": 0.25, "min_dcf": {"0.01": 1.0}, "targets": 4, "nontargets": 4}
    assert validate.scalars({"all": rates}) == {"eer": 0.25, "min_dcf_0.01": 1.0}
    assert validate.in_words({"all": rates}) == "EER 25.00 %"
