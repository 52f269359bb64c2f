"""The events of a training loop."""

from typing import Any, Protocol

from lmxlab.training.config import TrainConfig


class Callback(Protocol):
    """The loop calls these; a callback may inherit from here and override what it needs.

    `metrics` is the step's dict in the history, and what a callback puts in stays there.

    An attribute `should_stop` that is true after a step ends the loop. A callback with `state_dict` and
    `load_state_dict` (JSON values) is saved with the trainer and continues where it was, after its `on_train_begin`.
    """

    def on_train_begin(self, config: TrainConfig | None) -> None:
        """Before the first step; None comes from trainers with another config."""
        return None

    def on_train_end(self, history: list[dict[str, Any]]) -> None:
        """After the last step."""
        return None

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        """After every optimizer step."""
        return None

    def on_eval_end(self, step: int, metrics: dict[str, Any]) -> None:
        """After every evaluation; metrics holds eval_loss."""
        return None
