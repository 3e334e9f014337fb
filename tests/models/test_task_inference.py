import copy
from functools import partial

import pytest
import torch
from avalanche.models import MultiHeadClassifier, SimpleMLP, as_multitask
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    Gaussian,
    GaussianPosterior,
    PriorEWCPlugin,
    TaskInference,
    TaskInferencePlugin,
    predict,
)
from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.posterior.predict import Predictor
from tests.support.hypernets import hyper_model, learner
from tests.support.models import MultiHead, mlp
from tests.support.strategies import naive
from tests.support.streams import regression_stream
from tests.support.task_inference import (
    CLOSE,
    HYPERNETS,
    LOG_ZERO,
    SCORES,
    assert_is,
    benchmark_of,
    by_entropy,
    hypernet,
    inputs,
    loop,
    plain,
    strategy_of,
    trained_regression,
)

pytestmark = pytest.mark.usefixtures("float64")


CRITERIA = ["entropy", "confidence", "agreement"]


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
        """For one task, whose draws come after those for earlier tasks."""
        made, before = torch.Generator().manual_seed(2), tasks.index(task)
        in_prediction = 3 if method == "sample" else 0
        for _ in range(before * in_prediction):
            posterior.sample(made)
        return made

    def probabilities(x, task):
        options = {"task_label": task, "n_samples": 3, "generator": generator(task)}
        return predict(model, posterior, x, method, **options)

    def by_agreement(p, x, task):
        """The draws for the choice come after those for all predictions."""
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
    """The layers of two tasks side by side; in training, only those of the task it is told."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2)
        )
        self.label = 0

    def forward(self, x, task_label=None):
        return self.layers[self.label if task_label is None else task_label](x)


# Hypernetworks.


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
    (
        {"posterior": {}},
        TypeError,
        r"posterior must be a .* KroneckerPosterior, got \{\}",
    ),
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
        (mlp(), "Sequential is not a multi-task model.*give it a head for each task"),
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
    model, posterior, _ = trained_regression()
    posterior.likelihood = None  # as one that was saved before it was remembered
    with pytest.raises(ValueError, match=r"no logits of two classes.*likelihood=Gaussian"):
        predict(model, posterior, torch.zeros(2, 1), task_label=0)
    assert posterior.mean


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
