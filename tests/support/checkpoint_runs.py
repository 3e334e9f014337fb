"""Small runs of several methods, to be interrupted: ``python -m`` this file is a user's script."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, SimpleMLP, as_multitask
from avalanche.training import EWC, MAS, Naive, SynapticIntelligence
from avalanche.training.plugins import (
    EvaluationPlugin,
    FromScratchTrainingPlugin,
    GEMPlugin,
    LRSchedulerPlugin,
    RWalkPlugin,
    SupervisedPlugin,
)
from torch import nn

from avalanche_hnet import EWC as EWCOfHypernet  # noqa: N811
from avalanche_hnet import (
    CheckpointPlugin,
    FixedTarget,
    HyperModel,
    HypernetTemplate,
    HyperNetwork,
    PriorEWC,
    TaskStatisticsPlugin,
)
from avalanche_hnet.benchmarks import SplitDigits

N_EXPERIENCES = 3


def benchmark(multi_task=True):
    return SplitDigits(
        5, return_task_id=multi_task, seed=0, class_ids_from_zero_in_each_exp=multi_task
    )


def evaluator():
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, epoch_running=True, experience=True),
        loss_metrics(epoch=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=[],
    )


@dataclass
class Options:
    """What all strategies have in common."""

    plugins: list
    seed: int = 0
    batch_size: int = 64
    epochs: int = 1

    def __call__(self):
        return {
            "train_mb_size": self.batch_size,
            "eval_mb_size": 256,
            "train_epochs": self.epochs,
            "plugins": self.plugins,
            "evaluator": evaluator(),
        }


def mlp(drop_rate=0.5):
    network = SimpleMLP(num_classes=2, input_size=64, hidden_size=20, drop_rate=drop_rate)
    return as_multitask(network, "classifier")


def prior_ewc(options, **more):
    model = mlp()
    generator = torch.Generator().manual_seed(3)
    return PriorEWC(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        prior_variance=1e2,
        fisher="sampled",
        n_fisher=100,
        generator=generator,
        log_every=3,
        **more,
        **options(),
    )


def kronecker(options):
    return prior_ewc(options, structure="kronecker")


def hypernet(options, regularizer=None):
    network = SimpleMLP(num_classes=2, input_size=64, hidden_size=10)
    model = HyperModel(network, HyperNetwork(network, embedding_dim=4, hidden=(10,)))
    return HypernetTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        regularizer=regularizer or FixedTarget(beta=0.5, tasks_per_step=1),
        log_every=3,
        **options(),
    )


def naive(options, *plugins, model=None, optimizer=None):
    torch.manual_seed(options.seed)
    model = mlp() if model is None else model
    make = optimizer or torch.optim.Adam
    optimizer = make(model.parameters(), lr=1e-2)
    options.plugins = [*plugins, *options.plugins]
    return Naive(model=model, optimizer=optimizer, **options())


def scheduled(options):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    plugin = LRSchedulerPlugin(scheduler, step_granularity="iteration", reset_lr=False)
    options.plugins = [plugin, *options.plugins]
    return Naive(model=model, optimizer=optimizer, **options())


class Growing(nn.Module):
    """A class-incremental classifier with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU()
        )
        self.classifier = IncrementalClassifier(20, 2)

    def forward(self, x):
        return self.classifier(self.features(x))


def growing(options):
    model = Growing()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Naive(model=model, optimizer=optimizer, **options())


def with_statistics(options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.Linear(20, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    options.plugins = [TaskStatisticsPlugin(), *options.plugins]
    return Naive(model=model, optimizer=optimizer, **options())


def of_avalanche(kind, **arguments):
    def make(options):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        more = {**arguments, **options()}
        return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **more)

    return make


METHODS = {
    "diagonal": prior_ewc,
    "kronecker": kronecker,
    "hypernet": hypernet,
    "hypernet EWC": lambda options: hypernet(options, EWCOfHypernet(structure="kronecker")),
    "naive": naive,
    "scheduled": scheduled,
    "growing": growing,
    "statistics": with_statistics,
    "EWC": of_avalanche(EWC, ewc_lambda=1.0),
    "online EWC": of_avalanche(EWC, ewc_lambda=1.0, mode="online", decay_factor=0.5),
    "SI": of_avalanche(SynapticIntelligence, si_lambda=1.0),
    "MAS": of_avalanche(MAS, lambda_reg=1.0),
    "RWalk": lambda options: naive(options, RWalkPlugin()),
    "GEM": lambda options: naive(options, GEMPlugin(20, 0.5)),
    "from scratch": lambda options: naive(options, FromScratchTrainingPlugin()),
}


def make(method, folder=None, every_iterations=None, **options):
    """A strategy as a script makes it; without a folder it has no checkpoints."""
    options = Options([], **options)
    if folder is not None:
        options.plugins.append(CheckpointPlugin(folder, every_iterations))
    torch.manual_seed(options.seed)
    return METHODS[method](options)


class Stopped(BaseException):
    """A process that has been killed."""


class Stop(SupervisedPlugin):
    """Kills it at the n-th of certain moments."""

    def __init__(self, moment, n):
        super().__init__()
        self.n = n

        def stop(strategy, **kwargs):
            self.n -= 1
            if self.n < 0:
                raise Stopped

        setattr(self, moment, stop)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def script(strategy, method="", *, stop_after=None, n_experiences=N_EXPERIENCES):
    """The user's loop, killed after so many calls; what its calls returned."""
    stream = benchmark(multi_task=method != "growing")
    returned = []
    for experience in stream.train_stream[:n_experiences]:
        for call in (
            lambda e=experience: strategy.train(e),
            lambda: strategy.eval(stream.test_stream[:n_experiences]),
        ):
            if stop_after is not None and len(returned) == stop_after:
                return returned
            returned.append(call())
    return returned


def result(strategy, returned):
    """All that a run ends with."""
    state = {
        "weights": strategy.model.state_dict(),
        "returned": returned,
        "metrics": dict(strategy.evaluator.get_all_metrics()),
        "clock": vars(strategy.clock),
        "random": torch.get_rng_state(),
        "optimizer": strategy.optimizer.state_dict(),
    }
    if isinstance(strategy, PriorEWC):
        state["posterior"] = strategy.posterior.state_dict()
    if isinstance(strategy, HypernetTemplate):
        state["regularizer"] = strategy.regularizer.state_dict()
        state["movement"] = strategy.movement.state_dict()
    return state


def assert_same(first, second, where=""):
    """Bit for bit."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert first.shape == second.shape, where
        assert bool(((first == second) | ((first != first) & (second != second))).all()), where
    elif isinstance(first, dict):
        assert [*first] == [*second], where
        for key in first:
            if "Seconds" not in str(key):
                assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    elif hasattr(first, "values") and hasattr(first, "alternatives"):
        assert_same(first.values, second.values, where)
    else:
        assert first == second or (first != first and second != second), where


def main(method, folder, out, every):
    torch.set_num_threads(1)
    strategy = make(method, folder, int(every) or None)
    print("made", flush=True)
    returned = script(strategy, method)
    temporary = Path(f"{out}.tmp")
    torch.save(result(strategy, returned), temporary)
    temporary.replace(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
