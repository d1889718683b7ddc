"""Intervals against scipy and simulation, tests against statsmodels and the binomial by hand, verdicts over pairs."""

from __future__ import annotations

import itertools
import time
from math import comb

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from test_evaluation import make, never_nan, rows_of

from labeler.errors import BadInputError
from labeler.evaluation import Predictions, bootstrap, compare, compare_means, judge, mean_of, resample, statistics
from labeler.evaluation.bootstrap import Resampled
from labeler.evaluation.comparing import holm, rows_needed, sign_flip_p


def of_right(right: np.ndarray, groups: list[str] | None = None) -> Predictions:
    """Return predictions of two labels that are right in the rows given."""
    truth = np.tile([True, False], (len(right), 1))
    predicted = np.where(right[:, None], truth, ~truth)
    ids = [str(i) for i in range(len(right))]
    return Predictions(ids, groups or ids, truth, predicted.astype(float), predicted)


def unlike(rows: int, labels: int, skill: float, seed: int) -> Predictions:
    """Return predictions for labels of very different frequency."""
    random = np.random.default_rng(seed)
    share = np.geomspace(1, 8, labels) / np.geomspace(1, 8, labels).sum()
    truth = np.arange(labels) == random.choice(labels, rows, p=share)[:, None]
    logits = skill * truth + np.log(share) + random.normal(size=truth.shape)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = [str(i) for i in range(rows)]
    return Predictions(ids, ids, truth, scores, np.arange(labels) == scores.argmax(axis=1)[:, None])


@pytest.mark.parametrize("metric", ["accuracy", "weighted_f1", "macro_f1"])
def test_intervals_cover_the_truth(metric):
    """500 samples: 93 to 97 % for what one would expect 95 %, within what 500 samples can tell."""
    expected = statistics("single", unlike(200_000, 4, 1.5, 999), np.ones((200_000, 1)), [metric])[metric][0]
    bounds = [
        resample("single", unlike(200, 4, 1.5, seed), seed, 1000, [metric]).interval(metric) for seed in range(500)
    ]
    covered = np.mean([low <= expected <= high for low, high in bounds])
    assert 0.93 <= covered <= 0.97


def test_intervals_of_mean_average_precision_cover_the_truth():
    def sample(rows: int, seed: int) -> Predictions:
        random = np.random.default_rng(seed)
        truth = random.random((rows, 4)) < [0.1, 0.15, 0.2, 0.3]
        scores = 1 / (1 + np.exp(-(2 * truth + random.normal(size=truth.shape))))
        ids = [str(i) for i in range(rows)]
        return Predictions(ids, ids, truth, scores, scores > 0.5)

    metric = "mean_average_precision"
    expected = statistics("multi", sample(200_000, 999), np.ones((200_000, 1)), [metric])[metric][0]
    bounds = [resample("multi", sample(300, seed), seed, 600, [metric]).interval(metric) for seed in range(500)]
    assert 0.93 <= np.mean([low <= expected <= high for low, high in bounds]) <= 0.97


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_intervals_are_scipys_bca(metric):
    found = unlike(150, 3, 1.5, 3)

    def value(rows: np.ndarray) -> float:
        return float(statistics("single", rows_of(found, rows), np.ones((len(rows), 1)), [metric])[metric][0])

    expected = stats.bootstrap(
        (np.arange(150),), value, method="BCa", n_resamples=6000, vectorized=False, rng=np.random.default_rng(0)
    ).confidence_interval
    assert resample("single", found, draws=6000, wanted=[metric]).interval(metric) == pytest.approx(
        [expected.low, expected.high], abs=1 / 149
    )


def test_a_skewed_metric_has_a_skewed_interval():
    random = np.random.default_rng(0)
    values = random.exponential(size=60)
    drawn = np.array([random.choice(values, 60).mean() for _ in range(9000)])
    left_out = (values.sum() - values) / 59
    found = Resampled({"mean": values.mean()}, {"mean": drawn}, {"mean": left_out})
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=random).confidence_interval
    assert found.interval("mean") == pytest.approx([expected.low, expected.high], abs=0.05)
    assert found.interval("mean")[1] > np.quantile(drawn, 0.975)


def test_p_is_where_the_interval_reaches_zero():
    random = np.random.default_rng(1)
    for shift in (0.5, 1.0, 1.9, 2.1, 3.0):
        drawn = random.normal(shift, 1, 20000)
        found = Resampled({"x": shift}, {"x": drawn}, {"x": np.random.default_rng(2).normal(size=50)})
        assert found.p_value("x") == pytest.approx(2 * stats.norm.sf(shift), abs=0.02)
        assert (found.p_value("x") < 0.05) == (found.interval("x")[0] > 0)


