"""Training goes on from saved states."""

import pickle

import dill
import pytest
import torch
from avalanche.checkpointing import checkpoint

from avalanche_hnet import EWC, FixedTarget, Jacobian
from tests.support.hypernet_strategies import adam, assert_same_weights
from tests.support.hypernets import adapted, hyper_model, learner, values
from tests.support.models import mlp
from tests.support.streams import task_stream


def test_states_that_hold_the_movement_still_load():
    """It was a part of the model's state once."""
    stream = task_stream(2).train_stream
    strategy = learner(hyper_model(), FixedTarget())
    strategy.train(stream[0])
    state = strategy.model.state_dict()
    (extra,) = (v for n, v in state.items() if n.endswith("_extra_state"))
    assert "movement" not in extra
    extra["movement"] = strategy.movement.state_dict()
    resumed = learner(hyper_model(), FixedTarget())
    resumed.model.load_state_dict(state)
    assert resumed.model.trained_task_labels == (0,)
    resumed.train(stream[1])


def test_movement_is_the_strategys():
    stream = task_stream(2).train_stream
    strategy = learner(hyper_model(), FixedTarget())
    for experience in stream:
        strategy.train(experience)
    net = strategy.model.hypernetwork
    state = strategy.movement.state_dict()
    assert set(state) == {"0", "1"}
    torch.testing.assert_close(state["1"], net(1)[0].detach())
    distances = strategy.movement.distances(net)
    published = strategy.evaluator.get_last_metrics()
    for task in (0, 1):
        assert published[f"Hypernet/WeightsMoved/Task{task:03}"] == distances[task]


def test_tensors_of_the_hypernetwork_by_its_own_names():
    model = adapted(hyper_model(hypernet={"generate": "2.*"}), task_stream(2).train_stream)
    own = model.of_hypernetwork(dict(model.named_parameters()))
    expected = dict(model.hypernetwork.named_parameters())
    assert list(own) == list(expected)
    assert all(own[name] is parameter for name, parameter in expected.items())
    assert model.of_hypernetwork({"target.0.weight": torch.ones(1)}) == {}


def resumable(beta=1.0):
    return {
        "fixed target": (lambda: FixedTarget(beta), {}),
        "stored": (lambda: FixedTarget(beta, targets="stored"), {}),
        "fisher": (lambda: FixedTarget(beta, fisher_weights=True), {}),
        "masked": (lambda: FixedTarget(beta, mask_heads=True), {"n_out": 8, "multi_head": True}),
        "previous": (lambda: FixedTarget(beta, train_previous_embeddings=True), {}),
        "per step": (lambda: FixedTarget(beta, tasks_per_step=1), {}),
        "jacobian": (lambda: Jacobian(beta), {}),
        "ewc": (lambda: EWC(beta), {}),
        "ewc offline": (lambda: EWC(beta, online=False), {}),
        "kronecker": (lambda: EWC(beta, structure="kronecker"), {}),
        "kronecker offline": (lambda: EWC(beta, online=False, structure="kronecker"), {}),
        "none": (lambda: None, {}),
    }


def fresh(name):
    make_regularizer, options = resumable()[name]
    options = dict(options)
    model = hyper_model(mlp(n_out=options.pop("n_out", 2)), **options)
    return learner(model, make_regularizer(), optimizer=adam(model.parameters()))


@pytest.mark.parametrize("name", resumable())
def test_going_on_from_saved_states_equals_never_stopping(tmp_path, name):
    """The optimizer starts anew in each experience, so that it need not be saved."""
    stream = task_stream(4).train_stream
    strategy = fresh(name)
    for experience in stream[:3]:
        strategy.train(experience, shuffle=False, reset_optimizer_state=True)
    state = [strategy.model.state_dict()]
    if strategy.regularizer is not None:
        state.append(strategy.regularizer.state_dict())
    torch.save(state, tmp_path / "state.pt")
    strategy.train(stream[3], shuffle=False, reset_optimizer_state=True)

    resumed = fresh(name)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(state[0])
    if resumed.regularizer is not None:
        resumed.regularizer.load_state_dict(state[1])
    resumed.train(stream[3], shuffle=False, reset_optimizer_state=True)
    assert_same_weights(values(resumed.model), values(strategy.model))


def test_going_on_with_the_optimizers_memory(tmp_path):
    stream = task_stream(3).train_stream
    strategy = fresh("fixed target")
    for experience in stream[:2]:
        strategy.train(experience, shuffle=False)
    state = [strategy.model.state_dict(), strategy.optimizer.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    strategy.train(stream[2], shuffle=False)

    resumed = fresh("fixed target")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    resumed.train(stream[2], shuffle=False)
    assert_same_weights(values(resumed.model), values(strategy.model))


@pytest.fixture
def _checkpointing(monkeypatch):
    """Avalanche's, with ``pickle`` where dill does not get along with PyTorch's optimizers."""
    try:
        dill.dumps(torch.optim.SGD([torch.zeros(1)], 0.1))
    except pickle.PicklingError:
        monkeypatch.setattr(checkpoint, "dill", pickle)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_checkpointing")
@pytest.mark.parametrize("name", resumable())
def test_avalanches_checkpoints(tmp_path, name):
    stream, file = task_stream(4).train_stream, tmp_path / "checkpoint.pkl"
    strategy = fresh(name)
    for experience in stream[:3]:
        strategy.train(experience, shuffle=False)
    checkpoint.save_checkpoint(strategy, file)
    strategy.train(stream[3], shuffle=False)

    resumed, n_trained = checkpoint.maybe_load_checkpoint(fresh(name), file)
    assert n_trained == 3
    resumed.train(stream[3], shuffle=False)
    assert_same_weights(values(resumed.model), values(strategy.model))


def test_movement_is_known_after_going_on(tmp_path):
    stream, found = task_stream(3).train_stream, []
    strategy = learner(hyper_model(), FixedTarget())
    for experience in stream[:2]:
        strategy.train(experience)
    state = [strategy.model.state_dict(), strategy.movement.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    resumed = learner(hyper_model(), FixedTarget())
    of_model, of_movement = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.model.load_state_dict(of_model)
    resumed.movement.load_state_dict(of_movement)
    resumed.train(stream[2])
    metrics = resumed.evaluator.get_all_metrics()
    found = [name for name in metrics if "WeightsMoved" in name]
    assert found == [f"Hypernet/WeightsMoved/Task{t:03}" for t in range(3)]
    assert metrics[found[0]][1][0] > 0
