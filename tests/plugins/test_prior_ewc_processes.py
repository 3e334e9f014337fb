"""PriorEWCPlugin in two processes, against one."""

import pytest
import torch
from avalanche.distributed.distributed_helper import DistributedHelper
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    ClipGradientPlugin,
    InMemoryPlugin,
    PriorEWCPlugin,
    TaskInferencePlugin,
    TaskStatisticsPlugin,
)
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.processes import EvaluateAll, assert_close, in_two_processes, same
from tests.support.strategies import naive
from tests.support.streams import regression_stream, task_stream

SGD = {"penalty_step": "auto"}  # implicit steps
GRADIENT = {"penalty_step": "gradient"}
KRONECKER = {"structure": "kronecker"}


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def normalised():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def block_heads():
    return MultiHead(BlockMultiHeadClassifier(8))


TRAININGS = {
    "plain, SGD": (lambda: mlp(n_out=2), sgd, SGD),
    "plain, SGD in the gradient": (lambda: mlp(n_out=2), sgd, GRADIENT),
    "plain, Adam": (lambda: mlp(n_out=2), adam, {}),
    "plain, Adam, implicit": (lambda: mlp(n_out=2), adam, {"penalty_step": "implicit"}),
    "heads, SGD": (MultiHead, sgd, SGD),
    "heads, Adam": (MultiHead, adam, {"fisher": "exact"}),
    "heads in a block, Adam": (block_heads, adam, {}),
    "Kronecker, plain, SGD": (lambda: mlp(n_out=2), sgd, KRONECKER),
    "Kronecker, plain, Adam": (lambda: mlp(n_out=2), adam, KRONECKER),
    "Kronecker, heads, SGD": (MultiHead, sgd, KRONECKER | {"fisher": "exact"}),
    "Kronecker, heads, Adam": (MultiHead, adam, KRONECKER | {"prior_mean": "initial"}),
    "Kronecker, growing, Adam": (Incremental, adam, KRONECKER | {"max_rank": 2}),
}


def state_of(strategy, plugin):
    """Weights and posterior, without what depends on every bit."""
    model = DistributedHelper.unwrap_model(strategy.model)
    return model.state_dict(), without_checksums(plugin.posterior.state_dict())


def without_checksums(state):
    if not isinstance(state, dict):
        return state
    return {k: without_checksums(v) for k, v in state.items() if "checksum" not in str(k)}


def train(process, model, make_optimizer, *others, seed=7, n_samples=20, shuffle=False, **options):
    """Two experiences; of a mini-batch of ten, each of two processes has half."""
    torch.manual_seed(seed)
    stream = task_stream(n_tasks=2, n_samples=n_samples, offset=model is Incremental)
    experiences = stream.train_stream
    model = DistributedHelper.wrap_model(model())
    loop = {k: options.pop(k) for k in ("train_epochs", "evaluator", "criterion") if k in options}
    torch.manual_seed(100 + (process or 0))
    plugin = PriorEWCPlugin(**options)
    strategy = naive(
        model,
        *others,
        plugin,
        optimizer=make_optimizer(model),
        train_mb_size=10 if process is None else 5,
        **loop,
    )
    for experience in experiences:
        strategy.train(experience, shuffle=shuffle)
    return strategy, plugin


