"""The table of model families: their config factories and presets, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UnknownNameError
from lmxlab.models import gpt, llama


@dataclass(frozen=True)
class Family:
    """One architecture.

    Args:
        config: keyword arguments -> config; called without any, the family's standard size.
        tiny: a config that tests and first tries can run anywhere.
        presets: named sizes.
        description: one line.
    """

    name: str
    config: Callable[..., ModelConfig]
    tiny: Callable[[], ModelConfig]
    presets: dict[str, Callable[[], ModelConfig]] = field(default_factory=dict)
    description: str = ""


def _presets(*factories: Callable[[], ModelConfig]) -> dict[str, Callable[[], ModelConfig]]:
    return {factory.__name__: factory for factory in factories}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt",
            gpt.gpt_config,
            gpt.gpt_tiny,
            _presets(
                gpt.gpt_tiny, gpt.gpt_10m, gpt.gpt_30m, gpt.gpt_small, gpt.gpt_medium, gpt.gpt2_tiny,
                gpt.gpt2, gpt.gpt2_medium, gpt.gpt2_large, gpt.gpt2_xl,
            ),
            "LayerNorm, multi-head attention, GELU; sinusoidal positions, or learned ones as in GPT-2",
        ),
        Family(
            "llama",
            llama.llama_config,
            llama.llama_tiny,
            _presets(
                llama.llama_tiny, llama.llama_10m, llama.llama_30m, llama.llama_7b, llama.llama_13b,
                llama.llama3_8b, llama.llama31_8b, llama.llama32_1b,
            ),
            "RMSNorm, grouped-query attention, SwiGLU, rotary positions",
        ),
    )
}  # fmt: skip


def resolve(name: str) -> ModelConfig:
    """The config that a name means: a family's standard one, or a preset.

    Raises:
        UnknownNameError: neither; the message offers the nearest name.

    >>> resolve("gpt_tiny").block.d_model, resolve("llama").block.d_model
    (64, 4096)
    """
    table = {key: factory for family in FAMILIES.values() for key, factory in family.presets.items()}
    table |= {family.name: family.config for family in FAMILIES.values()}
    if name not in table:
        raise UnknownNameError("architecture", name, table)
    return table[name]()
