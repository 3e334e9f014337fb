"""A Kronecker-factored posterior over models that grow along real streams."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from avalanche_hnet import (
    BlockMultiHeadClassifier,
    Categorical,
    KroneckerPosterior,
    active_elements,
    predict,
)
from tests.support.models import Incremental, MultiHead
from tests.support.streams import adapt, task_stream, tensors

pytestmark = pytest.mark.usefixtures("float64")

MODELS = {
    "heads": (MultiHead, {}),
    "blocks": (lambda: MultiHead(BlockMultiHeadClassifier(8)), {}),
    "growing": (Incremental, {"task_labels": [0, 0, 0], "offset": True}),
}


def loss_of(model, experience, x, y):
    label = experience.task_labels[0]
    outputs = model(x, label) if isinstance(model, MultiHead) else model(x)
    return nn.functional.cross_entropy(outputs, y)


@pytest.mark.parametrize("kind", MODELS)
def test_learns_each_experience_and_keeps_what_is_not_its_own(kind):
    make, options = MODELS[kind]
    model, posterior = make(), KroneckerPosterior(1.0)
    for experience in task_stream(3, **options).train_stream:
        adapt(model, experience)
        x, y, _ = tensors(experience)
        parameters = dict(model.named_parameters())
        posterior.align(parameters)
        active = active_elements(model, experience)
        known = {n: k.clone() for n, k in posterior.known.items()}
        prior = posterior.prior_term(active, 1 / len(x))
        ewc = posterior.ewc_term(1 / len(x))
        optimizer = SGD(model.parameters(), lr=0.05)
        first = None
        for _ in range(60):
            optimizer.zero_grad()
            nll = loss_of(model, experience, x, y)
            first = nll.item() if first is None else first
            (nll + prior(parameters) + ewc(parameters)).backward()
            for name, p in parameters.items():
                if p.grad is not None:  # other tasks' heads that are known lie at their mean
                    assert (p.grad[~active[name]] == 0).all()
            optimizer.step()
        assert loss_of(model, experience, x, y) < first
        before = posterior.state_dict()["layers"]
        label = experience.task_labels[0]
        batch = (x, y, torch.full((len(x),), label)) if isinstance(model, MultiHead) else (x, y)
        posterior.update(parameters, posterior.fisher(model, [batch]), len(x), active, 0.9)
        for name, mask in active.items():
            old = known.get(name, torch.zeros(0, *mask.shape[1:], dtype=torch.bool))
            expected = mask.clone()
            expected[: len(old)] |= old
            assert torch.equal(posterior.known[name], expected)
        for layer in posterior._parts.layers.values():
            rows = layer.layout.matrices(posterior.known).any(2)
            (product,) = layer.products
            assert (product.outputs[~rows] == 0).all()
        assert before.keys() <= posterior._parts.layers.keys()
        options = {"task_label": label} if isinstance(model, MultiHead) else {}
        found = predict(model, posterior, x, **options)
        torch.testing.assert_close(found.sum(1), torch.ones(len(x)))
        predict(model, posterior, x, "sample", n_samples=2, **options)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_a_head_that_is_not_trained_keeps_its_products(gamma):
    """With all that is known of them, unless something of them is forgotten."""
    model, stream = MultiHead().double(), task_stream(2).train_stream
    posterior = KroneckerPosterior(0.5)
    for number, experience in enumerate(stream):
        adapt(model, experience)
        x, y, labels = tensors(experience)
        parameters = dict(model.named_parameters())
        posterior.align(parameters)
        fisher = posterior.fisher(model, [(x.double(), y, labels)], likelihood=Categorical())
        before = dict(posterior._parts.layers)
        active = active_elements(model, experience)
        posterior.update(parameters, fisher, len(x), active, gamma if number else 1.0)
    after, name = posterior._parts.layers, "output.head.classifiers.0.classifier"
    assert (after[name] is before[name]) == (gamma == 1)
    for old, new in zip(before[name].products, after[name].products, strict=True):
        expected = gamma * torch.einsum("kab,kcd->kacbd", old.inputs, old.outputs)
        found = torch.einsum("kab,kcd->kacbd", new.inputs, new.outputs)
        torch.testing.assert_close(found, expected)
    other = "output.head.classifiers.1.classifier"
    assert after[other].products[0].outputs.any()
    assert after["features.1"] is not before["features.1"]
