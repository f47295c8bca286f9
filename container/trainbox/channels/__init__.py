"""The former name of `trainbox.data`, kept for one version."""

from trainbox.data import *  # noqa: F403 - the names of `__all__`
from trainbox.data import __all__ as __all__
