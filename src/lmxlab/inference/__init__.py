"""Decoding beyond one token after the other: speculation, search, and choosing among several answers."""

from lmxlab.inference.beam_search import beam_search
from lmxlab.inference.drafters import Drafter, ModelDrafter, PromptLookupDrafter
from lmxlab.inference.reward_model import RewardModel
from lmxlab.inference.sampling import best_of_n, majority_vote
from lmxlab.inference.speculative import speculative_decode

__all__ = [
    "Drafter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "RewardModel",
    "beam_search",
    "best_of_n",
    "majority_vote",
    "speculative_decode",
]
