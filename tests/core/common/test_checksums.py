"""Checksums of states."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_hnet.core.common.checksums import check_checksums, with_checksums

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.complex64]


def example():
    return {
        "number": 0.5,
        "text": "zero",
        "nothing": None,
        "tensors": {str(d): torch.arange(6).reshape(2, 3).to(d) for d in DTYPES},
        "list": [torch.tensor(2.0), (1, True), torch.zeros(0, 3)],
    }


def test_what_is_unchanged_is_taken():
    state = with_checksums(example())
    check_checksums(state)
    check_checksums(with_checksums(state))  # which has one set of them
    assert with_checksums(state) is not state
    assert with_checksums(state)["checksums"] == state["checksums"]
    check_checksums(example())  # without any


def test_neither_memory_layout_nor_gradients_matter():
    tensor = torch.randn(3, 4)
    state = with_checksums({"a": tensor})
    twice = tensor.repeat_interleave(2, 1)[:, ::2]
    check_checksums(state | {"a": twice})
    check_checksums(state | {"a": tensor.T.contiguous().T.requires_grad_()})


@given(st.data())
def test_every_single_bit_counts(data):
    tensors = example()["tensors"]
    name = data.draw(st.sampled_from([n for n in tensors if n != "torch.bool"]))
    state = with_checksums({"tensors": tensors})
    as_bytes = tensors[name].view(-1).view(torch.uint8)
    byte = data.draw(st.integers(0, len(as_bytes) - 1))
    as_bytes[byte] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match=rf"state\['tensors'\]\['{name}'\] is not what"):
        check_checksums(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(number=0.25), r"state\['number'\] is not"),
        (lambda s: s.update(number="0.5"), r"state\['number'\] is not"),
        (lambda s: s.update(nothing=0), r"state\['nothing'\] is not"),
        (lambda s: s.pop("text"), r"has lost its entry state\['text'\]"),
        (lambda s: s["list"].pop(), r"has lost its entry state\['list'\]\[2\]"),
        (lambda s: s["list"].reverse(), r"state\['list'\]"),
        (lambda s: s["tensors"].update({"torch.bool": torch.ones(2, 3)}), "torch.bool"),
        (lambda s: s["tensors"].update({"torch.uint8": torch.arange(6).byte()}), "torch.uint8"),
        (lambda s: s.update(checksums=[1]), r"state\['checksums'\] must be a dictionary, got list"),
    ],
)
def test_what_has_changed_is_named(change, message):
    state = with_checksums(example())
    change(state)
    with pytest.raises(ValueError, match=message):
        check_checksums(state)
