"""What the strategy of hypernetworks refuses."""

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn

from avalanche_hnet import (
    EWC,
    Categorical,
    ClipGradientPlugin,
    FixedTarget,
    Gaussian,
    Jacobian,
    ValuePreserving,
)
from tests.support.hypernets import adapted, hyper_model, learner, values
from tests.support.models import mlp
from tests.support.streams import regression_stream, task_stream

# The strategy, at construction.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regularizer": "fixed"}, TypeError, "regularizer must be a Regularizer.*got 'fixed'"),
        ({"regularizer": FixedTarget}, TypeError, "regularizer must be a Regularizer.*FixedTarget"),
        ({"prior_variance": 0.0}, ValueError, "prior_variance must be positive and finite, got 0"),
        ({"prior_variance": float("nan")}, ValueError, "prior_variance .* got nan"),
        ({"clip_grad_norm": 0}, ValueError, "clip_grad_norm must be positive and finite, got 0"),
        ({"clip_grad_norm": -1.0}, ValueError, "clip_grad_norm .* got -1.0"),
        ({"clip_grad_norm": float("inf")}, ValueError, "clip_grad_norm .* got inf"),
        ({"clip_grad_norm": float("nan")}, ValueError, "clip_grad_norm .* got nan"),
        ({"log_every": 0}, ValueError, "log_every must be at least 1, got 0"),
        ({"log_every": 2.5}, TypeError, "log_every must be an integer of at least 1, got 2.5"),
        ({"log_every": True}, TypeError, "log_every must be an integer .* got True"),
        (
            {"regularizer": FixedTarget(), "train_from_scratch": True},
            ValueError,
            "train_from_scratch=True does not go with a regularizer",
        ),
        (
            {"regularizer": FixedTarget(mask_heads=True)},
            ValueError,
            "mask_heads=True of the regularizer needs a model with multi_head=True",
        ),
        ({"likelihood": "gaussian"}, TypeError, "likelihood must be a Likelihood, got 'gaussian'"),
        (
            {"embedding_optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)},
            TypeError,
            "embedding_optimizer must be .*got SGD",
        ),
        ({"optimizer": "adam"}, TypeError, "optimizer must be an Optimizer.*, got 'adam'"),
        (
            {"optimizer": torch.optim.Adam},
            TypeError,
            "optimizer must be an Optimizer.*, got <class",
        ),
    ],
)
def test_bad_arguments_of_the_strategy_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        learner(hyper_model(), options.pop("regularizer", None), **options)


def test_clipping_twice_is_refused():
    with pytest.raises(ValueError, match=r"clip_grad_norm=2\.0 does not go with a ClipGradient"):
        learner(hyper_model(), None, ClipGradientPlugin(norm=1.0), clip_grad_norm=2.0)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="model must be a HyperModel, got Sequential"):
        learner(mlp())


def test_a_regulariser_of_another_hypernetwork_is_refused():
    regularizer, first, second = FixedTarget(), hyper_model(), hyper_model()
    learner(first, regularizer).train(task_stream(1).train_stream[0])
    learner(first, regularizer)
    with pytest.raises(ValueError, match="this FixedTarget regulariser belongs to another hyper"):
        learner(second, regularizer)


def test_a_regulariser_of_two_strategies_is_refused_by_the_second():
    experience, regularizer = task_stream(1).train_stream[0], EWC()
    first, second = (learner(hyper_model(), regularizer) for _ in range(2))
    first.train(experience)
    before = values(second.model)
    with pytest.raises(ValueError, match="this EWC regulariser belongs to another hypernetwork"):
        second.train(experience)
    assert_unchanged(second.model, before)


class OfItsOwnKind(torch.optim.SGD):
    def __init__(self, parameters, secret):
        super().__init__(parameters, lr=2 * secret)


def test_an_optimizer_that_cannot_be_made_again_needs_another_for_the_embeddings():
    model = hyper_model()
    optimizer = OfItsOwnKind(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"OfItsOwnKind: .*\['secret'\] are not known; pass an op"):
        learner(model, optimizer=optimizer)
    strategy = learner(
        model,
        optimizer=optimizer,
        embedding_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
    )
    strategy.train(task_stream(1).train_stream[0])
    learner(
        model,
        FixedTarget(differentiable_lookahead=True),
        optimizer=optimizer,
        embedding_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
    )


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="not in this PyTorch")
def test_an_optimizer_that_autograd_cannot_follow_is_refused_before_anything_is_trained():
    model, before = hyper_model(), None
    before = values(model)
    optimizer = torch.optim.Adafactor(model.parameters())
    with pytest.raises(ValueError, match="differentiable"):
        learner(model, FixedTarget(differentiable_lookahead=True), optimizer=optimizer).train(
            task_stream(1).train_stream[0]
        )
    assert_unchanged(model, before)


