"""A model drawn in text: what a token passes on its way from the embedding to the logits, layer by layer."""

import dataclasses
import string
import textwrap
from typing import Any

from lmxlab.core.component_fields import READS, ROTATED, ROTATES_ITSELF
from lmxlab.core.components import attention_registry
from lmxlab.core.config import BlockConfig, ModelConfig

LETTERS = string.ascii_uppercase + string.ascii_lowercase
CACHE_BYTES, STATE_BYTES = 2, 4  # of a number in float16 or bfloat16, and in a recurrent state


def block_diagram(config: ModelConfig) -> list[str]:
    """The lines of the drawing; layers that are alike share a letter."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    kinds = list(dict.fromkeys(layers))
    pattern = "".join(LETTERS[kinds.index(layer)] for layer in layers)
    scaled = f", times {config.embed_scale:.4g}" if config.embed_scale != 1 else ""
    added = sorted({layer.position for layer in layers} & {"sinusoidal", "learned"})
    lines = [
        f"embedding {config.vocab_size:,} x {config.block.d_model:,}{scaled}",
        *(f"+ {name} positions" for name in added),
    ]
    pieces = textwrap.wrap(pattern, 64)
    lines += [f"{'layers ' if i == 0 else '       '}{piece}" for i, piece in enumerate(pieces)]
    for kind, letter in zip(kinds, LETTERS, strict=False):
        lines += [f"  {letter} (x{pattern.count(letter)})", *(f"    {line}" for line in _branches(kind))]
    head = (
        "the embedding, transposed"
        if config.tie_embeddings
        else f"head {config.block.d_model:,} x {config.vocab_size:,}"
    )
    return [*lines, f"{config.block.norm} and {head}"]


def cache_bytes(config: ModelConfig) -> tuple[int, int]:
    """Bytes that decoding keeps for each token, and at most, per sequence, in windows and states.

    Of a model in 16-bit numbers; the states of recurrences are float32 in it, too.
    """
    growing = fixed = 0
    for layer in map(config.get_block_config, range(config.n_layers)):
        mixer = attention_registry.get(layer.attention)
        per_token, beside = mixer.cached_numbers(layer)
        growing += CACHE_BYTES * per_token
        fixed += CACHE_BYTES * beside + (STATE_BYTES - CACHE_BYTES) * mixer.cached_float32(layer)
    return growing, fixed


def _branches(block: BlockConfig) -> list[str]:
    """One line for each branch around the residual stream."""
    branches = []
    if block.attention != "none":
        branches.append((_placed(block, block.attention), _attention(block)))
    if block.ffn != "none":
        branches.append((_placed(block, block.ffn), _ffn(block)))
    width = max((len(formula) for formula, _ in branches), default=0)
    return [f"{formula:<{width}}   {', '.join(details)}" for formula, details in branches]


def _placed(block: BlockConfig, branch: str) -> str:
    """What the branch does to the residual stream x, norms included."""
    norm = block.norm
    return {
        "pre": f"x + {branch}({norm}(x))",
        "post": f"{norm}(x + {branch}(x))",
        "branch": f"x + {norm}({branch}(x))",
        "sandwich": f"x + {norm}({branch}({norm}(x)))",
    }[block.effective_norm_placement]


def _ffn(block: BlockConfig) -> list[str]:
    if block.n_experts is None:
        return [f"d_ff {block.d_ff:,}", *_own_fields(block, "ffn")]
    chosen = f"{block.top_k_experts} of {block.n_experts} experts of d_ff {block.moe_d_ff or block.d_ff:,}"
    shown = ("n_experts", "moe_d_ff")
    return [chosen, *(text for text in _own_fields(block, "ffn") if not text.startswith(shown))]


def _attention(block: BlockConfig) -> list[str]:
    parts = []
    if block.attention in ROTATED:
        kv = block.n_heads if block.attention == "mha" else block.effective_n_kv_heads
        shared = f" on {kv}" if kv != block.n_heads else ""
        parts.append(f"{block.n_heads} heads{shared} of {block.head_dim}")
    elif block.attention in ROTATES_ITSELF:
        parts.append(f"{block.n_heads} heads")
    parts += _own_fields(block, "attention")
    if "mamba" in block.attention:
        parts.append(f"{block.ssm_state_size} states")
    if block.position == "rope" and block.attention in ROTATED:
        scaling = f", {block.rope_scaling.kind} scaling" if block.rope_scaling else ""
        parts.append(f"rope {block.rope_theta:,.0f}{scaling}")
    elif block.position == "alibi":
        parts.append("alibi")
    return parts


def _own_fields(block: BlockConfig, slot: str) -> list[str]:
    """The optional fields that the component reads, where they are set."""
    default = {field.name: field.default for field in dataclasses.fields(BlockConfig)}
    set_ones = [name for name in READS[slot].get(getattr(block, slot), ()) if getattr(block, name) != default[name]]
    return [text for name in set_ones for text in in_words(name, getattr(block, name))]


def in_words(name: str, value: Any) -> list[str]:
    """A field: a switch that is on by its name alone, a group of options by those that are not the usual ones.

    >>> from lmxlab.core.mamba_options import MambaOptions
    >>> in_words("qk_norm", True), in_words("d_ff", 4096), in_words("mamba_options", MambaOptions(d_inner=64))
    (['qk_norm'], ['d_ff 4,096'], ['d_inner 64'])
    """
    if dataclasses.is_dataclass(value):
        own = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default]
        return [text for f in own for text in in_words(f.name, getattr(value, f.name))]
    if value is True:
        return [name]
    return [f"{name} {value:,}" if type(value) is int else f"{name} {value}"]
