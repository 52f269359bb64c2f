"""Divergences against torch and TRL, and the laws that they obey."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import distillation_reference
import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core import kernels
from lmxlab.errors import UserError
from lmxlab.training.distillation import soft_target_loss
from lmxlab.training.divergence import KINDS, check_divergence, coarse_divergence, divergence

N, V = 11, 37


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (N, V)).astype(np.float32)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict:
    for package in ("torch", "trl"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    folder: Path = tmp_path_factory.mktemp("distillation")
    np.savez(folder / "in.npz", student=logits(0), teacher=logits(1))
    script = [sys.executable, distillation_reference.__file__, str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(script, check=True, capture_output=True)
    with np.load(folder / "out.npz") as file:
        return dict(file)


def found(name: str, temperature: float) -> tuple[mx.array, mx.array]:
    kind, _, beta = name.partition(" ")

    def loss(student: mx.array) -> mx.array:
        return divergence(student, mx.array(logits(1)), kind, temperature, float(beta or 0.5)).mean()

    return mx.value_and_grad(loss)(mx.array(logits(0)))


@pytest.mark.oracle
@pytest.mark.parametrize("temperature", distillation_reference.TEMPERATURES)
@pytest.mark.parametrize("name", distillation_reference.BETAS)
def test_loss_and_gradient_are_those_of_trl(name: str, temperature: float, expected: dict) -> None:
    loss, gradient = found(name, temperature)
    assert float(loss) == pytest.approx(float(expected[f"{name} {temperature}"]), abs=1e-5)
    np.testing.assert_allclose(np.array(gradient), expected[f"gradient {name} {temperature}"], atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("temperature", distillation_reference.TEMPERATURES)
def test_the_soft_target_loss_is_kl_div_of_torch_times_the_squared_temperature(
    temperature: float, expected: dict
) -> None:
    loss, gradient = mx.value_and_grad(soft_target_loss)(mx.array(logits(0)), mx.array(logits(1)), temperature)
    factor = temperature**2
    assert float(loss) == pytest.approx(factor * float(expected[f"kl_div {temperature}"]), abs=1e-5 * factor)
    np.testing.assert_allclose(np.array(gradient) / factor, expected[f"gradient kl_div {temperature}"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_between_equals_and_something_between_others(kind: str) -> None:
    p, q = (mx.array(logits(seed)) for seed in (0, 1))
    assert float(mx.abs(divergence(p, p, kind, 2.0)).max()) <= (1e-6 if kind == "jsd" else 0)
    assert float(divergence(p, q, kind, 2.0).min()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_vocabulary_goes_the_fast_way_to_the_same_numbers(kind: str) -> None:
    rng = np.random.default_rng(5)
    z, t = (mx.array(rng.normal(0, 4, (16, 4000)).astype(np.float32)) for _ in range(2))

    def values() -> list[mx.array]:
        rows, (gradient,) = mx.vjp(lambda z: divergence(z, t, kind, 1.5), [z], [mx.arange(16) / 16])
        return [*rows, gradient]

    fast = values()
    kernels.exact(True)
    try:
        for ours, exact in zip(fast, values(), strict=True):
            np.testing.assert_allclose(np.array(ours), np.array(exact), atol=1e-4, rtol=1e-4)
    finally:
        kernels.exact(False)
    assert float(mx.abs(divergence(z, z, kind)).max()) <= (1e-5 if kind == "jsd" else 0)


@pytest.mark.parametrize("k", [1, 4, V])
def test_few_outcomes_have_the_gradient_of_their_definition(k: int) -> None:
    z, cotangent = mx.array(logits(0)), mx.array(logits(1)[:, : min(k + 1, V)])
    indices = mx.argsort(-mx.array(logits(2)), axis=1)

    def plain(z: mx.array) -> mx.array:
        logs = z - mx.logsumexp(z, axis=1, keepdims=True)
        named, others = (mx.take_along_axis(logs, i, axis=1) for i in (indices[:, :k], indices[:, k:]))
        return named if k == V else mx.concatenate([named, mx.logsumexp(others, axis=1, keepdims=True)], axis=1)

    (expected,), (slope,) = mx.vjp(plain, [z], [cotangent])
    (ours,), (gradient,) = mx.vjp(lambda z: kernels.coarse_log_softmax(z, indices[:, :k]), [z], [cotangent])
    np.testing.assert_allclose(np.array(ours), np.array(expected), atol=2e-6, rtol=1e-6)
    np.testing.assert_allclose(np.array(gradient), np.array(slope), atol=2e-5)


def test_the_ends_of_the_mixture_are_the_two_divergences() -> None:
    q, p = (mx.array(logits(seed, 1.0)) for seed in (0, 1))
    for beta, kind in ((1e-3, "forward"), (1 - 1e-3, "reverse")):
        ends = divergence(q, p, "jsd", beta=beta) / min(beta, 1 - beta)
        np.testing.assert_allclose(np.array(ends), np.array(divergence(q, p, kind)), rtol=0.02)


def test_what_is_impossible_weighs_nothing() -> None:
    p, q = mx.log(mx.array([[0.5, 0.5, 0.0]])), mx.log(mx.array([[0.25, 0.25, 0.5]]))
    assert float(coarse_divergence(q, p, "forward")[0]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(coarse_divergence(q, p, "jsd")[0]) == pytest.approx(
        0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["forward", "jsd"])
def test_a_token_that_a_teacher_rules_out_weighs_nothing(kind: str) -> None:
    student, teacher = mx.array([[0.3, 1.0, -0.5]]), mx.array([[0.2, -mx.inf, 0.1]])
    q, p = (np.exp(np.array(z)) / np.exp(np.array(z)).sum() for z in (student, teacher))
    m, some = (q + p) / 2, p > 0
    halves = 0.5 * (p[some] * np.log((p / m)[some])).sum() + 0.5 * (q * np.log(q / m)).sum()
    expected = (p[some] * np.log((p / q)[some])).sum() if kind == "forward" else halves
    loss, gradient = mx.value_and_grad(lambda z: divergence(z, teacher, kind).sum())(student)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert mx.isfinite(gradient).all()
    both = divergence(teacher, teacher, kind)
    assert float(both.sum()) == pytest.approx(0, abs=1e-6)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="Unknown divergence 'forwards'; did you mean 'forward'"):
        check_divergence("forwards", 1.0, 0.5)
    with pytest.raises(UserError, match="temperature is 0: it must be above 0"):
        check_divergence("forward", 0, 0.5)
    with pytest.raises(UserError, match="its ends are the kinds forward and reverse"):
        check_divergence("jsd", 1.0, 1.0)
