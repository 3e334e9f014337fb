import io
import warnings
from itertools import accumulate

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.models import MultiHeadClassifier, MultiTaskModule, SimpleMLP, as_multitask
from avalanche.training import Cumulative, JointTraining, Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, Gaussian, PriorEWCPlugin, predict
from avalanche_hnet.benchmarks import Regression1D, with_target_components
from avalanche_hnet.metrics import mse_metrics
from avalanche_hnet.metrics.mse import MSE
from tests.models import MultiHead
from tests.streams import regression_stream, task_stream
from tests.test_heads import labelled_benchmark
from tests.test_prior_ewc import naive


def tensors(experience):
    """All inputs and targets, (N, 1) each."""
    x, y = zip(*((x, y) for x, y, *_ in experience.dataset), strict=True)
    return torch.stack(x), torch.stack(y)


def task_labels(experience):
    return {label for *_, label in experience.dataset}


def network():
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


class NetworkPerTask(MultiTaskModule):
    def __init__(self, n_tasks=3):
        super().__init__()
        self.networks = nn.ModuleList(network() for _ in range(n_tasks))

    def forward_single_task(self, x, task_label):
        return self.networks[task_label](x)


def trainer(model, *plugins, epochs=60, metrics=None, loggers=(), **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        evaluator = EvaluationPlugin(
            *(metrics or [mse_metrics(experience=True, stream=True)]), loggers=list(loggers)
        )
    options = {"train_mb_size": 20, "eval_mb_size": 20, "criterion": nn.MSELoss()} | options
    optimizer = options.pop("optimizer", None) or torch.optim.Adam(model.parameters(), 0.01)
    return naive(
        model, *plugins, optimizer=optimizer, train_epochs=epochs, evaluator=evaluator, **options
    )


def plain_mse(model, stream):
    """Over all samples at once, in one batch per experience."""
    model.eval()
    with torch.no_grad():
        errors = [(model(x) - y).square() for x, y in map(tensors, stream)]
    return torch.cat(errors).mean().item()


# The stream.


def test_default_is_the_authors_data(float64):
    data = pytest.importorskip("hypnettorch.data.special.regression1d_data")
    functions = [lambda x: x + 3.0, lambda x: 2.0 * x**2 - 1, lambda x: np.power(x - 3.0, 3)]
    domains = [(-4, -2), (-1, 1), (2, 4)]
    benchmark = Regression1D()
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 3
    for index, (function, domain) in enumerate(zip(functions, domains, strict=True)):
        theirs = data.ToyRegression(
            train_inter=domain, num_train=100, test_inter=domain, num_test=50,
            map_function=function, std=0.05, rseed=42,
        )  # fmt: skip
        ours = (
            *tensors(benchmark.train_stream[index]),
            *tensors(benchmark.test_stream[index]),
        )
        expected = (
            theirs.get_train_inputs(),
            theirs.get_train_outputs(),
            theirs.get_test_inputs(),
            theirs.get_test_outputs(),
        )
        for mine, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(other), rtol=1e-14, atol=1e-14)


def test_default_is_what_the_authors_code_gave(float64):
    """First and last training sample, and mean training output and test output, by task."""
    expected = [
        [-3.250919762305275, -0.246567408893366, -3.784217146013391, -0.742857983561590,
         -0.059692531251949, 0.0],
        [-0.250919762305275, -0.869726192357420, -0.784217146013391, 0.271352226654578,
         -0.292020912127925, -0.306122448979592],
        [2.749080237694725, -0.011445737270439, 2.215782853986609, -0.440931662760882,
         -0.039799932970070, 0.0],
    ]  # fmt: skip
    benchmark = Regression1D()
    for train, test, numbers in zip(
        benchmark.train_stream, benchmark.test_stream, expected, strict=True
    ):
        x, y = tensors(train)
        assert (len(x), len(test.dataset)) == (100, 50)
        ours = [x[0], y[0], x[-1], y[-1], y.mean(), tensors(test)[1].mean()]
        assert [v.item() for v in ours] == pytest.approx(numbers, rel=1e-12, abs=1e-14)


