"""The refusal of data that cannot be kept in memory."""


class UnkeepableError(ValueError):
    """A data set cannot be kept: it is random, or too large.

    It can still be read sample by sample. Errors of the data set itself are none of these.
    """


class UnsplittableError(UnkeepableError):
    """Batches of a data set are more than their samples put together, so they cannot be cut anew.

    Its own loader serves it as ever.
    """
