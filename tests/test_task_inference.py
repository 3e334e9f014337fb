import copy
import warnings
from functools import partial

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.models import MultiHeadClassifier, SimpleMLP, as_multitask
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    FixedTarget,
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    TaskInference,
    TaskInferencePlugin,
    predict,
)
from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.posterior.predict import Predictor
from avalanche_hnet.core.posterior.task_criteria import disagreement, doubt, entropy
from avalanche_hnet.metrics import mse_metrics, task_inference_metrics
from avalanche_hnet.models import network_runner
from tests.hypernets import hyper_model, learner, tensors
from tests.models import MultiHead, mlp
from tests.streams import regression_stream, task_stream
from tests.test_prior_ewc import naive

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LOG_ZERO = -1000.0
CRITERIA = ["entropy", "confidence", "agreement"]


def benchmark_of(labels=(0, 1, 2), n_samples=12, offset=False):
    """Tasks that differ in the means of their inputs and the direction of their classes."""
    generator, data = torch.Generator().manual_seed(1), []
    for number, _ in enumerate(labels):
        y = torch.arange(n_samples) % 2
        x = torch.randn(n_samples, 6, generator=generator)
        x += (y - 0.5).view(-1, 1) * torch.linspace(1, 3, 6).roll(number)
        x[:, number] += 2
        data.append((x, y + 2 * number if offset else y))
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[*labels])


def inputs(benchmark):
    return torch.cat([tensors(e)[0] for e in benchmark.test_stream])


# The oracle: one sample and one task at a time.


def loop(x, tasks, probabilities, score, classes=None, n_columns=2):
    """Log-probabilities by column, the chosen tasks, and by how much they are the surest."""
    logs, chosen, margins = [], [], []
    for n in range(len(x)):
        scores, columns = [], []
        for task in tasks:
            p = probabilities(x[n : n + 1], task)[0].double()
            scores.append(float(score(p, x[n : n + 1], task)))
            by_column = [0.0] * n_columns
            for output, value in enumerate(p.tolist()):
                by_column[output if classes is None else classes[task][output]] = value
            columns.append(torch.tensor(by_column))
        best = min(range(len(tasks)), key=lambda t: scores[t])
        chosen.append(tasks[best])
        logs.append(columns[best].log().clamp_min(LOG_ZERO))
        margins.append(sorted(scores)[1] - sorted(scores)[0] if len(tasks) > 1 else 1.0)
    return torch.stack(logs), torch.tensor(chosen), min(margins)


def by_entropy(p, x, task):
    return -sum(v * torch.log(v) for v in p if v > 0)


def by_doubt(p, x, task):
    return 1 - p.max()


SCORES = {"entropy": by_entropy, "confidence": by_doubt}


def assert_is(model, x, expected):
    found, (logs, chosen, margin) = model(x), expected
    assert margin > 1e-9  # else the choice is up to rounding
    assert torch.equal(model.inferred_tasks, chosen)
    torch.testing.assert_close(found, logs, rtol=1e-9, atol=1e-10)
    assert not found.requires_grad
    return found


@torch.no_grad()
def plain(model, x, task):
    return copy.deepcopy(model).eval()(x, torch.tensor([task])).softmax(1)


@pytest.mark.parametrize("score", [by_entropy, by_doubt])
@given(n_classes=st.integers(2, 6), scale=st.floats(0.1, 30), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_scores_equal_their_definitions(score, n_classes, scale, seed):
    torch.set_default_dtype(torch.float64)
    p = (scale * torch.randn(5, n_classes, generator=torch.Generator().manual_seed(seed))).softmax(
        1
    )
    found = entropy(p) if score is by_entropy else doubt(p)
    expected = torch.stack([score(row, None, None) for row in p])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_scores_at_their_ends():
    certain, even = torch.tensor([[0.0, 1.0, 0.0]]), torch.full((1, 4), 0.25)
    assert entropy(certain).item() == doubt(certain).item() == 0
    assert entropy(even).item() == pytest.approx(torch.tensor(4.0).log().item())
    assert doubt(even).item() == 0.75
    draws = [torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]]), torch.tensor([[0.4, 0.6]])]
    assert disagreement(draws).item() == pytest.approx(2 * (0.08 / 3) ** 0.5)
    assert disagreement(draws[:1]).item() == 0
    tiny = torch.tensor([[1e-30, 1.0], [2e-30, 1.0]])
    assert doubt(tiny).tolist() == [1e-30, 2e-30]
    assert entropy(tiny)[0] < entropy(tiny)[1]


