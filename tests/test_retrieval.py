"""Retrieval: ranks by a plain loop; what shares a text or a picture is right too; saying the same of all gains nothing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from labeler.evaluation import measure_retrieval, metric_for, retrieved
from labeler.evaluation.retrieval import ranks


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def space():
    """Return 60 texts and their pictures, near each other, with two texts and two pictures that are the same."""
    random = np.random.default_rng(0)
    text = unit(random.normal(size=(60, 8)))
    image = unit(text + 0.3 * random.normal(size=(60, 8)))
    text_keys, image_keys = np.arange(60), np.arange(60)
    text[7], text_keys[7] = text[3], 3
    image[20], image_keys[20] = image[9], 9
    return text, image, (text_keys, image_keys)


def test_ranks_by_a_loop(space, monkeypatch):
    text, image, keys = space
    expected = []
    for query in range(60):
        right = [row for row in range(60) if keys[0][row] == keys[0][query] or keys[1][row] == keys[1][query]]
        best = max(text[query] @ image[row] for row in right)
        expected.append(1 + sum(text[query] @ image[row] >= best for row in range(60) if row not in right))
    assert ranks(text, image, keys).tolist() == expected
    monkeypatch.setattr("labeler.evaluation.retrieval.TOGETHER", 7)
    assert ranks(text, image, keys).tolist() == expected
    assert 1 in expected
    assert max(expected) > 1


def test_recall_and_median_rank_with_intervals(space):
    text, image, keys = space
    found = measure_retrieval(text, image, keys, [str(row) for row in range(60)], draws=200)
    places = ranks(text, image, keys)
    there = found["text_to_image"]
    assert (found["n"], found["chance"]["recall_at_5"]) == (60, 5 / 60)
    for k in (1, 5, 10):
        assert there[f"recall_at_{k}"] == pytest.approx((places <= k).mean())
        low, high = there[f"recall_at_{k}_ci95"]
        assert low <= there[f"recall_at_{k}"] <= high
    assert there["median_rank"] == np.sort(places)[29]
    back = ranks(image, text, keys)
    assert metric_for(60) == "mean_reciprocal_rank"
    assert retrieved(text, image, keys) == pytest.approx(((1 / places).mean() + (1 / back).mean()) / 2)


def test_a_run_is_chosen_by_recall_where_there_are_enough_pairs_to_tell():
    text, image = (unit(np.random.default_rng(seed).normal(size=(120, 8))) for seed in range(2))
    keys = np.arange(120), np.arange(120)
    there, back = ranks(text, image, keys), ranks(image, text, keys)
    assert metric_for(120) == "recall_at_10"
    assert retrieved(text, image, keys) == pytest.approx(((there <= 10).mean() + (back <= 10).mean()) / 2)
    assert 0 < retrieved(text, image, keys) < 0.5


def test_where_draws_do_not_differ_a_recall_has_an_exact_interval_and_a_rank_none():
    same = unit(np.eye(20))
    keys = np.arange(20), np.arange(20)
    found = measure_retrieval(same, same, keys, [str(row) for row in range(20)], draws=50)["text_to_image"]
    exact = scipy.stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert (found["recall_at_1"], found["recall_at_1_ci95"]) == (1.0, [exact.low, exact.high])
    assert (found["median_rank"], found["median_rank_ci95"]) == (1.0, None)
    one = measure_retrieval(same, same, keys, ["one"] * 20, draws=50)["text_to_image"]
    assert (one["recall_at_10"], one["recall_at_10_ci95"], one["median_rank_ci95"]) == (1.0, None, None)


def test_the_same_for_all_is_the_last_place():
    same = np.ones((30, 4)) / 2
    keys = np.arange(30), np.arange(30)
    assert (ranks(same, same, keys) == 30).all()
    assert retrieved(same, same, keys) == 1 / 30
