"""Direct preference optimisation as a run: judged by how often held-out pairs are told apart."""

from functools import partial
from itertools import islice

from lmxlab.data.preferences import PreferenceBatches, Preferences, load_preferences
from lmxlab.experiments import methods
from lmxlab.experiments.example_task import ExampleTask
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import Extent, ScoreModel
from lmxlab.models.base import LanguageModel
from lmxlab.training.dpo import DPO, with_reference
from lmxlab.training.objective import mean_loss


class PreferenceTask(ExampleTask):
    """Pairs of `prompt`, `chosen`, `rejected`; the reference is the model that training starts from."""

    def __init__(self, spec: RunSpec, method: methods.DPO):
        super().__init__(spec)
        pairs = load_preferences(self.file(), self.tokenizer, spec.seq_len, method.truncate)
        train, held = self.split(pairs.pairs)
        self.info |= {"truncated": pairs.truncated, "dropped": pairs.dropped}
        self._train, self._held = Preferences(train), Preferences(held)
        self._objective = DPO(method.beta, method.loss_type, method.label_smoothing)

    @property
    def prompt(self) -> list[int]:
        return self._held.pairs[0].prompt

    def batches(self, model: LanguageModel) -> PreferenceBatches:
        optim = self.spec.optim
        scored = with_reference(self._train, model, dtype=optim.dtype)
        return PreferenceBatches(scored, optim.batch_size, self.spec.seed)

    def objective(self, model: LanguageModel) -> DPO:
        return self._objective

    def scorer(self, model: LanguageModel) -> ScoreModel:
        held = PreferenceBatches(with_reference(self._held, model), self.eval_rows)

        def scored(extent: Extent) -> dict[str, float]:
            batches = islice(held.in_order(), 1 if extent == "batch" else None)
            means = mean_loss(model, batches, partial(self._objective, model))
            return {f"val_{name}": value for name, value in means.items()}

        return scored
