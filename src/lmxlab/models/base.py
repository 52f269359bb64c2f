"""The one model class: embeddings, blocks, final norm, output projection. Architectures are configs of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.core import kernels
from lmxlab.core.block import ConfigurableBlock
from lmxlab.core.cache import Cache, as_cache
from lmxlab.core.config import EMBEDDING_POSITIONS, ModelConfig
from lmxlab.core.dropout import Dropout
from lmxlab.core.mask import Mask
from lmxlab.core.mtp import MTPHead
from lmxlab.core.norm import norm_registry
from lmxlab.core.position import RoPE, position_registry
from lmxlab.core.segments import check_separable, positions, visible
from lmxlab.errors import UserError
from lmxlab.models.init import init_heads, init_weights


class LanguageModel(nn.Module):
    """A causal language model: tokens (B, T) -> next-token logits (B, T, vocab_size).

    Weights are drawn from mx.random as `init.init_weights` says; seed it for a reproducible model. With
    `config.mtp_n_predict` it has as many `mtp_heads`, which training and `inference.MTPDrafter` use, drawn last.

    >>> from lmxlab.models.gpt import gpt_tiny
    >>> model = LanguageModel(gpt_tiny())
    >>> logits, cache = model(mx.array([[1, 2, 3]]))
    >>> logits.shape
    (1, 3, 256)
    >>> logits, cache = model(mx.array([[4]]), cache=cache)
    >>> logits.shape, cache[0].offset
    ((1, 1, 256), 4)
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        block = config.block
        layers = [config.get_block_config(i) for i in range(config.n_layers)]
        self.embed = nn.Embedding(config.vocab_size, block.d_model)
        added = [layer for layer in layers if layer.position in EMBEDDING_POSITIONS]
        if added:
            self.embed_position = position_registry.get(added[0].position)(added[0])
        self.embed_dropout = Dropout(block.dropout)
        self.blocks = [ConfigurableBlock(layer) for layer in layers]
        self.final_norm = norm_registry.get(block.norm)(block)
        if not config.tie_embeddings:
            self.head = nn.Linear(block.d_model, config.vocab_size, bias=False)
        init_weights(self)
        if config.mtp_n_predict:
            self.mtp_heads = [MTPHead(block.d_model, layers[-1]) for _ in range(config.mtp_n_predict)]
            init_heads(self)

    def __call__(self, x: mx.array, cache: Sequence[Any] | None = None, return_hidden: bool = False) -> tuple:
        """Logits for the token after each of x.

        Args:
            x: token ids (B, T), each below vocab_size: MLX does not check an index, `check_tokens` does.
            cache: one entry per layer, as an earlier call returned it or `make_cache()` made it; x continues it.
            return_hidden: also return the hidden states after the final norm, (B, T, d_model).

        Returns:
            logits (B, T, vocab_size), caches (one per layer, None for a layer that needs none)[, hidden states].

        Raises:
            UserError: x is not (B, T), the cache is another model's, or the positions do not reach that far.
        """
        hidden, caches = self._trunk(x, cache)
        logits = self.logits(self._scaled(hidden))
        return (logits, caches, hidden) if return_hidden else (logits, caches)

    def hidden_states(
        self, x: mx.array, cache: Sequence[Any] | None = None, segments: mx.array | None = None
    ) -> tuple[mx.array, list[Cache | None]]:
        """(B, T) -> what the output projection is applied to, (B, T, d_model), and the caches.

        These are the states after the final norm, divided by width_mult under muP.

        Args:
            segments: (B, T) numbers of documents, each in one piece: a token sees those of its own alone, and stands
                where it would if that were a row by itself.

        Raises:
            UserError: segments with a cache, or a layer that cannot keep documents apart.
        """
        hidden, caches = self._trunk(x, cache, segments)
        return self._scaled(hidden), caches

    def layer_states(self, x: mx.array) -> list[mx.array]:
        """The residual stream after the embedding and after each block: n_layers + 1 times (B, T, d_model)."""
        states: list[mx.array] = []
        self._trunk(x, None, seen=states)
        return states

    def nats(self, x: mx.array, y: mx.array, segments: mx.array | None = None) -> mx.array:
        """Cross-entropy of the next tokens y given x, both (B, T) ids in [0, vocab_size): (B, T) float32.

        Where the output projection is a plain matrix, never more than a chunk of the logits is held. `segments` as in
        `hidden_states`.
        """
        return self.nats_of(self.hidden_states(x, segments=segments)[0], y)

    def nats_of(self, hidden: mx.array, y: mx.array, temperature: float = 1.0) -> mx.array:
        """As `nats`, from hidden states (..., d_model) and the tokens after them (...).

        The logits are divided by the temperature.
        """
        projection = self.embed if self.config.tie_embeddings else self.head
        if isinstance(projection, nn.Embedding | nn.Linear) and self.config.logit_softcap is None:
            hidden = hidden if temperature == 1 else hidden / temperature
            return kernels.linear_cross_entropy(hidden, self.output_weight, y)
        logits = self.logits(hidden)
        return kernels.cross_entropy(logits if temperature == 1 else logits / temperature, y)

    def logits(self, hidden: mx.array) -> mx.array:
        """The output projection: `hidden_states` (..., d_model) -> (..., vocab_size)."""
        logits: mx.array = self.embed.as_linear(hidden) if self.config.tie_embeddings else self.head(hidden)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * mx.tanh(logits / cap)

    @property
    def output_weight(self) -> mx.array:
        """The matrix of the output projection, (vocab_size, d_model)."""
        return self.embed.weight if self.config.tie_embeddings else self.head.weight

    def make_cache(
        self, left_padding: mx.array | Sequence[int] | None = None, bits: int | None = None
    ) -> list[Cache | None]:
        """Empty caches, one per layer, for decoding from the first token on.

        Args:
            left_padding: (B,) how many tokens before each row's prompt are padding, which nothing then sees.
            bits: 8 or 4 to keep keys and values in so many bits; windows and recurrent states stay whole.

        Raises:
            UserError: other bits, or padding with dynamic rope scaling.
        """
        caches = [block.make_cache() for block in self.blocks]
        if bits is not None:
            caches = [cache and cache.quantized(bits) for cache in caches]
        if left_padding is not None:
            if any(isinstance(block.position, RoPE) and block.position.depends_on_length for block in self.blocks):
                raise UserError(
                    "Dynamic rope scaling goes by the length of a pass: rows cannot have padding; decode each"
                )
            padding = left_padding if isinstance(left_padding, mx.array) else mx.array(list(left_padding))
            for cache in caches:
                if cache is not None:
                    cache.left_padding = padding
        return caches

    def count_parameters(self) -> int:
        """Number of parameters, a tied matrix once, quantised ones as many as they stand for."""
        leaves: Any = tree_flatten(self.parameters())
        packed = [layer for layer in self.modules() if "scales" in layer]
        held = sum(layer[name].size for layer in packed for name in ("weight", "scales", "biases") if name in layer)
        stand_for = sum(layer.scales.size * layer.group_size for layer in packed)
        return sum(array.size for _, array in leaves) - held + stand_for

    def _scaled(self, hidden: mx.array) -> mx.array:
        if self.config.logit_scale != 1.0:
            hidden = hidden * self.config.logit_scale
        return hidden / self.config.width_mult if self.config.mup_base_width else hidden

    def _trunk(
        self,
        x: mx.array,
        cache: Sequence[Any] | None,
        segments: mx.array | None = None,
        seen: list[mx.array] | None = None,
    ) -> tuple[mx.array, list[Cache | None]]:
        if x.ndim != 2 or x.shape[1] == 0:
            raise UserError(f"Tokens have shape {tuple(x.shape)}; a model takes (batch, length) with length at least 1")
        if cache is not None and len(cache) != len(self.blocks):
            raise UserError(f"The cache has {len(cache)} entries, the model {len(self.blocks)} layers; give one each")
        caches = [as_cache(entry) for entry in cache or [None] * len(self.blocks)]
        offset, padding = next(((entry.offset, entry.left_padding) for entry in caches if entry is not None), (0, None))
        h = self.embed(x)
        if isinstance(self.embed, nn.QuantizedEmbedding):
            h = h.astype(self.final_norm.weight.dtype)  # bfloat16 in the modes without a scale of their own type
        if self.config.embed_scale != 1.0:
            h = h * self.config.embed_scale
        if "embed_position" in self:
            places = None if segments is None else positions(segments)
            h = self.embed_position(h, offset if padding is None else offset - padding, places)
        h = self.embed_dropout(h)
        mask: Mask = "causal" if x.shape[1] > 1 else None  # one query sees all that came before it
        if segments is not None:
            self._check_segments(x, segments, cache)
            mask = visible(segments)
        for i, block in enumerate(self.blocks):
            if seen is not None:
                seen.append(h)
            if self.config.gradient_checkpointing and self.training and cache is None:
                h = block.recomputed(h, mask)
            else:
                h, caches[i] = block(h, mask, caches[i])
        if seen is not None:
            seen.append(h)
        return self.final_norm(h), caches

    def _check_segments(self, x: mx.array, segments: mx.array, cache: Sequence[Any] | None) -> None:
        if segments.shape != x.shape:
            raise UserError(f"segments have shape {segments.shape}, the tokens {x.shape}: give one number per token")
        if cache is not None:
            raise UserError("segments are for whole rows: give none with a cache")
        for block in self.blocks:
            check_separable(block.config)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; every module's training flag as before after it."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module._training = flag


def check_tokens(tokens: mx.array, vocab_size: int) -> None:
    """Raises UserError if a token id is outside [0, vocab_size): MLX itself would read some other row, silently."""
    if not mx.issubdtype(tokens.dtype, mx.integer):
        raise UserError(f"Token ids are {tokens.dtype}; they must be integers")
    if tokens.size == 0:
        return
    least, most = int(tokens.min().item()), int(tokens.max().item())  # type: ignore[arg-type]  # ids are no complex
    if least < 0 or most >= vocab_size:
        raise UserError(
            f"Token ids reach from {least} to {most}; the model's vocabulary has "
            f"{vocab_size} tokens (0 to {vocab_size - 1}): was the text encoded with the model's own tokenizer?"
        )
