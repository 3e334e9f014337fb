import io
from itertools import accumulate

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet.benchmarks import Regression1D
from avalanche_hnet.metrics import mse_metrics
from avalanche_hnet.metrics.mse import MSE
from tests.support.regression import network, tensors, trainer
from tests.support.streams import regression_stream, task_stream


def plain_mse(model, stream):
    """Over all samples at once, in one batch per experience."""
    model.eval()
    with torch.no_grad():
        errors = [(model(x) - y).square() for x, y in map(tensors, stream)]
    return torch.cat(errors).mean().item()


def test_nothing_by_default_and_each_on_request():
    assert mse_metrics() == accuracy_metrics() == []
    names = {
        "minibatch": "MSE_MB",
        "epoch": "MSE_Epoch",
        "epoch_running": "RunningMSE_Epoch",
        "experience": "MSE_Exp",
        "stream": "MSE_Stream",
    }
    for argument, name in names.items():
        assert [str(m) for m in mse_metrics(**{argument: True})] == [name]
    assert [str(m) for m in mse_metrics(**dict.fromkeys(names, True))] == [*names.values()]


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss()])
def test_evaluation_is_the_mean_over_all_samples(criterion):
    """Experiences of 5 and 12 samples of two outputs, in batches of at most 4."""
    data = [(torch.randn(n, 3), torch.randn(n, 2) * n) for n in (5, 12)]
    stream, model = regression_stream(data).test_stream, nn.Linear(3, 2)
    results = trainer(model, criterion=criterion, eval_mb_size=4).eval(stream)
    assert results["MSE_Stream/eval_phase/test_stream"] == pytest.approx(plain_mse(model, stream))
    for index in (0, 1):
        value = results[f"MSE_Exp/eval_phase/test_stream/Exp00{index}"]
        assert value == pytest.approx(plain_mse(model, stream[index : index + 1]))


def test_second_evaluation_starts_anew():
    benchmark, model = Regression1D(), network()
    strategy = trainer(model)
    name = "MSE_Stream/eval_phase/test_stream/Task002"
    first = strategy.eval(benchmark.test_stream)[name]
    with torch.no_grad():
        model[-1].bias += 1
    second = strategy.eval(benchmark.test_stream)[name]
    assert second == pytest.approx(plain_mse(model, benchmark.test_stream))
    assert second != pytest.approx(first)


def test_training_metrics_agree_with_each_other():
    """100 samples in batches of 30, 30, 30 and 10, with weights that stand still."""
    benchmark, model = Regression1D(), network()
    metrics = mse_metrics(minibatch=True, epoch=True, epoch_running=True)
    still = torch.optim.SGD(model.parameters(), 0.0)
    strategy = trainer(model, metrics=[metrics], epochs=2, train_mb_size=30, optimizer=still)
    strategy.train(benchmark.train_stream[0])
    logged = {k.split("/")[0]: v[1] for k, v in strategy.evaluator.get_all_metrics().items()}
    expected = plain_mse(model, benchmark.train_stream[:1])
    assert logged["MSE_Epoch"] == pytest.approx([expected] * 2)
    sizes = [30, 30, 30, 10]
    for epoch in (slice(0, 4), slice(4, 8)):
        sums = [n * mse for n, mse in zip(sizes, logged["MSE_MB"][epoch], strict=True)]
        running = [s / n for s, n in zip(accumulate(sums), accumulate(sizes), strict=True)]
        assert logged["RunningMSE_Epoch"][epoch] == pytest.approx(running)
    assert sums[0] / 30 != pytest.approx(expected, rel=1e-4)


def test_every_logger_takes_it(tmp_path, capsys):
    benchmark, text = Regression1D(), io.StringIO()
    loggers = [
        TensorboardLogger(tmp_path / "tb"),
        CSVLogger(tmp_path / "csv"),
        TextLogger(text),
        InteractiveLogger(),
    ]
    everything = {"minibatch": True, "epoch": True, "epoch_running": True}
    everything |= {"experience": True, "stream": True}
    metrics = [mse_metrics(**everything), loss_metrics(**everything)]
    strategy = trainer(network(), epochs=2, eval_mb_size=7, metrics=metrics, loggers=loggers)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        results = strategy.eval(benchmark.test_stream)
    loggers[0].writer.flush()

    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if "MSE" in tag}
    assert tags == {
        *(
            f"{name}/train_phase/train_stream/Task00{task}"
            for name in ("MSE_MB", "MSE_Epoch", "RunningMSE_Epoch")
            for task in range(3)
        ),
        *(f"MSE_Exp/eval_phase/test_stream/Task00{task}/Exp00{task}" for task in range(3)),
        "MSE_Stream/eval_phase/test_stream/Task002",
    }
    for tag in tags:  # the criterion is the mean squared error, too
        series = events.Scalars(tag)
        loss = events.Scalars(tag.replace("MSE", "Loss"))
        assert [e.step for e in series] == [e.step for e in loss]
        assert [e.value for e in series] == pytest.approx([e.value for e in loss], rel=1e-5)
    stream = events.Scalars("MSE_Stream/eval_phase/test_stream/Task002")
    assert [e.step for e in stream] == [10, 20, 30]
    expected = plain_mse(strategy.model, benchmark.test_stream)
    assert stream[-1].value == pytest.approx(expected, rel=1e-5)
    assert results["MSE_Stream/eval_phase/test_stream/Task002"] == pytest.approx(expected)
    for printed in (text.getvalue(), capsys.readouterr().out):
        assert f"MSE_Stream/eval_phase/test_stream/Task002 = {expected:.4f}" in printed
    assert len((tmp_path / "csv" / "eval_results.csv").read_text().splitlines()) == 10


def test_shapes_that_would_broadcast_are_refused():
    flat = nn.Sequential(network(), nn.Flatten(0))  # (B,), where the targets are (B, 1)
    strategy = trainer(flat, criterion=lambda outputs, targets: outputs.sum())
    with pytest.raises(ValueError, match=r"the outputs' shape \(20,\), got \(20, 1\)"):
        strategy.eval(Regression1D().test_stream)


def test_class_labels_are_refused():
    strategy = trainer(nn.Linear(6, 2), criterion=nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match=r"floating-point numbers, got torch.int64.*accuracy"):
        strategy.eval(task_stream(1).test_stream)


def test_the_bare_metric():
    metric = MSE()
    assert metric.result() == 0
    outputs = torch.tensor([[1.0], [2.0]], requires_grad=True)
    metric.update(outputs, torch.tensor([[0.0], [0.0]]))
    metric.update(torch.tensor([[3.0]]), torch.tensor([[0.0]]))
    assert metric.result() == pytest.approx(14 / 3)
    metric.reset()
    assert metric.result() == 0
