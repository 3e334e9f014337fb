"""Options that several experiments have, and checks that stand in the type of an option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tyro.conf import arg


@dataclass(frozen=True)
class Must:
    """What an option's value must do or be; None, which stands for a default, always may.

    ``Annotated[float, Must("be positive", lambda v: v > 0)]`` is the type of a checked option.
    """

    do: str
    holds: Callable[[Any], bool]


class Settings:
    """Base of the experiments' settings: frozen dataclasses whose options check themselves."""

    def __post_init__(self) -> None:
        """Refuse values that the types of the options rule out.

        Raises:
            ValueError: naming the option, its value and what would be right.
        """
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for must in getattr(kind, "__metadata__", ()):
                if isinstance(must, Must) and value is not None and not must.holds(value):
                    raise ValueError(f"{name} must {must.do}, got {value}")


_AT_LEAST_ONE = Must("be at least 1", lambda value: value >= 1)
_AT_LEAST_ZERO = Must("be at least 0", lambda value: value >= 0)

Count = Annotated[int, _AT_LEAST_ONE]
OptionalCount = Annotated[int | None, _AT_LEAST_ONE]
Seed = Annotated[int, _AT_LEAST_ZERO]
Positive = Annotated[float, Must("be positive", lambda value: value > 0)]
NotNegative = Annotated[float, _AT_LEAST_ZERO]
OptionalNotNegative = Annotated[float | None, _AT_LEAST_ZERO]
Widths = Annotated[
    tuple[int, ...],
    Must("be widths of at least 1", lambda widths: all(width >= 1 for width in widths)),
]
EACH_ONCE = Must("name at least one, each once", lambda names: 0 < len(names) == len(set(names)))

ActivationName = Literal["ReLU", "Sigmoid", "Tanh", "ELU"]
Scenario = Literal["task", "domain", "class"]
Head = Literal["growing", "fixed", "separate"]

InMemory = Annotated[
    bool,
    arg(
        help="Read the data once and serve them from memory, rather than through Avalanche's "
        "loaders."
    ),
]
Output = Annotated[Path, arg(help="Folder in which the run makes a folder of its own.")]
RunFolder = Annotated[
    Path | None,
    arg(
        help="The run's own folder, instead of a new one in that of --output. Parts that were "
        "finished there by a run with the same options are not run again."
    ),
]
DatasetRoot = Annotated[
    Path | None,
    arg(help="Folder that holds MNIST/raw, or where to download it. Default: Avalanche's."),
]
