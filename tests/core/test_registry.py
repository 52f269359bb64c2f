import pytest

from lmxlab.core.attention import attention_registry
from lmxlab.core.ffn import ffn_registry
from lmxlab.core.norm import norm_registry
from lmxlab.core.position import position_registry
from lmxlab.core.registry import Registry


def test_register_works_directly_and_as_a_decorator() -> None:
    registry: Registry[object] = Registry("thing")
    assert registry.register("b", 2) == 2

    @registry.register("a")
    class Thing:
        pass

    assert registry.get("a") is Thing
    assert registry.keys() == ["a", "b"]
    assert "a" in registry and "c" not in registry
    assert registry.name == "thing"


def test_a_taken_key_is_refused() -> None:
    registry: Registry[int] = Registry("thing")
    registry.register("a", 1)
    with pytest.raises(ValueError, match="already has key 'a'"):
        registry.register("a", 2)
    assert registry.get("a") == 1


def test_a_missing_key_lists_what_there_is_and_offers_the_nearest() -> None:
    registry: Registry[int] = Registry("thing")
    registry.register("alpha", 1)
    with pytest.raises(KeyError, match=r"no key 'alpa'; did you mean 'alpha'\? Available: \['alpha'\]"):
        registry.get("alpa")
    with pytest.raises(KeyError, match=r"no key 'zzz'\. Available: \["):
        registry.get("zzz")


def test_the_components_are_registered_under_their_names() -> None:
    assert {"mha", "gqa", "none"} <= set(attention_registry.keys())
    assert {"standard", "gated", "relu2", "gated_relu2", "none"} <= set(ffn_registry.keys())
    assert {"rms_norm", "layer_norm"} <= set(norm_registry.keys())
    assert {"rope", "sinusoidal", "learned", "alibi", "none"} <= set(position_registry.keys())
