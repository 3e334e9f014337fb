"""Ctrl-C anywhere in a training, a Fisher pass or an evaluation; then all goes on."""

import pytest
import torch

from avalanche_hnet import EWC, FixedTarget, PriorEWC, TaskInferencePlugin
from tests.support.hypernets import hyper_model, learner
from tests.support.interrupts import count_lines, interrupted, some_lines
from tests.support.models import MultiHead
from tests.support.states import same_state
from tests.support.strategies import naive
from tests.support.streams import task_stream
from tests.support.traces import differences, traces_of

N_LINES = 12  # of each step and strategy, chosen by a seed


def prior_ewc(structure):
    torch.manual_seed(0)
    inference = TaskInferencePlugin()
    return naive(MultiHead(), inference, strategy=PriorEWC, structure=structure)


def hypernetwork(regularizer):
    torch.manual_seed(0)
    return learner(hyper_model(), regularizer, TaskInferencePlugin())


MAKE = {
    "diagonal": lambda: prior_ewc("diagonal"),
    "kronecker": lambda: prior_ewc("kronecker"),
    "fixed target": lambda: hypernetwork(FixedTarget()),
    "ewc": lambda: hypernetwork(EWC()),
}


def without_values(traces):
    """What a training leaves as it is, even if it is broken off."""
    kinds = ("mode of", "class of", "hooks", "attributes", "grad mode", "fused", "cudnn")
    kept = {n: v for n, v in traces.items() if n.startswith(kinds)}
    required = {n: v[1] for n, v in traces.items() if n.startswith("parameter ")}
    return kept | required


def knowledge(strategy):
    """What has been learned of experiences that are over."""
    posterior = getattr(strategy, "posterior", None)
    return (posterior or strategy.regularizer).state_dict()


def precisions(strategy):
    """Of the posterior, if there is one."""
    owner = strategy if hasattr(strategy, "posterior") else strategy.regularizer
    if not hasattr(owner, "posterior"):
        return {}
    return {n: p.clone() for n, p in owner.posterior.precision.items()}


@pytest.mark.parametrize("name", MAKE)
def test_training(name):
    stream = task_stream(2, n_samples=10).train_stream

    def begun():
        strategy = MAKE[name]()
        strategy.train(stream[0], shuffle=False)
        return strategy

    def train(strategy):
        return lambda: strategy.train(stream[1], shuffle=False)

    whole = begun()
    old = precisions(whole)
    n_lines = count_lines(train(whole))
    new, traces = precisions(whole), without_values(traces_of(whole.model))
    for number in [*some_lines(n_lines, N_LINES, seed=len(name)), n_lines - 30]:
        strategy = begun()
        assert interrupted(train(strategy), number)
        found, now = precisions(strategy), without_values(traces_of(strategy.model))
        assert [n for n in differences(traces, now) if n in now] == []
        is_old = all(torch.equal(found[n], p) for n, p in old.items())
        assert is_old or same_state(found, new)
        strategy.eval(stream)
        train(strategy)()
        assert differences(traces, without_values(traces_of(strategy.model))) == []
        assert strategy.model.known_train_tasks_labels == {0, 1}


@pytest.mark.parametrize("name", MAKE)
def test_evaluation(name):
    stream = task_stream(2, n_samples=10).train_stream
    strategy = MAKE[name]()
    for experience in stream:
        strategy.train(experience)
    strategy.eval(stream)
    before, model, state = traces_of(strategy.model), strategy.model, knowledge(strategy)
    for number in some_lines(count_lines(lambda: strategy.eval(stream)), 3 * N_LINES):
        assert interrupted(lambda: strategy.eval(stream), number)
        assert strategy.model is model
        random_states = ("python", "numpy", "torch")
        assert [n for n in differences(before, traces_of(model)) if n not in random_states] == []
        assert same_state(state, knowledge(strategy))
    strategy.train(stream[1])