def test_posterior_replay_is_the_authors_data(float64):
    data = pytest.importorskip("hypnettorch.data.special.regression1d_data")
    functions = [
        lambda x: np.power(x + 3.0, 3),
        lambda x: 2.0 * np.power(x, 2) - 1,
        lambda x: -np.power(x - 3.0, 3),
    ]
    benchmark = Regression1D.posterior_replay()
    for index, function in enumerate(functions):
        theirs = data.ToyRegression(
            train_inter=benchmark.domains[index], num_train=20,
            test_inter=benchmark.domains[index], num_test=50,
            map_function=function, std=0.05, rseed=42,
        )  # fmt: skip
        ours = (*tensors(benchmark.train_stream[index]), *tensors(benchmark.test_stream[index]))
        expected = (
            theirs.get_train_inputs(),
            theirs.get_train_outputs(),
            theirs.get_test_inputs(),
            theirs.get_test_outputs(),
        )
        for mine, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(other), rtol=1e-14, atol=1e-14)


def test_functions_of_posterior_replay_meet_at_the_edges():
    benchmark = Regression1D.posterior_replay()
    assert benchmark.domains == ((-4, -2), (-1, 1), (2, 4))
    ends = [
        benchmark.functions[task](np.array([[end]])).item()
        for task, domain in enumerate(benchmark.domains)
        for end in domain
    ]
    assert ends == [-1, 1, 1, 1, 1, -1]


def test_posterior_replay_takes_the_arguments_of_the_class():
    benchmark = Regression1D.posterior_replay(
        n_train=7, n_test=3, noise_std=0, seed=1, return_task_id=False
    )
    assert isinstance(benchmark, Regression1D)
    x, y = tensors(benchmark.train_stream[2])
    assert len(x) == 7
    torch.testing.assert_close(y, -((x - 3) ** 3))
    assert len(benchmark.test_stream[0].dataset) == 3
    assert benchmark.train_stream[2].task_labels == [0]
    with pytest.raises(ValueError, match="n_train must be at least 1, got 0"):
        Regression1D.posterior_replay(n_train=0)


def test_samples_have_the_default_dtype():
    assert {t.dtype for t in tensors(Regression1D().train_stream[0])} == {torch.float32}
    assert {t.dtype for t in tensors(Regression1D().test_stream[0])} == {torch.float32}


def test_samples_have_the_default_dtype_of_float64(float64):
    for stream in (Regression1D().train_stream, Regression1D().test_stream):
        assert {t.dtype for t in tensors(stream[1])} == {torch.float64}


@pytest.mark.parametrize("return_task_id", [True, False])
def test_task_labels(return_task_id):
    benchmark = Regression1D(return_task_id=return_task_id)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for index, experience in enumerate(stream):
            label = index if return_task_id else 0
            assert experience.task_labels == [label]
            assert experience.task_label == label
            assert task_labels(experience) == {label}


def test_own_functions_and_domains_are_there_for_figures():
    benchmark = Regression1D(
        [np.sin, np.abs], [[0, 3], np.array([-2, -1])], noise_std=0, n_train=7, n_test=3, seed=5
    )
    assert benchmark.functions == (np.sin, np.abs)
    assert benchmark.domains == ((0, 3), (-2, -1))
    for index, experience in enumerate(benchmark.train_stream):
        low, high = benchmark.domains[index]
        x, y = tensors(experience)
        assert x.shape == y.shape == (7, 1)
        assert low <= x.min() < x.max() <= high
        torch.testing.assert_close(y, torch.from_numpy(benchmark.functions[index](x.numpy())))
        x, y = tensors(benchmark.test_stream[index])
        torch.testing.assert_close(x, torch.tensor([low, (low + high) / 2, high])[:, None])
        torch.testing.assert_close(y, torch.from_numpy(benchmark.functions[index](x.numpy())))


def test_noise_is_on_training_outputs_only():
    benchmark = Regression1D([np.sin], [(0, 3)], noise_std=0.3, n_train=5000)
    x, y = tensors(benchmark.train_stream[0])
    assert abs((y - x.sin()).std() - 0.3) < 0.01
    x, y = tensors(benchmark.test_stream[0])
    torch.testing.assert_close(y, x.sin())


