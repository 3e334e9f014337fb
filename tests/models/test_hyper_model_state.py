"""A HyperModel's state."""

import pytest
import torch

from avalanche_hnet import FixedTarget
from tests.support.hypernets import adapted, hyper_model, learner, values
from tests.support.models import mlp
from tests.support.streams import task_stream
from tests.support.targets import with_batch_norm


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: mlp(n_out=2), {}),
        (lambda: mlp(n_out=4), {"multi_head": True}),
        (with_batch_norm, {}),
        (with_batch_norm, {"hypernet": {"generate": "3.*"}, "remaining": "per_task"}),
        (with_batch_norm, {"hypernet": {"generate": "3.*"}, "remaining": "frozen_after_first"}),
        (
            lambda: mlp(n_out=2),
            {"hypernet": {"chunk_size": 7, "task_specific_chunk_embeddings": True}},
        ),
    ],
)
@pytest.mark.parametrize("offset", [False, True])
def test_state_fits_a_fresh_model(tmp_path, make, options, offset):
    benchmark = task_stream(2, task_labels=[7, 3], offset=offset and "multi_head" in options)
    model = hyper_model(make(), **options)
    strategy = learner(model, FixedTarget())
    for experience in benchmark.train_stream:
        strategy.train(experience)
    torch.save(model.state_dict(), tmp_path / "model.pt")

    fresh = hyper_model(make(), **options)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x, labels = torch.randn(5, 6), torch.tensor([7, 3, 3, 7, 3])
    assert fresh.task_labels == (7, 3)
    assert fresh.trained_task_labels == (7, 3)
    assert torch.equal(fresh.eval()(x, labels), model.eval()(x, labels))
    assert fresh(x, None).keys() == model(x, None).keys()
    assert values(fresh).keys() == values(model).keys()
    adapted(fresh, benchmark.train_stream)  # nothing new
    assert values(fresh).keys() == values(model).keys()


@pytest.mark.parametrize("labels", [[3, 7], [5], [5, 6], [7, 3, 5]])
def test_state_of_other_tasks_is_loaded_right_or_refused(labels):
    """Into a model that has seen tasks already, in this order."""
    x = torch.randn(5, 6)
    model = adapted(hyper_model(), task_stream(task_labels=[7, 3]).train_stream).eval()
    other = adapted(hyper_model(), task_stream(task_labels=labels).train_stream).eval()
    try:
        other.load_state_dict(model.state_dict())
    except (RuntimeError, ValueError):
        return
    for label in (7, 3):
        torch.testing.assert_close(other(x, label), model(x, label))


def test_tasks_that_the_hypernetwork_has_already_are_taken_over():
    model = hyper_model()
    model.hypernetwork.add_task()
    first = model.hypernetwork.embeddings[0]
    adapted(model, task_stream(2, task_labels=[7, 3]).train_stream)
    assert model.hypernetwork.n_tasks == 2
    assert model.task_parameters(7) == {"hypernetwork.embeddings.0": first}


def test_new_embeddings_do_not_depend_on_what_was_drawn_before():
    """Nor on evaluations in between."""
    stream, embeddings = task_stream(3).train_stream, []
    for disturb in (False, True):
        torch.manual_seed(0)
        model = adapted(hyper_model(), stream[:1])
        if disturb:
            torch.rand(1)
            adapted(model, stream, training=False)
        embeddings.append(adapted(model, stream).hypernetwork.embeddings[2].detach())
    assert torch.equal(*embeddings)
