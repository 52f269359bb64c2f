"""Distillation as a run: a text and a teacher; judged as any model of the text is."""

from lmxlab.data import PreparedData
from lmxlab.errors import UserError
from lmxlab.experiments import methods
from lmxlab.experiments.loaded import base_config, base_model, base_tokenizer
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import TextTask
from lmxlab.models.base import LanguageModel
from lmxlab.training.distillation import Distillation


class DistillTask(TextTask):
    """Raises UserError without a teacher, or for one with another vocabulary than the student's."""

    def __init__(self, spec: RunSpec, prepared: PreparedData, method: methods.Distill):
        super().__init__(spec, prepared)
        if not method.teacher:
            raise UserError("There is no teacher: give --distill.teacher glassllm, a Hugging Face folder or a run's.")
        self._method = method
        theirs, ours = base_config(method.teacher).vocab_size, spec.model.vocab_size
        if theirs != ours:
            raise UserError(
                f"The teacher {method.teacher!r} has {theirs} tokens and the student {ours}: train the student with "
                f"the teacher's tokenizer, --data.tokenizer {base_tokenizer(method.teacher)}."
            )

    def objective(self, model: LanguageModel) -> Distillation:
        how = self._method
        return Distillation(base_model(how.teacher), how.temperature, how.alpha, kind=how.kind, beta=how.beta)
