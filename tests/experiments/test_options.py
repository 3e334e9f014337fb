from dataclasses import replace

import pytest

from experiments.common.comparison.options import Options, with_strengths
from experiments.common.methods import METHODS
from experiments.split_digits import SplitDigitsOptions


def test_all_methods_are_the_default():
    assert set(Options().methods) == METHODS.keys()
    assert METHODS.keys() >= {"naive", "ewc", "prior-ewc", "hypernet", "joint"}


def test_all_scenarios_are_each_scenario_with_what_it_uses():
    options = Options(scenario="all", head="separate", criterion="confidence", prediction="map")
    task, domain, classes = options.by_scenario()
    assert [o.scenario for o in (task, domain, classes)] == ["task", "domain", "class"]
    assert [o.head for o in (task, domain, classes)] == [None, None, "separate"]
    assert [o.criterion for o in (task, domain, classes)] == ["entropy", *2 * ["confidence"]]
    assert classes.prediction == "map"
    assert Options(scenario="domain").by_scenario() == [Options(scenario="domain")]
    assert [o.heads for o in (task, domain, classes)] == ["task", "domain", "separate"]
    assert Options(scenario="class").heads == "growing"


@pytest.mark.parametrize(
    ("scenario", "head", "inferring"),
    [
        ("task", None, set()),
        ("domain", None, {"hypernet"}),
        ("class", None, {"hypernet"}),
        ("class", "fixed", {"hypernet"}),
        ("class", "separate", {*METHODS}),
    ],
)
def test_who_infers_tasks(scenario, head, inferring):
    options = Options(scenario=scenario, head=head)
    assert {m for m in options.methods if options.infers_tasks(m)} == inferring


def set_strengths(monkeypatch, **strengths):
    """Of the methods, in the comparison on split digits, for each scenario."""
    for name, of_scenarios in strengths.items():
        method = name.replace("_", "-")
        entry = replace(METHODS[method], strengths={"split-digits": of_scenarios})
        monkeypatch.setitem(METHODS, method, entry)


def test_separate_heads_have_the_strengths_of_the_task_scenario(monkeypatch):
    set_strengths(
        monkeypatch, ewc={"task": 1.0, "class": 3.0}, prior_ewc={"task": 2.0, "class": 4.0}
    )
    filled = with_strengths(SplitDigitsOptions(scenario="class", head="separate"))
    assert (filled.ewc_lambda, filled.prior_ewc_lambda) == (1.0, 2.0)


def test_strengths_that_are_given_are_kept(monkeypatch):
    set_strengths(monkeypatch, ewc={"task": 1.0}, prior_ewc={"task": 2.0})
    filled = with_strengths(SplitDigitsOptions(scenario="task", ewc_lambda=3.0))
    assert (filled.ewc_lambda, filled.prior_ewc_lambda) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("structure", "methods"),
    [
        (None, ("naive", "prior-ewc-kron", "prior-ewc")),
        ("diagonal", ("naive", "prior-ewc")),
        ("kronecker", ("naive", "prior-ewc-kron")),
    ],
)
def test_structure_chooses_among_the_methods(structure, methods):
    given = ("naive", "prior-ewc-kron", "prior-ewc")
    assert Options(methods=given, structure=structure).methods == methods
    assert Options(methods=("joint",), structure=structure).methods == ("joint",)


def test_each_structure_has_its_prior_and_strength():
    options = Options(
        prior_variance=2.0, prior_ewc_kron_variance=3.0, prior_ewc_lambda=4.0,
        prior_ewc_kron_lambda=5.0,
    )  # fmt: skip
    assert (options.variance("prior-ewc"), options.variance("prior-ewc-kron")) == (2.0, 3.0)
    assert (options.strength("prior-ewc"), options.strength("prior-ewc-kron")) == (4.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.0}, "dropout must be a probability below 1, got 1.0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"methods": ()}, "methods must name at least one"),
        ({"methods": ("naive", "naive")}, "each once"),
        ({"head": "fixed", "scenario": "domain"}, "head='fixed' needs scenario 'class'"),
        ({"criterion": "confidence"}, "criterion='confidence' is for tasks that are inferred"),
        (
            {"criterion": "agreement", "scenario": "domain"},
            "criterion='agreement' needs draws from a posterior",
        ),
        (
            {"prediction": "sample", "scenario": "class"},
            "prediction='sample' needs the method 'prior-ewc'",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"prior_ewc_lambda": -1.0}, "prior_ewc_lambda must be at least 0, got -1.0"),
        ({"n_fisher": 0}, "n_fisher must be at least 1, got 0"),
        ({"hidden": (10, 0)}, "hidden must be widths"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Options(**arguments)