def test_a_difference_beyond_all_draws_has_a_p_below_what_draws_can_tell():
    drawn = np.random.default_rng(1).normal(10, 1, 2000)
    for sign in (1, -1):
        found = Resampled({"x": 10.0 * sign}, {"x": drawn * sign}, {"x": np.zeros(3)})
        assert found.p_value("x") == pytest.approx(2 * stats.norm.sf(10 / np.std(drawn)))


def test_an_undefined_metric_has_neither():
    nothing = Resampled({"x": float("nan")}, {"x": np.full(10, np.nan)}, {"x": np.full(3, np.nan)})
    assert nothing.interval("x") is None
    assert np.isnan(nothing.p_value("x"))
    half = Resampled({"x": 0.5}, {"x": np.array([np.nan] * 6 + [0.4] * 4)}, {"x": np.array([0.5])})
    assert half.interval("x") is None


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    found = make("multi", rows=50)
    whole = resample("multi", found, seed=3, draws=101)
    monkeypatch.setattr(bootstrap, "CELLS", 50 * 7)
    pieces = resample("multi", found, seed=3, draws=101)
    for name, values in whole.drawn.items():
        assert len(values) == 101
        assert values == pytest.approx(pieces.drawn[name], abs=1e-12)
        assert whole.left_out[name] == pytest.approx(pieces.left_out[name], abs=1e-12)
    assert not np.array_equal(whole.drawn["micro_f1"], resample("multi", found, seed=4, draws=101).drawn["micro_f1"])


def test_each_group_is_left_out_once_and_many_in_parts(monkeypatch):
    groups = ["a", "b", "a", "c"]
    [weights] = bootstrap.left_out_weights(groups, 0)
    assert sorted(map(tuple, weights.T)) == [(0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 0)]
    monkeypatch.setattr(bootstrap, "PARTS", 2)
    [weights] = bootstrap.left_out_weights(groups, 0)
    assert weights.shape == (4, 2)
    assert (weights.sum(axis=1) == 1).all()


def test_mean_average_precision_with_2000_draws_takes_seconds():
    found = make("multi", rows=300, labels=61)
    started = time.perf_counter()
    assert len(resample("multi", found, wanted=["mean_average_precision"]).drawn["mean_average_precision"]) == 2000
    assert time.perf_counter() - started < 12


def test_the_mean_over_seeds_is_taken_draw_by_draw():
    seeds = [resample("single", make(seed=seed)._replace(truth=make().truth), draws=50) for seed in range(3)]
    mean = mean_of(seeds)
    assert mean.estimate["accuracy"] == pytest.approx(np.mean([one.estimate["accuracy"] for one in seeds]))
    assert mean.drawn["accuracy"][7] == pytest.approx(np.mean([one.drawn["accuracy"][7] for one in seeds]))


def test_holm_is_statsmodels():
    random = np.random.default_rng(0)
    for count in (1, 2, 5, 15):
        given = np.round(random.random(count) ** 3, 2)  # with ties
        corrected, factors = holm(given.tolist())
        assert corrected == pytest.approx(multipletests(given, method="holm")[1])
        assert sorted(factors) == list(range(1, count + 1))
        assert factors[int(np.argmin(given))] == count
    assert holm([]) == ([], [])


def test_mcnemar_is_statsmodels():
    for seed in range(5):
        right = np.random.default_rng(seed).random((2, 80)) < [[0.7], [0.8]]
        found = compare("single", of_right(right[0]), of_right(right[1]), draws=50)
        counts = [[(right[0] == i)[right[1] == j].sum() for j in (1, 0)] for i in (1, 0)]
        assert found["mcnemar_p"] == pytest.approx(mcnemar(counts, exact=True).pvalue)
        assert found["p"] >= found["mcnemar_p"]


