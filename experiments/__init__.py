"""Short scripts that show the package off; run them as ``python -m experiments.NAME``."""

import warnings

# Avalanche imports a solver of which the experiments make no use.
warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
