"""Muon against torch and NorMuon against the formula of its paper."""

import functools

import mlx.core as mx
import numpy as np
import pytest
from optimizer_runs import SHAPES, constant, gap, problem, run_ours, run_torch

from lmxlab.training import create_optimizer
from lmxlab.training.muon import Muon, NorMuon
from lmxlab.training.orthogonalise import orthogonalise


@pytest.mark.oracle
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torch_s_when_torch_orthogonalises_in_float32(adjust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the oracle for Muon is torch: pip install lmxlab[oracle]")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch rounds the momentum to bfloat16 first
    build = functools.partial(torch.optim.Muon, lr=1e-2, weight_decay=0.1, adjust_lr_fn=adjust)
    start, gradients = problem(SHAPES)
    ours = run_ours(create_optimizer(constant("muon", muon_lr_adjust=adjust)), start, gradients)
    difference = gap(ours, run_torch(build, start, gradients))
    print(f"muon {adjust}: {difference:.1e}")
    assert difference <= 1e-5


def test_ten_steps_of_normuon_are_those_of_its_algorithm() -> None:
    """2510.05491, algorithm 1, with the factor of the authors' code that keeps the size of Muon's update; in numpy."""
    start, gradients = problem(SHAPES)
    expected = {name: value.astype(np.float64) for name, value in start.items()}
    momentum = {name: np.zeros(value.shape) for name, value in start.items()}
    rows = {name: np.zeros((value.shape[0], 1)) for name, value in start.items()}
    for step in gradients:
        for name, g in step.items():
            momentum[name] = 0.95 * momentum[name] + 0.05 * g
            nesterov = 0.95 * momentum[name] + 0.05 * g
            o = np.array(orthogonalise(mx.array(nesterov.astype(np.float32)))).astype(np.float64)
            rows[name] = 0.95 * rows[name] + 0.05 * np.mean(o**2, axis=1, keepdims=True)
            evened = o / np.sqrt(rows[name])
            evened *= np.linalg.norm(o) / np.linalg.norm(evened)
            size = 0.2 * np.sqrt(max(o.shape))
            expected[name] = expected[name] * (1 - 1e-2 * 0.1) - 1e-2 * size * evened
    difference = gap(run_ours(create_optimizer(constant("normuon")), start, gradients), expected)
    print(f"normuon: {difference:.1e}")
    assert difference <= 1e-5


def test_the_rows_of_normuon_s_steps_are_of_one_size_and_as_large_as_muon_s_together() -> None:
    """From the first step on, where the rows of Muon's own differ."""
    gradient = mx.random.normal((24, 8)) * mx.exp(mx.random.normal((24, 1)))
    steps = [o(1.0).apply_gradients({"w": gradient}, {"w": mx.zeros((24, 8))})["w"] for o in (Muon, NorMuon)]
    plain, evened = (np.linalg.norm(np.array(step), axis=1) for step in steps)
    assert evened.max() / evened.min() < 1.001 < 1.5 < plain.max() / plain.min()
    assert np.linalg.norm(evened) == pytest.approx(np.linalg.norm(plain), rel=1e-4)


def test_stacked_experts_are_updated_one_by_one() -> None:
    stack, gradients = mx.random.normal((3, 6, 4)), mx.random.normal((3, 6, 4))
    for kind in (Muon, NorMuon):
        together = kind(0.1).apply_gradients({"w": gradients}, {"w": stack})["w"]
        for i in range(3):
            alone = kind(0.1).apply_gradients({"w": gradients[i]}, {"w": stack[i]})["w"]
            assert mx.allclose(together[i], alone, atol=1e-6)


def test_muon_s_decay_is_not_orthogonalised() -> None:
    """With no gradient the momentum is 0 and the weights shrink by exactly 1 - lr decay."""
    optimizer = Muon(0.1, decay=0.5)
    weight = mx.random.normal((4, 4))
    updated = optimizer.apply_gradients({"w": mx.zeros((4, 4))}, {"w": weight})["w"]
    assert mx.allclose(updated, weight * 0.95, rtol=1e-6)


def test_the_iteration_reaches_the_optimizer() -> None:
    start, gradients = problem(SHAPES)
    plain, polar = (
        run_ours(create_optimizer(constant("muon", muon_iteration=name)), start, gradients[:1])
        for name in ("newton_schulz", "polar_express")
    )
    for name, before in start.items():
        step = (before * (1 - 1e-3) - polar[name]) / (1e-2 * 0.2 * np.sqrt(max(before.shape)))
        values = np.linalg.svd(step, compute_uv=False)
        assert values.min() > 0.8 and values.max() < 1.2 and not np.allclose(polar[name], plain[name], atol=1e-4)
