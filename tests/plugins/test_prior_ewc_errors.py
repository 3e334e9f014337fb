"""What prior-focused EWC refuses."""

import gc
from copy import deepcopy

import pytest
import torch
from avalanche.training import Cumulative, JointTraining
from torch import nn

from avalanche_hnet import Gaussian, PriorEWCPlugin
from tests.support.models import Incremental, mlp
from tests.support.strategies import naive, run
from tests.support.streams import task_stream


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prior_variance": 0}, ValueError, "prior_variance must be positive and finite, got 0"),
        ({"ewc_lambda": -1}, ValueError, "ewc_lambda must be at least 0 and finite, got -1"),
        ({"ewc_lambda": float("nan")}, ValueError, "ewc_lambda .* got nan"),
        ({"gamma": 1.1}, ValueError, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": -0.1}, ValueError, "gamma .* got -0.1"),
        ({"n_fisher": 0}, ValueError, "n_fisher must be an integer of at least 1, .* got 0"),
        ({"n_fisher": 2.5}, ValueError, "n_fisher must be an integer .* got 2.5"),
        ({"fisher": "diag"}, ValueError, "fisher must be one of .*'diag'"),
        ({"log_every": 0}, ValueError, "log_every must be at least 1, got 0"),
        ({"prior_mean": 0}, ValueError, "prior_mean must be one of"),
        ({"likelihood": "gaussian"}, TypeError, "likelihood must be a Likelihood, got 'gaussian'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PriorEWCPlugin(**arguments)


def refused(plugin, model, experience, message, **options):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    names = set(plugin.posterior.mean)
    strategy = naive(model, plugin, **options)
    with pytest.raises(ValueError, match=message):
        strategy.train(experience)
    assert set(plugin.posterior.mean) == names
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_unsupported_criterion_is_refused():
    experience = task_stream(1).train_stream[0]
    refused(PriorEWCPlugin(), mlp(n_out=2), experience, "L1Loss", criterion=nn.L1Loss())


def test_likelihood_that_contradicts_the_criterion_is_refused():
    experience = task_stream(1).train_stream[0]
    refused(PriorEWCPlugin(likelihood=Gaussian()), mlp(n_out=2), experience, "does not go with")


def test_batch_statistics_are_refused_before_the_training():
    model = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), mlp(n_out=2))
    refused(PriorEWCPlugin(), model, task_stream(1).train_stream[0], "statistics of the batch")


@pytest.mark.parametrize("strategy", [JointTraining, Cumulative])
def test_strategies_that_train_on_all_data_are_refused(strategy):
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    refused(PriorEWCPlugin(), mlp(n_out=2), stream, strategy.__name__, strategy=strategy)


def test_two_of_them_are_refused():
    plugin, model = PriorEWCPlugin(), mlp(n_out=2)
    strategy = naive(model, plugin, PriorEWCPlugin())
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="the strategy has 2 PriorEWCPlugins"):
        strategy.train(task_stream(1).train_stream[0])
    assert torch.equal(model[0].weight, before)
    assert not plugin.posterior.mean


@pytest.mark.parametrize("make", [lambda: mlp(n_out=2), lambda: mlp(n_out=3), Incremental])
def test_another_model_is_refused(make):
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    plugin = PriorEWCPlugin()
    run(plugin, mlp(n_out=2), stream[:1])
    message = "this PriorEWCPlugin has learned another model; make a new one"
    refused(plugin, make(), stream[1], message)


def test_another_model_in_the_memory_of_the_first_is_refused():
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    plugin, model = PriorEWCPlugin(), mlp(n_out=2)
    run(plugin, model, stream[:1])
    address = id(model)
    del model
    gc.collect()
    others = [mlp(n_out=3) for _ in range(200)]
    other = next((m for m in others if id(m) == address), others[0])
    refused(plugin, other, stream[1], "this PriorEWCPlugin has learned another model")


def test_a_copy_of_the_model_goes_on():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    plugin = PriorEWCPlugin()
    run(plugin, model, stream[:1])
    run(plugin, deepcopy(model), stream[1:])
    assert all(known.all() for known in plugin.posterior.known.values())


def test_a_prior_that_dwarfs_the_loss_is_warned_of_once():
    stream = task_stream(3, task_labels=[0, 0, 0]).train_stream
    with pytest.warns(UserWarning, match="prior_mean='initial'") as caught:
        run(PriorEWCPlugin(prior_variance=1e-3), mlp(n_out=2), stream, lr=1e-4)
    assert len([w for w in caught if "the prior adds" in str(w.message)]) == 1


@pytest.mark.parametrize("options", [{}, {"prior_variance": 1e-3, "prior_mean": "initial"}])
def test_other_priors_are_not_warned_of(options, recwarn):
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    run(PriorEWCPlugin(**options), mlp(n_out=2), stream, lr=1e-4)
    assert not [w for w in recwarn if "the prior adds" in str(w.message)]


def test_empty_experience_is_refused():
    experience = task_stream(1).train_stream[0]
    experience.dataset = experience.dataset.subset([])
    refused(PriorEWCPlugin(), mlp(n_out=2), experience, "experience 0 is empty")


def test_posterior_of_another_architecture_is_refused():
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    trained = PriorEWCPlugin()
    run(trained, mlp(n_out=2), stream[:1])
    plugin = PriorEWCPlugin()
    plugin.posterior.load_state_dict(trained.posterior.state_dict())
    refused(plugin, Incremental(), stream[1], "another architecture")


def test_posterior_without_the_weights_that_belong_to_it_is_refused():
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    trained = PriorEWCPlugin()
    run(trained, mlp(n_out=2), stream[:1])
    plugin = PriorEWCPlugin()
    plugin.posterior.load_state_dict(trained.posterior.state_dict())
    refused(plugin, mlp(n_out=2), stream[1], "not at the mean of the loaded posterior")
