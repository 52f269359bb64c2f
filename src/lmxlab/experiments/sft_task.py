"""Supervised fine-tuning as a run: judged by the nats per token of held-out completions."""

from functools import partial
from itertools import islice

from lmxlab.data.completions import CompletionBatches, load_completions
from lmxlab.experiments import methods
from lmxlab.experiments.example_task import ExampleTask
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import Extent, ScoreModel
from lmxlab.models.base import LanguageModel
from lmxlab.training.objective import mean_loss, next_token


class SFTTask(ExampleTask):
    """Examples of `prompt` and `completion`; the tokens of completions are scored."""

    def __init__(self, spec: RunSpec, method: methods.SFT):
        super().__init__(spec)
        found = load_completions(self.file(), self.tokenizer, spec.seq_len, method.truncate)
        self._train, self._held = self.split(found.examples)
        self.info |= {"truncated": found.truncated, "dropped": found.dropped}

    @property
    def prompt(self) -> list[int]:
        return self._held[0].prompt

    def batches(self, model: LanguageModel) -> CompletionBatches:
        return CompletionBatches(self._train, self.spec.optim.batch_size, self.spec.seed)

    def scorer(self, model: LanguageModel) -> ScoreModel:
        held = CompletionBatches(self._held, self.eval_rows)

        def scored(extent: Extent) -> dict[str, float]:
            batches = islice(held.in_order(), 1 if extent == "batch" else None)
            means = mean_loss(model, batches, partial(next_token, model))
            return {"val_loss": means["loss"]}

        return scored
