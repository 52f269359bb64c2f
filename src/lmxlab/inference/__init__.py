"""Decoding beyond one token after the other: speculation, search, and choosing among several answers."""

from lmxlab.inference.beam_search import beam_search
from lmxlab.inference.budget import BudgetRow, Meter, budget_table, compare_at_budget
from lmxlab.inference.drafters import Drafter, ModelDrafter, PromptLookupDrafter
from lmxlab.inference.mtp_drafter import MTPDrafter
from lmxlab.inference.refine import Critique, Refinement, model_critique, refine
from lmxlab.inference.reward_model import RewardModel
from lmxlab.inference.sampling import best_of_n, majority_vote
from lmxlab.inference.speculative import speculative_decode
from lmxlab.inference.tree_search import SearchResult, tree_search

__all__ = [
    "BudgetRow",
    "Critique",
    "Drafter",
    "MTPDrafter",
    "Meter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "Refinement",
    "RewardModel",
    "SearchResult",
    "beam_search",
    "best_of_n",
    "budget_table",
    "compare_at_budget",
    "majority_vote",
    "model_critique",
    "refine",
    "speculative_decode",
    "tree_search",
]
