import torch

from avalanche_hnet import FixedTarget
from tests.hypernets import adapted, hyper_model, learner
from tests.streams import task_stream


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
    tensors = model.of_hypernetwork(dict(model.named_parameters()))
    expected = dict(model.hypernetwork.named_parameters())
    assert list(tensors) == list(expected)
    assert all(tensors[name] is parameter for name, parameter in expected.items())
    assert model.of_hypernetwork({"target.0.weight": torch.ones(1)}) == {}
