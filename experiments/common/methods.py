"""The methods that the experiments compare.

To add one to all comparisons, add an entry to ``METHODS``. Its name is then a choice of the
command lines, it is among the default methods of split_digits, split_mnist and permuted_mnist, and
gaussian_mixture and toy_regression can be asked for it. An example, with a plugin of Avalanche's::

    "si": Method(
        plugin=lambda strength, **_: SynapticIntelligencePlugin(strength),
        strengths={"split-digits": {"task": 1.0, "domain": 0.1, "class": 0.1}, ...},
    ),

Nothing else is needed but ``python -m tests.experiments.test_command_lines``, which writes down
that the command lines are meant to have changed. For a strength on the command line, give the
settings of an experiment a field named after the method, such as ``si_lambda``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet import HypernetTemplate, PriorEWCPlugin
from avalanche_hnet.core.posterior.structure import Structure
from experiments.common.settings import Scenario


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a method learns: by default plainly, with an ordinary network.

    Attributes:
        plugin: makes what protects earlier experiences, from the strength and, by name, details
            that the experiment knows: ``prior_variance``, and what else :class:`PriorEWCPlugin`
            takes.
        strengths: for each experiment and scenario, of the plugin; none if it has no strength.
        strategy: called with the arguments of Avalanche's strategies, and if the method is
            ``through_hypernetwork``, with those of :class:`HypernetTemplate`.
        through_hypernetwork: the network's weights are generated, for each task its own.
        at_once: all experiences are trained on together.
        has_posterior: of the plugin, for predictions that take it into account.
    """

    plugin: Callable[..., SupervisedPlugin] | None = None
    strengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    strategy: Callable[..., SupervisedTemplate] = Naive
    through_hypernetwork: bool = False
    at_once: bool = False
    has_posterior: bool = False

    def strength(self, experiment: str, scenario: str) -> float | None:
        """The default in an experiment; None for methods that have no strength.

        Raises:
            ValueError: if the method needs a strength and has none there.
        """
        if not self.strengths:
            return None
        try:
            return self.strengths[experiment][scenario]
        except KeyError:
            raise ValueError(
                f"strengths must hold one for {experiment}, scenario {scenario}, got those for "
                f"{', '.join(self.strengths)}; add it to the method's entry in {__name__}"
            ) from None

    def plugins(self, strength: float | None, **details: Any) -> list[SupervisedPlugin]:
        """What is added to the strategy's plugins."""
        return [] if self.plugin is None else [self.plugin(strength, **details)]


def _everywhere(strength: float) -> dict[str, float]:
    return dict.fromkeys(get_args(Scenario), strength)


# Strengths were chosen on held-out training data (--validate).
# Split digits, seeds 0 to 2. EWC: of 1, 10, ..., 10^6 (task: to 10^8). PriorEWC: of 10, 100, ...,
# 10^6 (task, domain: to 10^7) with variances of 1 and 10^6 (task, domain: also 100 and 10^4). In
# the class scenario no setting gets beyond 22 %.
# Split MNIST, in the task scenario with seed 0: for EWC of 1000, 10^4, 10^5 and 10^6, for PriorEWC
# of 10, 100, 1000 and 10^4 with variances of 1, 100 and 10^4. The other scenarios take the same.
# Permuted MNIST, in the domain scenario with seed 0: for EWC of 100, 1000, 10^4 and 10^5, for
# PriorEWC of 30, 100, 300 and 1000 with prior variances of 0.3, 1 and 100. The other scenarios take
# the same. PriorEWC with Kronecker factors: split digits, of 1, 10, 100 and 1000 with variances of
# 1, 100 and 10^4; Permuted MNIST, of 1, 3, 10 and 30 with a variance of 1 and hidden layers of 256,
# 256.
METHODS: dict[str, Method] = {
    "naive": Method(),
    "ewc": Method(
        plugin=lambda strength, **_: EWCPlugin(strength, mode="online", decay_factor=1.0),
        strengths={
            "split-digits": {"task": 1e6, "domain": 1e5, "class": 1e5},
            "split-mnist": _everywhere(1e5),
            "permuted-mnist": _everywhere(1e4),
        },
    ),
    "prior-ewc": Method(
        plugin=PriorEWCPlugin,
        strengths={
            "split-digits": {"task": 1e5, "domain": 1e4, "class": 1e4},
            "split-mnist": _everywhere(100.0),
            "permuted-mnist": _everywhere(100.0),
        },
        has_posterior=True,
    ),
    "prior-ewc-kron": Method(
        plugin=partial(PriorEWCPlugin, structure="kronecker", fisher="exact"),
        strengths={
            "split-digits": {"task": 100.0, "domain": 100.0, "class": 1000.0},
            "split-mnist": _everywhere(10.0),
            "permuted-mnist": _everywhere(10.0),
        },
        has_posterior=True,
    ),
    "hypernet": Method(strategy=HypernetTemplate, through_hypernetwork=True),
    "joint": Method(strategy=JointTraining, at_once=True),
}

# The methods whose posteriors have these structures.
STRUCTURES: dict[Structure, str] = {"diagonal": "prior-ewc", "kronecker": "prior-ewc-kron"}

# For the command line, which offers the names as choices.
if TYPE_CHECKING:
    MethodName: TypeAlias = str
else:
    MethodName = Literal[tuple(METHODS)]


def with_structure(methods: tuple[str, ...], structure: Structure | None) -> tuple[str, ...]:
    """The methods, with PriorEWC by the posterior of this structure alone; None: as they are."""
    if structure is None:
        return methods
    chosen = (STRUCTURES[structure] if m in STRUCTURES.values() else m for m in methods)
    return tuple(dict.fromkeys(chosen))


def all_but(*names: str) -> dict[str, Method]:
    """The other methods, for experiments that have an order or methods of their own."""
    return {name: method for name, method in METHODS.items() if name not in names}
