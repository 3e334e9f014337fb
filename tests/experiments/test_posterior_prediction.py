import pytest

from experiments import posterior_prediction
from experiments.posterior_prediction import PosteriorPredictionOptions, Quality, learn, summary


def options(**changes):
    return PosteriorPredictionOptions(**{"seeds": 1, "iterations": 40, "n_samples": 3, **changes})


def test_table_has_each_way_to_predict(tmp_path, capsys):
    posterior_prediction.main(options(output=tmp_path))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("map", "sample", "linearized", "first task", "NLL"))
    assert list(tmp_path.glob("*/seed0/events*"))


@pytest.mark.filterwarnings("ignore:the prior adds")
def test_sampling_from_a_wide_posterior_fails_where_the_mean_does_not(tmp_path):
    first, everything = learn(options(n_samples=10), 0, tmp_path)
    for found in (first, everything):
        assert found["linearized"].accuracy >= found["map"].accuracy - 5
        assert found["sample"].accuracy < found["map"].accuracy - 10
        assert found["map"].nll < found["linearized"].nll
    narrow, _ = learn(options(prior_variance=1e-6, n_samples=10), 0, tmp_path / "narrow")
    assert narrow["sample"].accuracy == pytest.approx(narrow["map"].accuracy, abs=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_samples": 9},
        {"hidden": (20,)},
        {"iterations": 10},
        {"prior_ewc_lambda": 1e4},
        {"prior_variance": 0.5},
        {"structure": "kronecker"},
        {"structure": "kronecker", "prior_ewc_lambda": 1e4},
        {"structure": "kronecker", "prior_variance": 0.5},
    ],
)
def test_options_reach_the_predictions(changes, tmp_path):
    _, plain = learn(options(), 0, tmp_path / "a")
    _, changed = learn(options(**changes), 0, tmp_path / "b")
    assert plain["sample"] != changed["sample"]


def test_table_has_means_over_seeds():
    qualities = [
        {m: Quality(a, 0.5) for m in ("map", "sample", "linearized")} for a in (80.0, 90.0)
    ]
    table = summary([(q, q) for q in qualities], options(seeds=2))
    assert [next(iter(c.cells)) for c in table.columns][1:3] == ["85.00 ± 7.07", "0.50 ± 0.00"]


@pytest.mark.parametrize(
    "changes", [{"seeds": 0}, {"n_samples": 0}, {"iterations": 0}, {"prior_variance": 0.0}]
)
def test_bad_options_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be"):
        options(**changes)