# The strategy, at the start of an experience.


def assert_unchanged(model, before):
    """What was there before is unchanged; the task of the experience may have been added."""
    after = values(model)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def refused(message, experience, *, model=None, regularizer=None, error=ValueError, **options):
    model = hyper_model() if model is None else model
    before, labels = values(model), model.trained_task_labels
    strategy = learner(model, regularizer, **options)
    with pytest.raises(error, match=message):
        strategy.train(experience)
    assert_unchanged(model, before)
    assert strategy.clock.train_iterations == 0
    return model, labels


def test_empty_experience_is_refused():
    experience = task_stream(1).train_stream[0]
    experience.dataset = experience.dataset.subset([])
    for model in (hyper_model(), hyper_model(mlp(n_out=4), multi_head=True)):
        found, labels = refused("experience 0 is empty", experience, model=model)
        assert found.task_labels == labels == ()


@pytest.mark.parametrize("regularizer", [FixedTarget(fisher_weights=True), EWC()])
def test_unknown_criterion_is_refused_before_the_training_if_the_fisher_needs_it(regularizer):
    experience = task_stream(1).train_stream[0]
    model, labels = refused(
        "CrossEntropyLoss, NLLLoss, MSELoss or BCE.*MultiMarginLoss.*pass likelihood",
        experience,
        regularizer=regularizer,
        criterion=nn.MultiMarginLoss(),
    )
    assert model.task_labels == labels == ()
    learner(hyper_model(), FixedTarget(), criterion=nn.MultiMarginLoss()).train(experience)


def test_likelihood_that_contradicts_the_criterion_is_refused():
    experience = task_stream(1).train_stream[0]
    refused("does not go with", experience, regularizer=EWC(), likelihood=Gaussian())
    learner(hyper_model(), EWC(), likelihood=Categorical()).train(experience)


def test_more_classes_than_outputs_are_refused():
    stream = task_stream(2, offset=True).train_stream
    message = "class labels from 2 to 3, but the model has 2 outputs.*class_ids_from_zero"
    refused(message, stream[1])


def test_class_labels_that_come_late_are_refused_too():
    x, y = torch.randn(20, 6), torch.tensor([0, 1] * 9 + [2, 3])
    stream = tensors_benchmark(
        train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0]
    ).train_stream
    model = hyper_model()
    with pytest.raises(ValueError, match="class labels from 0 to 3, but the model has 2 outputs"):
        learner(model).train(stream[0], shuffle=False)


def test_negative_class_labels_are_refused():
    x, y = torch.randn(20, 6), torch.tensor([-1, 1] * 10)
    stream = tensors_benchmark(
        train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0]
    ).train_stream
    refused("class labels from -1 to 1", stream[0])


def float_experience(*shape):
    from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
    from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
    from torch.utils.data import TensorDataset

    samples = TensorDataset(torch.randn(10, 6), torch.randn(10, *shape))
    labels = TaskLabels(ConstantSequence(0, 10))
    dataset = AvalancheDataset([samples], data_attributes=[labels])
    return with_task_labels(benchmark_from_datasets(train=[dataset])).train_stream[0]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("shape", "hint"),
    [((), r" \(let the data set return them as targets.unsqueeze"), ((2,), "$"), ((1, 1), "$")],
)
def test_real_targets_of_another_shape_than_the_outputs_are_refused(shape, hint):
    refused(
        rf"targets have the shape \(5.*, but the outputs \(5, 1\); they must be the same{hint}",
        float_experience(*shape),
        model=hyper_model(mlp(n_out=1)),
        criterion=nn.MSELoss(),
    )


def test_the_class_of_a_criterion_is_refused():
    experience = task_stream(1).train_stream[0]
    strategy = learner(hyper_model(), criterion=nn.CrossEntropyLoss)
    before = [p.detach().clone() for p in strategy.model.parameters()]
    with pytest.raises(TypeError, match=r"criterion must be CrossEntropyLoss\(\), got the class"):
        strategy.train(experience)
    assert all(map(torch.equal, before, strategy.model.parameters()))


