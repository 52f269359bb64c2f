"""DPO on a pretrained model's own completions: of two, the one with more real words is preferred.

The model invents words. A judge that knows the words of Shakespeare's plays compares completions of the same prompt,
the pairs are written as JSONL, and the model is trained on them against itself as it was, whole or with adapters.

python recipes/train_dpo.py --lora-rank 8 --learning-rate 3e-3
python recipes/train_dpo.py --pairs my.jsonl --loss-type ipo
"""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.core import apply_lora
from lmxlab.data import CorpusTokenizer, PreferenceBatches, load_glassllm, load_preferences
from lmxlab.data.embedded import shakespeare
from lmxlab.models.sampling import Keys
from lmxlab.training.dpo import DPO, with_reference
from lmxlab.training.sampling import Prompt, sample


@dataclass
class Options:
    pairs: Path | None = None
    """JSONL with prompt, chosen and rejected; made by the judge without it."""
    prompts: int = 160
    """Whose completions the judge compares; a quarter are held out."""
    completions: int = 4
    """Of each prompt; the best and the worst are a pair."""
    tokens: int = 24
    """Of a completion."""
    beta: float = 0.1
    loss_type: str = "sigmoid"
    """sigmoid, ipo, hinge, robust, ...: see docs/dpo.md."""
    lora_rank: int = 0
    """Train adapters of this rank; 0 trains the whole model."""
    steps: int = 60
    batch_size: int = 16
    learning_rate: float = 3e-4
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    n_prompts, steps = (16, 2) if options.quick else (options.prompts, options.steps)
    model, tokenizer = load_glassllm()
    texts = list(shakespeare().read().texts)
    known = {word for text in texts for word in words(text)}
    prompts = openings(texts, n_prompts)
    n_train = n_prompts * 3 // 4
    with tempfile.TemporaryDirectory() as work:
        path = options.pairs or Path(work) / "pairs.jsonl"
        if options.pairs is None:
            path.write_text("\n".join(judged(model, tokenizer, prompts, known, options)), encoding="utf-8")
        newline = tokenizer.encode("\n")[0]  # completions are cut, not ended: no end of the text is to be learned
        preferences = with_reference(load_preferences(path, tokenizer, end_id=newline), model)
    train, held_out = preferences.split(len(preferences.pairs) * 3 // 4)
    print(f"{len(train.pairs)} pairs to train on, {len(held_out.pairs)} held out; {preferences.truncated} truncated")
    print(f"{'':8} held-out pairs: loss, accuracy, margin   real words in new completions of held-out prompts")
    if options.lora_rank:
        mx.random.seed(options.seed)
        apply_lora(model, options.lora_rank, 2.0 * options.lora_rank, ["attention", "ffn"])
    settings = {"learning_rate": options.learning_rate, "max_steps": steps, "warmup_steps": steps // 10}
    trainer = lmxlab.Trainer(
        model, lmxlab.TrainConfig(weight_decay=0.0, **settings), objective=DPO(options.beta, options.loss_type)
    )
    for moment in ("before", "after"):
        scores = trainer.evaluate(lambda: held_out.in_order(options.batch_size))
        written = complete(model, tokenizer, prompts[n_train:], 4, options.tokens, options.seed + 1)
        share = np.mean([real_words(text, known) for group in written for text in group])
        print(
            f"{moment:8} {scores['eval_loss']:20.3f} {scores['eval_accuracy']:9.1%} {scores['eval_margin']:7.2f}",
            end="",
        )
        print(f" {share:12.1%}   {written[0][0]!r}")
        if moment == "before":
            trainer.train(PreferenceBatches(train, options.batch_size, seed=options.seed))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower().replace("’", "'"))


def real_words(text: str, known: set[str]) -> float:
    """Share of the words that the judge knows, the last one, perhaps unfinished, left out."""
    found = words(text)[:-1]
    return sum(word in known for word in found) / max(1, len(found))


def openings(texts: list[str], n: int) -> list[str]:
    """The first words of lines, spread over the plays."""
    lines = [line for text in texts for line in text.splitlines() if len(line.split()) > 6 and line[0].isalpha()]
    return [" ".join(lines[i * len(lines) // n].split()[:4]) for i in range(n)]


def complete(
    model: lmxlab.LanguageModel, tokenizer: CorpusTokenizer, prompts: list[str], n: int, tokens: int, seed: int
) -> list[list[str]]:
    """`n` completions of each prompt."""
    rows = [Prompt(mx.array([tokenizer.bos_id, *tokenizer.encode(prompt)])) for prompt in prompts for _ in range(n)]
    written = [completion.text(tokenizer) for completion in sample(model, rows, tokens, keys=Keys(seed))]
    return [written[i : i + n] for i in range(0, len(written), n)]


def judged(
    model: lmxlab.LanguageModel, tokenizer: CorpusTokenizer, prompts: list[str], known: set[str], options: Options
) -> list[str]:
    """JSON lines: the completions with the most and the fewest real words, where they differ."""
    lines = []
    for prompt, group in zip(
        prompts,
        complete(model, tokenizer, prompts, options.completions, options.tokens, options.seed),
        strict=True,
    ):
        best, worst = max(group, key=lambda t: real_words(t, known)), min(group, key=lambda t: real_words(t, known))
        if real_words(best, known) > real_words(worst, known):
            lines.append(json.dumps({"prompt": prompt, "chosen": best, "rejected": worst}))
    return lines


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
