"""A Fisher whose samples two processes share, against one process."""

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher, kronecker_factors
from avalanche_hnet.core.fisher.share import Share, own_part
from tests.support.models import MultiHead, TwiceUsed, lenet
from tests.support.processes import assert_close, in_two_processes, same
from tests.support.streams import adapt, task_stream


class SometimesTwice(nn.Module):
    """Uses a layer once more if told so, and then its rule does not hold."""

    twice = False

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.again(self.first(x).tanh()).tanh()
        return self.last(self.again(x).tanh() if self.twice else x)


def images(n_samples=9):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n_samples, 1, 16, 16, generator=generator)
    return x, torch.arange(n_samples) % 3


def vectors(n_samples):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n_samples, 6, generator=generator)
    return x, torch.arange(n_samples) % 3


def with_heads(process):
    """Of a model with heads of tasks, of which one process may have no sample."""
    model = MultiHead()
    for experience in task_stream(n_tasks=2).train_stream:
        adapt(model, experience)
    x, y = vectors(7)
    t = torch.tensor([0, 1, 0, 1, 0, 1, 0])  # even rows of the one, odd ones of the other
    return model, (x, y % 2, t)


CASES = {
    "convolutions": lambda: (lenet(), images()),
    "a layer used twice": lambda: (TwiceUsed(), vectors(11)),
    "a single sample": lambda: (TwiceUsed(), vectors(1)),
    "heads": lambda: with_heads(None),
}


def fishers(process):
    """Of all cases, by both functions, from batches of three."""
    results = {}
    for name, case in CASES.items():
        torch.manual_seed(5)
        model, columns = case()
        for function in (diagonal_fisher, kronecker_factors):
            for kind in ("empirical", "exact"):
                batches = [*zip(*(column.split(3) for column in columns), strict=True)]
                if process is not None:
                    batches = Share(own_part(batches))
                found = function(model, batches, kind=kind)
                results[name, function.__name__, kind] = plain(found)
    return results


def plain(fisher):
    if isinstance(fisher, dict):
        return fisher
    layers = {n: (layer.inputs, layer.outputs) for n, layer in fisher.layers.items()}
    return [layers, fisher.diagonal]


def trust_lost_by_one(process):
    """The rule of a layer holds in the batches of the first process only."""
    torch.manual_seed(5)
    model = SometimesTwice()
    model.twice = process == 1
    x, y = vectors(6)
    return plain(kronecker_factors(model, Share(own_part([(x, y)]))))


def sampled(process):
    """Labels are drawn from each process's own random numbers."""
    torch.manual_seed(5)
    model = nn.Linear(6, 3)
    x, y = vectors(1)
    x, y = x.expand(2000, 6), y.expand(2000)
    generator = torch.Generator().manual_seed(process)
    batches = Share(own_part([(x, y)]))
    of_all = diagonal_fisher(model, batches, kind="sampled", generator=generator)
    of_global = plain(kronecker_factors(model, Share(own_part([(x, y)])), kind="sampled"))
    own = diagonal_fisher(
        model, Share(own_part([(x, y)]) if process else ()), kind="sampled", generator=generator
    )
    exact = diagonal_fisher(model, [(x, y)], kind="exact")
    return [of_all, of_global, own, exact]


def nothing(process):
    diagonal_fisher(nn.Linear(1, 1), Share(()))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return in_two_processes(folder, fishers, trust_lost_by_one, sampled, nothing)


def test_processes_agree_bit_for_bit(results):
    for job in ("fishers", "trust_lost_by_one", "sampled"):
        assert not isinstance(results[job][0], str), results[job]
        assert same(*results[job])


@pytest.mark.usefixtures("float64")
def test_it_is_that_of_one_process(results):
    alone = fishers(None)
    for name, found in results["fishers"][0].items():
        assert_close(found, alone[name], 1e-12)


def test_a_layer_that_one_process_loses_trust_in_has_no_factors_in_any(results):
    for layers, diagonal in results["trust_lost_by_one"]:
        assert layers.keys() == {"first", "last"}
        assert diagonal.keys() == {"again.weight", "again.bias"}


def test_sampled_labels_differ_between_processes_and_average_to_the_exact_fisher(results):
    of_all, _, own, exact = results["sampled"][0]
    for name, values in exact.items():
        torch.testing.assert_close(of_all[name], values, rtol=0.1, atol=1e-3)
        assert not torch.equal(own[name], of_all[name])


def test_no_samples_at_all_are_refused(results):
    for text in results["nothing"]:
        assert "at least one sample" in text


def test_a_share_of_a_single_process_is_everything():
    model, columns = lenet(), images()
    for function in (diagonal_fisher, kronecker_factors):
        for kind in ("empirical", "sampled"):
            torch.manual_seed(3)
            found = plain(function(model, Share(iter([columns])), kind=kind))
            torch.manual_seed(3)
            assert same(found, plain(function(model, [columns], kind=kind)))
