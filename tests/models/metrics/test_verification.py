"""Verification and calibration against scikit-learn and against direct counting."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from models.errors import InputError
from models.metrics import all_pairs_metrics, calibrate, pair_histogram, verification, verification_metrics


def scores_and_kinds(seed: int, size: int, *, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(size) < 0.4
    same[:2] = [True, False]
    scores = rng.normal(same * 0.8, 0.6)
    return (np.round(scores, 1) if coarse else scores), same


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 200), coarse=st.booleans())
def test_roc_and_auc_equal_scikit_learn(seed: int, size: int, coarse: bool) -> None:
    scores, same = scores_and_kinds(seed, size, coarse=coarse)
    curve = verification.roc_curve(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.far, far)
    np.testing.assert_allclose(curve.tar, tar)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    found = verification_metrics(scores, same)
    assert found["auc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    assert ("tar@far=0.1" in found) == ((~same).sum() >= 10)
    if "tar@far=0.1" in found:
        assert found["tar@far=0.1"] == pytest.approx(tar[far <= 0.1].max())
    # The equal error rate lies between the two errors at the thresholds around the crossing.
    worst = np.maximum(far, 1 - tar)
    assert found["eer"] <= worst.min() + 1e-12


def test_fold_accuracy_equals_a_reference_with_scikit_learn() -> None:
    scores, same = scores_and_kinds(5, 600, coarse=False)
    folds = np.arange(600) % 10
    reference = []
    for fold in range(10):
        train, test = folds != fold, folds == fold
        far, tar, thresholds = roc_curve(same[train], scores[train], drop_intermediate=False)
        right = tar * same[train].sum() + (1 - far) * (~same[train]).sum()
        reference.append(accuracy_score(same[test], scores[test] >= thresholds[right.argmax() :][:2].mean()))
    found = verification_metrics(scores, same, folds)
    assert found["accuracy"] == pytest.approx(np.mean(reference), abs=1e-12)
    assert found["accuracy_standard_error"] == pytest.approx(np.std(reference, ddof=1) / math.sqrt(10))


def test_rates_that_the_pairs_cannot_show_are_left_out() -> None:
    curve = verification.roc_curve([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0])
    assert math.isnan(verification.tar_at_far(curve, 0.1))
    assert "tar@far=0.1" not in verification_metrics([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0])
    assert verification_metrics([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0])["eer"] == 0


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([0.1, math.nan], [0, 1], "pair 1"),
        ([0.1, 0.2], [1, 1], "at least one pair"),
        ([0.1], [0, 1], "shapes"),
    ],
)
def test_unusable_pairs_are_named(scores: list, same: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        verification_metrics(scores, same)


def clustered(classes: int, each: int, dim: int = 16, spread: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), each)
    return rng.normal(size=(classes, dim))[labels] + spread * rng.normal(size=(classes * each, dim)), labels


def all_pairs(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(labels), 1)
    return (unit @ unit.T)[first, second], labels[first] == labels[second]


def test_all_pairs_equal_the_list_of_all_pairs() -> None:
    vectors, labels = clustered(60, 9)
    histogram = pair_histogram(vectors, labels)
    similarity, same = all_pairs(vectors, labels)
    assert (histogram.same.sum(), histogram.different.sum()) == (same.sum(), (~same).sum())
    found, wanted = all_pairs_metrics(histogram), verification_metrics(similarity, same)
    assert found == pytest.approx(wanted, abs=2e-4)


def test_thresholds_keep_the_false_accept_rate() -> None:
    vectors, labels = clustered(80, 10)
    similarity, same = all_pairs(vectors, labels)
    found = calibrate(vectors, labels, resamples=50)
    assert [entry.far for entry in found] == [1e-1, 1e-2, 1e-3, 1e-4]  # 316,000 pairs do not show 1e-5
    for entry in found:
        accepted = (similarity[~same] >= entry.threshold).mean()
        assert entry.far * 0.8 < accepted <= entry.far * (1 + 1e-9)
        assert entry.tar == pytest.approx((similarity[same] >= entry.threshold).mean(), abs=1e-3)
        assert entry.low < entry.threshold < entry.high
        assert entry.tar_low <= entry.tar <= entry.tar_high
        assert entry.different_pairs == (~same).sum()


def test_interval_of_a_threshold_covers_other_classes() -> None:
    """Thresholds found on other classes of the same source mostly fall into the interval."""
    rng = np.random.default_rng(7)
    inside = 0
    low, high = 0.0, 0.0
    for draw in range(13):
        labels = np.repeat(np.arange(60), 6)
        vectors = rng.normal(size=(60, 8))[labels] + 0.5 * rng.normal(size=(360, 8))
        (entry,) = calibrate(vectors, labels, (1e-2,), resamples=100)
        if draw == 0:
            low, high = entry.low, entry.high
        else:
            inside += low <= entry.threshold <= high
    assert inside >= 7


def test_large_sets_are_sampled_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = clustered(80, 10)
    full = calibrate(vectors, labels, (0.05,), resamples=10)[0]
    monkeypatch.setattr("models.metrics.calibration.TAIL_PAIRS", 8000)
    monkeypatch.setattr("models.metrics.calibration.LARGE_CLASS", 5)
    part = calibrate(vectors, labels, (0.05,), resamples=10)[0]
    assert part.different_pairs < full.different_pairs
    assert part.threshold == pytest.approx(full.threshold, abs=0.05)
    assert part.tar == pytest.approx(full.tar, abs=0.05)


def test_ties_at_the_threshold_are_refused_together() -> None:
    vectors = np.eye(4)[np.arange(400) % 4]
    labels = np.arange(400) // 2 % 100
    (entry,) = calibrate(vectors, labels, (0.1,), resamples=5)  # a quarter of the pairs has similarity 1
    assert entry.threshold > 1


def test_calibration_refuses_rates_outside_zero_and_one() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        calibrate(np.eye(4), [0, 0, 1, 1], (0.0,))
