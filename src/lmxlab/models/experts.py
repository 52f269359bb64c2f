"""What families with experts share: the names of the experts' weights, and which layers have some."""

from collections.abc import Sequence

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.weight_map import Rule, rename, rule


def expert_rules(
    mixture: str = "mlp", names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"), router: str = "gate"
) -> list[Rule]:
    """Rules of a layer for a router, its balancing bias, and one set of matrices per expert.

    Args:
        mixture: their name of the whole mixture.
        names: their names of an expert's gate, up and down; of up and down alone where there is no gate.
        router: their name of the router within the mixture.
    """
    ours = ("gate", "up", "down")[-len(names) :]
    stacked = [
        rule(f"{mixture}.experts.{{e}}.{name}", f"ffn.experts.{own}") for name, own in zip(names, ours, strict=True)
    ]
    balanced = {f"{mixture}.{router}.e_score_correction_bias": "ffn.router.balance_bias"}
    return [*stacked, *rename({f"{mixture}.{router}.weight": "ffn.router.weight", **balanced})]


def dense_layers(config: ModelConfig) -> list[int]:
    """The layers whose feed-forward network has no experts."""
    layers: list[BlockConfig] = [config.get_block_config(i) for i in range(config.n_layers)]
    return [i for i, layer in enumerate(layers) if layer.n_experts is None]
