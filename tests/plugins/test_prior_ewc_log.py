import io
import math

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from avalanche_hnet.plugins.prior_ewc_log import publish_distribution
from tests.support.models import MultiHead
from tests.support.strategies import naive
from tests.support.streams import task_stream

LOSSES = {"NLL", "Prior", "EWC", "Loss"}


AFTER_EXPERIENCE = {
    "FisherMin",
    "FisherMax",
    "LogPrecisionMin",
    "LogPrecisionMax",
    "FisherSeconds",
    "FisherSamples",
}


HISTOGRAMS = {"Fisher", "LogPrecision"}


def test_tensorboard_events_hold_every_series(tmp_path):
    benchmark = task_stream(3)
    text = io.StringIO()
    loggers = [TensorboardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv"), TextLogger(text)]
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True, stream=True), loggers=loggers)
    plugin, model = PriorEWCPlugin(10.0, log_every=3), MultiHead()
    strategy = naive(model, plugin, evaluator=evaluator, criterion=nn.CrossEntropyLoss())
    for experience in benchmark.train_stream:  # 20 samples: 4 iterations of 5 in each of 2 epochs
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    loggers[0].writer.flush()

    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"histograms": 0}).Reload()
    tags = events.Tags()
    assert {f"PriorEWC/{n}" for n in LOSSES | AFTER_EXPERIENCE} <= set(tags["scalars"])
    assert {f"PriorEWC/{n}" for n in HISTOGRAMS} <= set(tags["histograms"])

    series = {n: events.Scalars(f"PriorEWC/{n}") for n in LOSSES | AFTER_EXPERIENCE}
    for name in LOSSES:
        assert [e.step for e in series[name]] == [0, 3, 6, 8, 11, 14, 16, 19, 22]
    for nll, prior, ewc, total in zip(
        *(series[n] for n in ("NLL", "Prior", "EWC", "Loss")), strict=True
    ):
        assert math.isclose(nll.value + prior.value + ewc.value, total.value, rel_tol=1e-5)
    assert all(e.value == 0 for e in series["EWC"][:3])
    assert all(e.value > 0 for e in series["EWC"][4:6])
    assert all(e.value > 0 for e in series["Prior"])
    assert [e.value for e in series["FisherSamples"]] == [20, 20, 20]

    head = "output.head.classifiers.2.classifier"
    active = [n for n in plugin.posterior.mean if "classifiers" not in n or n.startswith(head)]
    log_precision = torch.cat([plugin.posterior.precision[n].flatten() for n in active]).log()
    histogram = events.Histograms("PriorEWC/LogPrecision")[-1].histogram_value
    assert histogram.num == len(log_precision)
    assert math.isclose(histogram.max, log_precision.max(), rel_tol=1e-6)
    assert math.isclose(series["LogPrecisionMin"][-1].value, log_precision.min(), abs_tol=1e-6)
    fisher = events.Histograms("PriorEWC/Fisher")[-1].histogram_value
    assert math.isclose(series["FisherMax"][-1].value, fisher.max, rel_tol=1e-5)

    printed = text.getvalue()
    assert "PriorEWC/Loss = " in printed
    assert "PriorEWC/Fisher = from " in printed
    results = evaluator.get_all_metrics()
    assert len(results["PriorEWC/NLL"][1]) == 9


def test_long_experiences_log_every_so_many_iterations():
    plugin = PriorEWCPlugin(log_every=100)
    strategy = naive(MultiHead(), plugin)
    strategy.train(task_stream(1).train_stream[0])
    assert strategy.evaluator.get_all_metrics()["PriorEWC/NLL"][0] == [0]


def test_nothing_finite_is_not_published_but_warned_of():
    plugin, strategy = PriorEWCPlugin(), naive(MultiHead())
    with pytest.warns(UserWarning, match="Fisher of the 2 active elements has no finite value"):
        publish_distribution(strategy, plugin, "Fisher", torch.tensor([float("inf"), float("nan")]))
    assert not strategy.evaluator.get_all_metrics()


def test_fisher_progress_is_silent_without_a_terminal(capsys):
    strategy = naive(MultiHead(), PriorEWCPlugin())
    strategy.train(task_stream(1).train_stream[0])
    captured = capsys.readouterr()
    assert "Fisher" not in captured.out + captured.err
