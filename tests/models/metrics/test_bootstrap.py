"""Intervals: right width where theory knows it, wider where queries of one class are alike."""

import numpy as np
import pytest
import torch

from models.metrics.bootstrap import intervals, sample_of_classes


def test_width_matches_theory_for_independent_queries() -> None:
    values = torch.from_numpy(np.random.default_rng(0).random(2000))
    low, high = intervals({"x": values}, torch.arange(2000))["x"]
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 2000**0.5, rel=0.1)
    assert low < float(values.mean()) < high


def test_classes_are_the_unit() -> None:
    classes = torch.arange(100).repeat_interleave(20)
    alike = (torch.arange(100) % 2).double().repeat_interleave(20)
    low, high = intervals({"x": alike}, classes)["x"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 100**0.5, rel=0.15)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, classes = {"x": torch.rand(50, dtype=torch.float64)}, torch.arange(50) // 5
    assert intervals(values, classes, seed=3) == intervals(values, classes, seed=3)


def test_one_class_falls_back_to_queries() -> None:
    values = torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)
    low, high = intervals({"x": values}, torch.zeros(100, dtype=torch.int64))["x"]
    assert low < 0.5 < high


def test_a_sample_holds_whole_classes() -> None:
    codes = torch.arange(300) % 30
    rows = sample_of_classes(codes, 100, seed=1)
    assert len(rows) == 100
    assert set(torch.bincount(codes[rows], minlength=30).tolist()) == {0, 10}
    assert sample_of_classes(codes, 300, seed=1).tolist() == list(range(300))
    assert len(sample_of_classes(codes, 5, seed=1)) == 20  # two classes at least