def test_targets_that_a_criterion_of_its_own_understands_are_trained_on():
    """Only of PyTorch's own criteria is it known what fits."""
    x = torch.randn(20, 6)

    def trains(y, criterion, n_out):
        stream = tensors_benchmark(
            train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0]
        ).train_stream
        model = hyper_model(mlp(n_out=n_out))
        learner(model, FixedTarget(), criterion=criterion).train(stream[0], shuffle=False)

    y = torch.arange(20) % 2
    padded = torch.where(torch.arange(20) % 3 == 0, -100, y)
    trains(padded, nn.CrossEntropyLoss(), 2)  # -100 is what it ignores
    trains(y, lambda o, t: nn.functional.binary_cross_entropy_with_logits(o[:, 0], 1.0 * t), 1)


def test_running_out_of_units_is_refused_by_the_strategy():
    model = adapted(hyper_model(mlp(n_out=3), multi_head=True), task_stream(1).train_stream)
    refused("has 3 units, of which 2 are taken", task_stream(2).train_stream[1], model=model)


def test_fisher_of_tasks_that_were_learned_without_it_is_refused():
    stream, model = task_stream(2).train_stream, hyper_model()
    learner(model).train(stream[0])
    refused(
        r"fisher_weights=True, but the Fisher of the tasks \[0\] is not known",
        stream[1],
        model=model,
        regularizer=FixedTarget(fisher_weights=True),
    )


# Combinations of the regularisers' arguments, as a user of the strategy meets them.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedTarget(tasks_per_step=0), "tasks_per_step must be at least 1, got 0"),
        (lambda: FixedTarget(-1.0), "beta must be at least 0 and finite, got -1.0"),
        (lambda: FixedTarget(lookahead="adam"), "lookahead must be one of .* got 'adam'"),
        (
            lambda: FixedTarget(lookahead=None, differentiable_lookahead=True),
            "differentiable_lookahead=True needs a lookahead .* not lookahead=None",
        ),
        (lambda: FixedTarget(n_fisher=5), "n_fisher=5 needs fisher_weights=True"),
        (lambda: Jacobian(lookahead=None), "Jacobian needs a lookahead .*lookahead=None"),
        (lambda: ValuePreserving(lookahead=None), "ValuePreserving needs a lookahead"),
        (lambda: EWC(gamma=0.5, online=False), "gamma=0.5 needs online=True"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Other mistakes.


@pytest.mark.parametrize("what", ["task's loss", "regulariser"])
def test_a_loss_that_is_not_finite_stops_the_training(what):
    regularizer = FixedTarget(1e300 if what == "regulariser" else 1.0, lookahead="sgd")
    strategy = learner(hyper_model(), regularizer, lr=1.0)
    stream = task_stream(2).train_stream
    strategy.train(stream[0])
    if what == "task's loss":
        strategy.model.hypernetwork.output.weight.data[0] = float("nan")
    before = values(strategy.model)
    with pytest.raises(ValueError, match=f"not finite at iteration 0 of experience 1: {what}"):
        strategy.train(stream[1])
    for name, value in values(strategy.model).items():
        if name in before:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_regularizers_among_the_plugins_are_refused():
    with pytest.raises(TypeError, match=r"plugins has a FixedTarget.*pass it as regularizer="):
        learner(hyper_model(), None, FixedTarget())


def test_an_embedding_optimizer_that_is_none_is_refused():
    strategy = learner(hyper_model(), embedding_optimizer=lambda parameters: None)
    with pytest.raises(
        TypeError, match="embedding_optimizer must make an optimizer, but made None"
    ):
        strategy.train(task_stream(1).train_stream[0])


def test_cross_entropy_of_a_single_output_is_refused():
    model = hyper_model(mlp(n_out=1))
    with pytest.raises(ValueError, match=r"CrossEntropyLoss.*use criterion=torch.nn.MSELoss"):
        learner(model).train(task_stream(1, n_classes=1).train_stream[0])


@pytest.mark.parametrize("online", [True, False])
def test_ewc_of_tasks_that_were_learned_without_it_is_refused(online):
    stream, model = task_stream(2).train_stream, hyper_model()
    learner(model).train(stream[0])
    with pytest.raises(ValueError, match=r"EWC knows nothing of the tasks \[0\].*state_dict"):
        learner(model, EWC(online=online)).train(stream[1])


def test_strengths_are_numbers():
    with pytest.raises(TypeError, match=r"beta must be a number of at least 0, got '0\.1'"):
        FixedTarget("0.1")


def test_targets_without_task_labels_are_refused():
    experience = regression_stream([(torch.randn(4, 6), torch.randn(4, 2))]).train_stream[0]
    with pytest.raises(ValueError, match="task_labels"):
        learner(hyper_model(), criterion=nn.MSELoss()).train(experience)
