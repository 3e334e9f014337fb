"""Training on batches in structures is training on the tensors in them."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from avalanche.models import MultiHeadClassifier
from avalanche.training import Naive
from torch import nn

from avalanche_hnet import (
    Categorical,
    InMemoryPlugin,
    PriorEWCPlugin,
    TaskInferencePlugin,
    logits_of,
)
from tests.support.models import MultiHead, mlp
from tests.support.strategies import naive
from tests.support.streams import labelled_benchmark
from tests.support.structures import (
    INPUTS,
    OUTPUTS,
    DictionaryNaive,
    Structured,
    StructuredMultiTask,
    TupleNaive,
    dictionary_stream_of,
    halves,
    plain_stream_of,
    stream_of,
)


def data(n_tasks=2, n=20):
    generator = torch.Generator().manual_seed(1)
    tasks = []
    for _ in range(n_tasks):
        y = torch.arange(n) % 2
        x = torch.randn(n, 6, generator=generator) + y[:, None] * torch.linspace(-1, 1, 6)
        tasks.append((x, y))
    return tasks


def criterion(outputs, targets):
    return F.cross_entropy(logits_of(outputs), targets)


def trained(model, benchmark, plugin, **options):
    strategy = naive(model, plugin, **({"criterion": criterion} | options))
    for seed, experience in enumerate(benchmark.train_stream):
        torch.manual_seed(seed)  # of new heads
        strategy.train(experience, shuffle=False)
    return strategy


def plugin(**options):
    return PriorEWCPlugin(likelihood=Categorical(), ewc_lambda=5.0, **options)


def assert_same(structured, plain):
    for of in ("mean", "precision"):
        values, expected = getattr(structured, of), getattr(plain, of)
        assert {f"net.{name}" for name in expected} == {*values}
        for name in expected:
            torch.testing.assert_close(values[f"net.{name}"], expected[name], rtol=1e-4, atol=1e-5)


def multi_head():
    return MultiHead(MultiHeadClassifier(8, masking=False))


def models(is_multi_task, outputs):
    torch.manual_seed(0)
    plain = multi_head() if is_multi_task else mlp(n_out=2)
    torch.manual_seed(0)
    inner = multi_head() if is_multi_task else mlp(n_out=2)
    wrapper = StructuredMultiTask if is_multi_task else Structured
    return plain, wrapper(inner, OUTPUTS[outputs])


@pytest.mark.parametrize("is_multi_task", [False, True])
@pytest.mark.parametrize("n_fisher", [None, 7])
@pytest.mark.parametrize(
    ("strategy", "inputs", "outputs"),
    [
        (None, "encoding", "dataclass"),  # moves itself, so that Avalanche's own strategies do
        (TupleNaive, "tuple", "tuple"),
        (TupleNaive, "list", "tensor"),
        (DictionaryNaive, "dict", "dict"),
        (DictionaryNaive, "dict", "named tuple"),
    ],
)
def test_the_posterior_is_that_of_training_on_tensors(
    strategy, inputs, outputs, n_fisher, is_multi_task
):
    plain, structured = models(is_multi_task, outputs)
    options = {} if strategy is None else {"strategy": strategy}
    if strategy is DictionaryNaive:
        benchmark = dictionary_stream_of(data())
    else:
        benchmark = stream_of(data(), INPUTS[inputs])
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected = plugin(n_fisher=n_fisher, generator=generators[0])
    trained(plain, plain_stream_of(data()), expected)
    learned = plugin(n_fisher=n_fisher, generator=generators[1])
    trained(structured, benchmark, learned, **options)
    assert_same(learned.posterior, expected.posterior)


def test_regression_with_a_criterion_of_a_structure():
    class SquaredError(nn.MSELoss):
        def forward(self, outputs, targets):
            return super().forward(outputs["logits"], targets)

    pairs = [(x, torch.stack([y.float(), x[:, 0]], 1)) for x, y in data()]
    torch.manual_seed(0)
    plain = mlp(n_out=2)
    torch.manual_seed(0)
    structured = Structured(mlp(n_out=2))
    expected, learned = PriorEWCPlugin(ewc_lambda=5.0), PriorEWCPlugin(ewc_lambda=5.0)
    trained(plain, labelled_benchmark(pairs), expected, criterion=nn.MSELoss())
    trained(structured, stream_of(pairs, INPUTS["encoding"]), learned, criterion=SquaredError())
    assert_same(learned.posterior, expected.posterior)


@pytest.mark.parametrize("with_posterior", [False, True])
def test_the_task_is_inferred_as_with_tensors(with_posterior):
    plain, structured = models(is_multi_task=True, outputs="dict")
    results = []
    for model, benchmark in (
        (plain, plain_stream_of(data())),
        (structured, stream_of(data(), INPUTS["encoding"])),
    ):
        learned = plugin()
        trained(model, benchmark, learned)
        options = {"posterior": learned.posterior} if with_posterior else {}
        inference = TaskInferencePlugin(**options)
        strategy = naive(model, inference, criterion=criterion)
        inference.before_eval(strategy)
        x = torch.cat([x for x, _ in data()])
        inputs = x if model is plain else INPUTS["encoding"](*halves(x))
        results.append((strategy.model(inputs), strategy.model.inferred_tasks))
        inference.after_eval(strategy)
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    assert torch.equal(results[0][1], results[1][1])


def test_an_evaluation_that_infers_tasks():
    _, structured = models(is_multi_task=True, outputs="dict")
    benchmark = stream_of(data(), INPUTS["encoding"])
    learned = plugin()
    trained(structured, benchmark, learned)
    strategy = naive(structured, TaskInferencePlugin(), criterion=criterion)
    strategy.eval(benchmark.train_stream)
    assert strategy.model is structured


def test_outputs_without_logits_are_refused_before_anything_is_changed():
    model = Structured(mlp(n_out=2), lambda logits: {"scores": logits})
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=r"it returned a dict with the keys \['scores'\]"):
        trained(
            model,
            stream_of(data(), INPUTS["encoding"]),
            plugin(),
            criterion=lambda outputs, y: F.cross_entropy(outputs["scores"], y),
        )
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("strategy", "inputs"), [(Naive, "encoding"), (TupleNaive, "tuple"), (DictionaryNaive, None)]
)
def test_batches_in_structures_are_left_to_their_loader(strategy, inputs):
    benchmark = (
        dictionary_stream_of(data()) if inputs is None else stream_of(data(), INPUTS[inputs])
    )
    learned = []
    for others in ([], [InMemoryPlugin()]):
        _, model = models(is_multi_task=False, outputs="dict")
        learned.append(plugin())
        used = naive(model, learned[-1], *others, strategy=strategy, criterion=criterion)
        warns = (
            pytest.warns(UserWarning, match="Avalanche's own loader") if others else nullcontext()
        )
        torch.manual_seed(0)
        with warns:
            for experience in benchmark.train_stream:
                used.train(experience)
    for of in ("mean", "precision"):
        values, expected = getattr(learned[1].posterior, of), getattr(learned[0].posterior, of)
        assert all(torch.equal(values[name], expected[name]) for name in expected)
