"""Linear probes: what can be read off a layer by one matrix, and how much of that is the probe's own memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from lmxlab.analysis.activations import ActivationCapture, number
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel

States = tuple[mx.array, mx.array]  # of a layer, (B, T, d_model) float32, and labels
Examples = tuple[mx.array, mx.array]  # tokens and labels, both (B, T); a negative label is not scored


class LinearProbe(nn.Module):
    """Logits W x + b of `num_classes` classes from states of `input_dim` channels (Alain & Bengio 2016, 1610.01644)."""

    def __init__(self, input_dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(input_dim, num_classes)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., input_dim) -> (..., num_classes)."""
        logits: mx.array = self.linear(x)
        return logits


def train_probe(
    model: LanguageModel,
    data: Iterable[Examples],
    layer: int,
    probe: LinearProbe,
    steps: int = 200,
    lr: float = 0.001,
) -> list[float]:
    """Trains `probe` with Adam to tell the labels of tokens from the output of one layer; the model does not move.

    Args:
        data: batches of tokens (B, T) and labels (B, T); a negative label is not scored. What can be iterated over
            again (a list) is, until `steps` are done; an iterator that ends, ends the training.

    Returns:
        The mean cross-entropy in nats of each step's batch before the update.

    Raises:
        UserError: no such layer, another width, labels that the probe has no class for, or no batch at all.
    """
    losses = _fit(probe, _states(model, _endless(data), layer, probe), steps, lr)
    if not losses and steps:
        raise UserError("The data for the probe holds no batch: give at least one of (tokens, labels).")
    return losses


def _fit(probe: LinearProbe, batches: Iterable[States], steps: int, lr: float) -> list[float]:
    optimizer = optim.Adam(learning_rate=lr, bias_correction=True)

    def loss(probe: LinearProbe, states: mx.array, labels: mx.array) -> mx.array:
        scored = labels >= 0
        nats = nn.losses.cross_entropy(probe(states), mx.maximum(labels, 0))
        return (nats * scored).sum() / mx.maximum(scored.sum(), 1)

    step = nn.value_and_grad(probe, loss)
    losses: list[float] = []
    for states, labels in batches:
        if len(losses) == steps:
            break
        value, gradients = step(probe, states, labels)
        optimizer.update(probe, gradients)
        mx.eval(probe.parameters(), optimizer.state, value)
        losses.append(number(value))
    return losses


def probe_accuracy(
    model: LanguageModel, data: Iterable[Examples], layer: int, probe: LinearProbe, max_batches: int = 50
) -> float:
    """The share of scored tokens whose label the probe gives the highest logit, over at most `max_batches` batches.

    Raises:
        UserError: as train_probe, or no token to score.
    """
    return _score(probe, islice(_states(model, iter(data), layer, probe), max_batches))


def _score(probe: LinearProbe, batches: Iterable[States]) -> float:
    right = scored = 0
    for states, labels in batches:
        guesses = probe(states).argmax(axis=-1)
        right += int(number(((guesses == labels) & (labels >= 0)).sum()))
        scored += int(number((labels >= 0).sum()))
    if not scored:
        raise UserError("The data for the probe holds no token to score: give batches with labels of 0 or more.")
    return right / scored


@dataclass(frozen=True)
class ProbeResult:
    """How well a layer's output tells a property, on rows that the probe was not trained on.

    Attributes:
        layer: the number of the layer.
        accuracy: of the probe of the property.
        control_accuracy: of a probe trained alike on the control task.
        majority: of always guessing the training rows' most frequent label.
    """

    layer: int
    accuracy: float
    control_accuracy: float
    majority: float

    @property
    def selectivity(self) -> float:
        """accuracy - control_accuracy: what the layer knows beyond what a probe can learn by heart."""
        return self.accuracy - self.control_accuracy


