"""Settings of the classification of Gaussian modes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from avalanche_hnet import PriorEWCPlugin
from avalanche_hnet.core.posterior.predict import PredictionMethod
from avalanche_hnet.core.posterior.structure import Structure
from avalanche_hnet.core.posterior.task_criteria import InferenceCriterion
from experiments.common.hypernet import HypernetOptions
from experiments.common.methods import METHODS, Method, all_but, with_structure
from experiments.common.settings import (
    EACH_ONCE,
    ActivationName,
    Count,
    Head,
    InMemory,
    Must,
    NotNegative,
    Output,
    Positive,
    RunFolder,
    Scenario,
    Seed,
    Settings,
)

MODE_METHODS: dict[str, Method] = {
    "hypernet": METHODS["hypernet"],
    "prior-ewc": METHODS["prior-ewc"],
    "naive": METHODS["naive"],
    "separate": Method(plugin=PriorEWCPlugin),  # which for separate networks is the prior alone
    **all_but("hypernet", "prior-ewc", "naive", "ewc", "joint"),
}

if TYPE_CHECKING:
    ModeMethod: TypeAlias = str
else:
    ModeMethod = Literal[tuple(MODE_METHODS)]


def has_network_per_task(method: ModeMethod) -> bool:
    """Whether the method trains or generates one, rather than one for all tasks."""
    return method == "separate" or MODE_METHODS[method].through_hypernetwork


# Chosen on the benchmark's data of seed 1, in the class scenario with heads for each task, by the
# accuracy without task labels where that with them is 100 %. The hypernetwork, partly without
# looking ahead: ReLU, Tanh, Sigmoid and ELU (about 50 % with the first, 40 % and less with others);
# no prior (50 %), and variances of 250 and 25 (57 and 70 %), 2.5, 1 and 0.5 (93 to 96 %); strengths
# of 0.01 to 1, hidden layers of 10, 10 or 50, 50, and learning rates of 10^-4 to 10^-2, which
# matter little. PriorEWC: strengths of 1, 3 and 10 with a variance of 1 (36, 33 and 46 %), 1 and 3
# with a variance of 3 (43 and 33 %).


@dataclass(frozen=True, kw_only=True)
class GaussianMixtureOptions(Settings):
    """Settings of the classification of Gaussian modes."""

    methods: Annotated[tuple[ModeMethod, ...], EACH_ONCE] = ("hypernet", "prior-ewc")
    """Methods to compare: a hypernetwork, one network with PriorEWCPlugin or without protection,
    and a network of its own for each task (separate)."""
    scenario: Scenario = "class"
    """What is told and asked: task (the task label is given), domain (no task label, classes 0 and
    1 in every experience) or class (no task label, classes 0 to 5). Task labels are always there
    in training."""
    head: Head = "separate"
    """Of prior-ewc and naive in the class scenario: a head for each task, which is inferred, or
    one softmax that grows with the classes, or one over all six from the start."""
    structure: Structure | None = None
    """Of the posterior of PriorEWC among the methods, instead of both: diagonal (prior-ewc) or
    kronecker (prior-ewc-kron)."""
    criterion: InferenceCriterion = "entropy"
    """How the task is inferred: by the lowest entropy, the highest confidence or the best agreement
    of networks drawn from the posterior."""
    prediction: PredictionMethod = "linearized"
    """How prior-ewc predicts from its posterior where no task is told."""
    seeds: Count = 5
    """Number of repetitions, with the seeds 0, 1, ... for weights and the order of the data."""
    data_seed: Seed = 0
    """Of the benchmark's samples, the same in all repetitions."""
    hidden: Annotated[
        tuple[int, ...],
        Must("be widths of at least 1", lambda widths: min(widths, default=0) >= 1),
    ] = (10, 10)
    """Widths of the hidden layers of the network."""
    activation: ActivationName = "ReLU"
    """Activation of the network."""
    iterations: Count = 600
    """Training iterations per task."""
    batch_size: Count = 32
    """Samples per iteration, at most all 20 of the task."""
    learning_rate: Positive = 1e-2
    """Of Adam, which starts anew with each task."""
    ewc_lambda: NotNegative = 10.0
    """Strength of PriorEWC."""
    prior_variance: Annotated[
        float, Must("be positive and finite", lambda value: 0 < value < float("inf"))
    ] = 1.0
    """Variance of the Gaussian prior over the weights, those that the hypernetwork generates
    included. A large one is as good as none. Naive has none."""
    hypernet: HypernetOptions = field(
        default_factory=lambda: HypernetOptions(beta=0.1, hidden=(50, 50), learning_rate=3e-3)
    )
    """Settings of the hypernetwork. In the class scenario it always is multi-head."""
    in_memory: InMemory = True
    output: Output = Path("runs")
    run_folder: RunFolder = None

    def __post_init__(self) -> None:
        """Refuse what no run could use, and options that would not be used."""
        super().__post_init__()
        object.__setattr__(self, "methods", with_structure(self.methods, self.structure))
        self._refuse_unused()

    def is_told_tasks(self, method: ModeMethod) -> bool:
        """Whether the method's predictions change with the task label that it is given."""
        if has_network_per_task(method) or self.scenario == "task":
            return True
        return self.scenario == "class" and self.head == "separate"

    def infers_tasks(self, method: ModeMethod) -> bool:
        """Whether the method has to find out the task where the label is not given."""
        return self.is_told_tasks(method) and self.scenario != "task"

    def strength(self, method: ModeMethod) -> float | None:
        """Of what protects earlier tasks."""
        entry = MODE_METHODS[method]
        if entry.has_posterior or entry.plugin is PriorEWCPlugin:
            return self.ewc_lambda
        return entry.strength("gaussian-mixture", self.scenario)

    def _refuse_unused(self) -> None:
        if self.scenario == "task":
            self._refuse("head", "criterion", "prediction", because="scenario='task'")
        if self.scenario == "domain":
            self._refuse("head", because="scenario='domain', where there is one head")
        if all(has_network_per_task(m) for m in self.methods):
            self._refuse("head", because="methods that generate or train a network for each task")
        if not any(MODE_METHODS[m].has_posterior for m in self.methods):
            self._refuse("prediction", because="methods without a posterior")
        inferring = [m for m in self.methods if self.infers_tasks(m)]
        if not inferring:
            self._refuse("criterion", because="methods and heads that infer no task")
        lacking = [m for m in inferring if not MODE_METHODS[m].has_posterior]
        if self.criterion == "agreement" and (lacking or self.prediction == "map"):
            without = ", ".join(lacking) or "prediction='map'"
            raise ValueError(
                f"criterion='agreement' needs a posterior to draw networks from, got {without}; "
                "take entropy or confidence, or prior-ewc alone"
            )

    def _refuse(self, *names: str, because: str) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} is of no use to {because}")
