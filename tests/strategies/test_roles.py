import pytest

from avalanche_hnet import FixedTarget
from avalanche_hnet.strategies.roles import roles_of
from tests.support.hypernets import adapted, hyper_model
from tests.support.streams import task_stream


def model_with_tasks(n_tasks=3):
    return adapted(hyper_model(), task_stream(n_tasks).train_stream)


@pytest.mark.parametrize("regularizer", [None, FixedTarget()])
def test_embeddings_are_outside_theta(regularizer):
    model = model_with_tasks()
    roles = roles_of(model, [2], regularizer)
    theta = {f"hypernetwork.{n}" for n in model.hypernetwork.shared_parameters()}
    assert set(roles.theta) == theta
    assert roles.own == (model.hypernetwork.embeddings[2],)
    assert roles.previous == ()
    assert roles.outside_theta == tuple(model.hypernetwork.embeddings)
    assert roles.regularized == model.hypernetwork.shared_parameters()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_trained_embeddings_of_earlier_tasks_belong_to_theta(beta):
    model = model_with_tasks()
    roles = roles_of(model, [1], FixedTarget(beta, train_previous_embeddings=True))
    embeddings = model.hypernetwork.embeddings
    earlier = (embeddings[0], embeddings[2]) if beta else ()
    assert roles.previous == earlier
    assert roles.own == (embeddings[1],)
    assert roles.outside_theta == ((embeddings[1],) if beta else tuple(embeddings))
    names = {"embeddings.0", "embeddings.2"} if beta else set()
    assert set(roles.regularized) == set(model.hypernetwork.shared_parameters()) | names


def test_what_is_not_generated_is_trained_but_not_regularised():
    model = adapted(hyper_model(hypernet={"generate": "2.*"}), task_stream(2).train_stream)
    roles = roles_of(model, [1], FixedTarget())
    assert {"target.0.weight", "target.0.bias"} < set(roles.theta)
    assert set(roles.regularized) == set(model.hypernetwork.shared_parameters())


def test_frozen_parameters_are_not_regularised():
    model = model_with_tasks()
    model.hypernetwork.output.requires_grad_(False)
    roles = roles_of(model, [2], FixedTarget())
    assert "hypernetwork.output.weight" in roles.theta
    assert not any(name.startswith("output") for name in roles.regularized)


def test_tasks_that_the_model_does_not_know_yet_have_no_part():
    assert roles_of(model_with_tasks(2), [5], None).own == ()
