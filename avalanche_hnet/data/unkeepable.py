"""The refusal of data that cannot be kept in memory."""


class UnkeepableError(ValueError):
    """A data set cannot be kept: it is random, too large, or not made of tensors of one shape.

    It can still be read sample by sample. Errors of the data set itself are none of these.
    """
