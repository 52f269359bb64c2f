"""The settings of the methods of `lmxlab train --method`: one section of a config file each, [method] with a name.

What they compute stands in lmxlab.training; how a run uses it, in the task of each (`task.make_task`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.training.divergence import check_divergence


@dataclass(frozen=True)
class Method:
    """Next-token training of a text: the method without a name."""

    name: ClassVar[str] = ""
    metric: ClassVar[str] = "val_bpb"
    """The score that runs of the method are known by."""
    rows: ClassVar[int] = 1
    """Sequences in a batch for each that `optim.batch_size` counts."""
    of_text: ClassVar[bool] = True
    """Whether the data is a text, not a file of examples."""
    learning_rate: ClassVar[float] = 2e-3
    """What suits a model of laboratory size, where nothing else is said."""

    def extra_passes(self) -> float:
        """Forward passes of the model per training sequence besides the one that is trained through."""
        return 0.0


@dataclass(frozen=True)
class SFT(Method):
    """Supervised fine-tuning: the tokens of completions are predicted, those of prompts are only read.

    Attributes:
        truncate: where an example longer than seq_len loses tokens: left (of the prompt first) or right.
    """

    name = "sft"
    metric = "val_loss"
    of_text = False
    learning_rate = 1e-3

    truncate: str = "left"


@dataclass(frozen=True)
class DPO(Method):
    """Direct preference optimisation of pairs: see `lmxlab.training.dpo.DPO`.

    Attributes:
        beta: how much the distance to the model that training started from costs.
        loss_type: sigmoid, ipo, hinge, robust and others.
        label_smoothing: share of pairs believed to be the wrong way round.
        truncate: where a pair longer than seq_len loses tokens: left (of the prompt first) or right.
    """

    name = "dpo"
    metric = "val_accuracy"
    rows = 2
    of_text = False
    learning_rate = 1e-4

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    truncate: str = "left"


@dataclass(frozen=True)
class GRPO(Method):
    """Group relative policy optimisation with verifiable rewards: see `lmxlab.training.grpo.GRPO`.

    Attributes:
        group_size: completions of each prompt, at least 2.
        max_gen_tokens: of a completion.
        temperature: of sampling.
        beta: weight of the penalty on leaving the model that training started from.
        epsilon: how far from 1 the ratio to the sampling policy counts.
        loss_type: grpo, dapo, dr_grpo, ...: how tokens are weighed.
        scale_rewards: group, batch or none: what advantages are divided by the spread of.
        updates: steps on each batch of completions.
    """

    name = "grpo"
    metric = "val_mean_reward"
    of_text = False
    learning_rate = 1e-4

    group_size: int = 4
    max_gen_tokens: int = 32
    temperature: float = 1.0
    beta: float = 0.0
    epsilon: float = 0.2
    loss_type: str = "grpo"
    scale_rewards: str = "group"
    updates: int = 1

    def extra_passes(self) -> float:
        return (1 + (self.beta > 0)) / self.updates


@dataclass(frozen=True)
class MTP(Method):
    """Multi-token prediction: heads that say the tokens after the next one (`lmxlab.training.mtp`).

    Attributes:
        n_predict: how many tokens beyond the next one.
        weight: lambda, of the heads' loss.
    """

    name = "mtp"

    n_predict: int = 1
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.n_predict < 1 or not self.weight > 0:
            raise UserError(f"mtp.n_predict is {self.n_predict} and mtp.weight {self.weight}: give 1 or more, above 0.")


@dataclass(frozen=True)
class Distill(Method):
    """Distillation from a teacher with the same vocabulary: see `lmxlab.training.distillation`.

    Attributes:
        teacher: glassllm, a folder in Hugging Face's layout, or a run's folder.
        temperature: of both distributions.
        alpha: share of the teacher's distribution in the loss; the rest is the text's cross-entropy.
        kind: of the distance between both: forward (KL from the teacher), reverse, or jsd.
        beta: the teacher's share of jsd's mixture.
    """

    name = "distill"

    teacher: str = ""
    temperature: float = 2.0
    alpha: float = 0.5
    kind: str = "forward"
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_divergence(self.kind, self.temperature, self.beta)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"distill.alpha is {self.alpha}: give 0 (no teacher) to 1 (nothing else).")


METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (Method, SFT, DPO, GRPO, MTP, Distill)}


def find_method(name: str) -> type[Method]:
    """UnknownNameError for a method that does not exist."""
    if name not in METHODS:
        raise UnknownNameError("method", name, [known for known in METHODS if known])
    return METHODS[name]


def method_to_dict(method: Method) -> dict[str, Any]:
    """Plain values; `from_table(find_method(name), rest)` inverts it."""
    return {"name": method.name, **dataclasses.asdict(method)} if method.name else {}
