"""What keeps a hypernetwork from forgetting the weights of earlier tasks."""

from avalanche_hnet.core.regularizers.base import Experience, FisherSource, Penalty, Regularizer
from avalanche_hnet.core.regularizers.ewc import EWC
from avalanche_hnet.core.regularizers.fixed_target import FixedTarget
from avalanche_hnet.core.regularizers.jacobian import Jacobian
from avalanche_hnet.core.regularizers.output import OutputRegularizer
from avalanche_hnet.core.regularizers.step import StepRegularizer
from avalanche_hnet.core.regularizers.value_preserving import ValuePreserving

__all__ = [
    "EWC",
    "Experience",
    "FisherSource",
    "FixedTarget",
    "Jacobian",
    "OutputRegularizer",
    "Penalty",
    "Regularizer",
    "StepRegularizer",
    "ValuePreserving",
]
