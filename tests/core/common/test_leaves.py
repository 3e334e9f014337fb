import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet.core.common.leaves import ids_of_leaves


@given(st.sets(st.integers(0, 4)), st.integers(1, 3))
def test_leaves_are_the_tensors_that_get_gradients(chosen, times):
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(5)]
    total = torch.zeros(2)
    for _ in range(times):
        for index in chosen:
            total = total + parameters[index].exp() * total.sigmoid()
    output = total.sum()
    leaves = ids_of_leaves(output)
    if output.requires_grad:
        output.backward()
    assert leaves == {id(p) for p in parameters if p.grad is not None}


def test_a_leaf_is_its_own():
    leaf, constant = nn.Parameter(torch.ones(())), torch.ones(())
    assert ids_of_leaves(leaf) == {id(leaf)}
    assert ids_of_leaves(constant) == set()
    assert ids_of_leaves((leaf * 2).detach()) == set()
