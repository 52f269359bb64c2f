"""Reading a prompt and writing tokens against mlx-lm, on the same weights, each in its own process.

    python benchmarks/decode.py [--rounds 3] [--models llama,qwen3,gemma3,mixtral] [--growth] [--tiny]

Random models of about 100 M parameters are written once as Hugging Face folders that both load, in float32. The
contenders take turns and have the same fast BLAS: mlx-lm runs in a process that lmxlab has prepared. Greedy; the tokens
must be equal. A ratio is the median over rounds, below 1 where lmxlab is better. Memory is what MLX held at most.

--growth measures instead how long a token takes after 512 to 8,192 others, for both, and for recurrent models alone.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx

VOCAB = 32000


def configs(tiny: bool) -> dict[str, Callable[[], object]]:
    """The shapes, by name; made when they are asked for."""
    from lmxlab.models.gemma3 import gemma3_config
    from lmxlab.models.llama import llama_config
    from lmxlab.models.mamba import mamba2_config
    from lmxlab.models.mixtral import mixtral_config
    from lmxlab.models.qwen import qwen3_config

    vocab, width, layers, length = (512, 64, 6, 16384) if tiny else (VOCAB, 768, 12, 16384)
    heads, ff = (12, width * 8 // 3) if not tiny else (4, 256)
    sizes = {"vocab_size": vocab, "d_model": width, "n_heads": heads, "n_kv_heads": heads // 4 or 1}
    depth = {"n_layers": layers, "max_seq_len": length}
    return {
        "llama": lambda: llama_config(**sizes, **depth, d_ff=ff, tie_embeddings=True),
        "qwen3": lambda: qwen3_config(**sizes, **depth, d_ff=ff, head_dim=64, tie_embeddings=True),
        "gemma3": lambda: gemma3_config(**sizes, **depth, d_ff=ff, head_dim=64, window_size=512),
        "mixtral": lambda: mixtral_config(
            **sizes, n_layers=layers * 2 // 3, max_seq_len=length, d_ff=ff // 4, tie_embeddings=True
        ),
        "mamba2": lambda: mamba2_config(vocab_size=vocab, d_model=width, n_layers=2 * layers, tie_embeddings=True),
    }


def write_model(name: str, folder: Path, tiny: bool) -> int:
    """Random weights in the layout of Hugging Face; returns how many parameters."""
    from lmxlab.models.export import export_model

    mx.random.seed(0)
    model = lmxlab.LanguageModel(configs(tiny)[name]())
    export_model(model, folder, tokens={"bos_token_id": 1, "eos_token_id": 2})
    return model.count_parameters()


def lmxlab_tokens(folder: str) -> Callable[[list[int], int], Iterator[int]]:
    from lmxlab.models.convert import load_from_hf

    model, _ = load_from_hf(folder, dtype=mx.float32)
    model.eval()
    return lambda prompt, n: lmxlab.stream_generate(model, mx.array([prompt]), n, temperature=0.0)


def mlx_lm_tokens(folder: str) -> Callable[[list[int], int], Iterator[int]]:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    return lambda prompt, n: (token for token, _ in generate_step(mx.array(prompt), model, max_tokens=n))


def worker(contender: str, folder: str, prompt_tokens: int, new_tokens: int) -> None:
    """One prompt, after a warm-up that compiles kernels: seconds to the first token and for the others, in JSON."""
    tokens = {"lmxlab": lmxlab_tokens, "mlx-lm": mlx_lm_tokens}[contender](folder)
    vocab = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    prompt = [(7919 * i + 13) % vocab for i in range(prompt_tokens)]
    list(tokens(prompt[:600], 8))
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    drawn, times = [], []
    for token in tokens(prompt, new_tokens):
        drawn.append(token)
        times.append(time.perf_counter())
    steps = [after - before for before, after in itertools.pairwise(times)]
    result = {"prefill_s": times[0] - start, "step_s": statistics.median(steps), "tokens": drawn}
    result["decode_s"] = times[-1] - times[0]
    print(json.dumps(result | {"peak_mb": mx.get_peak_memory() / 2**20}))


def run(contender: str, folder: Path, prompt_tokens: int, new_tokens: int) -> dict:
    command = [sys.executable, __file__, "--worker", contender, str(folder), str(prompt_tokens), str(new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, folder: Path, rounds: int, prompt: int, new: int) -> None:
    """Both contenders in turns; the ratios of prefill time, decode time and peak memory."""
    results = [[run(contender, folder, prompt, new) for contender in ("lmxlab", "mlx-lm")] for _ in range(rounds)]
    for column, contender in enumerate(("lmxlab", "mlx-lm")):
        mine = [pair[column] for pair in results]
        prefill, decode = (min(r[key] for r in mine) for key in ("prefill_s", "decode_s"))
        peak = max(r["peak_mb"] for r in mine)
        print(f"  {contender:7} prefill {prompt / prefill:8.0f} tok/s  decode {(new - 1) / decode:7.1f} tok/s", end="")
        print(f"  peak {peak:6.0f} MB")
    ratios = {
        key: statistics.median(ours[key] / theirs[key] for ours, theirs in results)
        for key in ("prefill_s", "decode_s", "peak_mb")
    }
    same = sum(a == b for a, b in zip(results[0][0]["tokens"], results[0][1]["tokens"], strict=True))
    print(f"  lmxlab / mlx-lm: prefill time {ratios['prefill_s']:.2f}, decode time {ratios['decode_s']:.2f}", end="")
    print(f", peak memory {ratios['peak_mb']:.2f}; {same} of {new} tokens equal")


def growth(name: str, folder: Path, rounds: int, lengths: list[int]) -> None:
    """Milliseconds per token after contexts of several lengths."""
    for contender in ("lmxlab",) if name == "mamba2" else ("lmxlab", "mlx-lm"):
        steps = [min(run(contender, folder, n, 32)["step_s"] for _ in range(rounds)) * 1e3 for n in lengths]
        told = "  ".join(f"{n}: {step:6.2f} ms" for n, step in zip(lengths, steps, strict=True))
        print(f"  {contender:7} {told}  growth {steps[-1] / steps[0]:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", help="of llama,qwen3,gemma3,mixtral; with --growth also mamba2")
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--new", type=int, default=128, metavar="TOKENS")
    parser.add_argument("--growth", action="store_true", help="cost of a token as the context grows")
    parser.add_argument("--lengths", default="512,2048,8192", help="contexts for --growth")
    parser.add_argument("--tiny", action="store_true", help="models of 0.4 M parameters, to try the script")
    parser.add_argument("--worker", nargs=4, metavar=("WHO", "FOLDER", "PROMPT", "NEW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], args.worker[1], int(args.worker[2]), int(args.worker[3]))
        return
    names = args.models or ("llama,gemma3,mamba2" if args.growth else "llama,qwen3,gemma3,mixtral")
    for name in names.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            parameters = write_model(name, folder, args.tiny)
            print(f"{name}, {parameters / 1e6:.1f} M parameters, float32")
            if args.growth:
                growth(name, folder, args.rounds, [int(n) for n in args.lengths.split(",")])
            else:
                compare(name, folder, args.rounds, args.prompt, args.new)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
