import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_hnet.core.posterior.task_criteria import disagreement, doubt, entropy
from tests.support.task_inference import by_doubt, by_entropy

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("score", [by_entropy, by_doubt])
@given(n_classes=st.integers(2, 6), scale=st.floats(0.1, 30), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_scores_equal_their_definitions(score, n_classes, scale, seed):
    torch.set_default_dtype(torch.float64)
    p = (scale * torch.randn(5, n_classes, generator=torch.Generator().manual_seed(seed))).softmax(
        1
    )
    found = entropy(p) if score is by_entropy else doubt(p)
    expected = torch.stack([score(row, None, None) for row in p])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_scores_at_their_ends():
    certain, even = torch.tensor([[0.0, 1.0, 0.0]]), torch.full((1, 4), 0.25)
    assert entropy(certain).item() == doubt(certain).item() == 0
    assert entropy(even).item() == pytest.approx(torch.tensor(4.0).log().item())
    assert doubt(even).item() == 0.75
    draws = [torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]]), torch.tensor([[0.4, 0.6]])]
    assert disagreement(draws).item() == pytest.approx(2 * (0.08 / 3) ** 0.5)
    assert disagreement(draws[:1]).item() == 0
    tiny = torch.tensor([[1e-30, 1.0], [2e-30, 1.0]])
    assert doubt(tiny).tolist() == [1e-30, 2e-30]
    assert entropy(tiny)[0] < entropy(tiny)[1]