def test_seed_decides_the_training_data():
    first, again, other = (
        tensors(Regression1D(seed=seed).train_stream[0])[0] for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again)
    assert not torch.equal(first, other)


def test_functions_may_work_in_place():
    def double(x):
        x *= 2
        return x

    x, y = tensors(Regression1D([double], [(1, 2)], noise_std=0).train_stream[0])
    torch.testing.assert_close(y, 2 * x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"functions": [np.sin]}, "got 1 functions and 3 domains"),
        ({"functions": [], "domains": []}, "at least one, got 0 functions and 0 domains"),
        ({"functions": [3.0] * 3}, r"functions\[0\] must be callable, got 3.0"),
        ({"domains": [(0, 1), (1, 1), (0, 1)]}, r"domains\[1\] must be finite .*got \(1, 1\)"),
        ({"domains": [(0, 1), (0, 1), (0, np.inf)]}, r"domains\[2\] must be finite .*inf"),
        ({"domains": [(0, 1), (0, 1, 2), (0, 1)]}, r"domains\[1\] .*got \(0, 1, 2\)"),
        ({"domains": [-1, 0, 1]}, r"domains\[0\] must be finite \(low, high\).*got -1"),
        ({"noise_std": -0.1}, "noise_std must be at least 0 and finite, got -0.1"),
        ({"noise_std": np.nan}, "noise_std must be at least 0 and finite, got nan"),
        ({"n_train": 0}, "n_train must be at least 1, got 0"),
        ({"n_test": 0}, "n_test must be at least 1, got 0"),
        (
            {"functions": [np.ravel], "domains": [(0, 1)]},
            r"functions\[0\] must return the shape of its inputs, \(100, 1\), got \(100,\)",
        ),
        (
            {"functions": [np.sqrt], "domains": [(-1, 1)]},
            r"functions\[0\] must be finite on its domain \(-1.0, 1.0\), but is not at -0\.",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Regression1D(**arguments)


# Avalanche's strategies on it.


def test_naive_learns_each_task_and_forgets():
    benchmark, strategy = Regression1D(), trainer(network())
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
        assert results[f"MSE_Exp/eval_phase/test_stream/Task00{index}/Exp00{index}"] < 0.05
    assert results["MSE_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.1


@pytest.mark.parametrize(
    ("strategy", "plugins"),
    [(Naive, [ReplayPlugin(mem_size=150)]), (Cumulative, []), (JointTraining, [])],
)
def test_strategies_with_old_data_learn_all(strategy, plugins):
    benchmark = Regression1D()
    trained = trainer(network(), *plugins, strategy=strategy, epochs=100)
    if strategy is JointTraining:
        trained.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            trained.train(experience)
    assert trained.eval(benchmark.test_stream)["MSE_Stream/eval_phase/test_stream/Task002"] < 0.05


def test_prior_ewc_forgets_less_than_naive():
    benchmark, errors = Regression1D(), []
    for plugins in ([], [PriorEWCPlugin(100.0, prior_variance=100.0, likelihood=Gaussian(0.05))]):
        torch.manual_seed(0)
        strategy = trainer(network(), *plugins)
        for experience in benchmark.train_stream[:2]:
            strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
        errors.append(results["MSE_Exp/eval_phase/test_stream/Task000/Exp000"])
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("strategy", [Naive, JointTraining])
def test_task_labels_reach_multi_task_modules(strategy):
    benchmark, model = Regression1D(), NetworkPerTask()
    trained = trainer(model, strategy=strategy, epochs=100)
    if strategy is JointTraining:  # batches of several tasks
        trained.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            trained.train(experience)
    results = trained.eval(benchmark.test_stream)
    assert results["MSE_Stream/eval_phase/test_stream/Task002"] < 0.05


def test_without_task_labels_all_is_task_0():
    model = NetworkPerTask()
    before = [[p.clone() for p in network.parameters()] for network in model.networks]
    trainer(model, epochs=1).train(Regression1D(return_task_id=False).train_stream[1])
    unchanged = [
        all(map(torch.equal, network.parameters(), weights))
        for network, weights in zip(model.networks, before, strict=True)
    ]
    assert unchanged == [False, True, True]


# Models that ask for classes are told the components of the targets.


def linear_stream(shape, n=6, n_tasks=2):
    """Targets (n, *shape), without task labels and without components."""
    return regression_stream([(torch.randn(n, 3), torch.randn(n, *shape)) for _ in range(n_tasks)])


@pytest.mark.parametrize("return_task_id", [True, False])
def test_experiences_state_the_only_component(return_task_id):
    benchmark = Regression1D(return_task_id=return_task_id)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        assert [e.classes_in_this_experience for e in stream] == [[0]] * 3
        assert all(e.origin_stream is stream for e in stream)


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((1,), 1), ((3,), 3), ((2, 3), 6)])
def test_components_of_targets_of_any_shape(shape, count):
    plain = linear_stream(shape)
    benchmark = with_target_components(plain)
    for name, stream in benchmark.streams.items():
        assert [e.classes_in_this_experience for e in stream] == [[*range(count)]] * 2
        assert [e.current_experience for e in stream] == [0, 1]
        for new, old in zip(stream, plain.streams[name], strict=True):
            assert new.dataset is old.dataset
            assert not hasattr(old, "classes_in_this_experience")
            assert old.origin_stream is plain.streams[name]


