"""What flows through the layers of a model: read, and replaced by something else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.taps import reading
from lmxlab.errors import UnknownNameError
from lmxlab.models.base import LanguageModel, evaluating

# Places of a layer: its input, what attention and FFN add to the residual stream, its output, and what the heads make.
PLACES = ("input", "attention", "ffn", "output", "heads")


class ActivationCapture:
    """Reads what passes through the layers of `model` while it is called inside the `with` block, dropout being off.

    `activations` holds the last call's arrays, "layer_N/input" and "layer_N/output", each (B, T, d_model): the residual
    stream before and after layer N. `places` may name others of PLACES: "attention" and "ffn" are what the branches
    add to the stream, "heads" what the heads of a softmax attention make before its output projection,
    (B, T, n_heads, head_dim). A layer without a place has no entry. Leaving the block restores the training flags.

    >>> from lmxlab.models.llama import llama_tiny
    >>> model = LanguageModel(llama_tiny())
    >>> with ActivationCapture(model) as capture:
    ...     logits, _ = model(mx.array([[1, 2, 3]]))
    >>> capture.activations["layer_1/output"].shape
    (1, 3, 64)
    """

    def __init__(self, model: LanguageModel, *, places: Iterable[str] = ("input", "output")):
        self.model = model
        self.places = tuple(places)
        for place in self.places:
            if place not in PLACES:
                raise UnknownNameError("place", place, PLACES)
        self.activations: dict[str, mx.array] = {}
        self._open: ExitStack | None = None

    def __enter__(self) -> "ActivationCapture":
        layers = layer_of(self.model)

        def read(module: nn.Module, place: str, x: mx.array) -> mx.array:
            layer = layers.get(id(module))
            if layer is not None and place in self.places:
                self.activations[f"layer_{layer}/{place}"] = x
            return x

        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(reading(read))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._open is not None:
            self._open.close()

    def layer_norms(self) -> dict[str, float]:
        """The L2 norm of each captured array, in float32, by its name."""
        return {name: l2_norm(x) for name, x in self.activations.items()}


@contextmanager
def replacing(model: LanguageModel, replacements: Mapping[str, Callable[[mx.array], mx.array]]) -> Iterator[None]:
    """Inside the block, calls of `model` go on with `function(x)` wherever "layer_N/place" would have given x.

    Places are PLACES, as ActivationCapture names them; dropout is off meanwhile.

    Raises:
        UnknownNameError: a place that no layer of the model has.
    """
    check_places(model, replacements)
    layers = layer_of(model)

    def replace(module: nn.Module, place: str, x: mx.array) -> mx.array:
        layer = layers.get(id(module))
        function = None if layer is None else replacements.get(f"layer_{layer}/{place}")
        return x if function is None else function(x)

    with evaluating(model), reading(replace):
        yield


def layer_of(model: LanguageModel) -> dict[int, int]:
    """The number of the layer that each module, by its id, is a part of."""
    return {id(module): i for i, block in enumerate(model.blocks) for module in block.modules()}


def check_places(model: LanguageModel, names: Iterable[str]) -> None:
    """Raises UnknownNameError for a name that is not "layer_N/place" of a layer of the model."""
    allowed = [f"layer_{i}/{place}" for i in range(len(model.blocks)) for place in PLACES]
    for name in names:
        if name not in allowed:
            raise UnknownNameError("place", name, allowed)


def l2_norm(x: mx.array) -> float:
    """Of all numbers of an array, in float32."""
    return number(mx.sqrt(mx.square(x.astype(mx.float32)).sum()))


def number(scalar: mx.array) -> float:
    """The Python float of an array of one real number."""
    return float(scalar.item())  # type: ignore[arg-type]  # item() may also be complex
