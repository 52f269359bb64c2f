"""What a run learns from and is judged by. `run.execute` trains any task in the same way."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

from lmxlab.data import PreparedData, TokenBatches, eval_batches
from lmxlab.data.batching import EvalBatches
from lmxlab.data.tokenizer import CorpusTokenizer
from lmxlab.errors import UserError
from lmxlab.eval.score import Scorer
from lmxlab.experiments.sample import sample_text
from lmxlab.experiments.spec import RunSpec
from lmxlab.models.base import LanguageModel
from lmxlab.training.events import Callback
from lmxlab.training.objective import Batch, Objective

PROMPT_TOKENS = 32  # the sample continues this much of the validation text
CURVE_SHARE = 8  # a point of the curve is taken on an eighth of what the final score is
EVAL_ROWS = 32  # sequences scored at once: larger than a training batch, since nothing is kept for a backward pass

# How much a score is taken on: a batch, to see whether the model still computes numbers; what a point of the curve
# takes; all that the final score takes.
Extent = Literal["batch", "curve", "whole"]
# One number per metric; what could not be measured is left out.
ScoreModel = Callable[[Extent], dict[str, float]]


class Task(ABC):
    """Made before the model, so that data that cannot serve is refused before anything is computed.

    Attributes:
        metric: the score that the run is known by.
        info: what the data is, kept with the run; "hash" must be the same when the run is resumed.
        tokenizer: kept with the run, so that its model can be used where its data is not.
    """

    metric: str
    info: dict[str, Any]
    tokenizer: CorpusTokenizer

    @abstractmethod
    def batches(self, model: LanguageModel) -> Iterable[Batch]:
        """The training batches from the first one on; with state_dict and load_state_dict, so that runs resume.

        Called before a checkpoint is restored: the model is the one that the run starts from.
        """

    def objective(self, model: LanguageModel) -> Objective | None:
        """What training minimises; None: what a Trainer does by itself."""
        return None

    def callbacks(self) -> list[Callback]:
        """What else is told of the steps, before the run's record is."""
        return []

    @abstractmethod
    def scorer(self, model: LanguageModel) -> ScoreModel:
        """Scores the model on what is held out."""

    @abstractmethod
    def sample(self, model: LanguageModel) -> dict[str, str]:
        """{"prompt": ..., "text": ...}: what the model writes."""


class TextTask(Task):
    """Next-token prediction of a text; judged by bits per byte of its validation split.

    Raises:
        UserError: too little text for one window, or a model with too small a vocabulary.
    """

    metric = "val_bpb"

    def __init__(self, spec: RunSpec, prepared: PreparedData):
        self.spec, self.prepared = spec, prepared
        self.info = {"hash": prepared.hash, **prepared.info}
        self.tokenizer = prepared.tokenizer
        if prepared.vocab_size < 2:
            raise UserError(f"{spec.data.dataset} has {prepared.vocab_size} token in all: there is nothing to predict.")
        if spec.model.vocab_size < prepared.vocab_size:
            raise UserError(
                f"The model's vocab_size is {spec.model.vocab_size}, but the tokenizer has {prepared.vocab_size} "
                f"tokens: set vocab_size to {prepared.vocab_size} or leave it out."
            )
        self._batches()  # refuses a text that is too short

    def batches(self, model: LanguageModel) -> TokenBatches:
        return self._batches()

    def _batches(self) -> TokenBatches:
        spec = self.spec
        return TokenBatches(self.prepared.train, spec.optim.batch_size, spec.seq_len, seed=spec.seed)

    def scorer(self, model: LanguageModel) -> ScoreModel:
        score = Scorer(model, self.prepared.token_bytes)
        curve = list(self._eval_batches(max(1, self.spec.eval_tokens // CURVE_SHARE)))

        def scored(extent: Extent) -> dict[str, float]:
            batches = self._eval_batches(self.spec.eval_tokens) if extent == "whole" else curve
            result = score(curve[:1] if extent == "batch" else batches)
            if not result.tokens:
                return {}
            return {"val_bpb": result.val_bpb, "val_loss": result.val_loss, "scored_tokens": result.tokens}

        return scored

    def sample(self, model: LanguageModel) -> dict[str, str]:
        spec, tokenizer = self.spec, self.tokenizer
        prompt = [int(token) for token in self.prepared.val[: min(PROMPT_TOKENS, spec.seq_len)]]
        text = sample_text(model, tokenizer, prompt, spec.sample_tokens, spec.seq_len, spec.seed)
        return {"prompt": tokenizer.decode(prompt), "text": text}

    def _eval_batches(self, max_tokens: int) -> EvalBatches:
        """Validation batches of about max_tokens targets spread over the split; of all of it for 0."""
        rows = max(self.spec.optim.batch_size, EVAL_ROWS)
        return eval_batches(self.prepared.val, rows, self.spec.seq_len, max_tokens or None)