def test_targets_without_components_are_refused():
    with pytest.raises(
        ValueError, match=r"got torch.int64 of shape \(\) in experience 0 of the tr"
    ):
        with_target_components(task_stream(1))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(0,\) in experience 0"):
        with_target_components(linear_stream((0,)))
    with pytest.raises(ValueError, match="experience 1 of the train stream must have at least one"):
        with_target_components(
            regression_stream([(torch.randn(n, 3), torch.randn(n, 1)) for n in (2, 0)])
        )


def single_unit_heads():
    """Models with a head for each task, by name."""
    network = SimpleMLP(num_classes=1, input_size=1, hidden_size=32, drop_rate=0)
    return {
        "as_multitask": as_multitask(network, "classifier"),
        "separate": MultiHead(MultiHeadClassifier(32, initial_out_features=1), 1, 32),
        "block": MultiHead(BlockMultiHeadClassifier(32), 1, 32),
    }


@pytest.mark.parametrize("name", ["as_multitask", "separate", "block"])
@pytest.mark.parametrize("strategy", [Naive, JointTraining])
def test_heads_are_trained(name, strategy):
    benchmark, model = Regression1D(), single_unit_heads()[name]
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    trained = trainer(model, strategy=strategy, epochs=20, optimizer=optimizer)
    if strategy is JointTraining:
        trained.train(benchmark.train_stream)
        results = trained.eval(benchmark.test_stream)
        assert results["MSE_Stream/eval_phase/test_stream/Task002"] < 0.1
        return
    for index, experience in enumerate(benchmark.train_stream):
        trained.train(experience)
        results = trained.eval(benchmark.test_stream[: index + 1])
        assert results[f"MSE_Exp/eval_phase/test_stream/Task00{index}/Exp00{index}"] < 0.1


def test_masking_of_a_single_unit():
    """The default of two units has a masked column, which is not the targets' shape."""
    first = Regression1D().train_stream[0]
    x = torch.randn(5, 4)
    one, two = MultiHeadClassifier(4, initial_out_features=1), MultiHeadClassifier(4)
    for head in (one, two):
        head.adaptation(first)
    assert one(x, 0).shape == (5, 1)
    torch.testing.assert_close(one(x, 0), one.classifiers["0"].classifier(x))
    assert two(x, 0).shape == (5, 2)
    assert (two(x, 0)[:, 1] == -1000).all()
    one.eval()
    one.adaptation(Regression1D().test_stream[1])  # never trained
    assert (one(x, 1) == -1000).all()


