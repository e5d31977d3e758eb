"""What can be wrong with somebody's expert, library or mix."""


class AdapterError(ValueError):
    """Root of the errors that a user of this package can cause; the message says what would have worked."""


class ExpertError(AdapterError):
    """An expert cannot be represented exactly, or does not fit: it is refused whole."""


class LibraryError(AdapterError):
    """A library folder cannot be used."""


class MixError(AdapterError):
    """Coefficients outside the rules of a mix."""


class MergeError(AdapterError):
    """A merge that cannot be made of these experts, weights or options."""
