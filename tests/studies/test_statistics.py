import math

import numpy as np
import pytest

from o2o_diffusion.studies.statistics import holm, improvement, interquartile_mean, mean, paired_p


def test_the_mean_weights_tasks_equally():
    assert mean([[1.0, 3.0], [10.0, 10.0, 10.0, 10.0]]).value == 6


def test_the_interval_of_a_normal_sample_is_the_textbook_one():
    sample = np.random.default_rng(0).normal(5, 2, 400)
    found, half = mean([sample]), 1.96 * sample.std() / 20
    assert found.low == pytest.approx(sample.mean() - half, abs=0.05)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.05)


def test_seeds_are_resampled_within_their_task():
    found = mean([[0.0, 0.0], [10.0, 10.0]])  # across tasks the interval would reach from 0 to 10
    assert (found.low, found.high) == (5, 5)


def test_one_seed_has_no_interval():
    assert mean([[4.0]]).value == 4 and math.isnan(mean([[4.0]]).low)


def test_the_interquartile_mean_ignores_the_outer_quarters():
    assert interquartile_mean([[-100.0, 1.0, 2.0, 100.0], [-100.0, 3.0, 4.0, 100.0]]).value == 2.5


def test_improvement_counts_pairs_of_runs_with_ties_as_half():
    assert improvement([[1.0, 2.0]], [[1.0, 0.0]]).value == (0.5 + 1 + 1 + 1) / 4
    assert improvement([[1.0, 1.0], [5.0, 5.0]], [[2.0, 2.0], [0.0, 0.0]]).value == 0.5


def test_the_p_value_is_exact_for_few_pairs():
    assert paired_p([1.0, 2.0, 3.0]) == 2 / 2**3  # of all signs, only all plus and all minus are as extreme
    assert paired_p([1.0, -1.0]) == paired_p([1.0]) == 1


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})  # sorted: d * 4, a * 3, c * 2, then no less than that
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1, "a": 1}
