"""Kronecker products of any strength within real strategies, and what is said of their steps."""

import math
import warnings

import pytest
import torch
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import Incremental, MultiHead, lenet, mlp
from tests.support.strategies import naive, run
from tests.support.streams import task_stream

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
}


def plugin_of(ewc_lambda=1.0, **options):
    return PriorEWCPlugin(ewc_lambda, structure="kronecker", **options)


@pytest.mark.parametrize("ewc_lambda", [1.0, 1e6])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("make", [MultiHead, Incremental, lambda: mlp(n_out=2)])
def test_no_strength_diverges(make, name, ewc_lambda):
    model = make()
    is_growing = isinstance(model, Incremental)
    labels = None if isinstance(model, MultiHead) else [0, 0, 0]
    stream = task_stream(3, n_samples=40, task_labels=labels, offset=is_growing).train_stream
    optimizer = OPTIMIZERS[name](model.parameters())
    run(plugin_of(ewc_lambda), model, stream, optimizer=optimizer, train_epochs=5)
    assert all(p.isfinite().all() and p.abs().max() < 50 for p in model.parameters())


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_convolutions_do_not_diverge(weight_sharing):
    stream = task_stream(3, n_samples=20, n_in=256, task_labels=[0, 0, 0]).train_stream
    model = nn.Sequential(nn.Unflatten(1, (1, 16, 16)), lenet(n_out=2))
    plugin = plugin_of(1e6, weight_sharing=weight_sharing)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    run(plugin, model, stream, optimizer=optimizer)
    assert all(p.isfinite().all() and p.abs().max() < 50 for p in model.parameters())
    assert plugin.posterior._parts.layers.keys() == {"1.0.0", "1.0.3", "1.1", "1.3"}


def test_gradient_steps_diverge_where_implicit_ones_do_not():
    stream = task_stream(3, n_samples=40).train_stream
    with pytest.raises(ValueError, match=r"penalty_step='implicit'"):
        run(plugin_of(1e6, penalty_step="gradient"), MultiHead(), stream, train_epochs=20)


@pytest.mark.filterwarnings("ignore:there is no implicit step")
def test_several_products_have_gradient_steps_and_the_error_says_what_has_others():
    stream = task_stream(4, n_samples=40, task_labels=[0] * 4).train_stream
    with pytest.raises(ValueError, match=r"or rank=1, which has implicit steps, may help"):
        run(plugin_of(1e6, rank=2), mlp(n_out=2), stream, train_epochs=10)


@pytest.mark.parametrize("step", ["auto", "implicit"])
def test_a_strong_penalty_keeps_the_loss_that_was_learned(step):
    """Weights move only where the first experience says nothing."""
    stream = task_stream(2, task_labels=[0, 0], n_samples=40).train_stream
    changes = []
    for ewc_lambda in (0.0, 1e6):
        torch.manual_seed(0)
        model = mlp(n_out=2)
        plugin = plugin_of(ewc_lambda, penalty_step=step)
        strategy = naive(model, plugin, train_epochs=10)
        strategy.train(stream[0])
        term = plugin.posterior.ewc_term()
        strategy.train(stream[1])
        changes.append(term(dict(model.named_parameters())).item())
    assert math.isfinite(changes[1])
    assert changes[1] < 1e-3 * changes[0]


def of_layers(caught):
    return [str(w.message) for w in caught if "Kronecker products" in str(w.message)]


