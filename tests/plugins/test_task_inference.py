import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from avalanche_hnet import Gaussian, PriorEWCPlugin, TaskInference, TaskInferencePlugin
from avalanche_hnet.metrics import mse_metrics
from tests.support.strategies import naive
from tests.support.streams import tensors
from tests.support.task_inference import (
    CLOSE,
    LOG_ZERO,
    benchmark_of,
    evaluated,
    inputs,
    strategy_of,
    trained_regression,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    "options",
    [{}, {"eval_every": 0}, {"eval_every": 1}, {"eval_every": 1, "peval_mode": "iteration"}],
)
@pytest.mark.parametrize("kind", ["hypernet", "heads"])
def test_training_is_that_without_the_plugin(kind, options):
    """The model itself is trained, with task labels, whatever is evaluated in between."""
    found = []
    for plugins in ([], [TaskInferencePlugin()]):
        torch.manual_seed(0)
        benchmark = benchmark_of((3, 1, 4))
        evaluator = None if plugins else EvaluationPlugin(accuracy_metrics(stream=True))
        strategy = strategy_of(
            kind, *plugins or [SupervisedPlugin()], evaluator=evaluator, **options
        )
        model = strategy.model
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream], shuffle=False)
            assert strategy.model is model
            strategy.eval(benchmark.test_stream)
            assert strategy.model is model
            assert all(m.training for m in model.modules())
        found.append({n: p.detach().clone() for n, p in model.named_parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


class First(SupervisedPlugin):
    """What the evaluation before a training publishes."""

    found = None

    def after_eval(self, strategy, **kwargs):
        if self.found is None:
            self.found = strategy.evaluator.get_last_metrics()


@pytest.mark.parametrize("posterior", [True, False])
def test_before_the_first_training_the_model_is_evaluated_as_it_is(posterior):
    """Avalanche itself does so with ``eval_every=0``."""
    found, benchmark = [], benchmark_of((3, 1, 4))
    for infers in (True, False):
        torch.manual_seed(0)
        ewc, first = PriorEWCPlugin(), First()
        options = {"posterior": ewc.posterior} if posterior else {}
        plugins, evaluator = [], EvaluationPlugin(accuracy_metrics(stream=True))
        if infers:
            plugins, evaluator = [TaskInferencePlugin(**options)], evaluated()
        strategy = strategy_of("heads", ewc, *plugins, evaluator=evaluator, eval_every=0)
        strategy.plugins.insert(-1, first)
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
        found.append(first.found["Top1_Acc_Stream/eval_phase/test_stream/Task004"])
        assert not any("TaskInference" in name for name in first.found)
        metrics = strategy.evaluator.get_last_metrics()
        names = {n.split("/")[0] for n in metrics if n.startswith("TaskInference")}
        assert len(names) == (3 if infers else 0)
    assert found[0] == found[1]


@pytest.mark.parametrize("trained", [False, True])
def test_evaluation_of_a_model_that_knows_no_tasks_is_refused(trained):
    """Not even after a training, as heads forget which they are when they are loaded."""
    benchmark = benchmark_of((3, 1, 4))
    strategy = strategy_of("heads", TaskInferencePlugin())
    if trained:
        strategy.train(benchmark.train_stream)
        for module in strategy.model.modules():
            module.known_train_tasks_labels = set()
    with pytest.raises(ValueError, match="has not been trained on any task yet"):
        strategy.eval(benchmark.test_stream)


def test_a_model_without_tasks_is_refused_before_it_is_trained():
    model = nn.Sequential(nn.Linear(6, 2))
    before = model[0].weight.detach().clone()
    strategy = naive(model, TaskInferencePlugin())
    with pytest.raises(ValueError, match="Sequential is not a multi-task model"):
        strategy.train(benchmark_of((3, 1)).train_stream)
    assert torch.equal(model[0].weight, before)


def test_token_ids_are_inputs_too():
    """Integers, whose dtype the probabilities do not take."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.last = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, x, task):
            return self.last(self.embedding(x).mean(1)) * (task + 1)

    model, x = Tokens(), torch.randint(0, 7, (5, 3))
    found = TaskInference(model, tasks=[0, 1])(x)
    torch.testing.assert_close(found, model(x, 1).log_softmax(1).detach(), **CLOSE)


def test_labels_are_not_looked_at_in_evaluation():
    """The same data under other labels."""
    benchmark = benchmark_of((0, 1, 2))
    strategy = strategy_of("heads", TaskInferencePlugin())
    strategy.train(benchmark.train_stream)
    found = []
    for labels in ((0, 1, 2), (2, 0, 1)):
        results = strategy.eval(benchmark_of(labels).test_stream)
        found.append(
            [
                results[f"Top1_Acc_Exp/eval_phase/test_stream/Task{t:03d}/Exp{e:03d}"]
                for e, t in enumerate(labels)
            ]
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["linearized", "sample"])
def test_strategy_with_a_posterior(method):
    ewc = PriorEWCPlugin()
    options = {"posterior": ewc.posterior, "method": method, "n_samples": 3}
    plugin = TaskInferencePlugin(
        criterion="agreement", generator=torch.Generator().manual_seed(1), **options
    )
    strategy = strategy_of("heads", plugin, ewc, eval_mb_size=12)
    benchmark = benchmark_of((3, 1, 4))
    strategy.train(benchmark.train_stream)
    results = strategy.eval(benchmark.test_stream)
    inference = TaskInference(
        strategy.model, "agreement", generator=torch.Generator().manual_seed(1), **options
    )
    for number, (label, experience) in enumerate(
        zip((3, 1, 4), benchmark.test_stream, strict=True)
    ):
        x, y, _ = tensors(experience)
        right = (inference(x).argmax(1) == y).double().mean().item()
        name = f"eval_phase/test_stream/Task{label:03d}/Exp{number:03d}"
        assert results[f"Top1_Acc_Exp/{name}"] == pytest.approx(right)
        tasks = (inference.inferred_tasks == label).double().mean().item()
        assert results[f"TaskInference_Acc_Exp/{name}"] == pytest.approx(tasks)


class Break(SupervisedPlugin):
    def after_eval_forward(self, strategy, **kwargs):
        raise KeyboardInterrupt


def test_evaluation_that_is_broken_off():
    """The next evaluation or training uses the model itself."""
    benchmark = benchmark_of((3, 1, 4))
    strategy = strategy_of("heads", TaskInferencePlugin())
    strategy.train(benchmark.train_stream[:2])
    model, expected = strategy.model, strategy.eval(benchmark.test_stream[:2])
    for go_on in (
        lambda: strategy.eval(benchmark.test_stream[:2]),
        lambda: strategy.train(benchmark.train_stream[2]),
    ):
        strategy.plugins.append(Break())
        with pytest.raises(KeyboardInterrupt):
            strategy.eval(benchmark.test_stream[:2])
        del strategy.plugins[-1]
        assert strategy.model is not model
        found = go_on()
        assert strategy.model is model
        key = "Top1_Acc_Exp/eval_phase/test_stream/Task003/Exp000"
        assert found[key] == expected[key]
    assert model.output["head"].known_train_tasks_labels == {1, 3, 4}


def test_plugin_knows_a_regression_from_the_criterion():
    model, posterior, benchmark = trained_regression()
    plugin = TaskInferencePlugin(posterior=posterior)
    strategy = naive(
        model,
        plugin,
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(mse_metrics(stream=True), loggers=[]),
    )
    (found,) = strategy.eval(benchmark.test_stream).values()
    inference = TaskInference(model, posterior=posterior, likelihood=Gaussian(0.1))
    parts = [tensors(e) for e in benchmark.test_stream]
    errors = [(inference(x) - y).square().mean().item() for x, y, _ in parts]
    assert found == pytest.approx(sum(errors) / 3, rel=1e-9)


def test_columns_reach_the_labels_of_the_stream():
    """After the first of three tasks the second's labels have columns, too, which are masked."""
    benchmark = benchmark_of(offset=True)
    model = as_multitask(SimpleMLP(num_classes=2, input_size=6, hidden_size=8), "classifier")
    strategy = naive(model, TaskInferencePlugin())
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        logits = TaskInference(model)(inputs(benchmark))
        assert logits.shape == (36, 6)
        assert (logits[:, 2 * (experience.current_experience + 1) :] == LOG_ZERO).all()


def test_evaluation_in_the_middle_of_an_experience_is_of_what_is_trained():
    """The posterior takes in an experience only when it ends."""
    ewc = PriorEWCPlugin()
    accuracies = {}
    for plugin in (TaskInferencePlugin(posterior=ewc.posterior), TaskInferencePlugin()):
        torch.manual_seed(0)
        own = ewc if plugin.options.posterior is not None else PriorEWCPlugin()
        strategy = strategy_of(
            "block",
            own,
            plugin,
            evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
            eval_every=1,
            train_epochs=3,
        )
        benchmark = benchmark_of()
        strategy.train(
            benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]], shuffle=False
        )
        accuracies[plugin] = strategy.evaluator.get_all_metrics()[NAME][1]
    with_posterior, without = accuracies.values()
    assert len(without) > 3
    assert with_posterior[:-1] == without[:-1]


NAME = "Top1_Acc_Stream/eval_phase/test_stream/Task000"


@pytest.mark.parametrize("options", [{"criterion": "agreement"}, {"method": "sample"}])
def test_draws_in_evaluation_leave_the_training_alone(options):
    found = []
    for infers in (False, True):
        torch.manual_seed(0)
        ewc, benchmark = PriorEWCPlugin(), benchmark_of()
        inference = TaskInferencePlugin(posterior=ewc.posterior, n_samples=4, **options)
        strategy = strategy_of(
            "block",
            ewc,
            *[inference] * infers,
            evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        found.append({n: p.detach().clone() for n, p in strategy.model.named_parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
