"""Avalanche's strategies and plugins, each alone and with our plugins beside it."""

import importlib
import re
import warnings

import pytest
import torch
from avalanche.training import Naive

from avalanche_hnet import InMemoryPlugin, PriorEWCPlugin
from tests.support import avalanche_matrix as matrix
from tests.support import avalanche_strategies as registry
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import task_stream

CASES = [(heading, name) for heading, cases in matrix.TABLES.items() for name in cases]


@pytest.mark.in_memory
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("heading", "name"), CASES)
def test_runs_or_is_refused_as_the_page_says(heading, name):
    case = matrix.TABLES[heading][name]
    if case.missing:
        pytest.skip(f"needs {', '.join(case.missing)}")
    alone, memory = matrix.run(case), matrix.run(case, memory=True)
    ewc, both = matrix.run(case, ewc=True), matrix.run(case, memory=True, ewc=True)

    assert matrix.equal(alone.weights, memory.weights)
    assert ewc.refusal == both.refusal
    assert matrix.equal(ewc.weights, both.weights)
    if ewc.refusal:
        assert matrix.equal(ewc.start, ewc.weights)
        assert not ewc.ewc.posterior.mean
    else:
        assert not matrix.equal(alone.weights, ewc.weights)  # the penalties act
        check_posterior(ewc)
        check_posterior(both)
    found = matrix.memory_cell(alone, memory), matrix.ewc_cell(case, ewc)
    assert matrix.rows_of_page()[heading, name] == found, (
        "write the page anew: python -m tests.support.avalanche_matrix"
    )


def check_posterior(run):
    """Prior plus the squared gradients of all samples, so that N is right, too."""
    posterior = run.ewc.posterior
    assert run.probe.precision
    for name, data in run.probe.precision.items():
        precision = posterior.precision[name]
        assert precision.isfinite().all(), name
        scale = float(data.max()) + 1e-6
        torch.testing.assert_close(
            precision.double() - 1, data, rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name
        )


def test_nothing_of_avalanche_is_left_out():
    templates = {"BaseSGDTemplate", "SupervisedTemplate", "SupervisedMetaLearningTemplate"}
    missing = {
        "strategies": set(registry.all_strategies()) - set(registry.STRATEGIES) - templates,
        "plugins": set(registry.all_plugins()) - set(registry.PLUGINS),
    }
    assert not any(missing.values()), f"add them to tests/support/avalanche_strategies: {missing}"


def test_the_page_lists_nothing_else():
    assert set(matrix.rows_of_page()) == set(CASES)


def test_no_training_teaches_the_posterior_nothing():
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    plugin, model = PriorEWCPlugin(), mlp(n_out=2)
    naive(model, plugin, train_epochs=0).train(stream[0])
    assert not any(known.any() for known in plugin.posterior.known.values())
    naive(model, plugin).train(stream[0])
    learned = {n: p.clone() for n, p in plugin.posterior.precision.items()}
    naive(model, plugin, train_epochs=0).train(stream[1])
    assert all(torch.equal(p, learned[n]) for n, p in plugin.posterior.precision.items())


class Loop(Naive):
    """A training loop without the callbacks around the backward pass."""

    def training_epoch(self, **kwargs):
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.optimizer.zero_grad()
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.criterion()
            self.backward()
            self.around_the_step(**kwargs)
            self._after_training_iteration(**kwargs)

    def around_the_step(self, **kwargs):
        self.optimizer_step()


class LoopWithUpdate(Loop):
    def around_the_step(self, **kwargs):
        self._before_update(**kwargs)
        self.optimizer_step()
        self._after_update(**kwargs)


