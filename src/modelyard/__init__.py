"""Modelyard: one OpenAI-compatible endpoint for every model you own."""

from importlib.util import find_spec

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether requests run through compiled code here; else the sources are interpreted.

    What is compiled when a wheel is built is a list in pyproject.toml; this module stands for all.
    """
    found = find_spec("modelyard.http.exchange")
    return found is not None and not str(found.origin).endswith(".py")