@pytest.mark.parametrize("head", [MultiHeadClassifier, BlockMultiHeadClassifier])
def test_heads_get_a_unit_for_each_component(head):
    data = [(torch.randn(6, 1), torch.randn(6, 3)) for _ in range(2)]
    benchmark = with_target_components(labelled_benchmark(data))
    model = MultiHead(head(8), 1)
    strategy = trainer(model, epochs=1)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    for label in (0, 1):
        outputs = model(torch.randn(4, 1), torch.full((4,), label))
        assert outputs.shape == (4, 3)
        assert (outputs.abs() < 10).all()


class PlainMultiHeadRegression:
    """The equations of PriorEWC for a hidden layer of tanh and heads of one unit.

    Its objective is the mean squared error with the penalties times 2s², as in the plugin.
    """

    def __init__(self, weights, noise, lam, variance, gamma, lr, steps):
        self.phi = {n: w.clone() for n, w in weights.items()}
        self.noise, self.lam, self.variance, self.gamma = noise, lam, variance, gamma
        self.lr, self.steps = lr, steps
        self.precision, self.mean = {}, {}

    @staticmethod
    def output(phi, x, task):
        hidden = torch.tanh(x @ phi["features.1.weight"].T + phi["features.1.bias"])
        head = f"output.head.classifiers.{task}.classifier"
        return hidden @ phi[f"{head}.weight"].T + phi[f"{head}.bias"]

    def train(self, x, y, task):
        own = [n for n in self.phi if "classifiers" not in n or f"classifiers.{task}." in n]
        for _ in range(self.steps):
            phi = {n: w.clone().requires_grad_() for n, w in self.phi.items()}
            nll = (self.output(phi, x, task) - y).square().sum() / (2 * self.noise**2)
            for n in own:
                if n not in self.precision:
                    nll = nll + phi[n].square().sum() / (2 * self.variance)
            for n in self.precision:
                nll = nll + self.lam / 2 * (self.precision[n] * (phi[n] - self.mean[n]) ** 2).sum()
            (nll * 2 * self.noise**2 / len(x)).backward()
            for n, w in phi.items():
                if w.grad is not None:
                    self.phi[n] = self.phi[n] - self.lr * w.grad
        for n, old in self.precision.items():
            self.precision[n] = 1 / self.variance + self.gamma * (old - 1 / self.variance)
        for n in own:
            self.precision.setdefault(n, torch.full_like(self.phi[n], 1 / self.variance))
        for x_n in x:  # generalised Gauss-Newton
            phi = {n: w.clone().requires_grad_() for n, w in self.phi.items()}
            self.output(phi, x_n, task).sum().backward()
            for n in own:
                self.precision[n] = self.precision[n] + phi[n].grad ** 2 / self.noise**2
        self.mean = {n: self.phi[n].clone() for n in self.precision}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_prior_ewc_with_heads_equals_the_equations(gamma):
    benchmark, noise = Regression1D(n_train=10), 0.3
    model = MultiHead(MultiHeadClassifier(8, initial_out_features=1), 1)
    for experience in benchmark.train_stream:
        model.output["head"].adaptation(experience)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    plain = PlainMultiHeadRegression(start, noise, 3.0, 0.5, gamma, lr=0.02, steps=30)
    plugin = PriorEWCPlugin(3.0, 0.5, gamma, fisher="exact", likelihood=Gaussian(noise))
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    strategy = trainer(model, plugin, epochs=30, optimizer=optimizer, train_mb_size=10)
    for task, experience in enumerate(benchmark.train_stream):
        before = {n: p.clone() for n, p in plugin.posterior.precision.items()}
        strategy.train(experience, shuffle=False)
        plain.train(*tensors(experience), task)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), plain.phi[name], rtol=1e-9, atol=1e-11)
            known, precision = plugin.posterior.known[name], plugin.posterior.precision[name]
            if name not in plain.precision:  # heads of tasks to come
                assert not known.any()
                assert torch.equal(p, start[name])
                assert (precision == 2).all()
                continue
            assert known.all()
            torch.testing.assert_close(precision, plain.precision[name], rtol=1e-9, atol=1e-11)
            if "classifiers" in name and f"classifiers.{task}." not in name:
                torch.testing.assert_close(precision, 2 + gamma * (before[name] - 2))
                torch.testing.assert_close(p.detach(), plugin.posterior.mean[name], rtol=0, atol=0)
            elif gamma == 1:
                assert (precision >= before.get(name, torch.tensor(2.0))).all()
                assert (precision > before.get(name, torch.tensor(2.0))).any()


