"""Models that ask for classes are told the components of the targets."""

import pytest
import torch
from avalanche.models import MultiHeadClassifier, SimpleMLP, as_multitask
from avalanche.training import JointTraining, Naive

from avalanche_hnet import BlockMultiHeadClassifier, Gaussian, PriorEWCPlugin, predict
from avalanche_hnet.benchmarks import Regression1D, with_target_components
from tests.support.models import MultiHead
from tests.support.regression import tensors, trainer
from tests.support.streams import labelled_benchmark, regression_stream, task_stream


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
    """The equations of prior-focused EWC for a hidden layer of tanh and heads of one unit.

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
    likelihood = Gaussian(noise)
    plugin = PriorEWCPlugin(
        3.0, 0.5, gamma, fisher="exact", likelihood=likelihood, penalty_step="gradient"
    )
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
