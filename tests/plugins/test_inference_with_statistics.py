"""Task inference with the statistics of each candidate."""

import copy

import pytest
import torch

from avalanche_hnet import (
    Gaussian,
    PriorEWCPlugin,
    TaskInference,
    TaskInferencePlugin,
    TaskStatistics,
    TaskStatisticsPlugin,
    predict,
)
from tests.support.hypernets import hyper_model
from tests.support.strategies import naive
from tests.support.task_statistics import (
    EXACT,
    Heads,
    columns,
    shifted,
    statistics_of,
    trained,
    with_heads,
)

pytestmark = pytest.mark.usefixtures("float64")


def loop_inference(model, statistics, x, tasks, predict_class):
    """Each sample on its own, with each task's statistics copied into the model by hand."""
    found, chosen = [], []
    model = copy.deepcopy(model).eval()
    for sample in x:
        scores = []
        for task in tasks:
            for name, value in statistics.state_dict()["tasks"][task].items():
                dict(model.named_buffers())[name].copy_(value)
            p = predict_class(model, sample[None], task)[0]
            scores.append((-(p * p.log()).sum().item(), task, p))
        _, task, p = min(scores, key=lambda s: s[0])
        found.append(p)
        chosen.append(task)
    return torch.stack(found), torch.tensor(chosen)


@torch.no_grad()
def plain(model, x, task):
    return model(x, torch.tensor([task])).softmax(1)


@pytest.mark.parametrize("labels", [(0, 1, 2), (2, 0)])
def test_inference_uses_the_statistics_of_each_candidate(labels):
    strategy, statistics, benchmark = trained(labels=labels)
    live = statistics_of(strategy.model)
    x = torch.cat([columns(e)[0] for e in benchmark.test_stream])
    model = TaskInference(strategy.model.eval(), statistics=statistics)
    p, tasks = loop_inference(strategy.model, statistics, x, sorted(labels), plain)
    torch.testing.assert_close(model(x).exp(), p, **EXACT)
    assert torch.equal(model.inferred_tasks, tasks)
    torch.testing.assert_close(statistics_of(strategy.model), live, rtol=0, atol=0)
    with_one_for_all = TaskInference(strategy.model)(x).exp()
    assert not torch.allclose(with_one_for_all, p, atol=1e-3)

    results = strategy.eval(benchmark.test_stream)
    for number, experience in enumerate(benchmark.test_stream):
        y = columns(experience)[1]
        own = p[15 * number : 15 * (number + 1)]
        name = f"Task{labels[number]:03d}/Exp{number:03d}"
        found = results[f"Top1_Acc_Exp/eval_phase/test_stream/{name}"]
        assert found == pytest.approx((own.argmax(1) == y).double().mean().item())
    assert not isinstance(strategy.model, TaskInference)
    torch.testing.assert_close(statistics_of(strategy.model), live, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["linearized", "sample", "map"])
def test_inference_from_a_posterior_uses_the_statistics_of_each_candidate(method):
    ewc = PriorEWCPlugin()
    strategy, statistics, benchmark = trained(ewc)
    x = torch.cat([columns(e)[0][:3] for e in benchmark.test_stream])

    def from_posterior(model, x, task):
        generator = torch.Generator().manual_seed(task)
        return predict(
            model, ewc.posterior, x, method, task_label=task, n_samples=3, generator=generator
        )

    if method == "sample":  # draws of all candidates in turn, so one candidate at a time
        for task in range(3):
            generator = torch.Generator().manual_seed(task)
            model = TaskInference(
                strategy.model,
                tasks=[task],
                posterior=ewc.posterior,
                method=method,
                n_samples=3,
                generator=generator,
                statistics=statistics,
            )
            with statistics.using(strategy.model, task):
                expected = from_posterior(strategy.model, x, task)
            torch.testing.assert_close(model(x).exp(), expected, **EXACT)
        return
    model = TaskInference(
        strategy.model, posterior=ewc.posterior, method=method, statistics=statistics
    )
    p, tasks = loop_inference(strategy.model, statistics, x, range(3), from_posterior)
    torch.testing.assert_close(model(x).exp(), p, rtol=1e-9, atol=1e-12)
    assert torch.equal(model.inferred_tasks, tasks)


def test_agreement_and_regression_use_the_statistics_of_each_candidate():
    ewc = PriorEWCPlugin()
    strategy, statistics, benchmark = trained(ewc)
    x = torch.cat([columns(e)[0][:3] for e in benchmark.test_stream])
    for options in ({"criterion": "agreement"}, {"likelihood": Gaussian(0.1)}):
        ewc.posterior.likelihood = options.get("likelihood")  # as if learned with it
        scores, found = [], []
        for task in range(3):
            for used in (True, False):
                model = TaskInference(
                    strategy.model.eval(),
                    tasks=[task],
                    posterior=ewc.posterior,
                    n_samples=4,
                    generator=torch.Generator().manual_seed(task),
                    statistics=statistics if used else None,
                    **options,
                )
                if used:
                    inferred = model._classifications if "criterion" in options else None
                    found.append(
                        inferred(x, [task])
                        if inferred
                        else model._regressions(x, [task], options["likelihood"])
                    )
                else:
                    with statistics.using(strategy.model, task):
                        scores.append(
                            model._classifications(x, [task])
                            if "criterion" in options
                            else model._regressions(x, [task], options["likelihood"])
                        )
        torch.testing.assert_close(found, scores, rtol=0, atol=0)
        assert not torch.allclose(found[0][1], found[1][1])


def test_inference_that_would_cheat_is_refused():
    """With the true task's statistics for all candidates, the labels would be given away."""
    benchmark = shifted([0, 1])
    for options in ({}, {"statistics": TaskStatistics()}):
        model = with_heads(Heads(), benchmark)
        strategy = naive(model, TaskStatisticsPlugin(), TaskInferencePlugin(**options))
        strategy.train(benchmark.train_stream)
        with pytest.raises(ValueError, match=r"TaskInferencePlugin\(statistics=plugin.statistics"):
            strategy.eval(benchmark.test_stream)
    ours = TaskStatisticsPlugin("experience")
    strategy = naive(
        with_heads(Heads(), benchmark), ours, TaskInferencePlugin(statistics=ours.statistics)
    )
    strategy.train(benchmark.train_stream)
    with pytest.raises(ValueError, match=r"use TaskStatisticsPlugin\(by='task'\)"):
        strategy.eval(benchmark.test_stream)


def test_errors_of_inference_with_statistics():
    strategy, statistics, benchmark = trained()
    x, _ = columns(benchmark.test_stream[0])
    model = TaskInference(strategy.model, tasks=[0, 7], statistics=statistics)
    with pytest.raises(ValueError, match=r"tasks names \[7\], which were not trained on"):
        model(x)
    with pytest.raises(TypeError, match="statistics must be a TaskStatistics, got 3"):
        TaskInference(strategy.model, statistics=3)
    with pytest.raises(ValueError, match="statistics is not for a HyperModel"):
        TaskInference(hyper_model(), statistics=statistics)
