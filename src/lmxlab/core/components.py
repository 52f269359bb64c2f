"""The tables of mixers and of feed-forward networks, with those that stand in files of their own."""

from lmxlab.core.attention import attention_registry
from lmxlab.core.deltanet import GatedDeltaNet
from lmxlab.core.dsa import DSA
from lmxlab.core.ffn import ffn_registry
from lmxlab.core.mamba1 import Mamba1
from lmxlab.core.mamba2 import Mamba2
from lmxlab.core.mamba3 import Mamba3
from lmxlab.core.mla import MLA
from lmxlab.core.moe import LatentMoEFFN, MoEFFN, SharedExpertMoEFFN
from lmxlab.core.parallel_mixer import GQAMamba2
from lmxlab.core.sparse_attention import SparseGQA

__all__ = ["attention_registry", "ffn_registry"]

attention_registry.register("sparse_gqa", SparseGQA)
attention_registry.register("gated_deltanet", GatedDeltaNet)
attention_registry.register("mamba1", Mamba1)
attention_registry.register("mamba2", Mamba2)
attention_registry.register("mamba3", Mamba3)
attention_registry.register("gqa_mamba2", GQAMamba2)
attention_registry.register("mla", MLA)
attention_registry.register("dsa", DSA)
ffn_registry.register("moe", MoEFFN)
ffn_registry.register("shared_moe", SharedExpertMoEFFN)
ffn_registry.register("latent_moe", LatentMoEFFN)
