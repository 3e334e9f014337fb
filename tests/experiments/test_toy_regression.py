import numpy as np
import pytest
import tyro
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from avalanche_hnet import EWC, FixedTarget, HyperModel, Jacobian, ValuePreserving
from avalanche_hnet.core.common.clipping import Clipping
from avalanche_hnet.core.hypernetworks.chunked import ChunkedHyperNetwork
from avalanche_hnet.plugins.clip_gradient import clippings_of
from experiments import toy_regression
from experiments.common.hypernet import HypernetOptions
from experiments.toy_regression import ToyRegressionOptions, learn, main_network, summary

METHODS = ["hypernet", "ewc", "naive", "joint", "from-scratch"]


def options(**changes):
    return ToyRegressionOptions(**{"iterations": 60, **changes})


@pytest.mark.parametrize("method", METHODS)
def test_methods_report_draw_and_log(method, tmp_path, capsys):
    folder = toy_regression.main(options(method=method, output=tmp_path))
    assert folder.name.startswith(f"toy-regression-{method}-")
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("function", "immediate", "final", folder.name[:20]))

    pictures = sorted(p.name for p in folder.glob("*.png"))
    learned = [3] if method == "joint" else [1, 2, 3]
    assert pictures == [f"fits-seed0-after{n}.png" for n in learned]
    image = np.asarray(Image.open(folder / pictures[-1]).convert("RGB"))
    assert image.shape[1] > 600
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50

    events = EventAccumulator(str(folder / "tensorboard" / "seed0")).Reload()
    assert len(events.Images("Fits")) == len(learned)
    scalars = events.Tags()["scalars"]
    assert any(name.startswith("MSE_Exp/eval_phase") for name in scalars)
    assert ("Hypernet/Regularizer" in scalars) == (method in ("hypernet", "from-scratch"))
    assert ("PriorEWC/EWC" in scalars) == (method == "ewc")


def test_structure_of_the_posterior(tmp_path):
    diagonal, kronecker = (
        learn(options(method="ewc", structure=s), 0, tmp_path / s)
        for s in ("diagonal", "kronecker")
    )
    assert diagonal[0] == kronecker[0]  # before there is a penalty
    assert diagonal[-1] != kronecker[-1]


def test_hypernetwork_learns_without_forgetting_where_fine_tuning_forgets(tmp_path):
    protected = learn(options(iterations=700), 0, tmp_path / "a")
    without = HypernetOptions(regularizer="none", embedding_dim=2, activation="Sigmoid")
    forgetful = learn(options(iterations=700, hypernet=without), 0, tmp_path / "b")
    assert max(protected[k][k] for k in range(3)) < 0.3
    assert protected[-1][0] < 0.1 * forgetful[-1][0]
    assert [len(row) for row in protected] == [1, 2, 3]


def test_from_scratch_starts_each_function_anew(tmp_path):
    errors = learn(options(method="from-scratch", iterations=400), 0, tmp_path)
    assert max(errors[k][k] for k in range(3)) < 0.5
    assert errors[-1][0] > 10 * errors[0][0]


def test_table_shows_medians_of_immediate_and_final_errors():
    results = [[[a], [a + 1, a + 2], [a + 3, a + 4, a + 5]] for a in (0.0, 10.0, 1.0)]
    table = summary(results, options(seeds=3))
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["1.00000", "3.00000", "6.00000"]
    assert cells[2] == ["4.00000", "5.00000", "6.00000"]
    joint = summary([[[1.0, 2.0, 3.0]]], options())
    assert [list(c.cells) for c in joint.columns][1] == ["1.00000", "2.00000", "3.00000"]


