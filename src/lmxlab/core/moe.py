"""Mixtures of experts in the place of a feed-forward network: each token goes through a few of many."""

import dataclasses
from typing import Any

import mlx.core as mx

from lmxlab.core.combinations import check_experts
from lmxlab.core.config import BlockConfig
from lmxlab.core.experts import ACTIVATIONS, GATED, Experts
from lmxlab.core.ffn import FFNBase, GatedFFN, ReluSquaredFFN
from lmxlab.core.linear import Linear
from lmxlab.core.router import Router

N_EXPERTS = 8  # where neither config nor argument says

# What a block without a mixture of experts leaves unset.
UNROUTED: dict[str, Any] = {
    **dict.fromkeys(("n_experts", "n_shared_experts", "moe_latent_size", "moe_d_ff", "shared_expert_d_ff")),
    **dict.fromkeys(("router_scores", "router_normalized", "router_balanced")),
    "router_scales_input": False,
    "shared_expert_gate": False,
}


class MoEFFN(FFNBase):
    """sum_i w_i(x) expert_i(x) over the top k experts i (1701.06538), by default as in Mixtral (2401.04088).

    Experts are SwiGLU networks of `config.moe_d_ff` channels (`d_ff` when unset), without biases; `activation` may be
    "gelu_tanh", or "relu2" for networks without a gate. Which experts, and with what weights, `router.Router` says.

    Args:
        n_experts, top_k: override the config's `n_experts` and `top_k_experts`.
    """

    # Where the config does not say.
    scores = "softmax"
    balanced = False
    activation = "silu"

    def __init__(self, config: BlockConfig, n_experts: int | None = None, top_k: int | None = None):
        super().__init__(config)
        own = self.settings(config)
        n_experts, top_k = n_experts or own["n_experts"], top_k or own["top_k_experts"]
        check_experts(config, n_experts, top_k)
        self.router = Router(
            config,
            n_experts,
            top_k,
            scores=own["router_scores"],
            normalized=own["router_normalized"],
            balanced=own["router_balanced"],
        )
        self.experts = Experts(n_experts, self._expert_width(config), own["moe_d_ff"], own["activation"])

    def __call__(self, x: mx.array) -> mx.array:
        """(..., d_model) -> the same."""
        out = self._routed(x.reshape(-1, x.shape[-1]))
        return out.reshape(x.shape)

    def _routed(self, x: mx.array) -> mx.array:
        """(N, d_model) -> the same, through the experts."""
        indices, weights = self.router(x)
        return self.experts(x, indices, weights, self.config.router_scales_input)

    @staticmethod
    def _expert_width(config: BlockConfig) -> int:
        """Channels of the experts' input and output."""
        return config.d_model

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        """Those of the router and of the experts that a token goes through."""
        expert = cls._network_flops(config, cls._expert_width(config), _d_ff(config))
        return 2 * config.d_model * (config.n_experts or N_EXPERTS) + config.top_k_experts * expert

    @classmethod
    def settings(cls, config: BlockConfig) -> dict[str, Any]:
        """The fields of the config that a mixture reads, with what stands for those that are unset."""
        return {
            "n_experts": config.n_experts or N_EXPERTS,
            "top_k_experts": config.top_k_experts,
            "moe_d_ff": _d_ff(config),
            "activation": cls._activation(config),
            "router_scores": config.router_scores or cls.scores,
            "router_normalized": True if config.router_normalized is None else config.router_normalized,
            "router_balanced": cls.balanced if config.router_balanced is None else config.router_balanced,
        }

    @classmethod
    def _activation(cls, config: BlockConfig) -> str:
        return config.activation if config.activation in ACTIVATIONS else cls.activation

    @classmethod
    def _network_flops(cls, config: BlockConfig, width: int, d_ff: int) -> int:
        return 2 * (3 if cls._activation(config) in GATED else 2) * width * d_ff

    def _shared_expert(self, width: int) -> FFNBase:
        """The network that every token goes through: of the experts' kind, `width` channels wide."""
        activation = self._activation(self.config)
        plain = dataclasses.replace(self.config, ffn="standard", activation=None, d_ff=width, **UNROUTED)
        if activation not in GATED:
            return ReluSquaredFFN(dataclasses.replace(plain, ffn="relu2"))
        return GatedFFN(dataclasses.replace(plain, ffn="gated", activation=activation))


