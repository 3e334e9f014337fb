import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_hnet import GaussianPosterior

pytestmark = pytest.mark.usefixtures("float64")


SHAPES = {"a": (3, 2), "b": (4,)}


def parameters(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def random_masks(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(s, generator=generator) < 0.5 for n, s in shapes.items()}


def squares(seed, shapes=SHAPES):
    return {n: p.detach() ** 2 for n, p in parameters(seed, shapes).items()}


@given(
    gamma=st.floats(0, 1),
    prior_variance=st.floats(0.01, 100),
    n_samples=st.lists(st.integers(1, 1000), min_size=1, max_size=4),
)
def test_updates_and_penalties_follow_the_equations_element_by_element(
    gamma, prior_variance, n_samples
):
    torch.set_default_dtype(torch.float64)
    posterior = GaussianPosterior(prior_variance)
    precision, mean, known = ({n: {} for n in SHAPES} for _ in range(3))
    for experience, n in enumerate(n_samples):
        phi, fisher = parameters(experience), squares(100 + experience)
        active = random_masks(experience)
        posterior.align(phi)

        prior = ewc = 0.0
        for name in SHAPES:
            for i, value in enumerate(phi[name].flatten().tolist()):
                if i in known[name]:
                    ewc += precision[name][i] * (value - mean[name][i]) ** 2 / 2
                elif active[name].flatten()[i]:
                    prior += value**2 / (2 * prior_variance)
        assert posterior.prior_penalty(phi, active).item() == pytest.approx(prior, rel=1e-12)
        assert posterior.ewc_penalty(phi).item() == pytest.approx(ewc, rel=1e-12)

        posterior.update(phi, fisher, n, active, gamma)
        for name in SHAPES:
            for i, value in enumerate(phi[name].flatten().tolist()):
                is_active = bool(active[name].flatten()[i])
                data = n * fisher[name].flatten()[i].item() if is_active else 0.0
                if i in known[name]:
                    old = precision[name][i]
                    precision[name][i] = 1 / prior_variance + gamma * (old - 1 / prior_variance)
                    precision[name][i] += data
                    mean[name][i] = value
                elif is_active:
                    known[name][i] = True
                    precision[name][i] = 1 / prior_variance + data
                    mean[name][i] = value
            assert posterior.known[name].flatten().nonzero().flatten().tolist() == sorted(
                known[name]
            )
            for i, expected in precision[name].items():
                assert posterior.precision[name].flatten()[i].item() == pytest.approx(
                    expected, rel=1e-12
                )
                assert posterior.mean[name].flatten()[i].item() == mean[name][i]


def test_penalty_gradients_equal_autograd_of_the_formula():
    posterior = GaussianPosterior(0.3)
    posterior.align(parameters(0))
    posterior.update(parameters(0), squares(1), 10, random_masks(0))
    phi, active = parameters(2), random_masks(3)
    (posterior.prior_penalty(phi, active) + 5 * posterior.ewc_penalty(phi)).backward()
    for name, p in phi.items():
        free = p.detach().clone().requires_grad_()
        known = posterior.known[name]
        new = active[name] & ~known
        ewc = (posterior.precision[name] * (free - posterior.mean[name]) ** 2)[known].sum() / 2
        (5 * ewc + (free[new] ** 2).sum() / 0.6).backward()
        torch.testing.assert_close(p.grad, free.grad, rtol=1e-12, atol=0)


def test_what_is_not_known_holds_the_prior():
    posterior = GaussianPosterior(0.25)
    posterior.align(parameters())
    assert not posterior.known["a"].any()
    assert (posterior.precision["a"] == 4).all()
    assert (posterior.mean["a"] == 0).all()


def test_initial_prior_mean_is_where_a_parameter_first_was():
    posterior, phi = GaussianPosterior(0.5, "initial"), parameters()
    posterior.align(phi)
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    assert posterior.prior_penalty(phi, everything) == 0
    start = {n: p.detach().clone() for n, p in phi.items()}
    with torch.no_grad():
        phi["b"] += 1
    assert posterior.prior_penalty(phi, everything).item() == pytest.approx(4)
    posterior.update(phi, {}, 1, everything)
    posterior.forget()
    assert torch.equal(posterior.mean["b"], start["b"])
    assert not posterior.known["b"].any()
    assert (posterior.precision["b"] == 2).all()


def test_sample_has_the_posteriors_mean_and_variance():
    posterior = GaussianPosterior(2.0)
    posterior.align(parameters())
    posterior.update(parameters(), squares(1), 7, random_masks(0))
    generator = torch.Generator().manual_seed(0)
    draws = [posterior.sample(generator) for _ in range(4000)]
    for name in SHAPES:
        values = torch.stack([d[name] for d in draws])
        std = posterior.precision[name] ** -0.5
        error = (values.mean(0) - posterior.mean[name]) / std
        assert error.abs().max() < 5 / 4000**0.5
        torch.testing.assert_close(values.std(0), std, rtol=0.05, atol=0)


def test_parameters_that_appear_grow_and_leave():
    posterior = GaussianPosterior(1.0, "initial")
    assert posterior.align(parameters())
    assert not posterior.align(parameters())
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    posterior.update(parameters(), squares(1), 10, everything)
    before = {n: t.clone() for n, t in posterior.precision.items()}

    later = parameters(1, {"a": (5, 2), "c": (2,)})
    assert posterior.align(later)
    assert set(posterior.mean) == {"a", "c"}
    assert torch.equal(posterior.precision["a"][:3], before["a"])
    assert torch.equal(posterior.mean["a"][:3], parameters()["a"])
    assert posterior.known["a"][:3].all()
    assert not posterior.known["a"][3:].any()
    assert torch.equal(posterior.mean["a"][3:], later["a"][3:])
    assert (posterior.precision["a"][3:] == 1).all()


def test_frozen_parameters_are_left_out_until_they_require_grad():
    posterior, phi = GaussianPosterior(), parameters()
    phi["a"].requires_grad_(False)
    posterior.align(phi)
    assert set(posterior.mean) == {"b"}
    posterior.update(phi, {}, 1, {"b": torch.ones(4, dtype=torch.bool)})
    phi["a"].requires_grad_(True)
    phi["b"].requires_grad_(False)
    posterior.align(phi)
    assert set(posterior.mean) == {"a", "b"}
    assert posterior.known["b"].all()


def test_posterior_follows_the_models_type():
    posterior = GaussianPosterior()
    posterior.align(parameters())
    posterior.update(parameters(), squares(1), 7, random_masks(0))
    expected = posterior.precision["a"].clone()
    single = {n: nn.Parameter(p.detach().float()) for n, p in parameters().items()}
    assert posterior.align(single)
    assert posterior.precision["a"].dtype == torch.float32
    assert posterior.known["a"].dtype == torch.bool
    torch.testing.assert_close(posterior.precision["a"], expected.float())


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (3, 2, 1), (3,), ()])
def test_other_shapes_are_refused_and_nothing_changes(shape):
    posterior = GaussianPosterior()
    posterior.align(parameters())
    with pytest.raises(ValueError, match=r"'a' has shape \(3, 2\)"):
        posterior.align({"c": nn.Parameter(torch.zeros(1)), "a": nn.Parameter(torch.zeros(shape))})
    assert set(posterior.mean) == {"a", "b"}


