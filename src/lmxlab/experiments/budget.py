"""Equal terms for a comparison: the same FLOPs for every design, and sizes within 5% of each other.

What is matched is the number of *all* parameters. Named designs tie their embeddings (see `designs`), so the vocabulary
costs every one of them the same and matching all parameters matches the blocks too. Depth, width and heads stay as they
are: `d_ff` is what gives, because it changes the size without changing how the design mixes tokens; where that is not
enough (a design without an FFN) the width gives.
"""

import dataclasses
from dataclasses import dataclass

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError
from lmxlab.experiments.designs import adapt
from lmxlab.experiments.flops import estimate_flops_per_step, estimate_flops_per_token
from lmxlab.experiments.loaded import base_config
from lmxlab.experiments.methods import Distill
from lmxlab.experiments.spec import RunSpec
from lmxlab.models.base import LanguageModel

TOLERANCE = 0.05


@dataclass(frozen=True)
class Sized:
    """A model config after size matching; `change` says in words what was chosen, "" when nothing changed."""

    model: ModelConfig
    parameters: int
    change: str


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the model. MLX is lazy: shapes are known and no weight is ever computed or held."""
    return LanguageModel(model).count_parameters()


def match_size(model: ModelConfig, target: int, tolerance: float = TOLERANCE) -> Sized:
    """`model` with d_ff, else the width, changed so that it has `target` parameters.

    Raises:
        UserError: if no choice comes within `tolerance` of the target.
    """
    parameters = count_parameters(model)
    if _off(parameters, target) <= 0.005:  # closer than a step of d_ff would bring it
        return Sized(model, parameters, "")
    for attempt in (_with_d_ff, _with_width):
        sized = attempt(model, target)
        if sized is not None and _off(sized.parameters, target) <= tolerance:
            return sized
    raise UserError(
        f"Cannot bring a model of {parameters:,} parameters within {tolerance:.0%} of {target:,}: "
        "give a config file of about that size."
    )


def flops_per_step(spec: RunSpec) -> int:
    """Training FLOPs of one optimizer step of this run: accumulation, sampling and other passes of the model included.

    Examples are counted at the full `seq_len`. A teacher makes one forward pass; what it learned from is not counted.
    """
    batch = spec.method.rows * spec.optim.batch_size * spec.optim.grad_accumulation_steps
    length = {"seq_len": spec.seq_len, "attention_len": spec.seq_len}
    trained = estimate_flops_per_step(spec.model, batch_size=batch, **length)
    asked = 0
    if isinstance(spec.method, Distill) and spec.method.teacher:
        asked = estimate_flops_per_token(base_config(spec.method.teacher), spec.seq_len) * batch * spec.seq_len
    return int(trained * (1 + spec.method.extra_passes() / 3)) + asked  # a step is three forward passes


def tokens_per_step(spec: RunSpec) -> int:
    """Training tokens of one optimizer step."""
    return spec.method.rows * spec.optim.batch_size * spec.optim.grad_accumulation_steps * spec.seq_len


def steps_within(spec: RunSpec) -> int:
    """Whole optimizer steps that fit into the run's budget of FLOPs, steps or tokens.

    Raises:
        UserError: if not even one fits, or if the budget is in minutes (measure first: `lmxlab.experiments.run`).
    """
    budget = spec.budget
    if budget.minutes is not None:
        raise UserError("A budget in minutes is turned into steps by measuring this machine; call execute().")
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        given, unit, cost = float(budget.tokens), "tokens", tokens_per_step(spec)
    elif budget.flops is not None:
        given, unit, cost = budget.flops, "FLOPs", flops_per_step(spec)
    else:
        return spec.optim.max_steps
    if given < cost:
        raise UserError(
            f"The budget of {given:.3g} {unit} is too small: one step of {spec.name} takes {cost:.3g}. "
            f"Give at least {cost:.3g}, or a smaller batch (now {spec.optim.batch_size} x {spec.seq_len} tokens)."
        )
    return int(given // cost)


def _off(parameters: int, target: int) -> float:
    """How far a size is from the target, relative to the target."""
    return abs(parameters - target) / target


def _with_d_ff(model: ModelConfig, target: int) -> Sized | None:
    """The multiple of 8 for d_ff that comes nearest: parameters are linear in d_ff, so two counts find it."""
    now, more = model.block.d_ff, model.block.d_ff + 8
    here, there = count_parameters(model), count_parameters(adapt(model, {"d_ff": more}))
    slope = (there - here) / 8
    if slope <= 0:
        return None
    chosen = 8 * round((now + (target - here) / slope) / 8)
    # Beyond these an FFN stops being the one the design is known for: let the width give instead.
    if not model.block.d_model // 2 <= chosen <= 8 * model.block.d_model:
        return None
    sized = adapt(model, {"d_ff": chosen})
    return Sized(sized, count_parameters(sized), f"d_ff {now} -> {chosen}")


def _with_width(model: ModelConfig, target: int) -> Sized | None:
    """The width that comes nearest, keeping the number of heads; d_ff keeps its ratio, then fills the gap."""
    block = model.block
    step = 2 * block.n_heads  # head_dim stays even, as RoPE needs
    best: Sized | None = None
    for width in range(step, 4 * block.d_model + 1, step):
        d_ff = max(8, 8 * round(block.d_ff * width / block.d_model / 8))
        try:
            wider = adapt(model, {"d_model": width, "d_ff": d_ff})
        except ValueError:
            continue  # a width that this design's other fields do not divide
        for sized in (Sized(wider, count_parameters(wider), ""), _with_d_ff(wider, target)):
            if sized is not None and (best is None or _off(sized.parameters, target) < _off(best.parameters, target)):
                words = f"width {block.d_model} -> {width}, d_ff {block.d_ff} -> {sized.model.block.d_ff}"
                best = Sized(sized.model, sized.parameters, words)
        if count_parameters(wider) > 2 * target:
            break
    return best


def with_steps(spec: RunSpec, steps: int) -> RunSpec:
    """`spec` with the loop's length, and the warmup cut to a tenth of it, set for a run of `steps` steps."""
    warmup = min(spec.optim.warmup_steps, max(1, steps // 10))
    return dataclasses.replace(
        spec, optim=dataclasses.replace(spec.optim, max_steps=steps, warmup_steps=warmup, seed=spec.seed)
    )
