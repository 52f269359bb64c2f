"""What published state-space mixers do differently from each other, and the multipliers of Falcon-H1."""

from dataclasses import dataclass

from lmxlab.core.fields import check, check_types
from lmxlab.errors import UnknownNameError

NORMS = ("after_gate", "before_gate", "none")


@dataclass(frozen=True)
class MambaOptions:
    """Options of Mamba mixers beside the `mamba_*` fields of BlockConfig.

    Args:
        d_inner: channels inside the mixer; d_model * mamba_expand when not given.
        bias: of the projections into and out of the mixer; BlockConfig.bias when not given.
        conv_bias: of the short convolution.
        norm: of the output y by the gate z. "after_gate": norm(y silu(z)), "before_gate": norm(y) silu(z), "none":
            y silu(z). Mamba-1 has none, and does not read it.
        norm_groups: parts of the channels that are normalised each by itself; mamba_n_groups when not given.
        dt_min, dt_max: step sizes are clamped to that; dt_max None: not from above. Not read by Mamba-1.
        dt_rank: of Mamba-1's projection to step sizes; d_model / 16, rounded up, when not given.
    """

    d_inner: int | None = None
    bias: bool | None = None
    conv_bias: bool = True
    norm: str = "after_gate"
    norm_groups: int | None = None
    dt_min: float = 0.0
    dt_max: float | None = None
    dt_rank: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.norm not in NORMS:
            raise UnknownNameError("mamba_options.norm", self.norm, NORMS)
        check(self.dt_min >= 0, "dt_min", self.dt_min, "0 or more")
        check(self.dt_max is None or self.dt_max > self.dt_min, "dt_max", self.dt_max, f"above dt_min {self.dt_min}")


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in a block of Falcon-H1, found by muP (2507.22448, section 3.3).

    Args:
        attention_in, attention_out: of what attention reads and returns.
        key: of attention's keys, so of its scores.
        ssm_in, ssm_out: of what the state-space mixer reads and returns.
        ssm_z, ssm_x, ssm_b, ssm_c, ssm_dt: of the parts of its input projection.
        mlp_gate, mlp_down: of the gate before its activation, and of the FFN's output.
    """

    attention_in: float = 1.0
    attention_out: float = 1.0
    key: float = 1.0
    ssm_in: float = 1.0
    ssm_out: float = 1.0
    ssm_z: float = 1.0
    ssm_x: float = 1.0
    ssm_b: float = 1.0
    ssm_c: float = 1.0
    ssm_dt: float = 1.0
    mlp_gate: float = 1.0
    mlp_down: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
