import pytest
import torch
from torch import vmap

from avalanche_hnet.core.common.samples import as_samples, joined, like, structure_of, tensors_of
from avalanche_hnet.core.common.structures import tensors_in
from tests.support.structures import INPUTS

A, B = torch.arange(12.0).view(4, 3), torch.arange(4) + 100


@pytest.fixture(params=INPUTS)
def samples(request):
    return as_samples(INPUTS[request.param](A, B))


def assert_rows(samples, rows):
    a, b = tensors_in(structure_of(samples))
    assert torch.equal(a, A[rows])
    assert torch.equal(b, B[rows])


def test_a_tensor_is_left_as_it_is():
    assert as_samples(A) is A
    assert structure_of(A) is A


def test_rows_are_chosen_in_every_tensor(samples):
    assert len(samples) == 4
    assert type(samples[:2].structure) is type(samples.structure)
    for rows in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, True, False])):
        assert_rows(samples[rows], rows)
    for n, part in enumerate(samples.split(3)):
        assert_rows(part, slice(3 * n, 3 * n + 3))
    assert_rows(joined([samples[3:], samples[:3]]), [3, 0, 1, 2])


def test_vmap_gives_single_samples(samples):
    def of_one(tensors):
        a, b = tensors_in(structure_of(like(samples, [t[None] for t in tensors])))
        assert a.shape == (1, 3)
        return a.sum() + b.sum()

    assert torch.equal(vmap(of_one)(tensors_of(samples)), A.sum(1) + B)


def test_only_floating_point_numbers_change_their_type(samples):
    a, b = samples.to(torch.float64).tensors
    assert (a.dtype, b.dtype) == (torch.float64, torch.long)
    assert samples.dtype == torch.float32
    assert samples.is_floating_point()
    assert samples.to(torch.device("cpu")).shape == samples.shape


def test_copies_leave_inference_mode():
    with torch.inference_mode():
        inside = as_samples({"a": A + 1, "b": B + 1})
    assert inside.is_inference()
    assert not inside.clone().is_inference()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ({}, TypeError, r"x must be a tensor, or a mapping.*got a dict with the keys \[\]"),
        ("text", TypeError, "got a str"),
        ((1, None), TypeError, r"a tuple of \['int', 'NoneType'\]"),
        ({"a": A, "b": A[:2]}, ValueError, r"dimension 0 of every tensor.*\(4, 3\), \(2, 3\)"),
        ((A, torch.tensor(1)), ValueError, r"\(4, 3\), \(\)"),
        ([torch.tensor(1)], ValueError, r"dimension 0"),
    ],
)
def test_what_has_no_samples_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        as_samples(x)
