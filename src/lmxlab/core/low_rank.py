"""Linear layers with a trained update of low rank: LoRA (2106.09685), DoRA (2402.09353), QLoRA (2305.14314)."""

import math
from typing import TypedDict, TypeVar, Unpack

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.dropout import drop
from lmxlab.core.fields import check
from lmxlab.core.linear import Linear
from lmxlab.core.quantize import float_weight

ADAPTER_NAMES = ("lora_A", "lora_B", "lora_magnitude")
Layer = TypeVar("Layer", bound="LowRank")


class Options(TypedDict, total=False):
    """What an adapter may have beside rank and alpha; see LowRank."""

    dropout: float
    dora: bool
    rslora: bool


class LowRank(nn.Module):
    """What the layers share: y = W x + scaling B A x + bias, where only A and B are trained.

    A starts uniform within 1 / sqrt(in), B at 0: a new adapter changes nothing.

    A, B and m are float32 whatever the type of the weight, since the small steps of training would be lost in a half
    type. They are cast to the type of x where they are used: the output has the type that it has without an adapter.

    Args:
        rank: of the update; alpha: scaling is alpha / rank.
        dropout: probability with which the update, and only it, does not see a channel of x.
        dora: the rows of W + scaling B A keep only their direction and get a trained length m:
            W' = m (W + scaling B A) / |W + scaling B A|, the norm being a constant to the gradient (2402.09353, 4.3).
        rslora: scaling is alpha / sqrt(rank) (2312.03732).

    Attributes: rank, alpha, scaling, dropout, weight, bias (if the layer has one), lora_A (in, rank), lora_B
        (rank, out), with DoRA lora_magnitude (out,); adapter_on, which `adapters.without_adapters` sets.
    """

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        rank: int,
        alpha: float,
        stack: tuple[int, ...] = (),
        **options: Unpack[Options],
    ):
        super().__init__()
        if options.keys() - Options.__annotations__.keys():
            raise TypeError(f"options are {sorted(Options.__annotations__)}, got {sorted(options)}")
        check(isinstance(rank, int) and rank > 0, "rank", rank, "an integer above 0")
        check(math.isfinite(alpha) and alpha != 0, "alpha", alpha, "a number other than 0")
        self.adapter_on = True
        self.rank = rank
        self.alpha = alpha
        self.dropout = options.get("dropout", 0.0)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        self.scaling = alpha / (math.sqrt(rank) if options.get("rslora") else rank)
        bound = 1 / math.sqrt(input_dims)
        self.lora_A = mx.random.uniform(-bound, bound, (*stack, input_dims, rank))
        self.lora_B = mx.zeros((*stack, rank, output_dims))
        if options.get("dora"):
            self.lora_magnitude = mx.ones((output_dims,))

    def _adopt(self, layer: nn.Module) -> None:
        """Takes the frozen arrays and the mode of another layer, or, for its own, only finishes the construction."""
        for name in ("weight", "scales", "biases", "bias"):
            if layer.get(name) is not None:
                self[name] = layer[name]
        if "lora_magnitude" in self:
            self.lora_magnitude = _row_norms(self.float_weight())
        self.train(layer.training)
        self.train_adapter()

    def train_adapter(self) -> None:
        """Freezes all parameters of the layer but those of the adapter."""
        self.freeze()
        self.unfreeze(keys=list(ADAPTER_NAMES))

    def with_adapter_of(self: Layer, other: "LowRank") -> Layer:
        """This layer with the trained arrays of another one of its shape."""
        self.rank, self.alpha, self.scaling, self.dropout = other.rank, other.alpha, other.scaling, other.dropout
        for name in ADAPTER_NAMES:
            self.pop(name, None)
            if name in other:
                self[name] = other[name]
        self.train_adapter()
        return self

    @property
    def draws(self) -> bool:
        """Whether a call draws random numbers now."""
        return self.training and self.dropout > 0

    def float_weight(self) -> mx.array:
        """The frozen weight, (out, in) float32."""
        return float_weight(self, mx.float32)

    def merged_weight(self) -> mx.array:
        """The weight with the update in it, (out, in) float32."""
        weight = self._sum()
        return weight * (self.lora_magnitude / _row_norms(weight))[:, None] if "lora_magnitude" in self else weight

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in) -> (..., out), in the type that the layer without an adapter gives."""
        if not self.adapter_on:
            return self._base(x)
        seen = drop(x, self.dropout) if self.draws else x
        update = (seen @ self.lora_A.astype(x.dtype) * self.scaling) @ self.lora_B.astype(x.dtype)
        if "lora_magnitude" not in self:
            return self._base(x) + update
        length = self.lora_magnitude / mx.stop_gradient(_row_norms(self._sum()))
        y = (self._product(x) + update) * length.astype(x.dtype)
        return y + self.bias if "bias" in self else y

    def _sum(self) -> mx.array:
        """W + scaling B A, (out, in) float32."""
        return self.float_weight() + self.scaling * (self.lora_A @ self.lora_B).swapaxes(-1, -2)

    def _product(self, x: mx.array) -> mx.array:
        """W x."""
        return x @ self.weight.T

    def _base(self, x: mx.array) -> mx.array:
        """W x + bias."""
        y = self._product(x)
        return y + self.bias if "bias" in self else y

    def _extra_repr(self) -> str:
        (input_dims, rank), output_dims = self.lora_A.shape[-2:], self.lora_B.shape[-1]
        kind = ", dora" if "lora_magnitude" in self else ""
        return f"input_dims={input_dims}, output_dims={output_dims}, bias={'bias' in self}, rank={rank}{kind}"


class LoRALinear(LowRank):
    """A linear layer whose weight is frozen, with a trained update of low rank.

    >>> layer = LoRALinear.from_linear(nn.Linear(4, 3), rank=2, alpha=4.0)
    >>> sorted(layer.trainable_parameters()), layer.scaling
    (['lora_A', 'lora_B'], 2.0)
    """

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        rank: int = 8,
        alpha: float = 1.0,
        bias: bool = False,
        **options: Unpack[Options],
    ):
        super().__init__(input_dims, output_dims, rank, alpha, **options)
        self._adopt(nn.Linear(input_dims, output_dims, bias))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, rank: int = 8, alpha: float = 1.0, **options: Unpack[Options]
    ) -> "LoRALinear":
        """The layer with a new adapter; it shares the arrays of `linear`."""
        output_dims, input_dims = linear.weight.shape
        layer = cls(input_dims, output_dims, rank, alpha, **options)
        layer._adopt(linear)
        return layer

    def to_linear(self) -> nn.Linear:
        """A linear layer with the update folded into its weight, in the weight's own type."""
        output_dims, input_dims = self.weight.shape
        linear = Linear(input_dims, output_dims, bias="bias" in self)
        linear.weight = self.merged_weight().astype(self.weight.dtype)
        if "bias" in self:
            linear.bias = self.bias
        linear.train(self.training)
        return linear

    def to_quantized(self, group_size: int = 64, bits: int = 4, mode: str = "affine") -> "LoRAQuantizedLinear":
        """The same adapter over the weight quantised."""
        quantized = nn.QuantizedLinear.from_linear(self, group_size, bits, mode)
        quantized.train(self.training)
        return LoRAQuantizedLinear.from_quantized(quantized).with_adapter_of(self)

    def _base(self, x: mx.array) -> mx.array:
        return kernels.linear(x, self.weight, self.bias) if "bias" in self else self._product(x)


