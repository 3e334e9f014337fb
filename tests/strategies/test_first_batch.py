"""What does not fit the likelihood is refused at the first batch, before any weight changes."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_hnet import Bernoulli, Categorical, FixedTarget, Gaussian, PriorEWCPlugin
from tests.support.hypernets import hyper_model, learner, values
from tests.support.models import mlp
from tests.support.strategies import naive
from tests.support.streams import labelled_benchmark, task_stream

N = 20
LABELS = torch.arange(N) % 2


def prior_ewc(model, likelihood, criterion):
    return naive(model, PriorEWCPlugin(likelihood=likelihood), criterion=criterion)


def hypernet(model, likelihood, criterion):
    model = hyper_model(model)
    return learner(model, FixedTarget(), criterion=criterion, likelihood=likelihood)


STRATEGIES = pytest.mark.parametrize("make", [prior_ewc, hypernet])


class Sequences(nn.Module):
    """Logits (B, T, V) with the classes last, as of a language model."""

    def __init__(self, n_tokens=3, n_classes=2):
        super().__init__()
        self.layer, self.shape = nn.Linear(6, n_tokens * n_classes), (n_tokens, n_classes)

    def forward(self, x):
        return self.layer(x).unflatten(1, self.shape)


class Returning(nn.Module):
    """A model that returns something else than a tensor."""

    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 2), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


def flattening(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def tokens(n_tokens, n_classes=2):
    return torch.randint(0, n_classes, (N, n_tokens))


def single():
    return mlp(n_out=1)


def pair():
    return mlp(n_out=2)


CE, BCE, MSE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()

MISTAKES = {
    "squared error on class labels": (
        pair,
        LABELS,
        MSE,
        None,
        r"targets have the shape \(5,\), but the outputs \(5, 2\).*class labels use .*CrossEntropy",
    ),
    "Gaussian with class labels": (
        pair,
        LABELS,
        lambda o, t: ((o - t[:, None]) ** 2).mean(),
        Gaussian(),
        r"shape \(5,\).*for class labels",
    ),
    "(B,) against (B, 1)": (single, torch.randn(N), MSE, None, r"\(5,\), but the outputs \(5, 1\)"),
    "(B, 1) against (B, 2)": (pair, torch.randn(N, 1), F.mse_loss, None, r"\(5, 1\).*\(5, 2\)"),
    "fewer outputs than classes": (
        pair,
        torch.arange(N) % 4,
        CE,
        None,
        "labels from 0 to 3, but the model has 2",
    ),
    "a class of later batches": (
        pair,
        torch.tensor([0, 1] * 9 + [2, 3]),
        CE,
        None,
        "labels from 0 to 3, but the model has 2 outputs",
    ),
    "labels below zero": (pair, torch.tensor([-1, 1] * 10), CE, None, "labels from -1 to 1"),
    "one output": (single, LABELS, CE, None, "use criterion=torch.nn.MSELoss.*BCEWithLogits"),
    "real numbers for classes": (pair, torch.randn(N), CE, None, "must be integers .class labels"),
    "real numbers (B, 1) for classes": (pair, torch.randn(N, 1), CE, None, "must be integers"),
    "no probabilities": (pair, -torch.ones(N, 2), CE, None, "must be class probabilities, got -1"),
    "labels (B, 1)": (
        pair,
        LABELS[:, None],
        CE,
        None,
        r"shape \(5, 1\), but class labels .*\(5,\)",
    ),
    "labels of 32 bits": (pair, LABELS.int(), CE, None, "type int64, got torch.int32"),
    "class labels for yes and no": (pair, LABELS, BCE, None, r"\(5,\).*use criterion=CrossEntropy"),
    "integers for yes and no": (
        pair,
        tokens(2),
        BCE,
        None,
        "must be real numbers, got torch.int64",
    ),
    "yes or no of -1 and 1": (
        pair,
        tokens(2).float() * 2 - 1,
        BCE,
        None,
        "numbers from 0 to 1, got -1",
    ),
    "pos_weight of another shape": (
        pair,
        tokens(2).float(),
        nn.BCEWithLogitsLoss(weight=torch.rand(5, 2)),
        None,
        r"weight must have one number for each .*\(2,\), got shape \(5, 2\)",
    ),
    "class weights of other classes": (
        lambda: mlp(n_out=3),
        LABELS,
        nn.CrossEntropyLoss(torch.ones(2)),
        None,
        "has 2 numbers, but the model has 3 outputs",
    ),
    "Categorical with yes and no": (
        pair,
        tokens(2).float(),
        BCE,
        Categorical(),
        "does not go with criterion BCEWithLogitsLoss",
    ),
    "Gaussian with yes and no": (pair, tokens(2).float(), BCE, Gaussian(), "does not go with"),
    "Bernoulli with labels": (pair, LABELS, CE, Bernoulli(), "does not go with"),
    "logits for NLLLoss": (pair, LABELS, nn.NLLLoss(), None, r"LogSoftmax\(dim=1\).*CrossEntropy"),
    "classes last": (Sequences, tokens(3), CE, None, r"classes last.*outputs.movedim\(-1, 1\)"),
    "classes last, flattened": (
        Sequences,
        tokens(3),
        flattening,
        Categorical(),
        r"classes last.*outputs.movedim\(-1, 1\).*without flattening",
    ),
    "classes last, as many as tokens": (
        lambda: Sequences(3, 3),
        tokens(3, 3),
        flattening,
        Categorical(),
        r"classes last.*outputs.movedim\(-1, 1\)",
    ),
    "no reduction": (
        pair,
        LABELS,
        functools.partial(F.cross_entropy, reduction="none"),
        None,
        "reduction='mean' or 'sum'",
    ),
}


def refused(strategy, experience, message):
    before = values(strategy.model)
    with pytest.raises(ValueError, match=message):
        strategy.train(experience, shuffle=False)
    after = values(strategy.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert strategy.clock.train_iterations == 0


@STRATEGIES
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_at_the_first_batch(make, mistake):
    model, targets, criterion, likelihood, message = MISTAKES[mistake]
    (experience,) = labelled_benchmark([(torch.randn(N, 6), targets)]).train_stream
    if mistake == "a class of later batches":  # which only an experience that knows them can tell
        experience.classes_in_this_experience = [0, 1, 2, 3]
    refused(make(model(), likelihood, criterion), experience, message)


@pytest.mark.parametrize(
    ("wrap", "what"),
    [
        (lambda h: [h, h, h], "list"),
        (lambda h: {"a": h, "b": h}, r"dict with \['a', 'b'\]"),
        (lambda h: h.tolist(), "list"),
    ],
)
def test_outputs_that_are_no_tensors_are_refused_by_the_plugin(wrap, what):
    (experience,) = task_stream(1).train_stream
    strategy = prior_ewc(Returning(wrap), None, CE)
    refused(strategy, experience, f"outputs must be a tensor, got a {what}")


def test_outputs_that_are_integers_are_refused():
    (experience,) = task_stream(1).train_stream
    refused(prior_ewc(Returning(torch.argmax), None, CE), experience, "at least one sample")
    refused(prior_ewc(Returning(lambda h: h.long()), None, CE), experience, "must be real numbers")


FITTING = {
    "class labels": (pair, LABELS, CE, None),
    "bytes": (pair, LABELS.to(torch.uint8), CE, None),
    "a function": (pair, LABELS, F.cross_entropy, None),
    "class probabilities": (pair, torch.rand(N, 2).softmax(1), CE, None),
    "weights": (pair, LABELS, nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])), None),
    "smoothing": (pair, LABELS, nn.CrossEntropyLoss(label_smoothing=0.1), None),
    "padding": (pair, torch.where(torch.arange(N) % 3 == 0, -100, LABELS), CE, None),
    "log-probabilities": (
        lambda: nn.Sequential(pair(), nn.LogSoftmax(1)),
        LABELS,
        nn.NLLLoss(),
        None,
    ),
    "numbers": (single, torch.randn(N, 1), MSE, None),
    "yes and no": (pair, tokens(2).float(), BCE, None),
    "yes and no, weighted": (
        pair,
        tokens(2).float(),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0])),
        None,
    ),
    "yes and no, a function": (pair, tokens(2).float(), F.binary_cross_entropy_with_logits, None),
    "a criterion of one's own": (
        pair,
        tokens(2),
        lambda o, t: (
            F.binary_cross_entropy_with_logits(o, t.float(), reduction="none").sum(1).mean()
        ),
        Bernoulli(),
    ),
    "classes in dimension 1": (
        lambda: nn.Sequential(Sequences(3, 3), nn.Flatten(), nn.Unflatten(1, (3, 3))),
        tokens(3, 3),
        CE,
        None,
    ),
}


@STRATEGIES
@pytest.mark.parametrize("case", FITTING)
def test_what_fits_is_trained(make, case):
    model, targets, criterion, likelihood = FITTING[case]
    (experience,) = labelled_benchmark([(torch.randn(N, 6), targets)]).train_stream
    strategy = make(model(), likelihood, criterion)
    before = values(strategy.model)
    strategy.train(experience, shuffle=False)
    after = values(strategy.model)
    assert not all(torch.equal(after[name], value) for name, value in before.items())