# Networks with heads.


def heads(kind, offset=False, n_tasks=3):
    benchmark = benchmark_of([3, 1, 4, 0, 2][:n_tasks], offset=offset)
    if kind == "as_multitask":
        model = as_multitask(
            SimpleMLP(num_classes=2, input_size=6, hidden_size=8, drop_rate=0.5), "classifier"
        )
    elif kind == "blocks":
        model = MultiHead(BlockMultiHeadClassifier(8))
    else:
        model = MultiHead(MultiHeadClassifier(8, masking=kind == "masked"))
    plugin = PriorEWCPlugin()
    strategy = naive(model, plugin, train_epochs=4)
    strategy.train(benchmark.train_stream)
    return model, plugin.posterior, benchmark


KINDS = ["as_multitask", "blocks", "masked", "heads"]


@pytest.mark.parametrize("criterion", ["entropy", "confidence"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_equal_a_loop(kind, criterion):
    model, _, benchmark = heads(kind)
    x = inputs(benchmark)
    expected = loop(x, [1, 3, 4], partial(plain, model), SCORES[criterion])
    model.eval()
    assert_is(TaskInference(model, criterion), x, expected)
    assert len(expected[1].unique()) > 1


@pytest.mark.parametrize("kind", ["blocks", "masked"])
def test_heads_of_classes_that_are_unique_over_tasks(kind):
    """Columns are the classes; in the model's outputs those of other tasks are masked.

    The head is called with one number for the task: with a tensor of labels, Avalanche's
    ``MultiHeadClassifier`` fills up columns that a head does not have with logits of zero.
    """
    model, _, benchmark = heads(kind, offset=True)
    x = inputs(benchmark)

    @torch.no_grad()
    def own(x, task):
        return model.eval()(x, task).softmax(1)

    expected = loop(x, [1, 3, 4], own, by_entropy, n_columns=6)
    found = assert_is(TaskInference(model.eval()), x, expected)
    assert ((found == LOG_ZERO).sum(1) == 4).all()


@pytest.mark.parametrize(
    ("method", "criterion"),
    [(m, c) for m in ("linearized", "sample") for c in CRITERIA]
    + [("map", "entropy"), ("map", "confidence")],
)
@pytest.mark.parametrize("kind", ["as_multitask", "blocks"])
def test_posterior_over_heads_equals_a_loop(kind, method, criterion):
    model, posterior, benchmark = heads(kind)
    x, tasks = inputs(benchmark), [1, 3, 4]
    if method == "sample" or criterion == "agreement":
        x = x[::6]

    def generator(task):
        """Of the draws for one task: earlier tasks have drawn before it."""
        made, before = torch.Generator().manual_seed(2), tasks.index(task)
        in_prediction = 3 if method == "sample" else 0
        for _ in range(before * in_prediction):
            posterior.sample(made)
        return made

    def probabilities(x, task):
        options = {"task_label": task, "n_samples": 3, "generator": generator(task)}
        return predict(model, posterior, x, method, **options)

    def by_agreement(p, x, task):
        """Draws for the choice come after those for all predictions."""
        made = torch.Generator().manual_seed(2)
        for _ in range((3 * len(tasks) if method == "sample" else 0) + 3 * tasks.index(task)):
            posterior.sample(made)
        draws = [*Predictor(model, posterior, method, task, 3, made).draws(x)]
        return torch.stack(draws).softmax(2).std(0, correction=0).sum()

    expected = loop(x, tasks, probabilities, {**SCORES, "agreement": by_agreement}[criterion])
    inference = TaskInference(
        model,
        criterion,
        posterior=posterior,
        method=method,
        n_samples=3,
        generator=torch.Generator().manual_seed(2),
    )
    assert_is(inference, x, expected)


def test_regression_takes_the_task_of_least_epistemic_variance():
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(20, 3, generator=generator) + 4 * t,) for t in range(2)]
    data = [(x, torch.cat([x.sin(), x[:, :1]], 1)) for (x,) in data]
    labels = [0, 1]
    model, plugin = TwoOutputs(), PriorEWCPlugin(likelihood=Gaussian(0.1))
    strategy = naive(model, plugin, criterion=nn.MSELoss(), lr=0.01)
    for label, experience in zip(labels, regression_stream(data).train_stream, strict=True):
        model.label = label
        strategy.train(experience)
    x = torch.cat([x for x, _ in data])[::4]
    inference = TaskInference(
        model, posterior=plugin.posterior, likelihood=Gaussian(0.1), tasks=labels
    )
    found = inference(x)
    assert found.shape == (10, 4)
    for n in range(len(x)):
        predictions = [
            predict(
                model, plugin.posterior, x[n : n + 1], likelihood=Gaussian(0.1), task_label=label
            )
            for label in labels
        ]
        spread = [p.epistemic_variance.sum().item() for p in predictions]
        best = min(labels, key=lambda t: spread[t])
        assert inference.inferred_tasks[n] == best
        torch.testing.assert_close(found[n], predictions[best].mean[0], **CLOSE)
    assert len(inference.inferred_tasks.unique()) == 2