class LoRAQuantizedLinear(LowRank):
    """A quantised linear layer with a trained update of low rank over it (QLoRA).

    As LoRALinear, with the packed weight, its scales and, in the affine mode, its biases.
    """

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        rank: int = 8,
        alpha: float = 1.0,
        bias: bool = False,
        group_size: int = 64,
        bits: int = 4,
        mode: str = "affine",
        **options: Unpack[Options],
    ):
        super().__init__(input_dims, output_dims, rank, alpha, **options)
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self._adopt(nn.QuantizedLinear(input_dims, output_dims, bias, group_size, bits, mode))

    @classmethod
    def from_quantized(
        cls, ql: nn.QuantizedLinear, rank: int = 8, alpha: float = 1.0, **options: Unpack[Options]
    ) -> "LoRAQuantizedLinear":
        """The layer with a new adapter; it shares the arrays of `ql`."""
        output_dims, input_dims = ql.weight.shape[0], ql.weight.shape[1] * 32 // ql.bits
        layer = cls(input_dims, output_dims, rank, alpha, False, ql.group_size, ql.bits, ql.mode, **options)
        layer._adopt(ql)
        return layer

    def to_float(self, dtype: mx.Dtype) -> LoRALinear:
        """The same adapter over the weight as the quantised one stands for it, in `dtype`."""
        output_dims, input_dims = self.lora_B.shape[1], self.lora_A.shape[0]
        linear = nn.Linear(input_dims, output_dims, bias="bias" in self)
        linear.weight = float_weight(self, dtype)
        if "bias" in self:
            linear.bias = self.bias
        linear.train(self.training)
        return LoRALinear.from_linear(linear).with_adapter_of(self)

    def _product(self, x: mx.array) -> mx.array:
        return mx.quantized_matmul(
            x,
            self.weight,
            scales=self.scales,
            biases=self.get("biases"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


def _row_norms(weight: mx.array) -> mx.array:
    return mx.linalg.norm(weight, axis=1)
