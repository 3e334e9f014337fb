import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_hnet.core.fisher.graph import graph_of

W, B = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
NAMES = {"weight": W, "bias": B}
x = torch.randn(6, 5, 4)


@pytest.mark.parametrize(
    ("outputs", "once", "several"),
    [
        (lambda: F.linear(x, W, B).tanh(), {"weight", "bias"}, set()),
        (lambda: F.linear(x, W), {"weight"}, set()),
        (lambda: F.linear(F.linear(x, W, B), W), {"bias"}, {"weight"}),
        (lambda: F.linear(x, W, B) + 0 * (x @ W), {"bias"}, {"weight"}),
        (lambda: (lambda w: x @ w + x.tanh() @ w)(W.t()), set(), {"weight"}),
        (lambda: torch.zeros(6, 4), set(), set()),
    ],
)
def test_how_often_a_parameter_is_used(outputs, once, several):
    graph = graph_of(outputs(), NAMES, [])
    assert (graph.once, graph.several) == (once, several)


@pytest.mark.parametrize(
    ("outputs", "is_fixed"),
    [
        (lambda h: h.tanh().mean(1), True),
        (lambda h: h[:, 0], True),
        (lambda h: (h.softmax(-1) @ h.transpose(1, 2)).flatten(1), True),
        (lambda h: F.conv1d(h.transpose(1, 2), torch.randn(3, 4, 2)), True),
        (lambda h: torch.where(x > 0, h, -h), True),
        (lambda h: h + B + F.embedding(torch.arange(5) % 4, W), True),
        (lambda h: h[:, :3].transpose(1, -1).permute(0, 2, -2).sum((-1, -2)), True),
        (lambda h: h[x[:, 0, 0].argsort()], False),
        (lambda h: h[1:], False),
        (lambda h: torch.stack([h[2], h[0]]), False),
        (lambda h: h.select(-3, 0), False),
        (lambda h: torch.randn(6, 6) @ h[:, 0], False),
        (lambda h: (h[:, 0].t() @ torch.randn(6, 6)).t(), False),
        (lambda h: (torch.randn(6, 6, 1) * h[:, 0]).sum(1), False),
        (lambda h: torch.where(torch.randn(6, 6, 1) > 0, h[:, 0].expand(6, 6, 4), 0).sum(1), False),
        (lambda h: torch.bmm(torch.randn(1, 6, 6), h[:, 0][None]).squeeze(0), False),
        (lambda h: torch.einsum("ns,nd->sd", torch.randn(6, 6), h[:, 0]), False),
        (lambda h: F.scaled_dot_product_attention(*[h[:, 0][None]] * 3).squeeze(0), False),
        (lambda h: (h.permute(1, 0, 2) @ torch.randn(4, 2)).sum(0), False),
        (lambda h: h.gather(0, torch.zeros(6, 5, 4, dtype=torch.long)), False),
        (lambda h: torch.zeros_like(h).index_add(0, torch.arange(6), h), False),
    ],
)
def test_whether_the_way_of_samples_depends_on_them(outputs, is_fixed):
    assert graph_of(outputs(F.linear(x, W, B)), NAMES, []).is_fixed == is_fixed


def test_the_dimensions_of_operations_count():
    h = F.linear(torch.randn(5, 5, 4), W, B)
    signatures = [
        graph_of(outputs, NAMES, []).signature
        for outputs in (h.mean(0), h.mean(1), h.transpose(0, 1), h.transpose(1, 2))
    ]
    assert len(set(signatures)) == 4
    assert graph_of(F.linear(x, W, B).mean(0), NAMES, []).signature == signatures[0]
