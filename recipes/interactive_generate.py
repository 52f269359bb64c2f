"""Write together with a model: it continues what you type, and you continue what it wrote.

python recipes/interactive_generate.py --model runs/llama/20260101-120000 --temperature 0.9

An empty line lets it go on. /temperature 0.5, /tokens 100, /top-p 0.9 and /stop . change how; /new starts anew, /quit
ends. A file or a pipe on standard input is read line by line, too.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import tyro
from lmxlab.data import Tokenizer
from lmxlab.errors import UserError
from lmxlab.experiments.loaded import is_pretrained, pretrained, trained
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text
from lmxlab.training.run_folder import RunFolder

QUICK = ("Once upon a time", "/temperature 0", "/tokens 8", "", "/new", "The Queen", "/quit")


@dataclass
class Options:
    model: str = "glassllm"
    """glassllm (embedded), a run's folder, or a Hugging Face folder."""
    temperature: float = 0.7
    """0 always takes the likeliest token."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.1
    tokens: int = 40
    """How many tokens it writes in its turn."""
    stop: str = ""
    """It ends its turn before this text."""
    seed: int | None = None
    quick: bool = False
    """A few seconds, to see that it works."""


def load(name: str) -> tuple[lmxlab.LanguageModel, Tokenizer, int]:
    """The model, its tokenizer, and the context that it was trained with."""
    found = pretrained(name) if is_pretrained(name) else trained(RunFolder(name))
    return found.model, found.tokenizer, found.context


def lines(quick: bool) -> Iterator[str]:
    """What the user types."""
    if quick:
        yield from QUICK
        return
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def command(options: Options, line: str) -> None:
    """Carries out `/name value`."""
    name, _, value = line[1:].partition(" ")
    name = name.replace("-", "_")
    if name not in Options.__dataclass_fields__ or name in ("model", "quick"):
        raise UserError(
            f"no command /{name}: there are /temperature, /top-k, /top-p, /min-p, /tokens, /stop, /new, /quit"
        )
    kind = str if name == "stop" else int if name in ("tokens", "top_k", "seed") else float
    try:
        setattr(options, name, kind(value))
    except ValueError:
        raise UserError(f"/{name} takes a number, not {value!r}") from None


def main(options: Options) -> None:
    model, tokenizer, context = load(options.model)
    model.eval()
    print(f"{options.model}: {model.count_parameters():,} parameters. Type the beginning of a text.", file=sys.stderr)
    text = ""
    for line in lines(options.quick):
        try:
            if line == "/quit":
                return
            if line == "/new":
                text = ""
                continue
            if line.startswith("/"):
                command(options, line)
                continue
            before = text + line
            if not before:
                raise UserError("type something to begin with")
            sampler = Sampler(
                options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.min_p
            )
            stop = [options.stop] if options.stop else None
            ids, settings = tokenizer.encode(before), {"stop_strings": stop, "seed": options.seed, "context": context}
            written = ""
            for piece in stream_text(model, tokenizer, ids, options.tokens, sampler, **settings):
                written += piece
                print(piece, end="", flush=True)
            print()
            text = before + written
        except UserError as error:  # a character that it does not know, a setting out of its range
            print(f"({error})", file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
