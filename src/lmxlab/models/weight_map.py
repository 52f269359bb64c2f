"""How a family's weights are named and laid out in Hugging Face files, as rules that work in both directions.

A family declares a list of rules beside its config factory. A rule names modules or arrays of a checkpoint ("theirs")
and of a LanguageModel ("ours"):

    [
        *rename({"model.embed_tokens": "embed", "model.norm": "final_norm", "lm_head": "head"}),
        *per_layer(
            "model.layers.{i}.",
            [
                *rename({"self_attn.o_proj": "attention.o_proj", "input_layernorm": "attn_norm"}),
                rule("attn.c_proj", "attention.o_proj", Transpose(1, 0)),  # GPT-2 keeps (in, out)
                rule("conv1d", "attention.conv", Transpose(0, 2, 1)),  # say (C, 1, K) there, (C, K, 1) here
                rule("in_proj_qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), Split(0)),
                rule("block_sparse_moe.experts.{e}.w1.weight", "ffn.gate"),  # E matrices there, (E, out, in) here
                rule("experts.gate_up_proj", ("ffn.gate", "ffn.up"), Transpose(0, 2, 1), Split(1)),  # Llama 4's
            ],
        ),
    ]

- `{i}` is the number of the layer. `per_layer` puts a prefix before their names, and "blocks.{i}." before ours.
- `{e}` in their name is the number of an expert: these arrays become one, stacked along a new first axis.
- A name stands for itself and for its `.weight` and `.bias`, with the same ending on both sides; a rule that is written
  with an ending stands for nothing else.
- **A rule applies wherever the model has all of its weights**: where layers differ in kind, write the rules of every
  kind (Nemotron-H: `rename({"norm": "attn_norm"})` and `rename({"norm": "ffn_norm"})`); a bias or a norm that a config
  switches off needs nothing. Of several rules that fit a weight the first one holds, so special rules (experts) come
  before general ones (`rename({"mlp.gate_proj": "ffn.gate"})`). Where that is not enough, `when` asks the layer's
  config.
- Steps run from theirs to ours in the order written, and back in the other order. `Split` and `Join` change the number
  of arrays, `Transpose` changes each one of as many axes as it names and lets the others (biases) pass. A family that
  needs another step writes a class with the same two methods.
- Rules that depend on the whole config are a function of it: `Converter(..., rules=lambda config: [...])`.

Every step has an exact inverse, so a checkpoint that is read and written again has the same names and the same bytes.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError, some

Shape = tuple[int, ...]
Read = Callable[[str], mx.array]
SUFFIXES = ("", ".weight", ".bias")


class Step(Protocol):
    """A change of layout, and its inverse."""

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        """`shapes` are those of the model's weights that the rule fills."""

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        """`n_theirs` is how many arrays of the checkpoint the rule fills."""


class Transpose:
    """Permutes the axes of every array that has as many as are named."""

    def __init__(self, *axes: int):
        self.axes = axes
        self.inverse = tuple(int(axis) for axis in np.argsort(axes))

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        return [array.transpose(self.axes) if array.ndim == len(self.axes) else array for array in arrays]

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        return [array.transpose(self.inverse) if array.ndim == len(self.axes) else array for array in arrays]


class Split:
    """One array there is several here, side by side along an axis, each as long as the model says: a last step."""

    def __init__(self, axis: int):
        self.axis = axis

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        (array,) = arrays
        sizes = [shape[self.axis] for shape in shapes]
        if sum(sizes) != array.shape[self.axis]:
            raise UserError(f"its axis {self.axis} has {array.shape[self.axis]} entries, its config says {sum(sizes)}")
        return list(mx.split(array, [int(end) for end in np.cumsum(sizes)[:-1]], axis=self.axis))

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        return [mx.concatenate(arrays, axis=self.axis)]


class Join:
    """Several arrays of equal shape there are one here, side by side along an axis."""

    def __init__(self, axis: int):
        self.axis = axis

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        return [mx.concatenate(arrays, axis=self.axis)]

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        return list(mx.split(arrays[0], n_theirs, axis=self.axis))


@dataclass(frozen=True)
class Rule:
    """Arrays of a checkpoint, the weights of a model that they are, and the steps between them.

    Args:
        theirs, ours: names or modules, with `{i}` for the layer and, in theirs, `{e}` for the expert.
        steps: from theirs to ours.
        when: whether the rule holds for a layer of this config; None: wherever the model has the weights.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    when: Callable[[BlockConfig], bool] | None = None

    @property
    def only_renames(self) -> bool:
        return not self.steps and not any("{e}" in name for name in self.theirs)


def rule(
    theirs: str | Sequence[str],
    ours: str | Sequence[str],
    *steps: Step,
    when: Callable[[BlockConfig], bool] | None = None,
) -> Rule:
    """A Rule from one or several names on each side."""
    return Rule(_names(theirs), _names(ours), steps, when)


def rename(table: Mapping[str, str]) -> list[Rule]:
    """Rules that change names alone: {theirs: ours}."""
    return [rule(theirs, ours) for theirs, ours in table.items()]


def per_layer(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of every layer: `prefix` (with `{i}`) before their names, "blocks.{i}." before ours."""
    return [
        dataclasses.replace(
            rule,
            theirs=tuple(prefix + name for name in rule.theirs),
            ours=tuple("blocks.{i}." + name for name in rule.ours),
        )
        for rule in rules
    ]