def test_seeds_repeat_and_differ(tmp_path):
    runs = [
        learn(options(iterations=20), seed, tmp_path / str(i)) for i, seed in enumerate([0, 0, 1])
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_errors(tmp_path):
    """Those of von Oswald et al. 2020, in the authors' setting."""
    results = [learn(ToyRegressionOptions(), seed, tmp_path / str(seed)) for seed in range(5)]
    finals = np.median([errors[-1] for errors in results], axis=0)
    assert (finals <= [0.0042, 0.0024, 0.0061]).all(), finals


TARGET = main_network(options(), 1)


@pytest.mark.parametrize(
    ("chosen", "kind", "attributes"),
    [
        ({"beta": 3.0}, FixedTarget, {"beta": 3.0, "lookahead": "optimizer"}),
        ({"lookahead": None}, FixedTarget, {"lookahead": None}),
        ({"lookahead": "sgd"}, FixedTarget, {"lookahead": "sgd"}),
        ({"differentiable_lookahead": True}, FixedTarget, {"differentiable_lookahead": True}),
        ({"train_previous_embeddings": True}, FixedTarget, {"train_previous_embeddings": True}),
        ({"targets": "stored"}, FixedTarget, {"targets": "stored"}),
        ({"mask_heads": True}, FixedTarget, {"mask_heads": True}),
        (
            {"fisher_weights": True, "n_fisher": 7},
            FixedTarget,
            {"needs_fisher": True, "n_fisher": 7},
        ),
        ({"tasks_per_step": 2}, FixedTarget, {"tasks_per_step": 2}),
        ({"regularizer": "jacobian", "tasks_per_step": 2}, Jacobian, {"tasks_per_step": 2}),
        ({"regularizer": "value-preserving", "beta": 2.0}, ValuePreserving, {"beta": 2.0}),
        (
            {"regularizer": "ewc", "gamma": 0.9, "n_fisher": 7},
            EWC,
            {"gamma": 0.9, "n_fisher": 7, "online": True},
        ),
        ({"regularizer": "ewc", "online": False}, EWC, {"online": False}),
    ],
)
def test_options_reach_the_regularizer(chosen, kind, attributes):
    regularizer = HypernetOptions(**chosen).make_regularizer()
    assert type(regularizer) is kind
    assert {name: getattr(regularizer, name) for name in attributes} == attributes


def test_options_reach_the_model():
    chosen = HypernetOptions(
        embedding_dim=3,
        hidden=(7,),
        activation="Tanh",
        chunk_size=20,
        chunk_embedding_dim=4,
        task_specific_chunk_embeddings=True,
        dropout=0.3,
        spectral_norm=True,
        multi_head=True,
    )
    model = chosen.make_model(TARGET)
    assert isinstance(model, HyperModel)
    assert model.multi_head
    hypernetwork = model.hypernetwork
    assert isinstance(hypernetwork, ChunkedHyperNetwork)
    assert (hypernetwork.embedding_dim, hypernetwork.chunk_size) == (3, 20)
    assert hypernetwork.task_specific_chunk_embeddings
    kinds = [type(m) for m in hypernetwork.trunk]
    assert kinds[1:] == [nn.Tanh, nn.Dropout]
    assert hypernetwork.trunk[0].weight.shape == (7, 4 + 3)
    assert hasattr(hypernetwork.trunk[0], "parametrizations")
    whole = HypernetOptions(init="hyperfan").make_model(TARGET).hypernetwork
    assert whole.n_chunks == 1
    assert not whole.output.bias.any()  # of hyperfan


def test_options_reach_the_strategy(tmp_path):
    chosen = HypernetOptions(clip_grad_norm=2.0, train_from_scratch=True, regularizer="none")
    strategy = toy_regression.make_strategy(options(hypernet=chosen), 10, tmp_path)
    assert clippings_of(strategy) == [Clipping(norm=2.0)]
    assert strategy.train_from_scratch
    assert strategy.regularizer is None
    rate = HypernetOptions(learning_rate=0.5)
    strategy = toy_regression.make_strategy(options(hypernet=rate), 10, tmp_path)
    assert strategy.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        options(**arguments)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"regularizer": "jacobian", "targets": "stored"}, "targets=stored.*'jacobian'"),
        ({"regularizer": "ewc", "mask_heads": True}, "mask_heads=True does not go with.*'ewc'"),
        ({"gamma": 0.5}, "gamma=0.5 does not go with regularizer='fixed-target'"),
        ({"regularizer": "none", "lookahead": None}, "lookahead=None does not go with"),
        ({"task_specific_chunk_embeddings": True}, "needs a chunk_size"),
    ],
)
def test_options_that_would_not_be_used_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        HypernetOptions(**chosen)


def test_from_scratch_does_not_go_with_a_regularizer(tmp_path):
    chosen = HypernetOptions(train_from_scratch=True)
    with pytest.raises(ValueError, match="train_from_scratch=True does not go with a regularizer"):
        toy_regression.make_strategy(options(hypernet=chosen), 10, tmp_path)


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        tyro.cli(ToyRegressionOptions, args=["--help"], description=toy_regression.__doc__)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(w in printed for w in ("--method", "--hypernet.beta", "--hypernet.mask-heads"))
