"""Decoding beyond one token after the other: speculation, search, and choosing among several answers."""

from lmxlab.inference.drafters import Drafter, ModelDrafter, PromptLookupDrafter
from lmxlab.inference.speculative import speculative_decode

__all__ = [
    "Drafter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "speculative_decode",
]