@dataclass(frozen=True)
class Transfer:
    """A rule at one place of one model.

    Attributes:
        theirs: names in the checkpoint, for each of the rule's own, and whether they are one array per expert.
        ours: names in the model.
        shapes: the shapes of ours.
    """

    rule: Rule
    theirs: tuple[tuple[tuple[str, ...], bool], ...]
    ours: tuple[str, ...]
    shapes: list[Shape]

    @property
    def their_names(self) -> list[str]:
        return [name for names, _ in self.theirs for name in names]

    def to_ours(self, read: Read) -> dict[str, mx.array]:
        """Our weights from the checkpoint's. Nothing is computed yet, but shapes are checked.

        Raises:
            UserError: an array whose shape does not fit the model's; the message names it.
        """
        source = self.their_names[0]
        try:
            arrays = [mx.stack([read(n) for n in names]) if many else read(names[0]) for names, many in self.theirs]
            for step in self.rule.steps:
                arrays = step.to_ours(arrays, self.shapes)
        except ValueError as error:  # of steps and of MLX
            raise UserError(f"{source} does not fit: {error}") from None
        for array, name, shape in zip(arrays, self.ours, self.shapes, strict=True):
            if array.shape != shape:
                what = source if self.rule.only_renames else f"{name}, from {source},"
                raise UserError(f"{what} is {array.shape}, its config says {shape}")
        return dict(zip(self.ours, arrays, strict=True))

    def to_theirs(self, read: Read) -> dict[str, mx.array]:
        """The checkpoint's arrays from our weights."""
        arrays = [read(name) for name in self.ours]
        for step in reversed(self.rule.steps):
            arrays = step.to_theirs(arrays, len(self.theirs))
        named: dict[str, mx.array] = {}
        for (names, stacked), array in zip(self.theirs, arrays, strict=True):
            named |= {name: array[e] for e, name in enumerate(names)} if stacked else {names[0]: array}
        return named


def transfers(rules: Iterable[Rule], shapes: Mapping[str, Shape], config: ModelConfig) -> list[Transfer]:
    """The rules at every place of the model whose weights have these shapes, each filled by the first that fits.

    Raises:
        UserError: a weight that no rule speaks of.
    """
    found: list[Transfer] = []
    left = dict(shapes)
    for one in rules:
        for i in range(config.n_layers if "{i}" in one.ours[0] else 1):
            if one.when is None or one.when(config.get_block_config(i)):
                for suffix in SUFFIXES:
                    if there := _place(one, i, suffix, left):
                        found.append(there)
                        for name in there.ours:
                            del left[name]
    if left:
        raise UserError(f"The family's rules of weight names have none for {some(left)}")
    return found


def renaming(rules: Iterable[Rule]) -> Callable[[str], str | None]:
    """The function from their names to ours, None for names that no rule has; of rules that only rename."""
    patterns = []
    for one in rules:
        theirs = re.escape(one.theirs[0]).replace(r"\{i\}", r"(?P<i>\d+)")
        patterns.append((re.compile(rf"{theirs}(?P<suffix>\.weight|\.bias)?"), one.ours[0]))

    def ours(name: str) -> str | None:
        for pattern, template in patterns:
            if match := pattern.fullmatch(name):
                return template.replace("{i}", match.groupdict().get("i", "")) + (match["suffix"] or "")
        return None

    return ours


def _place(one: Rule, layer: int, suffix: str, shapes: Mapping[str, Shape]) -> Transfer | None:
    ours = tuple(name.replace("{i}", str(layer)) + suffix for name in one.ours)
    whole = any(name.endswith(SUFFIXES[1:]) for name in (*one.theirs, *one.ours))  # written with its ending
    if suffix and whole or not all(name in shapes for name in ours):
        return None
    own = [shapes[name] for name in ours]
    theirs = []
    for template in one.theirs:
        name = template.replace("{i}", str(layer)) + suffix
        stacked = "{e}" in name
        theirs.append((tuple(name.replace("{e}", str(e)) for e in range(own[0][0] if stacked else 1)), stacked))
    return Transfer(one, tuple(theirs), ours, own)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