def probe_layers(
    model: LanguageModel,
    tokens: mx.array,
    labels: mx.array,
    layers: Iterable[int] | None = None,
    *,
    held_out: float = 0.25,
    steps: int = 200,
    lr: float = 0.01,
    batch_size: int = 16,
    seed: int = 0,
) -> list[ProbeResult]:
    """Probes several layers for one property, with held-out rows and a control task (Hewitt & Liang 2019, 1909.03368).

    Args:
        tokens, labels: (N, T); a negative label is not scored.
        layers: their numbers; all of them if None.
        held_out: the share of rows, drawn by `seed`, that no probe is trained on and all are scored on.

    A layer's outputs for all rows are held at a time, 4 N T d_model bytes.

    Raises:
        UserError: shapes that differ, or a share that leaves no row on one side.
    """
    if tokens.shape != labels.shape or tokens.ndim != 2:
        raise UserError(f"Tokens {tuple(tokens.shape)} and labels {tuple(labels.shape)} must both be (rows, length).")
    train, test = split_rows(len(tokens), held_out, seed)
    controls = control_labels(tokens, labels, seed)
    n_classes = int(number(labels.max())) + 1
    learnt = np.array(labels)[train]
    majority = np.bincount(learnt[learnt >= 0], minlength=n_classes).argmax()
    tested = np.array(labels)[test]
    by_majority = float((tested[tested >= 0] == majority).mean())
    results = []
    for layer in range(len(model.blocks)) if layers is None else layers:
        accuracies = []
        start = LinearProbe(model.config.block.d_model, n_classes)
        # The layer is computed once for all steps of both probes.
        states = [
            [found for found, _ in _states(model, iter(_batches(tokens, labels, rows, batch_size)), layer, start)]
            for rows in (train, test)
        ]
        mx.eval(states)
        for target in (labels, controls):
            probe = LinearProbe(model.config.block.d_model, n_classes)
            probe.linear.update({name: mx.zeros_like(array) for name, array in probe.linear.items()})
            fitted, scored = (
                [(found, y) for found, (_, y) in zip(part, _batches(tokens, target, rows, batch_size), strict=True)]
                for part, rows in zip(states, (train, test), strict=True)
            )
            _fit(probe, _endless(fitted), steps, lr)
            accuracies.append(_score(probe, scored))
        results.append(ProbeResult(layer, accuracies[0], accuracies[1], by_majority))
    return results


def control_labels(tokens: mx.array, labels: mx.array, seed: int = 0) -> mx.array:
    """The control task: every token id gets one label for good, drawn as often as the real labels occur.

    Nothing but the identity of the token tells it, so a probe that does well on it has learnt a table by heart
    (Hewitt & Liang 2019, 1909.03368, section 2). What is not scored in `labels` (below 0) is not scored here.
    """
    values = np.array(labels)
    pool = values[values >= 0]
    if not pool.size:
        raise UserError("No token has a label: give labels of 0 or more where the property is known.")
    ids = np.array(tokens)
    table = np.random.default_rng(seed).choice(pool, size=int(ids.max()) + 1)
    return mx.array(np.where(values >= 0, table[ids], values))


def split_rows(n_rows: int, held_out: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the rows to train on and of those held out, both sorted, drawn by `seed`."""
    n_test = round(n_rows * held_out)
    if not 0 < n_test < n_rows:
        raise UserError(
            f"held_out {held_out} of {n_rows} rows leaves one side empty; give a share between, or more rows"
        )
    order = np.random.default_rng(seed).permutation(n_rows)
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def _batches(tokens: mx.array, labels: mx.array, rows: np.ndarray, size: int) -> list[Examples]:
    chosen = [mx.array(rows[i : i + size]) for i in range(0, len(rows), size)]
    return [(tokens[index], labels[index]) for index in chosen]


def _endless(data: Iterable[Examples]) -> Iterator[Examples]:
    """The batches over and over, or once where `data` is an iterator."""
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty or isinstance(data, Iterator):
            return


def _states(
    model: LanguageModel, data: Iterator[Examples], layer: int, probe: LinearProbe
) -> Iterator[tuple[mx.array, mx.array]]:
    """(B, T, d_model) float32 outputs of the layer, and their labels."""
    if not 0 <= layer < len(model.blocks):
        raise UserError(f"There is no layer {layer}: the model has layers 0 to {len(model.blocks) - 1}")
    n_classes, width = probe.linear.weight.shape
    if width != model.config.block.d_model:
        raise UserError(f"The probe reads {width} channels, the model has {model.config.block.d_model}")
    for tokens, labels in data:
        if labels.shape != tokens.shape:
            raise UserError(
                f"Tokens {tuple(tokens.shape)} and labels {tuple(labels.shape)} differ: give one label each"
            )
        if number(labels.max()) >= n_classes:
            raise UserError(f"A label is {labels.max().item()}, the probe has classes 0 to {n_classes - 1}")
        with ActivationCapture(model, places=("output",)) as capture:
            model(tokens)
        yield mx.stop_gradient(capture.activations[f"layer_{layer}/output"].astype(mx.float32)), labels
