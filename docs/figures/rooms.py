"""Figure of docs/explanation/architecture.md: the rooms and who may import whom.

``python docs/figures/rooms.py`` draws it anew, in a second.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PICTURE = Path(__file__).parents[1] / "explanation" / "rooms.png"

# From the top down: rooms side by side do not know each other.
SHELL = [
    ["strategies", "metrics"],
    ["plugins"],
    ["models", "benchmarks"],
    ["data"],
]
CORE = [
    ["regularizers"],
    ["posterior", "hypernetworks"],
    ["fisher"],
    ["common"],
]
HEIGHT, GAP, LEFT, WIDTH = 0.62, 0.3, 0.6, 6.0


def draw_layers(ax: Axes, layers: list[list[str]], top: float, colour: str, prefix: str) -> float:
    """Draw layers from ``top`` down, with arrows between them; return where they end."""
    for number, rooms in enumerate(layers):
        width = (WIDTH - GAP * (len(rooms) - 1)) / len(rooms)
        for place, room in enumerate(rooms):
            left = LEFT + place * (width + GAP)
            draw_box(ax, left, top - HEIGHT, width, HEIGHT, colour)
            ax.text(left + width / 2, top - HEIGHT / 2, prefix + room, ha="center", va="center")
        top -= HEIGHT
        if number < len(layers) - 1:
            draw_arrow(ax, LEFT + WIDTH / 2, top, GAP)
            top -= GAP
    return top


def draw_box(
    ax: Axes, left: float, bottom: float, width: float, height: float, colour: str, zorder: int = 2
) -> None:
    """A box with round corners."""
    style = "round,pad=0,rounding_size=0.1"
    ax.add_patch(
        FancyBboxPatch((left, bottom), width, height, style, fc=colour, ec="0.35", zorder=zorder)
    )


def draw_frame(
    ax: Axes, margin: float, top: float, bottom: float, colour: str, zorder: int
) -> None:
    """A box around rooms."""
    draw_box(ax, LEFT - margin, bottom, WIDTH + 2 * margin, top - bottom, colour, zorder)


def draw_arrow(ax: Axes, x: float, top: float, length: float) -> None:
    """An arrow down: the upper imports the lower."""
    style = {"arrowstyle": "-|>", "color": "0.25", "lw": 1.4}
    ax.annotate("", (x, top - length), (x, top), arrowprops=style)


def main() -> None:
    """Draw and save."""
    figure = Figure(figsize=(6, 6.6), layout="constrained")
    ax = figure.subplots()
    middle = LEFT + WIDTH / 2
    draw_box(ax, LEFT, 0, WIDTH, HEIGHT, "#eeeeee")
    ax.text(middle, HEIGHT / 2, "experiments", ha="center", va="center")
    draw_arrow(ax, middle, 0, GAP)
    ax.text(LEFT, -GAP - 0.25, "avalanche_hnet", va="center", fontweight="bold")
    shell = draw_layers(ax, SHELL, -GAP - 0.5, "#dbe9f6", "")
    draw_arrow(ax, middle, shell, GAP)
    core = shell - GAP
    ax.text(LEFT, core - 0.25, "core: plain PyTorch, no Avalanche", va="center", fontweight="bold")
    bottom = draw_layers(ax, CORE, core - 0.5, "#d6ecc8", "core.")
    draw_frame(ax, 0.15, core, bottom - 0.15, "#f3f8ee", zorder=1)
    draw_frame(ax, 0.3, -GAP, bottom - 0.3, "#ffffff", zorder=0)
    ax.set_xlim(LEFT - 0.35, LEFT + WIDTH + 0.35)
    ax.set_ylim(bottom - 0.35, HEIGHT + 0.05)
    ax.set_aspect("equal")
    ax.set_axis_off()
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
