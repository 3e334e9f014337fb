"""Figure of docs/explanation/posterior.md: what γ forgets, and a prior that counts once.

``python docs/figures/posterior.py`` draws it anew, in a second.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_hnet import GaussianPosterior

PICTURE = Path(__file__).parents[1] / "explanation" / "posterior.png"


def draw_forgetting(ax: Axes) -> None:
    """Precision of a weight of which each experience says as much as the prior."""
    weight, active = {"w": torch.zeros(1)}, {"w": torch.tensor([True])}
    weight["w"].requires_grad_()
    for gamma in (1.0, 0.8, 0.5, 0.0):
        posterior, precisions = GaussianPosterior(prior_variance=1.0), [1.0]
        for _ in range(10):
            posterior.update(weight, {"w": torch.tensor([0.1])}, 10, active, gamma)
            precisions.append(posterior.precision["w"].item())
        ax.plot(precisions, "o-", markersize=4, label=f"γ = {gamma:g}")
    ax.axhline(1, color="black", linestyle=":", label="prior, 1/σ²")
    ax.set_xlabel("experiences")
    ax.set_ylabel("precision Λ of a weight")
    ax.set_ylim(0, None)
    ax.legend()


def draw_prior(ax: Axes) -> None:
    """Posterior of the slope of a line after five experiences of three points each."""
    torch.manual_seed(1)
    x = torch.randn(5, 3)
    y = 2 * x + torch.randn(5, 3)
    active = {"w": torch.tensor([True])}
    posterior, anew = GaussianPosterior(prior_variance=1.0), [0.0, 0.0]
    mean, precision = torch.zeros(1), torch.ones(1)
    for inputs, targets in zip(x, y, strict=True):
        information = inputs.square().sum()
        # The minimum of the loss, which is quadratic here: with the posterior's mean and precision,
        mean = (precision * mean + inputs @ targets) / (precision + information)
        weight = {"w": mean.clone().requires_grad_()}
        posterior.update(weight, {"w": information[None] / 3}, 3, active)
        mean, precision = posterior.mean["w"], posterior.precision["w"].clone()
        # and with another prior N(0, 1) on top of them each time.
        total = anew[1] + 1 + float(information)
        anew = [(anew[1] * anew[0] + float(inputs @ targets)) / total, total]
    exact_precision = 1 + x.square().sum()
    exact_mean = (x * y).sum() / exact_precision

    w = torch.linspace(0.5, 3, 400)
    _draw_normal(ax, w, float(exact_mean), float(exact_precision), "exact", "-")
    _draw_normal(ax, w, float(mean), float(precision), "one experience after the other", "--")
    _draw_normal(ax, w, *anew, "the same, the prior added each time", ":")
    ax.plot([2], [0], "k^", markersize=8, clip_on=False, linestyle="none", label="true slope")
    ax.set_xlabel("slope w")
    ax.set_ylabel("density")
    ax.set_ylim(0, 2.3)
    ax.legend(loc="upper left", fontsize=8)


def _draw_normal(
    ax: Axes, at: torch.Tensor, mean: float, precision: float, label: str, style: str
) -> None:
    density = torch.distributions.Normal(mean, precision**-0.5).log_prob(at).exp()
    ax.plot(at.numpy(), density.numpy(), style, linewidth=2.2, label=label)


def main() -> None:
    """Draw and save."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_forgetting(left)
    left.set_title("γ forgets data, never the prior", fontsize=11)
    draw_prior(right)
    right.set_title("the prior counts once", fontsize=11)
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
