"""Attention and a state-space mixer side by side, as in every block of Falcon-H1 (2507.22448, section 2)."""

import mlx.core as mx

from lmxlab.core.attention import GQA, AttentionBase, CacheLike
from lmxlab.core.cache import JointCache, as_cache
from lmxlab.core.config import BlockConfig
from lmxlab.core.mamba2 import Mamba2
from lmxlab.core.mamba_options import Multipliers
from lmxlab.core.mask import Mask
from lmxlab.core.position import RoPE


class GQAMamba2(AttentionBase):
    """gqa(attention_in x) attention_out + mamba2(ssm_in x) ssm_out, the factors being `config.multipliers`."""

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.gqa, self.mamba = GQA(config), Mamba2(config)
        self.gqa.scale *= (config.multipliers or Multipliers()).key

    def __call__(
        self, x: mx.array, mask: Mask = None, cache: CacheLike = None, rope: RoPE | None = None
    ) -> tuple[mx.array, JointCache]:
        """As GQA; the cache is one of keys and values and one of the mixer's state."""
        cache = as_cache(cache) or self.make_cache()
        seen, state = cache.parts
        factors = self.config.multipliers or Multipliers()
        attended, _ = self.gqa(times(x, factors.attention_in), mask, seen, rope)
        mixed, _ = self.mamba(x, cache=state)
        return times(attended, factors.attention_out) + times(mixed, factors.ssm_out), cache

    def make_cache(self) -> JointCache:
        return JointCache(self.gqa.make_cache(), self.mamba.make_cache())

    @classmethod
    def flops(cls, config: BlockConfig, seq_len: int) -> int:
        return GQA.flops(config, seq_len) + Mamba2.flops(config, seq_len)

    @classmethod
    def cached_numbers(cls, config: BlockConfig) -> tuple[int, int]:
        return GQA.cached_numbers(config)[0], Mamba2.cached_numbers(config)[1]

    @classmethod
    def cached_float32(cls, config: BlockConfig) -> int:
        return Mamba2.cached_float32(config)


def times(x: mx.array, factor: float) -> mx.array:
    """x, multiplied where that changes anything."""
    return x if factor == 1.0 else x * factor
