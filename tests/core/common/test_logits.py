import pytest
import torch

from avalanche_hnet.core.common.logits import logits_of, with_logits
from tests.support.structures import OUTPUTS, Output

LOGITS = torch.randn(4, 3)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_logits_of_every_kind_of_output(kind):
    outputs = OUTPUTS[kind](LOGITS)
    assert logits_of(outputs) is LOGITS
    others = LOGITS + 1
    changed = with_logits(outputs, others)
    assert logits_of(changed) is others
    assert type(changed) is type(outputs)
    assert logits_of(outputs) is LOGITS


@pytest.mark.parametrize(
    ("outputs", "shown"),
    [
        (None, "a NoneType"),
        ({"scores": LOGITS}, r"a dict with the keys \['scores'\]"),
        ({"logits": [1, 2]}, r"a dict with the keys \['logits'\]"),
        (Output(hidden=LOGITS), "an Output"),
        ((1, None), r"a tuple of \['int', 'NoneType'\]"),
        ([], "a list"),
        (0.5, "a float"),
    ],
)
def test_what_has_no_logits_is_refused(outputs, shown):
    with pytest.raises(TypeError, match=f"model must return a tensor.*it returned {shown}"):
        logits_of(outputs)
