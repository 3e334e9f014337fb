import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_hnet.core.common import processes
from tests.support.processes import in_two_processes


def sums(rank):
    tensors = [
        torch.tensor(1.5 + rank),
        torch.arange(6.0).view(2, 3).T * (rank + 1),
        torch.tensor([True, rank == 0]),
        torch.tensor(rank, dtype=torch.int64),
    ]
    processes.add_up(t for t in tensors if t.dtype != torch.bool)
    return tensors


def firsts(rank):
    tensors = [torch.tensor([1.5 + rank]), torch.tensor([rank == 0, True])]
    processes.take_first(tensors)
    generator = torch.Generator().manual_seed(rank)
    processes.share_generator(generator)
    processes.share_generator(None)
    return [*tensors, torch.rand(3, generator=generator), torch.rand(3)]


def means(rank):
    like = [torch.zeros(2, 2), torch.zeros(3, dtype=torch.float32), torch.zeros(()), torch.zeros(1)]
    tensors = [torch.full((2, 2), float(rank)), None, torch.tensor(2.0) if rank else None, None]
    return [*processes.averages(tensors, like), processes.average(rank + 0.5, like[0])]


def gradients(rank):
    layers = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
    layers[0].weight.grad = torch.full((1, 2), 1.0 + rank)
    if rank == 0:
        layers[1].weight.grad = torch.ones(1, 2)
    processes.average_gradients(layers.parameters())
    return [layer.weight.grad for layer in layers]


def buffers(rank):
    torch.manual_seed(0)
    model = nn.BatchNorm1d(2)
    model.running_mean += rank + 1
    model.num_batches_tracked += rank
    processes.agree_on(model)
    return [*model.buffers()]


def different(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).half())
    processes.agree_on(model)
    with torch.no_grad():
        model[1].bias += rank
    processes.agree_on(model)


def who(rank):
    model = nn.Linear(1, 1)
    is_unwrapped = processes.unwrapped(DistributedDataParallel(model)) is model
    return processes.process_number() == rank, processes.n_processes(), is_unwrapped


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return in_two_processes(folder, sums, firsts, means, gradients, buffers, different, who)


def test_tensors_are_added_up(results):
    for scalar, matrix, untouched, integer in results["sums"]:
        assert scalar == 4
        torch.testing.assert_close(matrix, 3 * torch.arange(6.0).double().view(2, 3).T)
        assert integer == 1
        assert untouched[0]


def test_the_first_process_is_followed(results):
    for number, flags, drawn, of_all in results["firsts"]:
        assert number == 1.5
        assert flags.tolist() == [True, True]
        assert torch.equal(
            drawn, torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        )
        assert torch.equal(of_all, results["firsts"][0][3])


def test_means_take_what_is_missing_for_zeros(results):
    for half, missing, of_one, neither, number in results["means"]:
        assert torch.equal(half, torch.full((2, 2), 0.5, dtype=torch.float64))
        assert missing is None
        assert neither is None
        assert of_one == 1
        assert number == 1


def test_gradients_are_averaged_and_missing_ones_stay_missing(results):
    for both, one, none in results["gradients"]:
        assert both.tolist() == [[1.5, 1.5]]
        assert one.tolist() == [[0.5, 0.5]]
        assert none is None


def test_buffers_are_those_of_the_first(results):
    for mean, _, count in results["buffers"]:
        assert mean.tolist() == [1, 1]
        assert count == 0


def test_different_weights_are_refused(results):
    for text in results["different"]:
        assert text.startswith("ValueError: the processes have different weights")
        assert "'1.bias'" in text


def test_processes_know_themselves(results):
    assert results["who"] == [(True, 2, True)] * 2


def test_a_single_process_changes_nothing():
    gradient, model = torch.rand(2), nn.Linear(2, 1)
    model.weight.grad = gradient.view(1, 2)
    state = torch.get_rng_state()
    processes.add_up([gradient])
    processes.take_first([gradient])
    processes.share_generator(None)
    processes.average_gradients(model.parameters())
    processes.agree_on(model)
    assert processes.averages([gradient, None], [gradient, gradient]) == [gradient, None]
    assert processes.mean(gradient) is gradient
    assert processes.average(0.1, gradient) == 0.1
    assert torch.equal(state, torch.get_rng_state())
    assert model.weight.grad.data_ptr() == gradient.data_ptr()
    assert not processes.are_several()
