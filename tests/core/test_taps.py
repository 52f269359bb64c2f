"""Instruments act inside their block only, in the order in which they were put on."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from lmxlab.core import kernels
from lmxlab.core.taps import reading, tap, watching


def test_readers_act_in_order_and_only_inside_their_block() -> None:
    module, x = nn.Identity(), mx.array(3.0)
    with reading(lambda m, place, x: x + 1), reading(lambda m, place, x: 10 * x if place == "here" else x):
        assert tap(module, "here", x).item() == 40
        assert tap(module, "there", x).item() == 4
    assert tap(module, "here", x) is x
    with pytest.raises(RuntimeError), reading(lambda m, place, x: x + 1):
        raise RuntimeError
    assert tap(module, "here", x) is x


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("exact", [True, False])
def test_every_form_of_attention_is_told_of_once(
    softcap: float | None, exact: bool, cpu_forms_at_any_size, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.switch, "_exact", exact)
    q, k = mx.random.normal((1, 4, 3, 8)), mx.random.normal((1, 2, 3, 8))
    seen = []
    with watching(seen.append):
        kernels.attention(q, k, k, 0.5, "causal", softcap)
    kernels.attention(q, k, k, 0.5, "causal", softcap)
    (scores,) = seen
    assert scores.q is q and scores.k is k and (scores.scale, scores.mask, scores.softcap) == (0.5, "causal", softcap)