def test_state_survives_saving(tmp_path):
    posterior = GaussianPosterior(0.5, "initial")
    posterior.align(parameters())
    posterior.update(parameters(3), squares(1), 10, random_masks(0))
    torch.save(posterior.state_dict(), tmp_path / "posterior.pt")
    restored = GaussianPosterior(0.5, "initial")
    restored.load_state_dict(torch.load(tmp_path / "posterior.pt", weights_only=True))
    restored.align(parameters(3))
    for a, b in ((posterior, restored), (restored, posterior)):
        a.update(parameters(4), squares(5), 10, random_masks(6))
        b.update(parameters(4), squares(5), 10, random_masks(6))
    restored.forget()
    posterior.forget()
    for field in ("mean", "precision", "known", "prior_mean"):
        for name in SHAPES:
            assert torch.equal(
                posterior.state_dict()[field][name], restored.state_dict()[field][name]
            )


def test_loaded_state_is_a_copy():
    posterior, copy = GaussianPosterior(), GaussianPosterior()
    posterior.align(parameters())
    state = posterior.state_dict()
    copy.load_state_dict(state)
    copy.update(parameters(), squares(1), 10, random_masks(0))
    assert not posterior.known["a"].any()


def loaded():
    posterior = GaussianPosterior()
    posterior.align(parameters())
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    posterior.update(parameters(), {}, 1, everything)
    restored = GaussianPosterior()
    restored.load_state_dict(posterior.state_dict())
    return restored


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": (3, 2)}, "holds 'b', which the model does not have"),
        ({"a": (9, 9), "b": (4,)}, "'a'"),
    ],
)
def test_loaded_into_another_architecture_is_refused(shapes, message):
    posterior = loaded()
    with pytest.raises(ValueError, match=message):
        posterior.align(parameters(0, shapes))
    assert set(posterior.mean) == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("known"), "keys"),
        (lambda s: s.update(prior_variance=3.0), "prior_variance=3.0"),
        (lambda s: s.update(prior_mean_kind="initial"), "prior_mean='initial'"),
        (lambda s: s["known"].pop("a"), "known"),
    ],
)
def test_broken_state_is_refused(change, message):
    state = loaded().state_dict()
    change(state)
    posterior = GaussianPosterior()
    with pytest.raises(ValueError, match=message):
        posterior.load_state_dict(state)
    assert not posterior.mean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior_variance": 0.0}, "prior_variance must be positive and finite, got 0.0"),
        ({"prior_variance": -1.0}, "got -1.0"),
        ({"prior_variance": float("nan")}, "got nan"),
        ({"prior_mean": "random"}, "prior_mean must be one of .*'random'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianPosterior(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"fisher": {"b": torch.tensor([1.0, float("inf"), 0, 0])}}, "'b'] must be finite"),
        ({"fisher": {"b": torch.tensor([1.0, -1.0, 0, 0])}}, "'b'] must be finite"),
        ({"fisher": {"c": torch.zeros(1)}}, "fisher.'c'"),
        ({"active": {"b": torch.ones(2, dtype=torch.bool)}}, r"active.'b'. has shape .2,"),
    ],
)
def test_bad_update_is_refused_and_nothing_changes(arguments, message):
    posterior = loaded()
    before = posterior.precision["b"].clone()
    good = {
        "parameters": parameters(),
        "fisher": squares(1),
        "n_samples": 5,
        "active": {"b": torch.ones(4, dtype=torch.bool)},
    }
    with pytest.raises(ValueError, match=message):
        posterior.update(**(good | arguments))
    assert torch.equal(posterior.precision["b"], before)


