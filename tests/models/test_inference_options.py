"""The arguments of task inference stand in one place."""

from dataclasses import FrozenInstanceError
from inspect import signature

import pytest
from torch import nn

from avalanche_hnet import GaussianPosterior, TaskInference, TaskInferencePlugin
from avalanche_hnet.models.inference_options import InferenceOptions, takes_arguments_of


def test_signatures_are_those_of_the_options():
    of_options = [*signature(InferenceOptions).parameters.values()]
    of_model = [*signature(TaskInference).parameters.values()]
    assert [p.name for p in of_options[:2]] == ["criterion", "tasks"]
    assert of_model[0].name == "model"
    assert of_model[1:] == of_options
    assert [*signature(TaskInferencePlugin).parameters.values()] == of_options
    assert next(iter(signature(TaskInferencePlugin.__init__).parameters)) == "self"


def test_both_take_the_same_arguments():
    arguments = {"tasks": [1, 0], "posterior": GaussianPosterior(), "classes": {0: (2, 3)}}
    plugin = TaskInferencePlugin("agreement", n_samples=7, **arguments)
    inference = TaskInference(nn.Identity(), "agreement", n_samples=7, **arguments)
    assert plugin.options == inference.options
    assert plugin.options.tasks == (1, 0)
    assert plugin.options.classes == {0: [2, 3]}
    assert plugin.options.posterior is arguments["posterior"]
    assert plugin.options.method == "linearized"
    for too_much in (("entropy", [0]), ("entropy", {}, 3)):
        with pytest.raises(TypeError, match="positional argument"):
            TaskInferencePlugin(*too_much)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sure'"):
        TaskInferencePlugin(sure=True)


def test_options_cannot_be_changed():
    plugin = TaskInferencePlugin()
    with pytest.raises(FrozenInstanceError):
        plugin.options.criterion = "variance"


def test_a_method_takes_the_arguments_of_another_function():
    def pair(a: int, *, b: int = 2) -> tuple[int, int]:
        return a, b

    class Owner:
        @takes_arguments_of(pair)
        def __init__(self, both):
            """Keeps both."""
            self.both = both

    assert Owner(1).both == (1, 2)
    assert Owner(a=3, b=4).both == (3, 4)
    assert str(signature(Owner)) == "(a: int, *, b: int = 2)"
    assert Owner.__init__.__doc__ == "Keeps both."
