import json
from statistics import NormalDist

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import RegressionPrediction
from avalanche_hnet.benchmarks import Regression1D
from experiments import regression_uncertainty
from experiments.common.uncertainty.figure import Panel, draw_uncertainty
from experiments.common.uncertainty.measures import TaskResult, evaluate
from experiments.common.uncertainty.network import (
    GaussianActivation,
    MultiHeadNetwork,
    make_network,
)
from experiments.common.uncertainty.options import UncertaintyOptions
from experiments.common.uncertainty.results import summary
from experiments.regression_uncertainty import learn


def options(**changes):
    return UncertaintyOptions(**{"iterations": 30, "hidden": (30,), "n_samples": 5, **changes})


@pytest.mark.parametrize(
    ("head", "method"), [("single", "linearized"), ("multi", "sample"), ("multi", "map")]
)
def test_reports_draws_and_logs(head, method, tmp_path, capsys):
    folder = regression_uncertainty.main(options(head=head, method=method, output=tmp_path))
    assert folder.name.startswith(f"regression-uncertainty-{head}-")
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("covered", "RMSE", "beyond", folder.name[:20]))

    image = np.asarray(Image.open(folder / "uncertainty-seed0.png").convert("RGB"))
    assert image.shape[1] > (1200 if head == "single" else 1800)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50

    report = json.loads((folder / "results.json").read_text())
    assert report["settings"]["head"] == head
    [tasks] = report["seeds"]
    assert [t["task"] for t in tasks] == [0, 1, 2]
    assert all(0 <= t["coverage"] <= 100 and t["rmse"] > 0 for t in tasks)
    assert all((t["ratio"] is None) == (method == "map") for t in tasks)

    events = EventAccumulator(str(folder / "tensorboard" / "seed0")).Reload()
    assert len(events.Images("Uncertainty")) == 1
    scalars = events.Tags()["scalars"]
    for task in tasks:
        tag = f"Uncertainty/coverage/Task{task['task']:03}"
        assert events.Scalars(tag)[0].value == pytest.approx(task["coverage"])
    assert "PriorEWC/EWC" in scalars
    assert any(name.startswith("MSE_Exp/eval_phase") for name in scalars)


def test_seeds_repeat_and_differ(tmp_path):
    chosen = options(iterations=20, method="sample")
    runs = [learn(chosen, seed, tmp_path / str(i)) for i, seed in enumerate([0, 0, 1])]
    assert runs[0] == runs[1] != runs[2]


def test_few_iterations_keep_all_tasks_and_know_where_there_were_none(tmp_path):
    for result in learn(options(iterations=300, hidden=(200,)), 0, tmp_path):
        assert result.coverage >= 90
        assert result.ratio >= 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task_set", ["hypernetworks", "posterior-replay"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_truth_is_in_the_band_and_the_band_is_wide_elsewhere(head, task_set, tmp_path):
    """In the default settings, for each task; the gaps and what is beyond also by themselves."""
    chosen = UncertaintyOptions(head=head, task_set=task_set)
    for seed in range(3):
        for result in learn(chosen, seed, tmp_path / str(seed)):
            assert result.coverage >= 90, (seed, result)
            assert result.ratio >= 3, (seed, result)
            assert result.ratio_gaps >= 3, (seed, result)
            assert result.ratio_beyond >= 3, (seed, result)
            assert result.rmse < 0.05, (seed, result)


# What is measured.


BENCHMARK = Regression1D([np.zeros_like] * 2, [(0, 2), (3, 5)])


def prediction(mean, epistemic_std, noise_std=0.3):
    """Of functions of inputs, each constant where it is a number."""

    def predicted(task, x):
        m = torch.as_tensor(
            np.broadcast_to(mean(x) if callable(mean) else mean, x.shape).astype(float)
        )
        s = torch.as_tensor(epistemic_std(x) if callable(epistemic_std) else epistemic_std)
        variance = s.expand(len(x)).square()[:, None].to(m)
        noise = torch.full_like(m[:, None], noise_std**2)
        return RegressionPrediction(m[:, None], variance, noise)

    return predicted


def test_band_is_of_both_kinds_of_uncertainty():
    """An error that grows as x leaves the band 2 √(0.4² + 0.3²) = 1 in the middle of [0, 2]."""
    found = evaluate(BENCHMARK, 0, prediction(lambda x: x, 0.4))
    assert found.coverage == pytest.approx(100 * 201 / 401)
    assert found.rmse == pytest.approx((4 / 3) ** 0.5, rel=0.01)
    assert found.epistemic_std == pytest.approx(0.4)
    assert (found.ratio, found.ratio_gaps, found.ratio_beyond) == pytest.approx((1, 1, 1))


def test_widths_in_the_gap_and_beyond_are_told_apart():
    def width(x):
        inside = ((x >= 0) & (x <= 2)) | ((x >= 3) & (x <= 5))
        return np.where(inside, 0.5, np.where((x > 2) & (x < 3), 1.0, 5.0))

    found = evaluate(BENCHMARK, 1, prediction(0, width))
    assert found.task == 1
    assert found.coverage == 100
    assert found.ratio_gaps == pytest.approx(2)
    assert found.ratio_beyond == pytest.approx(10)
    assert found.ratio == pytest.approx((1 * 2 + 4 * 10) / 5, rel=0.01)  # over [-2, 7]


def test_width_is_that_of_the_task():
    """Of task 1, whose domain is not the wide one."""
    found = evaluate(BENCHMARK, 1, prediction(0, lambda x: np.where(x <= 2, 4.0, 1.0)))
    assert found.epistemic_std == pytest.approx(1)