def test_adam_is_warned_of_once_that_products_have_no_implicit_step():
    stream, model = task_stream(3, task_labels=[0, 0, 0]).train_stream, mlp(n_out=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        run(plugin_of(penalty_step="implicit"), model, stream, optimizer=optimizer)
    (message,) = of_layers(caught)
    assert "of '0.weight' and 3 others: Adam has a step size for each" in message
    assert "loss's gradient" in message


@pytest.mark.parametrize("step", ["auto", "implicit"])
def test_several_products_are_warned_of_once(step):
    stream, model = task_stream(4, task_labels=[0, 0, 0, 0]).train_stream, mlp(n_out=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(plugin_of(penalty_step=step, rank=None), model, stream, lr=0.01)
    (message,) = of_layers(caught)
    assert "several products (rank=1 keeps one)" in message
    assert "unstable where learning rate times penalty is large" in message


def frozen_bias(model):
    model[0].bias.requires_grad_(False)


def frozen_layer(model):
    model[0].requires_grad_(False)


def nothing(model):
    pass


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("step", "name", "rank", "change"),
    [
        ("auto", "Adam", 1, nothing),
        ("auto", "SGD", 1, nothing),
        ("auto", "RAdam", 2, nothing),
        ("auto", "Adam", 1, frozen_bias),
        ("gradient", "SGD", None, nothing),
        ("implicit", "SGD", 1, nothing),
        ("implicit", "SGD, momentum", 1, nothing),
        ("implicit", "SGD", 1, frozen_layer),
    ],
)
def test_no_warning_where_it_is_not_true(step, name, rank, change):
    stream, model = task_stream(3, task_labels=[0, 0, 0]).train_stream, mlp(n_out=2)
    strategy = naive(
        model,
        plugin_of(0.1, penalty_step=step, rank=rank),
        optimizer=OPTIMIZERS[name](model.parameters()),
    )
    for experience in stream:
        strategy.train(experience)
        change(model)


@pytest.mark.parametrize("step", ["auto", "implicit"])
def test_a_layer_with_a_frozen_bias_is_warned_of(step):
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    strategy = naive(model, plugin_of(0.1, penalty_step=step))
    strategy.train(stream[0])
    frozen_bias(model)
    with pytest.warns(UserWarning, match=r"of '0\.weight': .*a weight and a bias that do not"):
        strategy.train(stream[1])


@pytest.mark.parametrize("step", ["implicit", "gradient"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_half_precision(dtype, step):
    """By the same weights in float32, as far as the type can tell."""
    weights = {}
    for used in (torch.float32, dtype):
        torch.manual_seed(0)
        stream = task_stream(2, task_labels=[0, 0]).train_stream
        model = mlp(n_out=2).to(used)
        model.register_forward_pre_hook(lambda _, x, used=used: tuple(t.to(used) for t in x))
        plugin = plugin_of(2.0, penalty_step=step)
        run(plugin, model, stream, lr=0.01)
        weights[used] = {n: p.detach().float() for n, p in model.named_parameters()}
        for layer in plugin.posterior._parts.layers.values():
            assert all(m.dtype == torch.float32 for product in layer.products for m in product)
        for name, p in model.named_parameters():
            assert p.dtype == used
            assert torch.equal(plugin.posterior.mean[name], p.detach().float())
        assert plugin.posterior._parts.layers.keys() == {"0", "2"}
    for name, expected in weights[torch.float32].items():
        torch.testing.assert_close(weights[dtype][name], expected, rtol=0.05, atol=0.02)


@pytest.mark.filterwarnings("ignore:the prior adds", "ignore:there is no implicit step")
@pytest.mark.parametrize("step", ["implicit", "gradient"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_other_tasks_heads_feel_nothing(optimizer, step):
    """Neither the prior nor the penalty, nor an optimizer's momentum by way of zero gradients."""
    stream, model = task_stream(3).train_stream, MultiHead()
    for experience in stream:
        model.output["head"].adaptation(experience)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {"weight_decay": 0.1}
    strategy = naive(
        model,
        plugin_of(3.0, prior_variance=0.1, penalty_step=step),
        optimizer=optimizer(model.parameters(), 0.01, **options),
    )
    for task, experience in enumerate(stream):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        strategy.train(experience)
        for name, p in model.named_parameters():
            own = "classifiers" not in name or f"classifiers.{task}." in name
            assert torch.equal(p, before[name]) != own, name
