"""Damage to saved states, as disks, transfers and hands do it."""

import copy

import torch
from hypothesis import strategies as st


def leaves(state, path=()):
    """All that is in nested dictionaries and lists, with where it is."""
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in pairs:
        yield (*path, key), value
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def at(state, path):
    for key in path:
        state = state[key]
    return state


def put_at(state, path, value):
    at(state, path[:-1])[path[-1]] = value


def flipped(tensor, byte, bit):
    """A copy with one bit that is not as it was."""
    as_bytes = tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8)
    as_bytes[byte] ^= 1 << bit
    return as_bytes.view(tensor.dtype).reshape(tensor.shape)


@st.composite
def with_a_flipped_bit(draw, state):
    """The state, and a copy in which one bit of one tensor has changed."""
    damaged = copy.deepcopy(state)
    tensors = [p for p, v in leaves(state) if isinstance(v, torch.Tensor) and v.numel()]
    path = draw(st.sampled_from(tensors))
    tensor = at(state, path)
    # The last byte of a number is where it hurts.
    size = tensor.element_size()
    number, byte = draw(st.integers(0, tensor.numel() - 1)), draw(st.integers(0, size - 1))
    # A bool has one bit that a file may have wrong and PyTorch still reads.
    bit = 0 if tensor.dtype == torch.bool else draw(st.integers(0, 7))
    put_at(damaged, path, flipped(tensor, number * size + byte, bit))
    return damaged


ODD = [None, 3, -1.5, "odd", True, [], {}, float("nan"), torch.zeros(2), torch.tensor([True])]


@st.composite
def with_another_entry(draw, state):
    """A copy in which an entry is dropped, renamed, or something else."""
    damaged = copy.deepcopy(state)
    path = draw(st.sampled_from([p for p, _ in leaves(state)]))
    parent, key = at(damaged, path[:-1]), path[-1]
    how = draw(st.sampled_from(["drop", "rename", "replace"]))
    if how == "drop" or (how == "rename" and not isinstance(parent, dict)):
        del parent[key]
    elif how == "rename":
        entries = {f"{k}x" if k == key else k: v for k, v in parent.items()}
        parent.clear()
        parent.update(entries)
    else:
        parent[key] = draw(st.sampled_from(ODD))
    return damaged


@st.composite
def with_other_values(draw, state):
    """A copy in which a tensor has one bad value, or another type or shape."""
    damaged = copy.deepcopy(state)
    tensors = [p for p, v in leaves(state) if isinstance(v, torch.Tensor) and v.numel()]
    path = draw(st.sampled_from(tensors))
    tensor = at(damaged, path).clone()
    how = draw(st.sampled_from(["value", "int", "long", "complex", "shape", "rows"]))
    if how == "value" and tensor.is_floating_point():
        values = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, -1e30]
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(values))
    elif how in ("value", "int"):
        tensor = torch.zeros_like(tensor, dtype=torch.int32)
    elif how == "long":
        tensor = torch.zeros_like(tensor, dtype=torch.long)
    elif how == "complex":
        tensor = torch.zeros_like(tensor, dtype=torch.complex64)
    else:
        tensor = tensor[None] if how == "shape" else tensor.repeat(2, *[1] * (tensor.dim() - 1))
    put_at(damaged, path, tensor)
    return damaged


def without_checksums(state):
    """As older versions saved it."""
    if isinstance(state, dict):
        return {k: without_checksums(v) for k, v in state.items() if k != "checksums"}
    return [without_checksums(v) for v in state] if isinstance(state, list) else state
