"""An experience that is broken off goes on with the targets that it began with."""

import copy
from functools import partial

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_hnet import EWC, FixedTarget
from tests.support.hypernets import hyper_model, learner
from tests.support.interrupts import count_lines, interrupted, some_lines
from tests.support.models import mlp
from tests.support.streams import task_stream


class StopAt(SupervisedPlugin):
    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == self.iteration:
            raise KeyboardInterrupt


def broken_off(regularizer, chunk_size=None, iteration=5):
    """A strategy in the middle of the third experience, and the weights that it protects."""
    torch.manual_seed(0)
    stream = task_stream(4).train_stream
    model = hyper_model(hypernet={"chunk_size": chunk_size})
    strategy = learner(model, regularizer, lr=0.5)
    strategy.train(stream[0])
    strategy.train(stream[1])
    targets = [model.hypernetwork(task)[0].detach().clone() for task in (0, 1)]
    strategy.plugins.append(stop := StopAt(iteration))
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream[2])
    strategy.plugins.remove(stop)
    return strategy, stream, torch.stack(targets)


def protected(regularizer):
    """What the regulariser protects now, (T, W)."""
    net, before = regularizer._protected.hypernetwork, regularizer._before
    return before if isinstance(before, torch.Tensor) else net.product(before)


class Look(SupervisedPlugin):
    def before_training_epoch(self, strategy, **kwargs):
        self.seen = protected(strategy.regularizer).detach().clone()


@pytest.mark.parametrize("chunk_size", [None, 13])
@pytest.mark.parametrize("kind", ["recomputed", "stored"])
@pytest.mark.parametrize("how", ["same process", "saved"])
def test_targets_are_those_of_the_beginning(how, kind, chunk_size):
    regularizer = FixedTarget(0.01, targets=kind)
    strategy, stream, targets = broken_off(regularizer, chunk_size)
    now = torch.stack([strategy.model.hypernetwork(task)[0] for task in (0, 1)]).detach()
    assert (now - targets).norm() / targets.norm() > 0.01  # they have drifted
    if how == "saved":
        model = hyper_model(hypernet={"chunk_size": chunk_size})
        model.load_state_dict(strategy.model.state_dict())
        loaded = FixedTarget(0.01, targets=kind)
        loaded.load_state_dict(copy.deepcopy(regularizer.state_dict()))
        strategy = learner(model, loaded, lr=0.5)
    strategy.plugins.append(look := Look())
    strategy.train(stream[2])
    torch.testing.assert_close(look.seen, targets, rtol=1e-5, atol=1e-6)
    # Once it is over, the next one begins with weights as they are then.
    assert "targets" not in strategy.regularizer.state_dict()
    expected = torch.stack([strategy.model.hypernetwork(t)[0] for t in range(3)]).detach()
    strategy.train(stream[3])
    torch.testing.assert_close(look.seen, expected, rtol=1e-5, atol=1e-6)


def test_another_experience_is_warned_of():
    strategy, stream, _ = broken_off(FixedTarget(0.01))
    with pytest.warns(UserWarning, match=r"broken off and is not trained on, so the tasks \[0, 1"):
        strategy.train(stream[3])


def test_targets_of_another_hypernetwork_are_refused():
    strategy, stream, _ = broken_off(FixedTarget(0.01))
    state = strategy.regularizer.state_dict()
    other = FixedTarget(0.01)
    other.load_state_dict(state)
    new = learner(hyper_model(hypernet={"hidden": (5, 6)}), None)
    new.train(stream[0])
    new.train(stream[1])
    new.regularizer = other
    with pytest.raises(ValueError, match=r"hidden of the targets .* it is another one"):
        new.train(stream[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": [0, "1"]}, r"state\['targets'\]\['tasks'\] must be a list of tasks' numbers"),
        ({"hidden": torch.ones(1, 1, 4)}, "must have a row for each of the tasks"),
        ({"weight": torch.full((4, 74), float("nan"))}, r"state\['targets'\]\['weight'\]"),
    ],
)
def test_damaged_targets_are_refused(change, message):
    strategy, _, _ = broken_off(FixedTarget(0.01))
    state = strategy.regularizer.state_dict()
    state["targets"] = state["targets"] | change
    with pytest.raises(ValueError, match=message):
        FixedTarget(0.01).load_state_dict(state)


@pytest.mark.parametrize("online", [True, False])
def test_an_experience_does_not_count_twice(online):
    """The evaluation at its end is interrupted, and the experience trained again."""

    class Interrupt(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            raise KeyboardInterrupt

    torch.manual_seed(0)
    stream = task_stream(3).train_stream
    strategy = learner(hyper_model(), EWC(online=online))
    strategy.train(stream[0])
    strategy.plugins.insert(0, interrupt := Interrupt())
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream[1])
    strategy.plugins.remove(interrupt)
    counted = []
    original = EWC.before_experience

    class Counting(EWC):
        def before_experience(self, *arguments):
            counted.append(len(self._experiences) if not online else self.posterior.state_dict())
            original(self, *arguments)

    strategy.regularizer.__class__ = Counting
    strategy.train(stream[1])
    if not online:
        assert counted == [1]
        assert len(strategy.regularizer._experiences) == 2
    strategy.train(stream[1])  # on purpose, after a training that has ended
    if not online:
        assert counted == [1, 2]
    else:
        first, second = (sum(p.sum() for p in s["precision"].values()) for s in counted)
        assert first < second


@pytest.mark.parametrize("options", [{}, {"multi_head": True}])
@pytest.mark.parametrize(
    "hypernet", [{}, {"chunk_size": 13, "task_specific_chunk_embeddings": True}]
)
def test_growth_is_completed_after_an_interrupt(hypernet, options):
    stream = task_stream(2, offset=True).train_stream

    def grown():
        torch.manual_seed(3)
        model = hyper_model(mlp(n_out=4), hypernet=hypernet, **options)
        model.train()
        model.adaptation(stream[0])
        return model

    expected = grown()
    expected.adaptation(stream[1])
    n_lines = count_lines(partial(grown().adaptation, stream[1]))
    for number in some_lines(n_lines, 60):
        model = grown()
        assert interrupted(partial(model.adaptation, stream[1]), number)
        assert model.task_labels in ((0,), (0, 1))
        model.eval()(torch.randn(2, 6), 0)
        model.train()
        model.adaptation(stream[1])
        state, right = model.state_dict(), expected.state_dict()
        assert state.keys() == right.keys()
        assert all(
            torch.equal(v, right[n]) for n, v in state.items() if isinstance(v, torch.Tensor)
        )
        assert model.get_extra_state() == expected.get_extra_state()
