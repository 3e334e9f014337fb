"""What stands in the outputs of classes that a task does not have."""

# The logit of a class that a sample cannot have, in Avalanche's heads as in ours.
MASK_VALUE = -1000.0
