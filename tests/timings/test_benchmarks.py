"""The report of the benchmarks; no timings are tested."""

import json

import pytest
import torch
from torch import nn

from avalanche_hnet import diagonal_fisher
from benchmarks import fisher, hypernets, inference, memory, penalties, regularizers, report
from benchmarks.__main__ import SECTIONS, Benchmark
from benchmarks.networks import mlp
from benchmarks.rows import Limit, Row, in_turn
from benchmarks.strategies import Loop, random_stream
from benchmarks.timing import repeated, run_in_turn, threads


def test_functions_run_in_turn_after_one_round_to_warm_up():
    calls = []
    seconds = run_in_turn({n: lambda n=n: calls.append(n) for n in "abc"}, 2)
    assert calls == list("abcabcabc")
    assert {n: len(times) for n, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_short_functions_are_repeated():
    calls = []
    run, times = repeated(lambda: calls.append(1), 1e-4)
    before = len(calls)
    run()
    assert len(calls) - before == times > 1


def test_rows_compare_with_the_reference():
    functions = {n: lambda: sum(range(1000)) for n in ("plain", "ours", "theirs")}
    rows = in_turn(
        "section",
        functions,
        repeats=3,
        limits={"ours": Limit(2)},
        per_call={"plain": 1, "ours": 1000, "theirs": 1},
    )
    assert [(r.name, r.reference, len(r.ratios)) for r in rows] == [
        ("ours", "plain", 3),
        ("theirs", "plain", 3),
    ]
    assert [r.limit for r in rows] == [Limit(2), None]
    assert rows[0].cost < rows[1].cost
    assert rows[0].ratio < rows[1].ratio
    assert rows[0].threads == torch.get_num_threads()
    assert [r.name for r in in_turn("", functions, repeats=1, reference="theirs")] == [
        "plain",
        "ours",
    ]


def test_limits():
    assert Limit(1.5).holds(1.5)
    assert not Limit(1.5).holds(1.6)
    assert Limit(6, at_least=True).holds(7)
    assert not Limit(6, at_least=True).holds(5)
    assert [str(Limit(1.5)), str(Limit(6, at_least=True))] == ["≤ 1.5", "≥ 6"]


def test_report_has_all_rows_and_what_they_were_measured_on(tmp_path):
    rows = [
        Row("one", "ours", "theirs", [1.0, 3.0, 2.0], 0.1234, limit=Limit(1.5)),
        Row("two", "memory", "little", [1.0], 850.0, "MB", threads=2),
    ]
    report.write(rows, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert {"processor", "cores", "python", "torch", "avalanche-lib"} <= found["machine"].keys()
    assert [row["ratio"] for row in found["rows"]] == [2.0, 1.0]
    assert found["rows"][0]["limit"] == {"value": 1.5, "at_least": False}
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert "| ours | 1 | 0.123 ms | theirs | 2.00 | 1.00 | 3.00 | ≤ 1.5, missed |" in lines
    assert "| memory | 2 | 850.0 MB | little | 1.00 | 1.00 | 1.00 |  |" in lines
    assert (tmp_path / "ratios.png").stat().st_size > 5000
    assert report.table(rows).row_count == 4


def test_every_part_can_be_chosen():
    assert tuple(SECTIONS) == Benchmark().only
    for wrong, match in (({"repeats": 0}, "repeats"), ({"only": ()}, "only")):
        with pytest.raises(ValueError, match=match):
            Benchmark(**wrong)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_plain_loop_learns():
    x = torch.randn(64, 4)
    loop = Loop(mlp(4, 8, 2), x, (x[:, 0] > 0).long(), 16)
    assert loop.n_iterations == 4
    loss = nn.functional.cross_entropy(loop.model(loop.x), loop.y).item()
    for _ in range(60):
        loop()
    assert nn.functional.cross_entropy(loop.model(loop.x), loop.y) < 0.7 * loss


def test_what_is_timed_does_what_it_says():
    step = hypernets._iterations((6, 5, 3), 2, 20, (4,))
    strategy = step.__self__
    before = strategy.clock.train_iterations
    step()
    assert strategy.clock.train_iterations - before == hypernets.N_ITERATIONS
    assert strategy.regularizer.is_active

    rows = penalties._rows(
        "tiny",
        lambda: mlp(6, 5, 3),
        random_stream([8, 8], (6,), 3, labels=False),
        4,
        1,
        {penalties.LOW_RANK: Limit(1.4)},
    )
    assert [(r.name, r.limit) for r in rows] == [
        ("PriorEWCPlugin, tiny", None),
        ("PriorEWCPlugin with Kronecker products, tiny", None),
        ("PriorEWCPlugin with Kronecker products, max_rank=16, tiny", Limit(1.4)),
        ("Avalanche's online EWC, tiny", None),
    ]

    plain, inferred, anew, one_by_one = inference.of_network(8, 4).values()
    assert len(plain()) == len(one_by_one()) == inference.N_TASKS
    torch.testing.assert_close(inferred(), anew())
    assert memory.peak() > 50
    posterior = memory.kronecker_posterior(3, None, (6, 5, 3))
    assert [len(layer.products) for layer in posterior._parts.layers.values()] == [3, 3]
    assert {"fix-target", "Jacobian"} < {*regularizers.KINDS}


def test_the_authors_fisher_is_that_of_their_loop():
    pytest.importorskip("hypnettorch")
    (batch,) = fisher.random_batches(4, 1, (784,))
    run = fisher.authors_fisher(batch)
    run()
    network = next(c.cell_contents for c in run.__closure__ if hasattr(c.cell_contents, "weights"))
    theirs = [b for n, b in network.named_buffers() if "ewc_fisher_estimate" in n]

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network.forward(x)

    ours = diagonal_fisher(Ours(), [batch])
    assert len(theirs) == len(ours)
    for a, b in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)