class TwoOutputs(nn.Module):
    """Two tasks' layers side by side; in training of the task that it is told."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2)
        )
        self.label = 0

    def forward(self, x, task_label=None):
        return self.layers[self.label if task_label is None else task_label](x)


# Hypernetworks.


class Normalised(nn.Sequential):
    def __init__(self, n_out=2):
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, n_out))


class OverSteps(nn.Module):
    """A recurrent network on six features as six steps."""

    def __init__(self, n_out=2):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, n_out)

    def forward(self, x):
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


TARGETS = {"mlp": partial(mlp, n_out=2), "batch norm": Normalised, "lstm": OverSteps}


def hypernet(target="mlp", *, offset=False, labels=(3, 1, 4), train=True, **options):
    benchmark = benchmark_of(labels, offset=offset)
    make = TARGETS[target]
    if options.get("multi_head"):
        options["target"] = make(n_out=2 * len(labels))
    model = hyper_model(options.pop("target", None) or make(), **options)
    strategy = learner(model, FixedTarget(0.1) if train else None, lr=0.05)
    if train:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    return model, benchmark, strategy


HYPERNETS = {
    **{target: {"target": target} for target in TARGETS},
    "multi-head": {"multi_head": True},
    "multi-head, unique classes": {"multi_head": True, "offset": True},
    "multi-head, batch norm": {"target": "batch norm", "multi_head": True},
    "multi-head, lstm": {"target": "lstm", "multi_head": True},
    **{
        f"{remaining}, {target}": {
            "target": target,
            "remaining": remaining,
            "hypernet": {"generate": "*weight*"},
        }
        for remaining in ("per_task", "shared", "frozen", "frozen_after_first")
        for target in ("mlp", "batch norm")
    },
    "chunks": {"hypernet": {"chunk_size": 30}},
}


@pytest.mark.parametrize("kind", HYPERNETS)
def test_hypernetworks_equal_a_loop(kind):
    options = HYPERNETS[kind]
    model, benchmark, _ = hypernet(**options)
    x = inputs(benchmark)
    n_columns = 6 if options.get("offset") else 2
    for criterion in ("entropy", "confidence"):
        expected = loop(x, [1, 3, 4], partial(plain, model), SCORES[criterion], n_columns=n_columns)
        assert_is(TaskInference(model.eval(), criterion), x, expected)
    if kind != "multi-head, batch norm":
        assert len(expected[1].unique()) > 1


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", HYPERNETS)
def test_forward_tasks_equals_one_task_at_a_time(kind, mode):
    """In training mode, too, where each task updates its own running statistics."""
    model, benchmark, _ = hypernet(**HYPERNETS[kind])
    x, labels = inputs(benchmark)[:7], [4, 3, 1]
    model.train(mode)
    model.zero_grad()
    other = copy.deepcopy(model)
    expected = [other.forward_single_task(x, label) for label in labels]
    found = model.forward_tasks(x, labels)
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)
    for buffer, after in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, after, **CLOSE)
    if kind.startswith("per_task") and not mode:
        return  # see below
    found.square().sum().backward()
    torch.stack(expected).square().sum().backward()
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    gradients = [(n, p.grad, q.grad) for (n, p), q in pairs]
    assert any(g is not None for _, g, _ in gradients)
    for name, g, h in gradients:
        assert (g is None or not g.any()) == (h is None or not h.any()), name
        if g is not None and h is not None:
            torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)


def test_gradients_of_the_parameters_of_each_task():
    model, benchmark, _ = hypernet(**HYPERNETS["per_task, mlp"])
    model.eval().zero_grad()
    model.forward_tasks(inputs(benchmark)[:7], [4, 3]).square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if n.startswith("networks.")}
    assert gradients["networks.0.0.bias"].any()  # of task 3, the first
    assert gradients["networks.2.0.bias"].any()
    assert gradients["networks.1.0.bias"] is None or not gradients["networks.1.0.bias"].any()


@pytest.mark.parametrize("budget", [1, 83, 2 * 83, 10**9])
def test_more_tasks_than_run_at_once(budget, monkeypatch):
    monkeypatch.setattr(network_runner, "_GROUP_BUDGET", budget)
    model, benchmark, _ = hypernet("batch norm", labels=(3, 1, 4, 0, 2))
    x, labels = inputs(benchmark)[:4], [4, 2, 0, 3, 1]
    sizes, run = [], model._runner.run_at_once

    def watched(x, numbers, weights):
        sizes.append(len(numbers))
        return run(x, numbers, weights)

    monkeypatch.setattr(model._runner, "run_at_once", watched)
    model.eval()
    expected = torch.stack([model.forward_single_task(x, label) for label in labels])
    torch.testing.assert_close(model.forward_tasks(x, labels), expected, **CLOSE)
    n_weights = model.hypernetwork.layout.n_weights
    size = max(1, min(5, budget // n_weights))
    assert max(sizes) == size
    assert len(sizes) == -(-5 // size)
    expected = loop(x, [0, 1, 2, 3, 4], partial(plain, model), by_entropy)
    assert_is(TaskInference(model), x, expected)


def test_all_tasks_run_at_once_where_vmap_can():
    model, benchmark, _ = hypernet("batch norm")
    calls = []
    model._run = lambda *_: calls.append(1)
    TaskInference(model.eval())(inputs(benchmark))
    assert not calls


def test_forward_tasks_refuses_unknown_and_no_tasks():
    model, benchmark, _ = hypernet()
    with pytest.raises(ValueError, match="task label 7 is unknown"):
        model.forward_tasks(inputs(benchmark), [1, 7])
    with pytest.raises(ValueError, match="task_labels must name at least one task, got none"):
        model.forward_tasks(inputs(benchmark), [])


def test_subset_of_tasks():
    model, benchmark, _ = hypernet()
    x = inputs(benchmark)
    for tasks in ([4, 1], [3], (1, 3, 4)):
        expected = loop(x, [*tasks], partial(plain, model), by_entropy)
        inference = TaskInference(model.eval(), tasks=tasks)
        assert_is(inference, x, expected)
        assert inference.candidates == tuple(tasks)
        assert set(inference.inferred_tasks.tolist()) <= {*tasks}


@pytest.mark.parametrize("make", [hypernet, partial(heads, "blocks")])
def test_global_classes(make):
    """Tasks that each count from zero, whose classes are spread over columns, with gaps."""
    model, benchmark = make()[0], benchmark_of((3, 1, 4))
    x, classes = inputs(benchmark), {1: [6, 0], 3: [2, 3], 4: [1, 4]}
    expected = loop(x, [1, 3, 4], partial(plain, model), by_entropy, classes, n_columns=7)
    inference = TaskInference(model.eval(), classes=classes)
    found = assert_is(inference, x, expected)
    assert (found[:, 5] == LOG_ZERO).all()
    for row, task in zip(found, inference.inferred_tasks.tolist(), strict=True):
        assert {*(row > LOG_ZERO).nonzero()[:, 0].tolist()} == {*classes[task]}
    assert len(expected[1].unique()) > 1


def test_heads_of_different_width_are_padded():
    class Widths(nn.Module):
        def forward(self, x, task):
            return x[:, : task + 2] * (task + 1)

    x = torch.randn(8, 5)
    expected = loop(x, [0, 1, 2], lambda x, t: Widths()(x, t).softmax(1), by_entropy, n_columns=4)
    found = assert_is(TaskInference(Widths(), tasks=[0, 1, 2]), x, expected)
    assert found.shape == (8, 4)
    assert len(expected[1].unique()) > 1


class Sure(nn.Module):
    """Logits that are the input times a number for each task."""

    def forward(self, x, task):
        return x * self.factors[task]


@pytest.mark.parametrize("criterion", ["entropy", "confidence"])
def test_tasks_that_are_all_nearly_certain_are_told_apart_in_float32(criterion):
    """Entropies of 1e-11 and less, where float32 has no digits left of a probability of one."""
    model, x = Sure(), torch.tensor([[1.0, -1.0], [-1.0, 1.0], [3.0, 1.0]]).float()
    model.factors = {0: 13.0, 1: 14.0, 2: 13.5}
    p = {t: (x.double() * f).softmax(1) for t, f in model.factors.items()}
    assert all((q[:2].max(1).values > 1 - 1e-10).all() for q in p.values())
    inference = TaskInference(model, criterion, tasks=[0, 1, 2])
    found = inference(x)
    assert inference.inferred_tasks.tolist() == [1, 1, 1]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, p[1].log().float())
    model.factors = {0: 14.0, 1: 13.0, 2: 13.5}
    inference(x)
    assert inference.inferred_tasks.tolist() == [0, 0, 0]


def test_tasks_of_a_hypernetwork_that_are_all_nearly_certain_are_told_apart_in_float32():
    model, x = hyper_model().float(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).float()
    factors = {0: 13.0, 1: 14.0, 2: 13.5}
    model.forward_tasks = lambda x, tasks: torch.stack([x * factors[t] for t in tasks])
    inference = TaskInference(model.eval(), tasks=[0, 1, 2])
    inference(x)
    assert inference.inferred_tasks.tolist() == [1, 1]


@pytest.mark.parametrize("criterion", ["entropy", "confidence"])
def test_nearly_certain_posterior_predictions_are_told_apart_in_float32(criterion):
    model = TwoOutputs().float()
    posterior = GaussianPosterior(1e-6)
    with torch.no_grad():
        for layer, factor in zip(model.layers, (1.0, 1.1), strict=True):
            layer[2].weight.zero_()
            layer[2].bias.copy_(factor * torch.tensor([26.0, 0, 0, 0]))
    parameters = dict(model.named_parameters())
    posterior.align(parameters)
    active = {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()}
    posterior.update(parameters, {}, 1, active)
    for tasks in ([0, 1], [1, 0]):
        inference = TaskInference(model, criterion, posterior=posterior, tasks=tasks)
        inference(torch.randn(3, 3).float())
        assert inference.inferred_tasks.tolist() == [1, 1, 1]


def test_inference_leaves_the_model_as_it_was():
    model, benchmark, _ = hypernet("batch norm")
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    inference = TaskInference(model)
    assert inference.training == model.training
    assert [m.training for m in model.modules()] == modes
    inference.eval()(inputs(benchmark))
    for name, tensor in before.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(model.state_dict()[name], tensor), name


# In a strategy.


def evaluated(loggers=(), confusion_matrix=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True),
            task_inference_metrics(experience=True, stream=True, confusion_matrix=confusion_matrix),
            loggers=[*loggers],
        )


def strategy_of(kind, plugin, *others, evaluator=None, **options):
    options = {"evaluator": evaluator or evaluated(), "train_epochs": 3, **options}
    if kind == "hypernet":
        return learner(hyper_model(), FixedTarget(0.1), plugin, *others, lr=0.05, **options)
    return naive(MultiHead(BlockMultiHeadClassifier(8)), plugin, *others, **options)


@pytest.mark.parametrize("criterion", ["entropy", "confidence"])
@pytest.mark.parametrize("kind", ["hypernet", "heads"])
def test_metrics_equal_those_of_the_loop(kind, criterion, tmp_path):
    labels = (3, 1, 4)
    benchmark = benchmark_of(labels, n_samples=14)
    logger = TensorboardLogger(tmp_path)
    strategy = strategy_of(
        kind,
        TaskInferencePlugin(criterion=criterion),
        evaluator=evaluated(loggers=[logger]),
        eval_mb_size=5,
    )
    strategy.train(benchmark.train_stream)
    results, model = strategy.eval(benchmark.test_stream), strategy.model
    matrix, right, correct = torch.zeros(5, 5), [], []
    for number, (label, experience) in enumerate(zip(labels, benchmark.test_stream, strict=True)):
        x, y, _ = tensors(experience)
        logs, chosen, _ = loop(x, [1, 3, 4], partial(plain, model), SCORES[criterion])
        correct.append((logs.argmax(1) == y).double().mean().item())
        right.append((chosen == label).double().mean().item())
        for task in chosen.tolist():
            matrix[label, task] += 1
        name = f"eval_phase/test_stream/Task{label:03d}/Exp{number:03d}"
        assert results[f"Top1_Acc_Exp/{name}"] == pytest.approx(correct[-1])
        assert results[f"TaskInference_Acc_Exp/{name}"] == pytest.approx(right[-1])
    name = "eval_phase/test_stream/Task004"
    assert results[f"Top1_Acc_Stream/{name}"] == pytest.approx(sum(correct) / 3)
    assert results[f"TaskInference_Acc_Stream/{name}"] == pytest.approx(sum(right) / 3)
    found = results["TaskInference_ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert torch.equal(found.best_supported_value(torch.Tensor).to(matrix), matrix)
    assert matrix.sum() == 42
    assert (matrix - matrix.diagonal().diag()).any()  # some are inferred wrongly
    assert 0 < sum(right) / 3 < 1

    logger.writer.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    scalar = events.Scalars(f"TaskInference_Acc_Stream/{name}")[-1]
    assert scalar.value == pytest.approx(sum(right) / 3)
    experience = "TaskInference_Acc_Exp/eval_phase/test_stream/Task001/Exp001"
    assert events.Scalars(experience)[-1].value == pytest.approx(right[1])
    assert any(t.startswith("TaskInference_ConfusionMatrix_Stream") for t in tags["images"])


def test_metrics_are_those_that_were_asked_for():
    assert task_inference_metrics() == []
    names = [
        str(m) for m in task_inference_metrics(experience=True, stream=True, confusion_matrix=True)
    ]
    assert names == [
        "TaskInference_Acc_Exp",
        "TaskInference_Acc_Stream",
        "TaskInference_ConfusionMatrix_Stream",
    ]
    assert [str(m) for m in task_inference_metrics(stream=True)] == names[1:2]


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
    """What is published by the evaluation with which a training begins."""

    found = None

    def after_eval(self, strategy, **kwargs):
        if self.found is None:
            self.found = strategy.evaluator.get_last_metrics()


@pytest.mark.parametrize("posterior", [True, False])
def test_before_the_first_training_the_model_is_evaluated_as_it_is(posterior):
    """Only as Avalanche does by itself; nobody would ask for it."""
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


def test_token_ids_are_inputs_too():
    """Integers, of which the probabilities do not take the dtype."""

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
    """The next evaluation, or training, is with the model itself."""
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


# Errors.


class Poisson(Likelihood):
    nll = sample = fisher_factors = criterion_scale = None

    def __repr__(self):
        return "Poisson()"


UNCERTAIN = "needs a posterior and a way to predict with its uncertainty"
BAD = [
    ({"criterion": "variance"}, ValueError, r"criterion must be one of \('entropy', .*'variance'"),
    ({"method": "laplace"}, ValueError, "method must be one of .*got 'laplace'"),
    ({"n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
    ({"n_samples": 1.5}, TypeError, "n_samples must be an integer of at least 1, got 1.5"),
    ({"model": 3}, TypeError, "model must be a torch.nn.Module, got 3"),
    ({"posterior": {}}, TypeError, r"posterior must be a GaussianPosterior, got \{\}"),
    ({"likelihood": Poisson()}, TypeError, r"likelihood must be .*, got Poisson\(\)"),
    ({"criterion": "agreement"}, ValueError, f"criterion='agreement' {UNCERTAIN}"),
    (
        {"criterion": "agreement", "posterior": GaussianPosterior(), "n_samples": 1},
        ValueError,
        "n_samples must be at least 2 to have a spread, got 1",
    ),
    ({"tasks": 3}, TypeError, "tasks must be a sequence of task labels or None, got 3"),
    (
        {"criterion": "agreement", "posterior": GaussianPosterior(), "method": "map"},
        ValueError,
        UNCERTAIN,
    ),
    ({"likelihood": Gaussian(0.5)}, ValueError, f"regression {UNCERTAIN}"),
    ({"tasks": []}, ValueError, r"tasks must name at least one task, each once, got \[\]"),
    ({"tasks": [0, 1, 0]}, ValueError, r"each once, got \[0, 1, 0\]"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        TaskInference(**{"model": MultiHead(), **options})
    if "model" not in options:
        with pytest.raises(error, match=message):
            TaskInferencePlugin(**options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(), "not a multi-task model"),
        (MultiHead(), r"not been trained on any task yet.*tasks=\[\.\.\.\]"),
    ],
)
def test_models_without_tasks_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        TaskInference(model)(torch.randn(2, 6))


def test_tasks_that_were_not_trained_on_are_refused():
    model, benchmark, _ = hypernet()
    message = r"tasks names \[7\], which were not trained on; those that were are \[1, 3, 4\]"
    with pytest.raises(ValueError, match=message):
        TaskInference(model, tasks=[1, 7])(inputs(benchmark))


def test_one_output_is_no_classification():
    posterior = trained_regression()[1]
    with pytest.raises(ValueError, match=r"no logits of two classes.*likelihood=Gaussian"):
        predict(*trained_regression()[:2], torch.zeros(2, 1), task_label=0)
    assert posterior.mean


def trained_regression():
    """A network with a head for each of three functions, its posterior and the benchmark."""
    benchmark = Regression1D(n_train=20, n_test=9)
    model = as_multitask(SimpleMLP(num_classes=1, input_size=1, hidden_size=12), "classifier")
    ewc = PriorEWCPlugin(likelihood=Gaussian(0.1))
    strategy = naive(model, ewc, criterion=nn.MSELoss(), lr=0.01)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return model, ewc.posterior, benchmark


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
    inference = TaskInference(model, posterior=posterior, likelihood=Gaussian(3.0))
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


def test_a_restored_head_knows_its_tasks():
    benchmark = benchmark_of((3, 1, 4))
    strategy = strategy_of("block", SupervisedPlugin())
    for experience in benchmark.train_stream:
        strategy.train(experience)
    twin = copy.deepcopy(strategy_of("block", SupervisedPlugin()).model)
    twin.load_state_dict(strategy.model.state_dict())
    inference, restored = TaskInference(strategy.model), TaskInference(twin)
    assert restored.candidates == inference.candidates == (1, 3, 4)
    x = inputs(benchmark)
    torch.testing.assert_close(restored(x), inference(x), rtol=0, atol=0)


def test_a_task_with_outputs_that_are_no_numbers_is_not_chosen():
    model, benchmark, _ = hypernet()
    with torch.no_grad():
        model.hypernetwork.embeddings[0].fill_(float("nan"))
    inference = TaskInference(model)
    inference(inputs(benchmark))
    assert 3 not in inference.inferred_tasks.tolist()


def test_model_in_training_mode_is_evaluated():
    """Dropout would give other outputs each time."""
    target = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
    model = hyper_model(target)
    strategy = learner(model)
    benchmark = benchmark_of()
    for experience in benchmark.train_stream:
        strategy.train(experience)
    inference, x = TaskInference(model.train()), inputs(benchmark)
    found = inference(x)
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(TaskInference(model.eval())(x), found, rtol=0, atol=0)


def test_same_task_label_for_all_is_warned_of():
    benchmark = benchmark_of((0, 0, 0))
    strategy = strategy_of("block", TaskInferencePlugin())
    strategy.train(benchmark.train_stream[0])
    with pytest.warns(UserWarning, match=r"no task to infer: .* have the task labels \[0\]"):
        strategy.train(benchmark.train_stream[1])


def test_evaluation_in_the_middle_of_an_experience_is_of_what_is_trained():
    """The posterior knows the experience at its end only."""
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


@pytest.mark.parametrize("classes", [{3: [0, 1], 1: [2, 3]}, {3: [0, 1], 1: [2, 3], 4: [5]}])
def test_classes_that_do_not_fit_are_refused(classes):
    model, benchmark, _ = hypernet()
    inference = TaskInference(model.eval(), classes=classes)
    message = (
        r"classes must give the global class of each of the 2 outputs of task 4, got (None|\[5\])"
    )
    with pytest.raises(ValueError, match=message):
        inference(inputs(benchmark))


def test_empty_posterior_is_refused():
    model, _, benchmark = heads("blocks")
    with pytest.raises(ValueError, match="posterior is empty"):
        TaskInference(model, posterior=GaussianPosterior())(inputs(benchmark))


@pytest.mark.parametrize("metric", ["experience", "stream", "confusion_matrix"])
def test_metrics_without_inference_are_refused(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(task_inference_metrics(**{metric: True}))
    strategy = naive(MultiHead(), evaluator=evaluator)
    strategy.train(task_stream(1).train_stream)
    with pytest.raises(ValueError, match="got a MultiHead; add a TaskInferencePlugin"):
        strategy.eval(task_stream(1).test_stream)
