import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_hnet.core.common.structures import (
    map_tensors,
    tensors_in,
    with_tensors,
    with_value,
)
from tests.support.structures import INPUTS, Encoding, Named, Output, Pair

leaves = st.one_of(
    st.integers(0, 9).map(lambda n: torch.full((2, 3), float(n))),
    st.sampled_from([None, "text", 3, 0.5, True]),
)
structures = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(Encoding),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.tuples(inner, inner).map(lambda pair: Named(*pair)),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        inner.map(lambda value: Output(logits=value)),
    ),
    max_leaves=8,
)


def plain(structure):
    """The same as nested tuples with the kinds, which can be compared."""
    kind = type(structure).__name__
    if isinstance(structure, torch.Tensor):
        return kind, structure.tolist()
    if isinstance(structure, (dict, Encoding)):
        return kind, tuple((k, plain(v)) for k, v in structure.items())
    if isinstance(structure, (Pair, Output)):
        return kind, tuple((k, plain(v)) for k, v in vars(structure).items())
    if isinstance(structure, (tuple, list)):
        return kind, tuple(plain(v) for v in structure)
    return kind, structure


@given(structures)
def test_all_but_the_tensors_is_kept(structure):
    before = plain(structure)
    assert plain(map_tensors(torch.clone, structure)) == before
    doubled = map_tensors(lambda t: 2 * t, structure)
    assert plain(structure) == before
    assert plain(map_tensors(lambda t: t / 2, doubled)) == before


@given(structures)
def test_tensors_go_back_to_where_they_were(structure):
    tensors = tensors_in(structure)
    assert plain(with_tensors(structure, tensors)) == plain(structure)
    others = [t + n for n, t in enumerate(tensors, start=1)]
    replaced = tensors_in(with_tensors(structure, others))
    assert len(replaced) == len(others)
    assert all(a is b for a, b in zip(replaced, others, strict=True))


def test_a_mapping_that_cannot_be_changed_becomes_a_dictionary():
    from types import MappingProxyType

    assert map_tensors(lambda t: t + 1, MappingProxyType({"a": torch.zeros(1)})) == {
        "a": torch.ones(1)
    }


def test_one_value_is_replaced_in_a_copy():
    for name, pack in INPUTS.items():
        if name == "nested":
            continue
        structure = pack(torch.zeros(2), torch.ones(2))
        key = {"dict": "a", "ordered dict": "a", "encoding": "a", "dataclass": "left"}.get(name, 0)
        changed = with_value(structure, key, torch.full((2,), 7.0))
        assert [t[0].item() for t in tensors_in(changed)] == [7, 1], name
        assert [t[0].item() for t in tensors_in(structure)] == [0, 1], name
        assert type(changed) is type(structure)