def test_equal_models_are_rarely_called_different():
    """Of 300 families of three comparisons among equal models, at most 5 % (and what 300 can tell) have any verdict."""
    alarms = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        hard = random.random(200)  # rows are easy or hard for all of them
        models = [of_right(random.random(200) < 0.5 + 0.5 * hard) for _ in range(3)]
        drawn = [resample("single", model, seed, 400, ["accuracy", "weighted_f1"]) for model in models]
        pairs = [
            compare("single", models[i], models[j], resampled=(drawn[i], drawn[j])) for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        judge(pairs)
        alarms += any(found["verdict"] != "cannot tell" for found in pairs)
    assert alarms <= 15


def test_a_family_is_harder_to_convince_than_a_pair():
    pair = {"n": 100, "delta_accuracy": 0.1, "ci95": [0.01, 0.2], "standard_error": 0.05, "p": 0.03}
    alone, family = dict(pair), [dict(pair), dict(pair) | {"p": 0.2}]
    judge([alone])
    assert (alone["verdict"], alone["rows_needed"]) == ("better", None)
    judge(family)
    assert [found["verdict"] for found in family] == ["cannot tell", "cannot tell"]
    assert family[0]["p_holm"] == pytest.approx(0.06)


def test_rows_needed_by_a_family_are_more_than_there_are():
    a = np.ones(1000, dtype=bool)
    b = a.copy()
    a[:48], b[48:70] = False, False
    pair = compare("single", of_right(a), of_right(b))
    assert pair["verdict"] == "better"
    family = [pair, *(dict(pair) | {"p": 0.5} for _ in range(20))]
    judge(family)
    assert 0.05 < pair["p_holm"] < 0.06
    assert pair["verdict"] == "cannot tell"
    assert 1500 < pair["rows_needed"] < 1900  # 860 where nothing else were tested


def test_rows_needed_are_enough_in_four_of_five_cases():
    random = np.random.default_rng(1)
    a, b = random.random(300) < 0.70, random.random(300) < 0.74
    found = compare("single", of_right(a), of_right(b))
    assert found["verdict"] == "cannot tell"
    rows, delta = found["rows_needed"], found["delta_accuracy"]
    told = 0
    for seed in range(60):
        drawn = np.random.default_rng(seed).integers(0, 300, rows)  # the rows found, as often as would be needed
        told += compare("single", of_right(a[drawn]), of_right(b[drawn]), draws=300)["verdict"] == "better"
    assert delta > 0
    assert 0.65 <= told / 60 <= 0.95


def test_draws_on_one_side_of_the_figure_give_no_interval():
    """BCa would take quantiles that no draw reaches: of rare labels in a few rows, they were a tenth as wide as percentiles."""
    drawn = np.random.default_rng(0).normal(0.3, 0.05, 2000)
    for place, told in ((0.3, True), (0.39, True), (0.41, False)):
        found = Resampled({"x": place}, {"x": drawn}, {"x": np.array([place, place + 0.01, place - 0.01])})
        assert (found.interval("x") is not None) == told


def test_signs_flipped_at_random_give_the_exact_p():
    for differences in ([1.0, 1, 1, 1], [2 / 3, 1, -1 / 3, 1, 0, 1 / 3], [0.0, 0.0], [1.0, -1.0, 0.5]):
        signs = itertools.product((-1, 1), repeat=len(differences))
        reached = [abs(np.dot(some, differences)) >= abs(sum(differences)) - 1e-9 for some in signs]
        assert sign_flip_p(np.array(differences)) == pytest.approx(np.mean(reached), abs=0.006)


def test_four_rows_are_no_difference_of_means_over_seeds():
    right = np.ones(200, dtype=bool)
    wrong = right.copy()
    wrong[:4] = False
    a, b = [of_right(wrong)] * 3, [of_right(right)] * 3
    drawn = [mean_of([resample("single", one, wanted=["accuracy", "weighted_f1"]) for one in some]) for some in (a, b)]
    found = compare_means("single", a, b, (drawn[0], drawn[1]))
    assert found["ci95"][0] > 0
    assert found["p"] == pytest.approx(0.125, abs=0.01)
    assert found["verdict"] == "cannot tell"
    with pytest.raises(BadInputError, match="row 1 is "):
        compare_means("single", a, [*b, rows_of(b[0], np.arange(200)[::-1])], (drawn[0], drawn[1]))


def test_no_number_of_rows_tells_no_difference():
    assert rows_needed({"n": 100, "delta_accuracy": 0.0, "ci95": [-0.1, 0.1], "standard_error": 0.05}) is None
    assert rows_needed({"n": 100, "delta_accuracy": 0.1, "ci95": None, "standard_error": None}) is None
    few = {"n": 7, "delta_accuracy": 0.43, "standard_error": 0.15}
    assert rows_needed(few | {"p": 0.004}) == 8
    assert 250 < rows_needed(few | {"p": 0.656}) < 300, (
        "what an exact test of seven rows cannot tell, ten cannot either"
    )


def test_compare_gives_mcnemars_exact_test():
    a = make(rows=40)
    a = a._replace(predicted=a.truth.copy())
    b = a._replace(predicted=a.truth.copy())
    a.predicted[:9] = np.roll(a.truth[:9], 1, axis=1)  # 9 rows that b alone has right
    b.predicted[9:11] = np.roll(a.truth[9:11], 1, axis=1)  # 2 rows that a alone has right
    found = compare("single", a, b)
    by_hand = 2 * sum(comb(11, k) for k in range(3)) / 2**11
    assert found["mcnemar_p"] == pytest.approx(by_hand)
    assert (found["only_a_right"], found["only_b_right"]) == (2, 9)
    assert found["delta_accuracy"] == pytest.approx(7 / 40)
    turned = compare("single", b, a)
    assert turned["delta_accuracy"] == -found["delta_accuracy"]
    assert turned["ci95"] == pytest.approx([-found["ci95"][1], -found["ci95"][0]])
    assert turned["mcnemar_p"] == found["mcnemar_p"]


def test_compare_of_a_model_with_itself_cannot_tell():
    for task in ("single", "multi"):
        found = make(task)
        result = compare(task, found, found, draws=100)
        never_nan(result)
        assert result["ci95"] == [0, 0]
        assert result["verdict"] == "cannot tell"
        assert result["mcnemar_p"] == (1.0 if task == "single" else None)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_compare_tells_good_from_bad(task):
    good, bad = make(task, rows=300, skill=3.0), make(task, rows=300, skill=0.5)
    assert compare(task, bad, good, draws=300)["verdict"] == "better"
    assert compare(task, good, bad, draws=300)["verdict"] == "worse"


def test_compare_does_not_call_four_rows_a_difference():
    a = make(rows=200)
    b = a._replace(predicted=a.truth.copy())
    a = a._replace(predicted=a.truth.copy())
    a.predicted[:4] = np.roll(a.truth[:4], 1, axis=1)
    found = compare("single", a, b)
    assert found["ci95"][0] > 0
    assert found["mcnemar_p"] == 0.125
    assert found["verdict"] == "cannot tell"


def test_compare_of_rows_of_one_group_cannot_tell():
    a = make(rows=40)
    a = a._replace(groups=["one"] * 40)
    b = a._replace(predicted=a.truth.copy())
    found = compare("single", a, b)
    assert found["delta_accuracy"] > 0
    assert (found["ci95"], found["p"], found["verdict"], found["rows_needed"]) == (None, 1.0, "cannot tell", None)
    wrong = make(rows=60)
    wrong = wrong._replace(predicted=np.roll(wrong.truth, 1, axis=1))
    told = compare("single", wrong, wrong._replace(predicted=wrong.truth.copy()))
    assert (told["verdict"], told["ci95"]) == ("better", [1.0, 1.0])
    wrong = make(rows=4)
    wrong = wrong._replace(predicted=np.roll(wrong.truth, 1, axis=1))
    assert compare("single", wrong, wrong._replace(predicted=wrong.truth.copy()))["verdict"] == "cannot tell"


@pytest.mark.parametrize(("groups", "verdict"), [(2, "cannot tell"), (5, "cannot tell"), (8, "better")])
def test_compare_tells_nothing_by_a_few_groups_however_many_rows_they_have(groups, verdict):
    names = [str(row % groups) for row in range(400)]
    before = of_right(np.arange(400) % 3 > 0, names)
    after = of_right(np.arange(400) % 11 > 0, names)
    found = compare("single", before, after)
    assert (found["verdict"], found["ci95"] is None) == (verdict, verdict == "cannot tell")
    assert found["mcnemar_p"] < 1e-6


def test_compare_draws_both_models_together():
    a, b = make(rows=150, skill=1.5), make(rows=150, skill=1.6)
    given = compare("single", a, b, resampled=(resample("single", a), resample("single", b)))
    assert given == compare("single", a, b)


def test_compare_refuses_other_rows():
    a = make(rows=20)
    with pytest.raises(BadInputError, match=r"same rows.*20 and 19 rows, one ends before the other"):
        compare("single", a, rows_of(a, np.arange(19)))
    with pytest.raises(BadInputError, match="row 1 is 'r0' in one and 'r1' in the other"):
        compare("single", a, rows_of(a, np.array([1, 0, *range(2, 20)])))
    with pytest.raises(BadInputError, match="another truth or group"):
        compare("single", a, a._replace(truth=np.roll(a.truth, 1, axis=1)))
    none = rows_of(a, np.arange(0))
    with pytest.raises(BadInputError, match="0 and 0 rows"):
        compare("single", none, none)
