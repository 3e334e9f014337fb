import json

import numpy as np
import pytest
import torch
import tyro
from avalanche.models import IncrementalClassifier
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, PriorEWCPlugin
from avalanche_hnet.benchmarks import GaussianMixture2D
from experiments import gaussian_mixture
from experiments.common.hypernet import HypernetOptions
from experiments.common.modes import entropy_figure
from experiments.common.modes.learning import learn, make_strategy
from experiments.common.modes.networks import ModeNetwork, mlp
from experiments.common.modes.options import GaussianMixtureOptions
from experiments.common.modes.results import ModeResult, summary
from tests.support.streams import tensors


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(entropy_figure, "POINTS", 31)


def options(**changes):
    return GaussianMixtureOptions(**{"iterations": 10, "seeds": 1, **changes})


def colours(path):
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] > 600
    return len(np.unique(image.reshape(-1, 3), axis=0))


def test_default_reports_draws_and_logs(tmp_path, capsys):
    folder = gaussian_mixture.main(options(seeds=2, output=tmp_path))
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("hypernet", "prior-ewc", "100 / 45", "±", "seeds 0 to 1"))
    assert {p.name for p in folder.glob("*.png")} == {
        "entropy-hypernet.png",
        "entropy-prior-ewc.png",
    }
    assert all(colours(p) > 50 for p in folder.glob("*.png"))

    content = json.loads((folder / "summary.json").read_text())
    assert content["settings"]["hypernet"]["hidden"] == [50, 50]
    for method in ("hypernet", "prior-ewc"):
        found = content["methods"][method]
        assert [r["seed"] for r in found["results"]] == [0, 1]
        for name in ("given", "not_given", "tasks"):
            values = [r[name] for r in found["results"]]
            assert found[name] == pytest.approx(np.mean(values))
            assert found[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))

        logs = folder / "tensorboard" / method / "seed1"
        scalars = EventAccumulator(str(logs)).Reload().Tags()["scalars"]
        term = "Hypernet/Regularizer" if method == "hypernet" else "PriorEWC/EWC"
        assert term in scalars
        name = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
        for inner in (logs, logs / "not-given"):
            events = EventAccumulator(str(inner)).Reload().Scalars(name)
            assert [e.step for e in events] == [10, 20, 30]
        inferred = EventAccumulator(str(logs / "not-given")).Reload().Tags()["scalars"]
        assert "TaskInference_Acc_Exp/eval_phase/test_stream/Task002/Exp002" in inferred


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({"scenario": "task", "methods": ("hypernet", "naive")}, (True, False, False)),
        ({"scenario": "domain", "methods": ("hypernet", "separate")}, (True, True, True)),
        ({"scenario": "domain", "methods": ("prior-ewc", "naive")}, (False, True, False)),
        ({"head": "growing", "methods": ("prior-ewc", "naive")}, (False, True, False)),
        ({"head": "fixed", "methods": ("prior-ewc", "naive")}, (False, True, False)),
        ({"methods": ("naive", "separate")}, (True, True, True)),
    ],
)
def test_scenarios_and_heads_report_what_there_is(changes, has, tmp_path):
    folder = gaussian_mixture.main(options(output=tmp_path, **changes))
    content = json.loads((folder / "summary.json").read_text())["methods"]
    for method in changes["methods"]:
        names = ("given", "not_given", "tasks")
        assert tuple(content[method][name] is not None for name in names) == has
        assert colours(folder / f"entropy-{method}.png") > 50


def test_each_method_learns_each_task(tmp_path):
    for method in ("hypernet", "prior-ewc", "separate"):
        result, _ = learn(method, options(iterations=100), 0, tmp_path / method)
        assert result.given > 80, method
        assert 0 <= result.not_given <= result.tasks <= 100


def test_given_accuracy_is_that_of_the_network(tmp_path):
    chosen = options(iterations=5)
    result, inference = learn("prior-ewc", chosen, 0, tmp_path)
    x, y, t = (
        torch.cat(c) for c in zip(*map(tensors, GaussianMixture2D().test_stream), strict=True)
    )
    model = inference["model"].eval()
    right = (model(x, t).argmax(1) == y).double().mean()
    assert result.given == pytest.approx(100 * right.item())


