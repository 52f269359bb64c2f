"""What the tasks whose data is a file of examples have in common: a tokenizer of their own, and a part held out."""

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmxlab.data.examples import ends_of_completion
from lmxlab.data.textfiles import read_text
from lmxlab.data.tokenizer import check_vocabulary, load_tokenizer
from lmxlab.errors import UserError
from lmxlab.experiments.sample import sample_text
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import EVAL_ROWS, Task
from lmxlab.models.base import LanguageModel

Example = TypeVar("Example")


class ExampleTask(Task):
    """Examples of a JSONL file (`data.dataset`), of which `data.val_fraction` are held out, as `data.seed` decides.

    Raises:
        UserError: a tokenizer that would first have to be made, or one of another vocabulary.
    """

    def __init__(self, spec: RunSpec):
        if spec.data.tokenizer.partition(":")[0] in ("char", "bpe"):
            raise UserError(needs_tokenizer(spec.method.name))
        self.spec, self.metric = spec, spec.method.metric
        self.tokenizer = load_tokenizer(spec.data.tokenizer)
        check_vocabulary(self.tokenizer, spec.model.vocab_size)
        self.ends: tuple[int, ...] = tuple(ends_of_completion(self.tokenizer))
        """Tokens that end what the model writes."""
        self.info: dict[str, Any] = {}

    def file(self) -> Path:
        """The file of `data.dataset`, whose content is then part of what the run is known by."""
        path = Path(self.spec.data.dataset).expanduser()
        if not path.is_file():
            raise UserError(
                f"{self.spec.method.name} learns from a file of examples, and {self.spec.data.dataset!r} is none: give "
                "--data.dataset FILE.jsonl (docs/training.md shows its fields)."
            )
        digest = hashlib.sha256(read_text(path).encode()).hexdigest()
        self.info |= {"hash": digest, "dataset": str(path)}
        return path

    @property
    def eval_rows(self) -> int:
        """Examples scored at once."""
        return max(self.spec.optim.batch_size, EVAL_ROWS)

    def split(self, examples: list[Example]) -> tuple[list[Example], list[Example]]:
        """For training, and at least one held out."""
        n = len(examples)
        if n < 2:
            raise UserError(
                f"{self.spec.data.dataset} has {n} example: one to train on and one to hold out are the least."
            )
        order = np.random.default_rng(self.spec.data.seed).permutation(n)
        n_held = min(n - 1, max(1, round(n * self.spec.data.val_fraction)))
        self.info |= {"examples": n, "held_out": n_held}
        return [examples[i] for i in order[n_held:]], [examples[i] for i in order[:n_held]]

    @property
    @abstractmethod
    def prompt(self) -> list[int]:
        """A held-out prompt, for the sample."""

    def sample(self, model: LanguageModel) -> dict[str, str]:
        spec, prompt = self.spec, self.prompt[-self.spec.seq_len :]
        context = max(spec.seq_len, 2)
        text = sample_text(model, self.tokenizer, prompt, spec.sample_tokens, context, spec.seed, self.ends)
        return {"prompt": self.tokenizer.decode(prompt), "text": text}


def needs_tokenizer(method: str) -> str:
    """What to say when there is no tokenizer yet."""
    return (
        f"{method} goes on from a model and its tokenizer: give --pretrained (glassllm, a Hugging Face folder or a "
        "run's folder), or --data.tokenizer with the tokenizer's file."
    )
