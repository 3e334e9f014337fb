"""Random models against single samples in float64."""

import warnings

import pytest
import torch

from avalanche_hnet import diagonal_fisher
from tests.support.random_models import random_case, single_samples

N_CASES = 500
LONG = range(10_000, 15_000)
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 0.15}


def problem(seed):
    """What is wrong with the Fisher of the model of this seed, or None."""
    case = random_case(seed)
    right = single_samples(case, torch.float64)
    dtype = next(case.model.parameters()).dtype
    eps = torch.finfo(case.dtype).eps
    alone = right if dtype == torch.float64 else single_samples(case, dtype)
    before = [(n, p, p.detach().clone()) for n, p in case.model.named_parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not right:
                with pytest.raises(ValueError, match="requires grad"):
                    diagonal_fisher(case.model, case.batches)
                return None
            values = diagonal_fisher(case.model, case.batches)
        except Exception as error:
            return f"{case.name}: {type(error).__name__}: {error}"
    after = [*case.model.named_parameters()]
    for (name, parameter, value), (_, now) in zip(before, after, strict=True):
        if now is not parameter or not torch.equal(now, value):
            return f"{case.name}: {name} has been changed"
    if values.keys() != right.keys():
        return f"{case.name}: Fisher of {values.keys()}, not {right.keys()}"
    layers = {}
    for name, square in right.items():
        layer = name.rpartition(".")[0]
        layers[layer] = max(layers.get(layer, 0), float(square.sqrt().sum()))
    for name in right:
        # Gradients that cancel within a layer leave rounding.
        floor = eps**0.8 * layers[name.rpartition(".")[0]]
        root = right[name].sqrt()
        error, of_type = ((v[name].double().sqrt() - root).abs().sum() for v in (values, alone))
        tolerance = TOLERANCE[case.dtype] * root.sum()
        if not error <= 3 * of_type + tolerance + floor:
            return (
                f"{case.name}: {name} is off by {error / root.sum():.2g}, of which the type "
                f"explains {of_type / root.sum():.2g}"
            )
    return None


def check(seeds):
    problems = [p for p in map(problem, seeds) if p]
    print(f"{len(seeds)} random models, seeds {seeds[0]} to {seeds[-1]}; {len(problems)} wrong")
    assert not problems, "\n".join(problems[:20])


@pytest.mark.parametrize("part", range(10))
def test_random_models_equal_single_samples(part):
    seeds = range(N_CASES)[part::10]
    assert len(seeds) == N_CASES // 10
    check(seeds)


@pytest.mark.slow
def test_many_random_models_equal_single_samples():
    check(LONG)