def halves(dtype, shapes=SHAPES):
    return {n: nn.Parameter(p.detach().to(dtype)) for n, p in parameters(0, shapes).items()}


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALF
def test_precision_of_half_precision_weights_counts_on(dtype):
    """In bfloat16 it would stop at 256, and overflow at 65,504 in float16."""
    posterior, phi = GaussianPosterior(), halves(dtype)
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    fisher = {n: torch.full(s, 0.01, dtype=torch.float32) for n, s in SHAPES.items()}
    for _ in range(600):
        posterior.update(phi, fisher, 100, everything)
    torch.testing.assert_close(posterior.precision["a"], torch.full((3, 2), 601.0).float())
    posterior.update(phi, {n: f.to(dtype) for n, f in fisher.items()}, 10**8, everything)
    assert posterior.precision["a"][0, 0].item() == pytest.approx(1e6, rel=1e-2)


@HALF
@pytest.mark.parametrize("prior_mean", ["zero", "initial"])
def test_half_precision_weights_and_a_posterior_in_float32(dtype, prior_mean):
    posterior, phi = GaussianPosterior(0.5, prior_mean), halves(dtype)
    assert posterior.align(phi)
    assert not posterior.align(phi)
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    posterior.update(phi, {n: p.detach() ** 2 for n, p in phi.items()}, 7, everything)
    for tensors in (posterior.mean, posterior.precision, posterior.sample()):
        assert {t.dtype for t in tensors.values()} == {torch.float32}
    for name, p in phi.items():
        assert torch.equal(posterior.mean[name], p.detach().float())

    later = {n: nn.Parameter((p.detach() + 1).to(dtype)) for n, p in phi.items()}
    posterior.ewc_penalty(later).backward()
    for name, p in later.items():
        assert p.grad.dtype == dtype
        expected = posterior.precision[name] * (p.detach().float() - posterior.mean[name])
        torch.testing.assert_close(p.grad, expected.to(dtype))

    loaded = GaussianPosterior(0.5, prior_mean)
    loaded.load_state_dict(posterior.state_dict())
    with pytest.raises(ValueError, match="not at the mean of the loaded posterior"):
        loaded.align(later)
    assert not loaded.align(phi)
    grown = halves(dtype, {"a": (5, 2), "b": (4,)})
    assert loaded.align({**phi, "a": nn.Parameter(torch.cat([phi["a"], grown["a"][3:]]).detach())})
    assert loaded.mean["a"].shape == (5, 2)
    assert loaded.mean["a"].dtype == torch.float32