def test_no_ratio_without_epistemic_uncertainty():
    found = evaluate(BENCHMARK, 0, prediction(0, 0.0))
    assert (found.ratio, found.ratio_gaps, found.ratio_beyond) == (None, None, None)


def test_no_ratio_in_gaps_where_there_are_none():
    joined = Regression1D([np.zeros_like] * 2, [(0, 2), (2, 4)])
    found = evaluate(joined, 0, prediction(0, 1.0))
    assert found.ratio_gaps is None
    assert found.ratio == pytest.approx(1)


def test_table_has_a_row_for_each_seed_and_task():
    results = [
        [TaskResult(t, 90 + t, 0.1 * t, 0.2, 4.0 + seed, None, 5.0) for t in range(3)]
        for seed in range(2)
    ]
    cells = [list(column.cells) for column in summary(results, options(seeds=2)).columns]
    assert cells[0] == ["0"] * 3 + ["1"] * 3
    assert cells[2] == ["90.0", "91.0", "92.0"] * 2
    assert cells[5] == ["4.0"] * 3 + ["5.0"] * 3
    assert cells[6] == ["-"] * 6


# The picture.


def bounds(collection):
    """Lower and upper edge of a band over a constant."""
    y = collection.get_paths()[0].vertices[:, 1]
    return round(float(y.min()), 6), round(float(y.max()), 6)


def test_bands_of_the_picture():
    x = np.linspace(-2, 7, 50)
    panels = [Panel(str(t), [t], x, prediction(0.5, 0.4)(t, x)) for t in (0, 1)]
    figure = draw_uncertainty(BENCHMARK, panels, "title")
    assert figure.get_suptitle() == "title"
    assert [axes.get_title() for axes in figure.axes] == ["0", "1"]
    for task, axes in enumerate(figure.axes):
        epistemic, upper, lower = axes.collections
        assert bounds(epistemic) == (-0.3, 1.3)
        assert bounds(upper) == (1.3, 1.5)  # 0.5 + 2 √(0.4² + 0.3²)
        assert bounds(lower) == (-0.5, -0.3)
        [span] = axes.patches
        assert (span.get_x(), span.get_width()) == (BENCHMARK.domains[task][0], 2)
        assert axes.get_xlim() == (-2, 7)


# The network.


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Gaussian", GaussianActivation), ("ReLU", nn.ReLU), ("Tanh", nn.Tanh), ("ELU", nn.ELU)],
)
def test_network_has_the_layers_of_the_options(name, kind):
    network = make_network(options(hidden=(7, 5), activation=name), (-1, 1))
    assert [type(m) for m in network] == [nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert [m.out_features for m in network if isinstance(m, nn.Linear)] == [7, 5, 1]


def test_heads_share_the_features():
    network = make_network(options(head="multi"), (-1, 1))
    assert isinstance(network, MultiHeadNetwork)
    for experience in Regression1D().train_stream:
        network.head.adaptation(experience)
    x = torch.randn(6, 1)
    outputs = network(x, torch.tensor([0, 1, 2, 2, 1, 0]))
    assert outputs.shape == (6, 1)
    torch.testing.assert_close(outputs[2:4], network(x, 2)[2:4])


def test_gaussian_activation_is_the_bell():
    x = torch.linspace(-3, 3, 7)
    bell = NormalDist()
    expected = torch.tensor([bell.pdf(v) / bell.pdf(0) for v in x.tolist()])
    torch.testing.assert_close(GaussianActivation()(x), expected)


def test_units_are_spread_over_the_interval():
    first = make_network(options(hidden=(2000,), steepness=4.0), (-6, 2))[0]
    slopes, centres = first.weight[:, 0], -first.bias / first.weight[:, 0]
    assert slopes.abs().min() >= 2
    assert slopes.abs().max() <= 6
    assert (slopes > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert -6.01 < centres.min() < -5.9
    assert 1.9 < centres.max() < 2.01
    assert centres.mean().item() == pytest.approx(-2, abs=0.2)


def test_steepness_zero_leaves_the_initial_weights():
    torch.manual_seed(1)
    network = make_network(options(steepness=0.0, hidden=(4,)), (-6, 6))
    torch.manual_seed(1)
    layer = nn.Linear(1, 4)
    assert torch.equal(network[0].weight, layer.weight)
    assert torch.equal(network[0].bias, layer.bias)


# The options.


@pytest.mark.parametrize(("task_set", "count"), [("hypernetworks", 100), ("posterior-replay", 20)])
def test_task_sets(task_set, count):
    benchmark = UncertaintyOptions(task_set=task_set).make_benchmark()
    assert len(benchmark.train_stream[0].dataset) == count
    middle = benchmark.functions[0](np.array([[-2.5]])).item()
    assert middle == (0.5 if task_set == "hypernetworks" else 0.125)
    own = UncertaintyOptions(task_set=task_set, n_train=7, data_seed=3).make_benchmark()
    assert len(own.train_stream[0].dataset) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden must name widths of at least 1, got \(\)"),
        ({"hidden": (3, 0)}, r"hidden must name widths of at least 1, got \(3, 0\)"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"noise_std": 0.0}, "noise_std must be positive, got 0.0"),
        ({"steepness": -1.0}, "steepness must be at least 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        options(**arguments)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(UncertaintyOptions, args=["--help"], description=regression_uncertainty.__doc__)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("--head", "--task-set", "--method", "--prior-variance"))