def test_seeds_repeat_and_differ(tmp_path):
    runs = [
        learn("hypernet", options(iterations=5), seed, tmp_path / str(i))[1]["model"].state_dict()
        for i, seed in enumerate([0, 0, 1])
    ]
    weights = [run["hypernetwork.output.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("changes", "kind", "outputs"),
    [
        ({}, BlockMultiHeadClassifier, 0),
        ({"scenario": "task"}, BlockMultiHeadClassifier, 0),
        ({"head": "growing"}, IncrementalClassifier, 2),
        ({"head": "fixed"}, nn.Linear, 6),
        ({"scenario": "domain"}, nn.Linear, 2),
    ],
)
@pytest.mark.parametrize("method", ["prior-ewc", "naive"])
def test_heads(changes, kind, outputs, method, tmp_path):
    strategy, _ = make_strategy(method, options(methods=(method,), **changes), tmp_path)
    head = strategy.model.head
    assert type(head) is kind
    bias = head.bias if kind is nn.Linear else head.classifier.bias
    assert len(bias) == outputs
    assert len(strategy.model.features) == 1


def plugin(strategy, kind):
    return next((p for p in strategy.plugins if isinstance(p, kind)), None)


def test_options_reach_the_strategy(tmp_path):
    chosen = options(
        hidden=(7, 5, 3),
        activation="Tanh",
        batch_size=11,
        learning_rate=0.5,
        ewc_lambda=3.0,
        prior_variance=7.0,
        criterion="confidence",
        prediction="sample",
    )
    strategy, inference = make_strategy("prior-ewc", chosen, tmp_path)
    layers = [*strategy.model.features[0]]
    assert [m.out_features for m in layers[::2]] == [7, 5, 3]
    assert {type(m) for m in layers[1::2]} == {nn.Tanh}
    assert strategy.train_mb_size == 11
    assert strategy.optimizer.param_groups[0]["lr"] == 0.5
    ewc = plugin(strategy, PriorEWCPlugin)
    assert (ewc.ewc_lambda, ewc.posterior.prior_variance) == (3.0, 7.0)
    assert inference == {"criterion": "confidence", "method": "sample", "posterior": ewc.posterior}

    strategy, inference = make_strategy("hypernet", chosen, tmp_path)
    assert strategy.prior_variance == 7.0
    assert strategy.optimizer.param_groups[0]["lr"] == chosen.hypernet.learning_rate
    assert inference == {"criterion": "confidence"}
    assert strategy.model.multi_head
    assert strategy.model.hypernetwork.layout.shapes["6.weight"] == (6, 3)

    hypernet = HypernetOptions(embedding_dim=3, beta=2.0)
    task = options(scenario="task", hypernet=hypernet, learning_rate=0.5)
    strategy, _ = make_strategy("hypernet", task, tmp_path)
    assert (strategy.model.hypernetwork.embedding_dim, strategy.regularizer.beta) == (3, 2.0)
    assert strategy.optimizer.param_groups[0]["lr"] == 0.5
    assert not strategy.model.multi_head

    strategy, _ = make_strategy("naive", chosen, tmp_path)
    assert plugin(strategy, PriorEWCPlugin) is None
    strategy, inference = make_strategy("separate", chosen, tmp_path)
    assert inference == {"criterion": "confidence"}
    assert len(strategy.model.features) == 3
    assert plugin(strategy, PriorEWCPlugin).posterior.prior_variance == 7.0


def test_data_seed_decides_the_data(tmp_path):
    for seed in (0, 1):
        benchmark = gaussian_mixture.make_benchmark(options(data_seed=seed))
        expected = GaussianMixture2D(seed=seed)
        for ours, other in zip(benchmark.train_stream, expected.train_stream, strict=True):
            assert torch.equal(tensors(ours)[0], tensors(other)[0])


@pytest.mark.parametrize("criterion", ["confidence", "agreement"])
def test_other_criteria(criterion, tmp_path):
    chosen = options(methods=("prior-ewc",), criterion=criterion, output=tmp_path, iterations=5)
    folder = gaussian_mixture.main(chosen)
    assert colours(folder / "entropy-prior-ewc.png") > 50


def test_networks_of_other_tasks_stand_still(tmp_path):
    strategy, _ = make_strategy("separate", options(), tmp_path)
    stream = GaussianMixture2D().train_stream
    strategy.train(stream[0], reset_optimizer_state=True)
    before = {n: p.clone() for n, p in strategy.model.named_parameters()}
    strategy.train(stream[1], reset_optimizer_state=True)
    for name, parameter in strategy.model.named_parameters():
        if name.startswith(("features.0.", "features.2.")):
            assert torch.equal(parameter, before[name]), name
    assert torch.equal(strategy.model.head.classifier.weight[:2], before["head.classifier.weight"])
    assert not torch.equal(strategy.model.features[1][0].weight, before["features.1.0.weight"])
    precision = plugin(strategy, PriorEWCPlugin).posterior.precision
    assert (precision["features.2.0.weight"] == 1).all()  # still at the prior
    assert (precision["features.1.0.weight"] > 1).any()


def test_one_network_for_all_ignores_the_label():
    network = ModeNetwork([mlp((4,), "ReLU")], nn.Linear(4, 2))
    x = torch.randn(5, 2)
    torch.testing.assert_close(network(x, 0), network(x, 2))
    assert network.active_elements(GaussianMixture2D().train_stream[0]) == {}


def test_table_shows_mean_and_spread():
    results = [
        ModeResult("hypernet", 0, 100.0, 50.0, 51.0),
        ModeResult("hypernet", 1, 98.0, 70.0, 71.0),
        ModeResult("prior-ewc", 0, None, 40.0, None),
        ModeResult("prior-ewc", 1, None, 40.0, None),
    ]
    table = summary(results, options(head="growing", seeds=2))
    cells = [list(column.cells) for column in table.columns]
    assert cells == [
        ["hypernet", "prior-ewc, growing"],
        ["99.00 ± 1.41", "-"],
        ["60.00 ± 14.14", "40.00 ± 0.00"],
        ["61.00 ± 14.14", "-"],
        ["100 / 45", "- / 50"],
    ]
    table = summary(
        [ModeResult("naive", 0, 90.0, None, None)], options(methods=("naive",), scenario="task")
    )
    assert [list(column.cells) for column in table.columns] == [["naive"], ["90.00"], ["-"], ["-"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"data_seed": -1}, "data_seed must be at least 0, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"ewc_lambda": -1.0}, "ewc_lambda must be at least 0, got -1.0"),
        ({"prior_variance": 0.0}, "prior_variance must be positive and finite, got 0.0"),
        ({"prior_variance": float("inf")}, "prior_variance must be positive and finite, got inf"),
        ({"hidden": (10, 0)}, r"hidden must be widths of at least 1, got \(10, 0\)"),
        ({"hidden": ()}, r"hidden must be widths of at least 1, got \(\)"),
        ({"methods": ()}, r"methods must name at least one, each once, got \(\)"),
        ({"methods": ("naive", "naive")}, "methods must name at least one, each once"),
        ({"scenario": "task", "criterion": "confidence"}, "criterion='confidence' is of no use"),
        ({"scenario": "task", "prediction": "map"}, "prediction='map' is of no use to"),
        ({"scenario": "task", "head": "fixed"}, "head='fixed' is of no use to scenario='task'"),
        ({"scenario": "domain", "head": "fixed"}, "head='fixed' is of no use to scenario='domain'"),
        ({"methods": ("hypernet",), "head": "growing"}, "head='growing' is of no use to methods"),
        ({"methods": ("naive",), "prediction": "map"}, "prediction='map' is of no use to methods"),
        (
            {"methods": ("naive",), "head": "fixed", "criterion": "confidence"},
            "criterion='confidence' is of no use to methods and heads that infer no task",
        ),
        ({"methods": ("separate",), "prediction": "map"}, "prediction='map' is of no use"),
        ({"criterion": "agreement"}, "'agreement' needs a posterior .*, got hypernet"),
        (
            {"criterion": "agreement", "prediction": "map", "methods": ("prior-ewc",)},
            "'agreement' needs a posterior .*, got prediction='map'",
        ),
    ],
)
def test_bad_and_unused_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(GaussianMixtureOptions, args=["--help"], description=gaussian_mixture.__doc__)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("--scenario", "--head", "--criterion", "--hypernet.beta"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["hypernet", "prior-ewc"])
def test_every_task_is_learned_perfectly(method, tmp_path):
    """With the task given, as the authors report."""
    chosen = GaussianMixtureOptions()
    for seed in range(chosen.seeds):
        result, _ = learn(method, chosen, seed, tmp_path / str(seed))
        assert result.given == 100