@pytest.mark.parametrize("loop", [Loop, LoopWithUpdate])
def test_loops_that_the_penalties_do_not_reach_are_refused(loop):
    model = mlp(n_out=2)
    before = [p.detach().clone() for p in model.parameters()]
    strategy = naive(model, PriorEWCPlugin(), strategy=loop)
    with pytest.raises(ValueError, match=f"loop of {loop.__name__} does not call before_backward"):
        strategy.train(task_stream(1).train_stream[0])
    if loop is LoopWithUpdate:
        assert matrix.equal(before, [*model.parameters()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (registry.losses.ICaRLLossPlugin, "ICaRLLossPlugin takes an earlier model's outputs"),
        (registry.losses.SCRLoss, "SCRLoss compares the samples"),
        (lambda: registry.plugins.PPPloss({}), "PPPloss compares the samples"),
    ],
)
def test_losses_without_a_likelihood_are_refused_with_any(make, message):
    plugin = PriorEWCPlugin(likelihood=registry.Categorical())
    strategy = naive(mlp(n_out=2), plugin, criterion=make())
    with pytest.raises(ValueError, match=message):
        strategy.train(task_stream(1).train_stream[0])


@pytest.mark.filterwarnings("ignore")
def test_the_lamaml_that_needs_another_package_is_refused_too():
    kind = importlib.import_module("avalanche.training.supervised.lamaml").LaMAML
    strategy = kind(**registry.options(mlp(n_out=2), [PriorEWCPlugin()]))
    with pytest.raises(ValueError, match="does not go with LaMAML: its inner and outer updates"):
        strategy.train(task_stream(1).train_stream[0])


def test_the_loss_is_named_without_its_address():
    strategy = naive(mlp(n_out=2), PriorEWCPlugin(), criterion=lambda out, y: out.sum())
    with pytest.raises(ValueError, match=r"got <function .*lambda>>; pass") as error:
        strategy.train(task_stream(1).train_stream[0])
    assert not re.search("0x[0-9a-f]", str(error.value))


class OptimizerOfItsOwn(Naive):
    """Makes another optimizer for each experience, after all plugins have seen the first."""

    def _before_training_exp(self, **kwargs):
        super()._before_training_exp(**kwargs)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)


class AdamEachTime(registry.plugins.SupervisedPlugin):
    def before_training_exp(self, strategy, **kwargs):
        strategy.optimizer = torch.optim.Adam(strategy.model.parameters(), 0.01)


@pytest.mark.parametrize("penalty_step", ["gradient", "implicit"])
def test_a_strategy_may_make_its_own_optimizer(penalty_step):
    stream, weights = task_stream(2, task_labels=[0, 0]).train_stream, []
    for kind, first in ((OptimizerOfItsOwn, []), (Naive, [AdamEachTime()])):
        torch.manual_seed(0)
        model, plugin = mlp(n_out=2), PriorEWCPlugin(100.0, penalty_step=penalty_step)
        strategy = naive(model, *first, plugin, strategy=kind)
        for experience in stream:
            strategy.train(experience)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert matrix.equal(*weights)


@pytest.mark.parametrize("lamb", [-1, 0.5])
def test_bic_may_stand_behind_if_it_does_not_scale_the_loss(lamb):
    case = registry.PLUGINS["BiCPlugin"]
    bic = registry.plugins.BiCPlugin(mem_size=12, val_percentage=0.5, stage_2_epochs=1, lamb=lamb)
    with case.environment():
        strategy = Naive(**registry.options(registry.mlp(), [PriorEWCPlugin(), bic]))
        experience = case.stream().train_stream[0]
        if lamb == -1:
            with pytest.raises(ValueError, match="put it before PriorEWCPlugin"):
                strategy.train(experience)
        else:
            strategy.train(experience)


@pytest.mark.in_memory
def test_memory_that_changes_is_left_to_its_own_loader():
    case = registry.PLUGINS["GSS_greedyPlugin"]
    strategy = case.build([InMemoryPlugin()])
    first, second, third = case.stream().train_stream
    with pytest.warns(UserWarning, match="GSS_greedyPlugin changes its memory"):
        strategy.train(first)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "GSS_greedyPlugin changes")
        strategy.train([second, third])  # once is enough
