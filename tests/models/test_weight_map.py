"""Rules of weight names: what they make of a checkpoint, that they undo it exactly, and what they refuse."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.models.weight_map import Join, Rule, Split, Transpose, per_layer, rename, renaming, rule, transfers

CONFIG = ModelConfig(BlockConfig(d_model=8, n_heads=2), n_layers=2)


def numbered(*shape: int) -> mx.array:
    """No two entries alike, so that any wrong order shows."""
    return mx.arange(int(np.prod(shape))).reshape(shape)


def there_and_back(rules: list[Rule], theirs: dict[str, mx.array], shapes: dict[str, Any]) -> dict[str, mx.array]:
    """Our weights, after checking that the way back gives the same names and values."""
    plan = transfers(rules, shapes, CONFIG)
    ours = {name: array for transfer in plan for name, array in transfer.to_ours(theirs.__getitem__).items()}
    back = {name: array for transfer in plan for name, array in transfer.to_theirs(ours.__getitem__).items()}
    assert back.keys() == theirs.keys()
    assert all(mx.array_equal(back[name], theirs[name]) for name in theirs)
    assert {name: array.shape for name, array in ours.items()} == shapes
    return ours


def test_modules_change_their_names_with_weight_and_bias() -> None:
    theirs = {"m.0.up.weight": numbered(3, 2), "m.0.up.bias": numbered(3), "m.1.up.weight": numbered(3, 2) + 9}
    theirs |= {"m.0.A_log": numbered(4), "out.weight": numbered(2)}
    rules = [*rename({"out": "final"}), *per_layer("m.{i}.", rename({"up": "ffn.up", "A_log": "attention.A_log"}))]
    shapes = {"final.weight": (2,), "blocks.0.ffn.up.weight": (3, 2), "blocks.0.ffn.up.bias": (3,)}
    shapes |= {"blocks.1.ffn.up.weight": (3, 2), "blocks.0.attention.A_log": (4,)}
    ours = there_and_back(rules, theirs, shapes)
    assert ours["blocks.1.ffn.up.weight"] is theirs["m.1.up.weight"]


def test_arrays_are_transposed_by_the_axes_that_are_named() -> None:
    theirs = {"fc.weight": numbered(2, 3), "fc.bias": numbered(3), "conv.weight": numbered(5, 1, 4)}
    rules = [rule("fc", "up", Transpose(1, 0)), rule("conv", "conv", Transpose(1, 2, 0))]
    shapes = {"up.weight": (3, 2), "up.bias": (3,), "conv.weight": (1, 4, 5)}
    ours = there_and_back(rules, theirs, shapes)
    assert ours["up.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert ours["conv.weight"][0, 3, 2].item() == theirs["conv.weight"][2, 0, 3].item()


def test_one_array_is_split_into_parts_as_long_as_the_model_says() -> None:
    theirs = {"qkv.weight": numbered(2, 7), "qkv.bias": numbered(7)}
    shapes = {f"{name}.{kind}": size for name, n in (("q", 4), ("k", 2), ("v", 1)) for kind, size in weight_and_bias(n)}
    ours = there_and_back([rule("qkv", ("q", "k", "v"), Transpose(1, 0), Split(0))], theirs, shapes)
    assert ours["k.weight"].tolist() == [[4, 11], [5, 12]] and ours["v.bias"].tolist() == [6]


def weight_and_bias(n: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("weight", (n, 2)), ("bias", (n,))]


def test_experts_are_stacked_and_joined() -> None:
    theirs = {f"e.{e}.{w}.weight": numbered(3, 2) + 100 * e + 10 * int(w[1]) for e in range(4) for w in ("w1", "w3")}
    separate = [rule("e.{e}.w1.weight", "ffn.gate"), rule("e.{e}.w3.weight", "ffn.up")]
    ours = there_and_back(separate, theirs, {"ffn.gate": (4, 3, 2), "ffn.up": (4, 3, 2)})
    assert ours["ffn.up"][3, 0, 0].item() == 330
    fused = [rule(("e.{e}.w1", "e.{e}.w3"), "ffn.gate_up", Join(1))]
    ours = there_and_back(fused, theirs, {"ffn.gate_up.weight": (4, 6, 2)})
    assert ours["ffn.gate_up.weight"][2, :, 0].tolist() == [210, 212, 214, 230, 232, 234]


def test_fused_transposed_experts_are_taken_apart() -> None:
    theirs = {"gate_up": numbered(2, 3, 8)}
    ours = there_and_back(
        [rule("gate_up", ("gate", "up"), Transpose(0, 2, 1), Split(1))], theirs, {"gate": (2, 4, 3), "up": (2, 4, 3)}
    )
    assert ours["up"][1, 0, 2].item() == theirs["gate_up"][1, 2, 4].item()


def test_a_rule_applies_where_the_model_has_its_weights_and_the_first_that_fits_holds() -> None:
    rules = per_layer(
        "l.{i}.",
        [
            *rename({"norm": "attn_norm"}),
            *rename({"norm": "ffn_norm"}),
            rule("experts.{e}.gate.weight", "ffn.gate"),
            *rename({"mlp.gate": "ffn.gate"}),
        ],
    )
    theirs = {"l.0.norm.weight": numbered(2), "l.0.experts.0.gate.weight": numbered(3, 2)}
    theirs |= {"l.1.norm.weight": numbered(2) + 5, "l.1.mlp.gate.weight": numbered(3, 2) + 5}
    shapes = {"blocks.0.attn_norm.weight": (2,), "blocks.0.ffn.gate": (1, 3, 2)}
    shapes |= {"blocks.1.ffn_norm.weight": (2,), "blocks.1.ffn.gate.weight": (3, 2)}
    there_and_back(rules, theirs, shapes)


def test_when_asks_the_config_of_the_layer() -> None:
    rules = [
        *per_layer("l.{i}.", [rule("a", "x", when=lambda block: block.attention == "gqa")]),
        *per_layer("l.{i}.", [rule("b", "x")]),
    ]
    there_and_back(rules, {"l.0.b": numbered(2), "l.1.b": numbered(2)}, {"blocks.0.x": (2,), "blocks.1.x": (2,)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (2, 2), "k": (2, 2), "other.weight": (1,)}, "rules of weight names have none for other.weight"),
        ({"q": (2, 2), "k": (3, 2)}, "qkv does not fit: its axis 0 has 4 entries, its config says 5"),
        ({"q": (2, 3), "k": (2, 3)}, r"q, from qkv, is \(2, 2\), its config says \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(shapes: dict[str, Any], message: str) -> None:
    theirs = {"qkv": numbered(4, 2)}
    with pytest.raises(UserError, match=message):
        for transfer in transfers([rule("qkv", ("q", "k"), Split(0))], shapes, CONFIG):
            transfer.to_ours(theirs.__getitem__)


def test_names_alone_are_a_function() -> None:
    ours = renaming([*rename({"a.b": "embed"}), *per_layer("l.{i}.", rename({"mlp.up": "ffn.up"}))])
    assert [
        ours(name) for name in ("a.b.weight", "l.12.mlp.up.bias", "l.0.mlp.up", "l.x.mlp.up.bias", "axb.weight")
    ] == [
        "embed.weight",
        "blocks.12.ffn.up.bias",
        "blocks.0.ffn.up",
        None,
        None,
    ]