def test_a_state_that_was_kept_in_half_precision_goes_on_in_float32():
    posterior = GaussianPosterior()
    phi = halves(torch.bfloat16)
    posterior.align(phi)
    state = posterior.state_dict()
    del state["checksums"]  # which it had not, then
    for field in ("prior_mean", "mean", "precision"):
        state[field] = {n: t.bfloat16() for n, t in state[field].items()}
    posterior.load_state_dict(state)
    assert posterior.align(phi)
    assert {t.dtype for t in posterior.precision.values()} == {torch.float32}


def test_a_model_that_changes_its_type_keeps_its_posterior():
    posterior = GaussianPosterior()
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    posterior.update(halves(torch.float32), squares(1), 1000, everything)
    before = {n: t.clone() for n, t in posterior.precision.items()}
    posterior.align(halves(torch.bfloat16))
    for name, precision in before.items():
        assert torch.equal(posterior.precision[name], precision)


class Interrupted(dict):
    """Parameters of which the k-th look is interrupted."""

    def __init__(self, tensors, k):
        super().__init__(tensors)
        self.left = k

    def __getitem__(self, name):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(name)


@pytest.mark.parametrize("what", ["parameters", "fisher", "active"])
def test_an_interrupted_update_leaves_all_or_nothing(what):
    """Wherever the interrupt comes; a growing parameter and γ included."""
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    shapes = {"a": (5, 2), "b": (4,), "c": (2,)}
    n_interrupts = 0
    for k in range(100):
        posterior = GaussianPosterior(0.5)
        posterior.update(parameters(), squares(1), 10, everything)
        before = {
            field: dict(tensors) if isinstance(tensors, dict) else tensors
            for field, tensors in posterior.state_dict().items()
            if field != "checksums"
        }
        copies = {n: t.clone() for n, t in posterior.precision.items()}
        arguments = {
            "parameters": parameters(2, shapes),
            "fisher": squares(3, shapes),
            "active": {n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()},
        }
        arguments[what] = Interrupted(arguments[what], k)
        try:
            posterior.update(n_samples=20, gamma=0.5, **arguments)
        except KeyboardInterrupt:
            n_interrupts += 1
            after = posterior.state_dict()
            for field, tensors in before.items():
                if isinstance(tensors, dict):
                    assert tensors.keys() == after[field].keys()
                    assert all(after[field][n] is t for n, t in tensors.items())
            assert all(torch.equal(posterior.precision[n], t) for n, t in copies.items())
        else:
            break
    assert 2 < n_interrupts < 99
    expected = GaussianPosterior(0.5)
    expected.update(parameters(), squares(1), 10, everything)
    expected.update(
        parameters(2, shapes),
        squares(3, shapes),
        20,
        {n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()},
        0.5,
    )
    for name, precision in expected.precision.items():
        assert torch.equal(posterior.precision[name], precision)


def test_penalties_made_before_an_update_stay_as_they_were():
    posterior = GaussianPosterior()
    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    posterior.update(parameters(), squares(1), 10, everything)
    term, phi = posterior.ewc_term(), parameters(5)
    before = term(phi).item()
    posterior.update(phi, squares(2), 10, everything)
    assert term(phi).item() == before
    assert posterior.ewc_penalty(phi).item() == 0
    posterior.forget()
    assert term(phi).item() == before