@pytest.mark.usefixtures("float64")
def test_block_of_rows_equals_separate_heads_in_regression():
    benchmark = Regression1D(n_train=10)
    posteriors, outputs = [], []
    for name in ("separate", "block"):
        torch.manual_seed(3)
        model = single_unit_heads()[name]
        for experience in benchmark.train_stream:
            model.output["head"].adaptation(experience)
        with torch.no_grad():
            for p in model.features.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
            for n, p in model.output.named_parameters():  # the same in all heads
                p.copy_(torch.linspace(-0.5, 0.5, 32) if "weight" in n else torch.zeros(1))
        plugin = PriorEWCPlugin(3.0, fisher="exact", likelihood=Gaussian(0.3))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        strategy = trainer(model, plugin, epochs=20, optimizer=optimizer, train_mb_size=10)
        for experience in benchmark.train_stream:
            strategy.train(experience, shuffle=False)
        posteriors.append(plugin.posterior)
        x = torch.linspace(-5, 5, 11)[:, None]
        outputs.append(
            [
                predict(model, plugin.posterior, x, likelihood=Gaussian(0.3), task_label=task)
                for task in range(3)
            ]
        )
    heads = [f"output.head.classifiers.{task}.classifier.weight" for task in range(3)]
    torch.testing.assert_close(
        torch.cat([posteriors[0].precision[n] for n in heads]),
        posteriors[1].precision["output.head.classifier.weight"],
    )
    for separate, block in zip(*outputs, strict=True):
        torch.testing.assert_close(separate.mean, block.mean)
        torch.testing.assert_close(separate.epistemic_variance, block.epistemic_variance)
        assert separate.mean.shape == (11, 1)


# The metric.


def test_nothing_by_default_and_each_on_request():
    assert mse_metrics() == accuracy_metrics() == []
    names = {
        "minibatch": "MSE_MB",
        "epoch": "MSE_Epoch",
        "epoch_running": "RunningMSE_Epoch",
        "experience": "MSE_Exp",
        "stream": "MSE_Stream",
    }
    for argument, name in names.items():
        assert [str(m) for m in mse_metrics(**{argument: True})] == [name]
    assert [str(m) for m in mse_metrics(**dict.fromkeys(names, True))] == [*names.values()]


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss()])
def test_evaluation_is_the_mean_over_all_samples(criterion):
    """Experiences of 5 and 12 samples of two outputs, in batches of at most 4."""
    data = [(torch.randn(n, 3), torch.randn(n, 2) * n) for n in (5, 12)]
    stream, model = regression_stream(data).test_stream, nn.Linear(3, 2)
    results = trainer(model, criterion=criterion, eval_mb_size=4).eval(stream)
    assert results["MSE_Stream/eval_phase/test_stream"] == pytest.approx(plain_mse(model, stream))
    for index in (0, 1):
        value = results[f"MSE_Exp/eval_phase/test_stream/Exp00{index}"]
        assert value == pytest.approx(plain_mse(model, stream[index : index + 1]))


def test_second_evaluation_starts_anew():
    benchmark, model = Regression1D(), network()
    strategy = trainer(model)
    name = "MSE_Stream/eval_phase/test_stream/Task002"
    first = strategy.eval(benchmark.test_stream)[name]
    with torch.no_grad():
        model[-1].bias += 1
    second = strategy.eval(benchmark.test_stream)[name]
    assert second == pytest.approx(plain_mse(model, benchmark.test_stream))
    assert second != pytest.approx(first)


