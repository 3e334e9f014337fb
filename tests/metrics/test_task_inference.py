import warnings
from functools import partial

import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_hnet import TaskInferencePlugin
from avalanche_hnet.metrics import task_inference_metrics
from tests.support.models import MultiHead
from tests.support.strategies import naive
from tests.support.streams import task_stream, tensors
from tests.support.task_inference import SCORES, benchmark_of, evaluated, loop, plain, strategy_of

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("criterion", ["entropy", "confidence"])
@pytest.mark.parametrize("kind", ["hypernet", "heads"])
def test_metrics_equal_those_of_the_loop(kind, criterion, tmp_path):
    labels = (3, 1, 4)
    benchmark = benchmark_of(labels, n_samples=14)
    logger = TensorboardLogger(tmp_path)
    strategy = strategy_of(
        kind,
        TaskInferencePlugin(criterion=criterion),
        evaluator=evaluated(loggers=[logger]),
        eval_mb_size=5,
    )
    strategy.train(benchmark.train_stream)
    results, model = strategy.eval(benchmark.test_stream), strategy.model
    matrix, right, correct = torch.zeros(5, 5), [], []
    for number, (label, experience) in enumerate(zip(labels, benchmark.test_stream, strict=True)):
        x, y, _ = tensors(experience)
        logs, chosen, _ = loop(x, [1, 3, 4], partial(plain, model), SCORES[criterion])
        correct.append((logs.argmax(1) == y).double().mean().item())
        right.append((chosen == label).double().mean().item())
        for task in chosen.tolist():
            matrix[label, task] += 1
        name = f"eval_phase/test_stream/Task{label:03d}/Exp{number:03d}"
        assert results[f"Top1_Acc_Exp/{name}"] == pytest.approx(correct[-1])
        assert results[f"TaskInference_Acc_Exp/{name}"] == pytest.approx(right[-1])
    name = "eval_phase/test_stream/Task004"
    assert results[f"Top1_Acc_Stream/{name}"] == pytest.approx(sum(correct) / 3)
    assert results[f"TaskInference_Acc_Stream/{name}"] == pytest.approx(sum(right) / 3)
    found = results["TaskInference_ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert torch.equal(found.best_supported_value(torch.Tensor).to(matrix), matrix)
    assert matrix.sum() == 42
    assert (matrix - matrix.diagonal().diag()).any()  # some are inferred wrongly
    assert 0 < sum(right) / 3 < 1

    logger.writer.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    scalar = events.Scalars(f"TaskInference_Acc_Stream/{name}")[-1]
    assert scalar.value == pytest.approx(sum(right) / 3)
    experience = "TaskInference_Acc_Exp/eval_phase/test_stream/Task001/Exp001"
    assert events.Scalars(experience)[-1].value == pytest.approx(right[1])
    assert any(t.startswith("TaskInference_ConfusionMatrix_Stream") for t in tags["images"])


def test_metrics_are_those_that_were_asked_for():
    assert task_inference_metrics() == []
    names = [
        str(m) for m in task_inference_metrics(experience=True, stream=True, confusion_matrix=True)
    ]
    assert names == [
        "TaskInference_Acc_Exp",
        "TaskInference_Acc_Stream",
        "TaskInference_ConfusionMatrix_Stream",
    ]
    assert [str(m) for m in task_inference_metrics(stream=True)] == names[1:2]


@pytest.mark.parametrize("metric", ["experience", "stream", "confusion_matrix"])
def test_metrics_without_inference_are_refused(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(task_inference_metrics(**{metric: True}))
    strategy = naive(MultiHead(), evaluator=evaluator)
    strategy.train(task_stream(1).train_stream)
    with pytest.raises(ValueError, match="got a MultiHead; add a TaskInferencePlugin"):
        strategy.eval(task_stream(1).test_stream)