class SharedExpertMoEFFN(MoEFFN):
    """Experts for every token beside the routed ones (2401.06066), by default as in DeepSeek-V3 (2412.19437, 2.1.2).

    Selection is by sigmoid scores plus a balancing bias, weights are the scores normalised over the selection. The
    `n_shared` shared experts are one network of as many times the width, or of `config.shared_expert_d_ff` channels.
    With `config.shared_expert_gate` their output is multiplied by sigmoid(w x) (Qwen 2 MoE, 2407.10671).
    """

    scores = "sigmoid"
    balanced = True

    def __init__(
        self,
        config: BlockConfig,
        n_experts: int | None = None,
        top_k: int | None = None,
        n_shared: int | None = None,
    ):
        super().__init__(config, n_experts, top_k)
        own_width = None if n_shared is None else n_shared * _d_ff(config)
        self.shared = self._shared_expert(own_width or self._shared_width(config))
        if config.shared_expert_gate:
            self.shared_gate = Linear(config.d_model, 1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        shared: mx.array = self.shared(x)
        if "shared_gate" in self:
            shared = shared * mx.sigmoid(self.shared_gate(x))
        return shared + super().__call__(x)

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        gate = 2 * config.d_model if config.shared_expert_gate else 0
        return super().flops(config) + cls._network_flops(config, config.d_model, cls._shared_width(config)) + gate

    @classmethod
    def settings(cls, config: BlockConfig) -> dict[str, Any]:
        return super().settings(config) | {"shared_expert_d_ff": cls._shared_width(config), "n_shared_experts": None}

    @staticmethod
    def _shared_width(config: BlockConfig) -> int:
        return config.shared_expert_d_ff or (config.n_shared_experts or 1) * _d_ff(config)


class LatentMoEFFN(MoEFFN):
    """Routed experts between latents of `config.moe_latent_size` channels, and one shared expert at full width.

    As in Nemotron 3 (2512.20856): x is projected to the latent, the experts, down(relu(up(z))^2), map it to another,
    and that is projected back. The router reads x itself, by DeepSeek-V3's rules. The shared expert has
    `config.shared_expert_d_ff` channels (`d_ff` when unset).
    """

    needs = {"moe_latent_size": "the channels of the experts' input and output"}
    scores = "sigmoid"
    balanced = True
    activation = "relu2"

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        latent = self._expert_width(config)
        self.compress = Linear(config.d_model, latent, bias=config.bias)
        self.down = Linear(latent, config.d_model, bias=config.bias)
        self.shared = self._shared_expert(self._shared_width(config))

    def __call__(self, x: mx.array) -> mx.array:
        shared: mx.array = self.shared(x)
        return shared + super().__call__(x)

    def _routed(self, x: mx.array) -> mx.array:
        indices, weights = self.router(x)
        out = self.experts(self.compress(x), indices, weights, self.config.router_scales_input)
        routed: mx.array = self.down(out)
        return routed

    @staticmethod
    def _expert_width(config: BlockConfig) -> int:
        assert config.moe_latent_size is not None
        return config.moe_latent_size

    @classmethod
    def flops(cls, config: BlockConfig) -> int:
        projections = 2 * 2 * config.d_model * cls._expert_width(config)
        shared = cls._network_flops(config, config.d_model, cls._shared_width(config))
        return super().flops(config) + projections + shared

    @classmethod
    def settings(cls, config: BlockConfig) -> dict[str, Any]:
        return super().settings(config) | {"shared_expert_d_ff": cls._shared_width(config)}

    @staticmethod
    def _shared_width(config: BlockConfig) -> int:
        return config.shared_expert_d_ff or config.d_ff


def _d_ff(config: BlockConfig) -> int:
    return config.moe_d_ff or config.d_ff
