"""lm-eval's door: its tasks asked of an lmxlab model, in this process."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab.data.tokenizer import Tokenizer, check_vocabulary
from lmxlab.errors import MissingExtraError, UnknownNameError, UserError
from lmxlab.eval.likelihood import BATCH_TOKENS, continuation_likelihoods
from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import decode, pad_left
from lmxlab.models.sampling import Sampler
from lmxlab.models.stop import TextWatch

TASKS = Path(__file__).with_name("tasks")
MOST_NEW_TOKENS = 256  # of a task that does not say, where the context has room for them


class Answers:
    """What lm-eval asks of a model: log-likelihoods of texts, and texts that continue others.

    Contexts and continuations are encoded together and then cut, as lm-eval's own HFLM does, whose answers these equal
    where the tokenizer adds no BOS by itself. A text for `loglikelihood_rolling` is scored from its first token on.

    Args:
        max_length: context of the model in tokens; longer texts are read in windows, longer contexts lose their start.
        bos_id: precedes a text that has nothing before it; the tokenizer's own when None. Without either, a line break
            stands for the beginning.
        stop_ids: tokens that end a generated text, besides BOS, which ends a document.
        add_bos: whether contexts that are not empty begin with BOS as well.
        batch_tokens: about so many tokens are computed at once.

    Raises:
        UserError: a tokenizer with more tokens than the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        max_length: int | None = None,
        bos_id: int | None = None,
        stop_ids: Sequence[int] = (),
        add_bos: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ):
        super().__init__()
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model, self.tokenizer = model, tokenizer
        self.max_length = max_length or model.config.block.max_seq_len
        self.batch_tokens, self.add_bos = batch_tokens, add_bos
        own_bos = getattr(tokenizer, "bos_id", None)
        self.bos_id = own_bos if bos_id is None else bos_id
        self.stop_ids = [*stop_ids, *{token for token in (own_bos, self.bos_id) if token is not None}]

    @property
    def eot_token_id(self) -> int | None:
        return self.stop_ids[0] if self.stop_ids else None

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing precedes."""
        return self.tokenizer.encode("\n")[-1] if self.bos_id is None else self.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        tokens = self.tokenizer.encode(string)
        wanted = self.add_bos if add_special_tokens is None else add_special_tokens
        return [self.bos_id, *tokens] if wanted and self.bos_id is not None else tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = continuation_likelihoods(self.model, pairs, self.max_length, self.batch_tokens)
        return [(likelihood.log_prob, likelihood.greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, every token of them once."""
        pairs = [([self.prefix_token_id], self.tokenizer.encode(request.args[0])) for request in requests]
        return [found.log_prob for found in continuation_likelihoods(self.model, pairs, self.max_length)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue others, up to the first of the stop strings; requests with equal settings go together."""
        from lm_eval.models.utils import normalize_gen_kwargs

        prompts: list[list[int]] = []
        groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for index, (context, options) in enumerate(request.args for request in requests):
            settings: Any = normalize_gen_kwargs(options, min(MOST_NEW_TOKENS, self.max_length // 2))
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise UserError(
                    f"A task asks for {settings['max_gen_toks']} new tokens, and the model's context is "
                    f"{self.max_length}: allow fewer with --max-new-tokens {self.max_length // 2}."
                )
            prompts.append(self.tok_encode(context)[-room:] or [self.prefix_token_id])
            groups.setdefault(repr(settings), (settings, []))[1].append(index)
        texts = [""] * len(requests)
        for settings, members in groups.values():
            members.sort(key=lambda index: -len(prompts[index]))
            while members:
                n_rows = max(1, self.batch_tokens // (len(prompts[members[0]]) + settings["max_gen_toks"]))
                batch, members = members[:n_rows], members[n_rows:]
                for index, text in zip(batch, self._continue([prompts[i] for i in batch], settings), strict=True):
                    texts[index] = text
        return texts

    def _continue(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        rows, padding = pad_left([mx.array(prompt, mx.int32) for prompt in prompts])
        sampler = Sampler(
            float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0,
            **{name: settings[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty") if name in settings},
            compose=True,
        )
        stop = [text for text in settings["until"] if text]
        rows_of_new = [_NewText(self.tokenizer, stop, self.stop_ids) for _ in prompts]
        options: Any = {"left_padding": padding if any(padding) else None, "context": "extend"}
        for step in decode(self.model, rows, settings["max_gen_toks"], sampler, **options):
            drawn: Any = step.tokens.tolist()
            for new, token in zip(rows_of_new, drawn, strict=True):
                new.push(token)
            if all(new.ended for new in rows_of_new):
                break
        return [new.text() for new in rows_of_new]


class _NewText:
    """The new tokens of one row until a stop string or stop token."""

    def __init__(self, tokenizer: Tokenizer, stop: list[str], stop_ids: list[int]):
        self._tokenizer, self._stop, self._stop_ids = tokenizer, stop, stop_ids
        self._watch = TextWatch(tokenizer, [], stop)
        self._tokens: list[int] = []
        self.ended = False

    def push(self, token: int) -> None:
        self.ended = self.ended or token in self._stop_ids
        if not self.ended:
            self._tokens.append(token)
            self._watch.push(token)
            self.ended = self._watch.ended

    def text(self) -> str:
        """All tokens decoded at once: bytes that are no characters read differently piece by piece."""
        text = self._tokenizer.decode([token for token in self._tokens if token < self._tokenizer.vocab_size])
        return min((text.split(mark, 1)[0] for mark in self._stop), key=len, default=text)


def harness_model(model: LanguageModel, tokenizer: Tokenizer, **options: Any) -> Any:
    """An `lm_eval.api.model.LM` for `lm_eval.simple_evaluate(model=...)`; options as for `Answers`.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    _lm_eval()
    from lm_eval.api.model import TemplateLM

    return type("LmxlabLM", (Answers, TemplateLM), {})(model, tokenizer, **options)


def run_tasks(
    lm: Any,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs tasks of lm-eval, those of lmxlab (`lmxlab_...`) and those of a folder among them.

    Args:
        lm: what `harness_model` made, or any other LM of lm-eval.
        tasks: names of tasks, groups or tags.
        limit: only the first so many questions of each task, to try it.
        num_fewshot: solved examples before each question; the task's own number when None.
        include_path: a folder of tasks (YAML files, as lm-eval reads them).
        max_new_tokens: instead of what the tasks say.
        seed: of the examples that are chosen and of sampling.

    Returns:
        lm-eval's results, without the samples: "results" (values by task and metric), "n-samples", "versions", ...

    Raises:
        MissingExtraError: lm-eval is not installed, or something that a task needs.
        UserError: an unknown task (the message has the nearest names), a task that cannot be read, one whose data would
            have to be downloaded, or one that runs programs the model wrote.
    """
    lm_eval = _lm_eval()
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"There is no folder of tasks {str(include_path)!r}: give one with lm-eval's YAML files.")
    loaded = _load(tasks, [TASKS] if include_path is None else [TASKS, Path(include_path)])
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", own or 0 if num_fewshot is None or own == 0 else num_fewshot)
        task.set_fewshot_seed(seed=seed)
        if max_new_tokens is not None and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)
    # Not simple_evaluate: it describes the machine with torch, whose BLAS does not go with MLX's in one process.
    return lm_eval.evaluate(lm, loaded, limit=limit, log_samples=False)


def _load(names: Sequence[str], folders: list[Path]) -> dict[str, Any]:
    """lm-eval's tables of the tasks and groups that are named, built: their data is there after this."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):  # reading lm-eval's own 10,000 takes seconds
        manager = TaskManager(include_path=folders)
    for name in names:
        if name not in manager.all_tasks:
            raise UnknownNameError("task", name, manager.all_tasks)
    logger = logging.getLogger("lm_eval.api.task")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every default that a task leaves as it is
    try:
        loaded = manager.load(list(dict.fromkeys(names)))
    except UserError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"A task of {names} needs a package that is not installed: {error}") from error
    except (OSError, EOFError) as error:  # what a download raises is an OSError, in `requests` and in `datasets`
        raise UserError(
            f"The data of {names} cannot be loaded ({_line(error)}). What is not here yet needs the network once."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{names} cannot be read: {_line(error)}") from error
    finally:
        logger.setLevel(level)
    unsafe = sorted(task for task, built in loaded["tasks"].items() if getattr(built, "UNSAFE_CODE", False))
    if unsafe:
        raise UserError(f"Task {unsafe[0]!r} runs programs that the model writes: lmxlab does not, unprotected.")
    return loaded


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.evaluator
    except ImportError as error:
        raise MissingExtraError(f"The tasks of lm-eval need lm-eval: pip install 'lmxlab[eval]' ({error})") from error
    return lm_eval
