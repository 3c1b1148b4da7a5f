"""Modelyard: one OpenAI-compatible endpoint for every model you own."""

__version__ = "0.1.0"
