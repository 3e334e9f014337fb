"""Each kind of Fisher under each likelihood, against loops over single samples."""

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from avalanche_hnet.core.common.likelihoods import resolve_likelihood
from tests.support.likelihoods import CASES

pytestmark = pytest.mark.usefixtures("float64")


def network(shape):
    size = torch.Size(shape[1:])
    out = nn.Unflatten(1, size) if size else nn.Flatten(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, size.numel()), out)


@pytest.mark.parametrize("case", CASES)
def test_exact_fisher_is_that_of_drawn_labels(case):
    """Expectation over many draws, at every position that counts."""
    criterion, options, shape, make_targets = CASES[case]
    likelihood = resolve_likelihood(None, criterion(**options))
    model, x, targets = network(shape), torch.randn(shape[0], 6), make_targets()
    exact = diagonal_fisher(model, [(x, targets)], likelihood=likelihood, kind="exact")
    generator, n_draws = torch.Generator().manual_seed(0), 4000
    many = x.repeat_interleave(n_draws, 0), targets.repeat_interleave(n_draws, 0)
    sampled = diagonal_fisher(
        model, [many], likelihood=likelihood, kind="sampled", generator=generator
    )
    for name, value in exact.items():
        tolerance = 0.05 * float(value.max())
        torch.testing.assert_close(sampled[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
def test_samples_that_are_ignored_count_but_contribute_nothing(kind):
    model, x, targets = network((8, 4)), torch.randn(8, 6), torch.arange(8) % 4
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    whole = diagonal_fisher(model, [(x, targets)], kind=kind, generator=generators[0])
    more = torch.cat([targets, torch.full((8,), -100)])
    padded = diagonal_fisher(
        model, [(torch.cat([x, torch.randn(8, 6)]), more)], kind=kind, generator=generators[1]
    )
    for name, value in whole.items():
        if kind == "sampled":  # the same draws only by chance
            assert float(padded[name].sum()) > 0
        else:
            torch.testing.assert_close(2 * padded[name], value)


@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
def test_nothing_that_counts_has_no_fisher(kind):
    model, targets = network((4, 4, 2)), torch.full((4, 2), -100)
    fisher = diagonal_fisher(model, [(torch.randn(4, 6), targets)], kind=kind)
    assert not any(value.any() for value in fisher.values())


def test_multi_label_equals_backpack():
    backpack = pytest.importorskip("backpack")
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    x, targets = torch.randn(7, 6), torch.rand(7, 4).round()
    criterion = nn.BCEWithLogitsLoss(reduction="sum")
    likelihood = resolve_likelihood(None, criterion)
    found = diagonal_fisher(model, [(x, targets)], likelihood=likelihood)
    model = backpack.extend(model)
    loss = backpack.extend(criterion)(model(x), targets)
    with backpack.backpack(backpack.extensions.SumGradSquared()):
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.sum_grad_squared / 7)