class Nudge(ClipGradientPlugin, supports_distributed=True):
    """Moves the head of an earlier task, which then feels the penalty though no sample uses it."""

    def before_training_exp(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            heads = DistributedHelper.unwrap_model(strategy.model).output["head"].classifiers
            with torch.no_grad():
                heads["0"].classifier.bias += 0.1


def trainings(rank):
    results = {
        name: state_of(*train(rank, model, optimizer, InMemoryPlugin(), **options))
        for name, (model, optimizer, options) in TRAININGS.items()
    }
    for structure in ("diagonal", "kronecker"):
        moved = train(rank, MultiHead, adam, Nudge(10.0), structure=structure)
        results["moved", structure] = state_of(*moved)
    return results


def frozen_copies(rank):
    """Posteriors of odd numbers of samples, of one experience at weights that do not move."""
    return {
        name: state_of(
            *train(rank, model, lambda m: torch.optim.SGD(m.parameters(), 0.0), n_samples=n, **more)
        )
        for name, model, n, more in [
            ("all", MultiHead, 17, {}),
            ("some", MultiHead, 17, {"n_fisher": 7}),
            ("some, generator", mlp2, 17, {"n_fisher": 8, "generator": torch.Generator()}),
            ("one", mlp2, 1, {"train_epochs": 1}),
            ("Kronecker, all", MultiHead, 17, KRONECKER),
            ("Kronecker, some", mlp2, 17, KRONECKER | {"n_fisher": 7, "weight_sharing": "reduce"}),
            ("Kronecker, one", mlp2, 1, KRONECKER),
        ]
    }


def mlp2():
    return mlp(n_out=2)


def different_starts(rank):
    """Seeds, weights, heads and generators are each process's own."""
    results = {}
    for structure in ("diagonal", "kronecker"):
        for fisher, weights in [("empirical", None), ("sampled", None), ("exact", [1.0, 3.0])]:
            generator = torch.Generator().manual_seed(rank)
            strategy, plugin = train(
                rank,
                MultiHead,
                adam,
                ReplayPlugin(mem_size=10),
                ClipGradientPlugin(norm=1.0),
                seed=rank,
                n_samples=17,
                shuffle=True,
                structure=structure,
                fisher=fisher,
                n_fisher=9,
                generator=generator,
                penalty_step="gradient" if weights is None else "implicit",
                criterion=nn.CrossEntropyLoss(weights and torch.tensor(weights)),
            )
            results[structure, fisher] = state_of(strategy, plugin)
    results["normalised"] = state_of(*train(rank, normalised, adam, seed=rank, shuffle=True))
    return results


def evaluated_between(rank):
    """Evaluations of all tasks during a training, which add heads of those to come."""
    accuracy = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    results = {}
    for plugins in ([], [TaskInferencePlugin()]):
        torch.manual_seed(rank)
        stream = task_stream(n_tasks=3, n_samples=17)
        model = DistributedHelper.wrap_model(MultiHead())
        plugin = PriorEWCPlugin(prior_mean="initial")
        strategy = naive(
            model, EvaluateAll(stream.test_stream), plugin, *plugins, evaluator=accuracy
        )
        for experience in stream.train_stream:
            strategy.train(experience)
        results[len(plugins)] = state_of(strategy, plugin)
    return [results, {n: v for n, v in accuracy.get_last_metrics().items() if "Top1" in n}]


def evaluations(rank):
    """Accuracies on the test stream, with tasks that are inferred, and statistics of each task."""
    accuracy = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy, plugin = train(rank, MultiHead, adam, TaskInferencePlugin(), evaluator=accuracy)
    stream = task_stream(n_tasks=2, n_samples=17).test_stream
    inferred = {n: v for n, v in strategy.eval(stream).items() if n.startswith("Top1")}
    nll = accuracy.all_metric_results["PriorEWC/NLL"]
    wrapped = type(strategy.model).__name__
    statistics = TaskStatisticsPlugin()
    strategy, plugin = train(rank, normalised, adam, InMemoryPlugin(), statistics, n_samples=20)
    return [inferred, wrapped, statistics.statistics.state_dict(), nll, state_of(strategy, plugin)]


def unwrapped_model(rank):
    naive(mlp2(), PriorEWCPlugin()).train(task_stream().train_stream[0])


def unshared_samples(rank):
    stream = regression_stream([(torch.randn(8, 1), torch.randn(8, 1))])
    model = DistributedHelper.wrap_model(nn.Linear(1, 1))
    naive(model, PriorEWCPlugin(), criterion=nn.MSELoss()).train(stream.train_stream[0])


def drifting_weights(rank):
    class Drift(ClipGradientPlugin, supports_distributed=True):
        def after_update(self, strategy, **kwargs):
            with torch.no_grad():
                next(strategy.model.parameters())[0, 0] += rank

    train(rank, mlp2, sgd, Drift(1.0))


def epochs(rank):
    """The first input of all samples, in the order of two epochs."""

    class Seen(ClipGradientPlugin, supports_distributed=True):
        def before_training_epoch(self, strategy, **kwargs):
            self.epochs.append([])

        def before_forward(self, strategy, **kwargs):
            self.epochs[-1] += strategy.mb_x[:, 0].tolist()

    results = []
    for memory in ([], [InMemoryPlugin()]):
        seen = Seen(1.0)
        seen.epochs = []
        train(rank, mlp2, sgd, *memory, seen, shuffle=True)
        results.append(seen.epochs)
    return results


JOBS = [
    trainings,
    frozen_copies,
    different_starts,
    evaluated_between,
    evaluations,
    unwrapped_model,
    unshared_samples,
    drifting_weights,
    epochs,
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_two_processes(tmp_path_factory.mktemp("processes"), *JOBS)


@pytest.mark.parametrize(
    "job", ["trainings", "frozen_copies", "different_starts", "evaluated_between", "evaluations"]
)
def test_processes_agree_bit_for_bit(results, job):
    first, second = results[job]
    assert isinstance(first, (dict, list)), first
    assert same(first, second)


@pytest.mark.usefixtures("float64")
def test_two_halves_of_a_batch_are_trained_as_the_whole(results):
    alone = trainings(None)
    for name, state in results["trainings"][0].items():
        assert_close(state, alone[name], 1e-8)


@pytest.mark.usefixtures("float64")
def test_posteriors_are_those_of_one_process(results):
    alone = frozen_copies(None)
    for name, state in results["frozen_copies"][0].items():
        assert_close(state, alone[name], 1e-10)


def test_sampled_labels_and_subsets_have_been_taken_in(results):
    states = results["different_starts"][0]
    for structure in ("diagonal", "kronecker"):
        empirical, sampled = (states[structure, kind] for kind in ("empirical", "sampled"))
        assert not same(empirical[1], sampled[1])


@pytest.mark.usefixtures("float64")
def test_evaluations_are_of_all_samples(results):
    inferred, wrapped, statistics, nll, _ = results["evaluations"][0]
    alone = evaluations(None)
    assert len(inferred) == 2
    assert inferred == pytest.approx(alone[0])
    assert (wrapped, alone[1]) == ("DistributedDataParallel", "MultiHead")
    assert statistics.keys() == alone[2].keys()
    assert nll[1] == pytest.approx(alone[3][1])


@pytest.mark.parametrize(
    ("job", "error"),
    [
        ("unwrapped_model", "ValueError: Sequential is trained by 2 processes, but not wrapped"),
        ("unshared_samples", "ValueError: the samples of the training's DataLoader are not shared"),
        ("drifting_weights", "ValueError: the processes have different weights after training"),
    ],
)
def test_what_would_go_wrong_is_refused(results, job, error):
    for text in results[job]:
        assert text.startswith(error)


@pytest.mark.usefixtures("float64")
def test_epochs_have_orders_of_their_own_and_share_the_samples(results):
    x, _, _ = zip(*task_stream(n_tasks=2, n_samples=20).train_stream[0].dataset, strict=True)
    assert results["epochs"][0][0] == results["epochs"][0][1]  # in memory or not
    for first, second in zip(*(result[0] for result in results["epochs"]), strict=True):
        assert len(first) == len(second) == 10
        assert not {*first} & {*second}
    of_first = results["epochs"][0][0]
    assert len({tuple(order) for order in of_first}) == len(of_first) == 4
    of_both = results["epochs"][0][0][0] + results["epochs"][1][0][0]
    torch.testing.assert_close(torch.tensor(sorted(of_both)), torch.stack(x)[:, 0].sort().values)
