"""Regularisers' experiences, and the penalties as loops and by autograd."""

import torch
from torch import nn

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving
from avalanche_hnet.core.fisher.kronecker_layer import layout_of
from avalanche_hnet.core.regularizers import Experience
from avalanche_hnet.core.regularizers.base import Penalty
from avalanche_hnet.core.regularizers.deviation import SHARED, UNUSED
from tests.support.hypernetwork_oracles import loop_weights, make
from tests.support.kronecker import random_fisher

KINDS = ["full", "chunks that divide", "chunks that do not divide", "chunks of tasks"]


CLASSES = [FixedTarget, ValuePreserving, Jacobian]


FORMS = ["direct", "quadratic"]


OWNERS_OF_UNITS = torch.tensor([0, 2, 0, UNUSED, 1, 2, 3, 1, 0])


W = 48


BETA = 0.3


def target():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, len(OWNERS_OF_UNITS)))


def hypernetwork(kind="chunks that do not divide", n_tasks=4, **options):
    return make(kind, n_tasks, target(), **{"activation": nn.Tanh} | options)


def owners():
    of_shared = torch.full((12,), SHARED)
    return torch.cat([of_shared, OWNERS_OF_UNITS.repeat_interleave(3), OWNERS_OF_UNITS])


class Samples:
    """A source of Fisher values that are made up."""

    def __init__(self, hypernetwork, seed=0, n_samples=30):
        self.n_samples = n_samples
        self.asked = []
        generator = torch.Generator().manual_seed(seed)
        self.of_theta = {
            n: torch.rand(p.shape, generator=generator)
            for n, p in hypernetwork.shared_parameters().items()
        }
        self.factors = made_up_factors(hypernetwork, seed)
        n_weights, n_tasks = hypernetwork.layout.n_weights, hypernetwork.n_tasks
        self.of_tasks = torch.rand(n_tasks, n_weights, generator=generator)

    def of_shared_parameters(self, max_samples):
        self.asked.append(max_samples)
        return self.of_theta

    def factors_of_shared_parameters(self, fisher, max_samples):
        assert callable(fisher)
        self.asked.append(max_samples)
        return self.factors

    def of_weights(self, task, max_samples):
        self.asked.append((task, max_samples))
        return self.of_tasks[task]


def made_up_factors(hypernetwork, seed):
    """Products for the linear layers of the trunk, and a diagonal for all else."""
    parameters = hypernetwork.shared_parameters()
    layers = {
        name: layout_of(name, layer, parameters)
        for name, layer in hypernetwork.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return random_fisher(layers, parameters, seed)


def begin(regularizer, hypernetwork, protected=(0, 1, 2), owners=None):
    """Begin an experience; return what is then trained, by name, and a change of it.

    The values have moved since the beginning, and are not in the hypernetwork yet.
    """
    if regularizer.needs_fisher and not isinstance(regularizer, EWC):
        regularizer.after_experience(Samples(hypernetwork), protected)
    regularizer.before_experience(hypernetwork, Experience(tuple(protected), 50, owners))
    trained = hypernetwork.shared_parameters()
    if regularizer.train_previous_embeddings:
        for task in protected:
            trained |= hypernetwork.task_parameters(task)
    parameters = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in trained.items()}
    return parameters, {n: 0.2 * torch.randn_like(p) for n, p in parameters.items()}


def put(parameters, hypernetwork):
    """Give the hypernetwork these parameters."""
    hypernetwork.load_state_dict(parameters, strict=False)


def plain_deviation(cls, hypernetwork, task, parameters, change, activation=torch.tanh):
    """What the class's docstring says, with loops and an explicit Jacobian."""
    before = dict(hypernetwork.named_parameters())  # where the experience began

    def h(parameters):
        return loop_weights(hypernetwork, task, before | parameters, activation)

    moved = {n: p + change[n] if n in change else p for n, p in parameters.items()}
    if cls is FixedTarget:
        return h(moved) - h({}).detach()
    if cls is ValuePreserving:
        return h(moved) - h(parameters)
    jacobian = torch.func.jacrev(h)(parameters)
    return sum(jacobian[n].flatten(1) @ change[n].flatten() for n in jacobian if n in change)


def plain_penalty(
    cls, hypernetwork, tasks, parameters, change=None, masks=None, fisher=None, **options
):
    """Value and gradients by autograd of the whole expression; β is 1."""
    own = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
    change = {n: c.detach().clone().requires_grad_() for n, c in (change or {}).items()}
    value = 0.0
    for task in tasks:
        squares = plain_deviation(cls, hypernetwork, task, own, change, **options) ** 2
        if fisher is not None:
            squares = squares * fisher[task]
        if masks is not None:
            squares = squares[(masks == SHARED) | (masks == task)]
        value += squares.sum() / len(tasks)
    wanted = [*own.values(), *change.values()]
    found = torch.autograd.grad(value, wanted, materialize_grads=True)
    gradients = dict(zip(own, found[: len(own)], strict=True))
    return Penalty(value.detach(), gradients, dict(zip(change, found[len(own) :], strict=True)))


def assert_penalty(found, expected, beta=BETA, rtol=1e-9):
    """The same value and gradients, but for the strength that only ``found`` has."""
    torch.testing.assert_close(found.value, beta * expected.value, rtol=rtol, atol=1e-14)
    assert found.gradients.keys() == expected.gradients.keys()
    pairs = [(found.gradients[n], g, n) for n, g in expected.gradients.items()]
    if found.change_gradients:
        assert found.change_gradients.keys() == expected.change_gradients.keys()
        pairs += [(found.change_gradients[n], g, n) for n, g in expected.change_gradients.items()]
    scale = beta * max(float(gradient.abs().max()) for _, gradient, _ in pairs)
    for gradient, of_expected, name in pairs:
        torch.testing.assert_close(
            gradient, beta * of_expected, rtol=rtol, atol=rtol * scale + 1e-14, msg=name
        )


def experiences(ours, regularizer, n=4):
    """What is trained and sampled in each of some experiences, and the penalty there."""
    for experience in range(n):
        samples = Samples(ours, seed=experience, n_samples=20 + experience)
        regularizer.before_experience(
            ours, Experience(tuple(range(experience)), samples.n_samples, owners())
        )
        noise = torch.Generator().manual_seed(experience)
        parameters = {
            n: p.detach() + 0.3 * torch.randn(p.shape, generator=noise)
            for n, p in ours.shared_parameters().items()
        }
        penalty = regularizer.penalty(parameters) if regularizer.is_active else None
        yield parameters, samples, penalty
        put(parameters, ours)
        regularizer.after_experience(samples, (experience,))