def test_training_metrics_agree_with_each_other():
    """100 samples in batches of 30, 30, 30 and 10, with weights that stand still."""
    benchmark, model = Regression1D(), network()
    metrics = mse_metrics(minibatch=True, epoch=True, epoch_running=True)
    still = torch.optim.SGD(model.parameters(), 0.0)
    strategy = trainer(model, metrics=[metrics], epochs=2, train_mb_size=30, optimizer=still)
    strategy.train(benchmark.train_stream[0])
    logged = {k.split("/")[0]: v[1] for k, v in strategy.evaluator.get_all_metrics().items()}
    expected = plain_mse(model, benchmark.train_stream[:1])
    assert logged["MSE_Epoch"] == pytest.approx([expected] * 2)
    sizes = [30, 30, 30, 10]
    for epoch in (slice(0, 4), slice(4, 8)):
        sums = [n * mse for n, mse in zip(sizes, logged["MSE_MB"][epoch], strict=True)]
        running = [s / n for s, n in zip(accumulate(sums), accumulate(sizes), strict=True)]
        assert logged["RunningMSE_Epoch"][epoch] == pytest.approx(running)
    assert sums[0] / 30 != pytest.approx(expected, rel=1e-4)


def test_every_logger_takes_it(tmp_path, capsys):
    benchmark, text = Regression1D(), io.StringIO()
    loggers = [
        TensorboardLogger(tmp_path / "tb"),
        CSVLogger(tmp_path / "csv"),
        TextLogger(text),
        InteractiveLogger(),
    ]
    everything = {"minibatch": True, "epoch": True, "epoch_running": True}
    everything |= {"experience": True, "stream": True}
    metrics = [mse_metrics(**everything), loss_metrics(**everything)]
    strategy = trainer(network(), epochs=2, eval_mb_size=7, metrics=metrics, loggers=loggers)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
    loggers[0].writer.flush()

    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if "MSE" in tag}
    assert tags == {
        *(
            f"{name}/train_phase/train_stream/Task00{task}"
            for name in ("MSE_MB", "MSE_Epoch", "RunningMSE_Epoch")
            for task in range(3)
        ),
        *(f"MSE_Exp/eval_phase/test_stream/Task00{task}/Exp00{task}" for task in range(3)),
        "MSE_Stream/eval_phase/test_stream/Task002",
    }
    for tag in tags:  # the criterion is the mean squared error, too
        series = events.Scalars(tag)
        loss = events.Scalars(tag.replace("MSE", "Loss"))
        assert [e.step for e in series] == [e.step for e in loss]
        assert [e.value for e in series] == pytest.approx([e.value for e in loss], rel=1e-5)
    stream = events.Scalars("MSE_Stream/eval_phase/test_stream/Task002")
    assert [e.step for e in stream] == [10, 20, 30]
    expected = plain_mse(strategy.model, benchmark.test_stream)
    assert stream[-1].value == pytest.approx(expected, rel=1e-5)
    assert results["MSE_Stream/eval_phase/test_stream/Task002"] == pytest.approx(expected)
    for printed in (text.getvalue(), capsys.readouterr().out):
        assert f"MSE_Stream/eval_phase/test_stream/Task002 = {expected:.4f}" in printed
    assert len((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()) == 10


def test_shapes_that_would_broadcast_are_refused():
    flat = nn.Sequential(network(), nn.Flatten(0))  # (B,), where the targets are (B, 1)
    strategy = trainer(flat, criterion=lambda outputs, targets: outputs.sum())
    with pytest.raises(ValueError, match=r"the outputs' shape \(20,\), got \(20, 1\)"):
        strategy.eval(Regression1D().test_stream)


def test_class_labels_are_refused():
    strategy = trainer(nn.Linear(6, 2), criterion=nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match=r"floating-point numbers, got torch.int64.*accuracy"):
        strategy.eval(task_stream(1).test_stream)


def test_the_bare_metric():
    metric = MSE()
    assert metric.result() == 0
    outputs = torch.tensor([[1.0], [2.0]], requires_grad=True)
    metric.update(outputs, torch.tensor([[0.0], [0.0]]))
    metric.update(torch.tensor([[3.0]]), torch.tensor([[0.0]]))
    assert metric.result() == pytest.approx(14 / 3)
    metric.reset()
    assert metric.result() == 0
