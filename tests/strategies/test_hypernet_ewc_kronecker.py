"""EWC with Kronecker products, trained by the strategy."""

import pytest
import torch
from torch import nn

from avalanche_hnet import EWC
from tests.support.hypernet_strategies import CHUNKS, OWN_CHUNKS, trained
from tests.support.hypernets import hyper_model, learner
from tests.support.hypernetwork_oracles import loop_factors
from tests.support.models import mlp
from tests.support.split_digits import class_stream
from tests.support.streams import task_stream, tensors, two_tasks_in_one


def digits_learner(regularizer, hypernet=None, **options):
    torch.manual_seed(0)
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    model = hyper_model(
        target,
        hypernet={"hidden": (10, 10), "embedding_dim": 8} | (hypernet or {}),
        multi_head=True,
    )
    adam = torch.optim.Adam(model.parameters(), 0.01)
    defaults = {"optimizer": adam, "train_mb_size": 32, "train_epochs": 5, "eval_mb_size": 200}
    return learner(model, regularizer, **(defaults | options))


def accuracy(strategy, experience):
    x, y, _ = tensors(experience)
    model = strategy.model.eval()
    with torch.no_grad():
        return (model(x, experience.task_label).argmax(1) == y).float().mean().item()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("options", [{}, CHUNKS, OWN_CHUNKS])
def test_the_posterior_has_the_factors_of_the_experiences_samples(options, weight_sharing):
    regularizer = EWC(structure="kronecker", rank=None, weight_sharing=weight_sharing)
    stream, model = task_stream(2).train_stream, hyper_model(hypernet=options)
    strategy, expected = learner(model, regularizer), []
    for experience in stream:
        strategy.train(experience)
        expected.append(loop_factors(model.eval(), *tensors(experience), weight_sharing))
    layers = regularizer.posterior.state_dict()["layers"]
    assert layers.keys() == {"trunk.0", "trunk.2"}
    for name, layer in layers.items():
        pairs = zip(layer["inputs"], layer["outputs"], strict=True)
        for (inputs, outputs), by_hand in zip(pairs, expected, strict=True):
            found, wanted = (torch.kron(g[0], a[0]) for a, g in ((inputs, outputs), by_hand[name]))
            torch.testing.assert_close(found, 20 * wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_an_experience_of_two_tasks_that_share_a_head_layer():
    stream = task_stream(2, offset=True).train_stream
    both = two_tasks_in_one(*stream)
    model = hyper_model(mlp(n_out=4), hypernet=CHUNKS, multi_head=True)
    regularizer = EWC(structure="kronecker")
    learner(model, regularizer).train(both)
    expected = loop_factors(model.eval(), *tensors(both), "expand")
    for name, layer in regularizer.posterior.state_dict()["layers"].items():
        inputs, outputs = expected[name]
        found = torch.kron(layer["outputs"][0][0], layer["inputs"][0][0])
        wanted = 40 * torch.kron(outputs[0], inputs[0])
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("online", [True, False])
def test_training_on_digits_protects_earlier_tasks(online):
    """Three tasks of two digits each, with and without a penalty."""
    found = {}
    for beta in (0.0, 10.0):
        strategy = digits_learner(EWC(beta, structure="kronecker", online=online))
        stream = class_stream()
        for experience in stream.train_stream[:3]:
            strategy.train(experience)
        found[beta] = [accuracy(strategy, e) for e in stream.test_stream[:3]]
    assert found[10.0][2] > 0.9  # it still learns
    assert sum(found[10.0][:2]) > sum(found[0.0][:2]) + 0.1


def test_going_on_with_digits_from_a_saved_state_equals_never_stopping(tmp_path):
    stream = class_stream().train_stream
    options = {"hypernet": {"chunk_size": 100, "chunk_embedding_dim": 4}, "train_epochs": 1}
    strategy = digits_learner(EWC(structure="kronecker", n_fisher=50), **options)
    for experience in stream[:2]:
        strategy.train(experience, shuffle=False, reset_optimizer_state=True)
    state = strategy.model.state_dict(), strategy.regularizer.state_dict()
    torch.save(state, tmp_path / "state.pt")
    strategy.train(stream[2], shuffle=False, reset_optimizer_state=True)

    resumed = digits_learner(EWC(structure="kronecker", n_fisher=50), **options)
    of_model, of_regularizer = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(of_model)
    resumed.regularizer.load_state_dict(of_regularizer)
    resumed.train(stream[2], shuffle=False, reset_optimizer_state=True)
    for (name, p), (_, q) in zip(
        strategy.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def test_number_of_samples_for_the_fisher():
    found = []
    for n_fisher in (None, 20, 5):
        regularizer = EWC(structure="kronecker", n_fisher=n_fisher)
        trained(task_stream(1).train_stream, regularizer)
        found.append(regularizer.posterior.precision["trunk.2.weight"])
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
