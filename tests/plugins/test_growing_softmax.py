"""The softmax of class-incremental learning spans the classes seen so far, and no others."""

import pytest
import torch
import torch.nn.functional as F

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import Incremental
from tests.support.oracles import add_squares
from tests.support.strategies import Recorder, naive
from tests.support.streams import task_stream


def stream(n_experiences=3):
    benchmark = task_stream(n_experiences, task_labels=[0] * n_experiences, offset=True)
    return benchmark.train_stream


def tensors(experience):
    x, y, _ = zip(*experience.dataset, strict=True)
    return torch.stack(x), torch.tensor([int(v) for v in y])


def logits(model, x, n_seen):
    """Of the classes seen so far, computed from the weights."""
    head = model.head.classifier
    return model.features(x) @ head.weight[:n_seen].T + head.bias[:n_seen]


class FirstLoss(Recorder):
    """The loss at the first iteration of each experience, and what it should be."""

    def __init__(self):
        super().__init__()
        self.found, self.expected = [], []

    def before_forward(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            n_seen = 2 * (strategy.experience.current_experience + 1)
            own = logits(strategy.model, strategy.mb_x, n_seen)
            self.expected.append(F.cross_entropy(own, strategy.mb_y).item())

    def before_backward(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            found = strategy._criterion(strategy.mb_output, strategy.mb_y)
            self.found.append(found.item())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_softmax_spans_the_classes_seen_so_far(evaluate, kind):
    """An evaluation of the whole stream adds units for classes to come, which stay masked."""
    model, ewc = Incremental(), PriorEWCPlugin(fisher=kind)
    record = FirstLoss()
    strategy = naive(model, record, ewc)
    experiences = stream()
    for k, experience in enumerate(experiences):
        before = {n: p.clone() for n, p in ewc.posterior.precision.items()}
        strategy.train(experience)
        n_seen = 2 * (k + 1)
        x, y = tensors(experience)

        fisher = fisher_over_seen_classes(model, x, y, kind, n_seen)
        for name, precision in ewc.posterior.precision.items():
            added = precision.clone()
            old = before.get(name, added.new_zeros(0, *added.shape[1:]))
            added[: len(old)] -= old
            added[len(old) :] -= 1  # the prior's
            expected = len(x) * fisher[name][: len(added)]
            torch.testing.assert_close(added, expected, rtol=1e-9, atol=1e-10)
        known = ewc.posterior.known["head.classifier.bias"]
        assert known[:n_seen].all()
        assert not known[n_seen:].any()
        if evaluate:
            strategy.eval(experiences)
            assert len(model.head.classifier.bias) == 6
            probabilities = model.eval()(x).softmax(1)
            assert not probabilities[:, n_seen:].any()
    assert record.found == pytest.approx(record.expected, rel=1e-12)


def fisher_over_seen_classes(model, x, y, kind, n_seen):
    """Mean over samples of squared gradients, at the label or in expectation over labels."""
    model.eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for xi, yi in zip(x.split(1), y, strict=True):
        log_p = logits(model, xi, n_seen).log_softmax(1)[0]
        for label in range(n_seen) if kind == "exact" else [yi]:
            weight = log_p[label].exp().item() if kind == "exact" else 1.0
            add_squares(total, parameters, -log_p[label], weight / len(x))
    return total
