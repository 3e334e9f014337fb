"""Pictures of accuracy matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.common.comparison.results import Result, by_method
from experiments.common.spread import mean_and_spread


def draw_matrices(results: Sequence[Result], title: str, path: Path) -> None:
    """One panel per method: mean accuracy on each experience after training on each."""
    groups = by_method(results)
    n = len(results[0].matrix[-1])
    side = max(2.6, 0.42 * n)
    figure = Figure(figsize=(side * len(groups) + 1.2, side + 1.2), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    low = min(np.min(r.matrix[-1]) for r in results)
    for ax, (method, group) in zip(axes, groups.items(), strict=True):
        matrix = np.mean([r.matrix for r in group], axis=0)
        rows = len(matrix)
        shown = np.where(np.tri(rows, n, n - rows, dtype=bool), matrix, np.nan)
        image = ax.imshow(shown, vmin=10 * (low // 10), vmax=100, cmap="viridis", aspect="equal")
        for k, j in np.argwhere(~np.isnan(shown)):
            dark = shown[k, j] < (10 * (low // 10) + 100) / 2
            ax.text(
                j,
                k,
                f"{shown[k, j]:.0f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=7,
            )
        ax.set_title(f"{method}\n{mean_and_spread([r.average for r in group])} %", fontsize=9)
        ax.set_xticks(range(n), [str(j) for j in range(n)])
        ax.set_yticks(range(rows), ["all"] if rows == 1 else [str(k) for k in range(rows)])
        ax.set_xlabel("experience")
    axes[0].set_ylabel("after training on")
    figure.colorbar(image, ax=axes, label="accuracy in %", shrink=0.8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
