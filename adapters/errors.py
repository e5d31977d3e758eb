"""What can be wrong with somebody's expert, library, mix or merge.

AdapterError
    ExpertError
    LibraryError
    MixError
    MergeError
"""


class AdapterError(ValueError):
    """The root of the errors that a user can cause; the message says what would have worked."""


class ExpertError(AdapterError):
    """An expert cannot be represented exactly or does not fit, and is refused whole."""


class LibraryError(AdapterError):
    """A library, or something in its folder, cannot be used."""


class MixError(AdapterError):
    """Coefficients break the rules of a mix."""


class MergeError(AdapterError):
    """A merge cannot be made of these experts, weights or options."""
