"""One layer of a model: an attention branch and a feed-forward branch around the residual stream."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.attention import CacheLike
from lmxlab.core.cache import Cache, as_cache
from lmxlab.core.components import attention_registry, ffn_registry
from lmxlab.core.config import EMBEDDING_POSITIONS, BlockConfig
from lmxlab.core.dropout import Dropout
from lmxlab.core.mask import Mask
from lmxlab.core.norm import norm_registry
from lmxlab.core.position import ALiBi, NoPosition, RoPE, position_registry
from lmxlab.core.recompute import recompute
from lmxlab.core.taps import tap
from lmxlab.errors import UnknownNameError


def check_components(config: BlockConfig) -> None:
    """UnknownNameError for a component that no registry has, before anything is built."""
    for registry in (attention_registry, ffn_registry, norm_registry, position_registry):
        name = getattr(config, registry.name)
        if name not in registry:
            raise UnknownNameError(registry.name, name, registry.keys())


class ConfigurableBlock(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); or with the norm after each sum (`pre_norm=False`).

    A "none" branch is left out whole: no norm, no residual sum. RoPE is handed to the attention, ALiBi goes into
    the mask; sinusoidal and learned positions belong to the embeddings, so to the model.

    Its taps: "input" and "output" of the block, and "attention" and "ffn", what each branch adds to the stream.

    Raises:
        KeyError: a component that no registry has.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        make_norm = norm_registry.get(config.norm)
        self.attention = attention_registry.get(config.attention)(config)
        self.ffn = ffn_registry.get(config.ffn)(config)
        self.attn_norm = make_norm(config) if self.has_attention else nn.Identity()
        self.ffn_norm = make_norm(config) if self.has_ffn else nn.Identity()
        self._placement = config.effective_norm_placement
        if self._placement == "sandwich":
            self.attn_out_norm = make_norm(config) if self.has_attention else nn.Identity()
            self.ffn_out_norm = make_norm(config) if self.has_ffn else nn.Identity()
        self.resid_dropout = Dropout(config.dropout)
        make_position = position_registry.get(config.position)
        self.position = (NoPosition if config.position in EMBEDDING_POSITIONS else make_position)(config)

    @property
    def has_attention(self) -> bool:
        return self.config.attention != "none"

    @property
    def has_ffn(self) -> bool:
        return self.config.ffn != "none"

    def __call__(self, x: mx.array, mask: Mask = None, cache: CacheLike = None) -> tuple[mx.array, Cache | None]:
        """x (B, T, d_model), mask and cache as in attention.GQA -> (x (B, T, d_model), cache to continue from)."""
        new_cache: Cache | None = None
        x = tap(self, "input", x)
        if self.has_attention:
            earlier = as_cache(cache)
            rope = self.position if isinstance(self.position, RoPE) else None
            if isinstance(self.position, ALiBi):
                mask = self.position(mask, x.shape[1], 0 if earlier is None else earlier.offset)
            out, new_cache = self.attention(self._before("attn", x), mask=mask, cache=earlier, rope=rope)
            x = self._after("attn", x, out)
        if self.has_ffn:
            x = self._after("ffn", x, self.ffn(self._before("ffn", x)))
        return tap(self, "output", x), new_cache

    def recomputed(self, x: mx.array, mask: Mask = None) -> mx.array:
        """As a call without a cache, whose intermediate results are computed again for the backward pass."""
        return recompute(self, lambda x: self(x, mask)[0], x)

    def make_cache(self) -> Cache | None:
        """An empty cache of the kind that this layer's attention continues; None when it keeps nothing."""
        return self.attention.make_cache()

    def _before(self, branch: str, x: mx.array) -> mx.array:
        """What the branch ("attn" or "ffn") reads."""
        normed: mx.array = self[f"{branch}_norm"](x) if self._placement in ("pre", "sandwich") else x
        return normed

    def _after(self, branch: str, x: mx.array, out: mx.array) -> mx.array:
        """The residual stream with the branch's output in it."""
        if self._placement == "branch":
            out = self[f"{branch}_norm"](out)
        elif self._placement == "sandwich":
            out = self[f"{branch}_out_norm"](out)
        out = tap(self, "attention" if branch == "attn" else branch, out)
        x = x + self.resid_dropout(out)
        return self[f"{branch}_norm"](x) if self._placement == "post" else x
