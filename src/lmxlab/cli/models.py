"""`lmxlab list | info | count | bench`: the architectures, without training any."""

import argparse
import dataclasses
import textwrap
from typing import Annotated, Any

from mlx.utils import tree_flatten
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.diagram import block_diagram, cache_bytes, in_words
from lmxlab.cli.options import Json, option
from lmxlab.cli.render import note, number, out, out_json
from lmxlab.core.config import ModelConfig
from lmxlab.core.moe import MoEFFN
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.profiling import (
    count_parameters_by_module,
    memory_estimate,
    profile_forward,
    profile_generation,
)
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES, resolve

# name -> (full factory, tiny factory)
ARCHITECTURES = {name: (family.config, family.tiny) for name, family in FAMILIES.items()}

Arch = Annotated[Positional[str], option("An architecture or a preset: see `lmxlab list`.", "ARCH")]
Tiny = Annotated[bool, option("The small version for tests instead of the full one.", default="")]


def register(app: SubcommandApp, arguments: list[str]) -> None:
    for name, command in (("list", list_), ("info", info), ("count", count), ("bench", bench)):
        app.command(name=name)(command)


def list_(*, json: Json = False) -> None:
    """The architectures, their parts and their presets.

    Example: lmxlab list
    """
    cmd_list(argparse.Namespace(json=json))


def info(arch: Arch, /, *, tiny: Tiny = False, json: Json = False) -> None:
    """The settings of an architecture at its standard size, or of a preset, its size, and a diagram of its layers.

    Example: lmxlab info llama_10m
    """
    cmd_info(argparse.Namespace(arch=arch, tiny=tiny, json=json))


def count(arch: Arch, /, *, tiny: Tiny = False, detail: bool = False, json: Json = False) -> None:
    """Parameters of an architecture. No weight is computed or held, so any size can be counted.

    Example: lmxlab count gpt --detail

    Args:
        detail: Also by component.
    """
    cmd_count(argparse.Namespace(arch=arch, tiny=tiny, detail=detail, json=json))


def bench(arch: Arch, /, *, tiny: Tiny = False, seq_len: int = 32, gen_tokens: int = 20, json: Json = False) -> None:
    """Speed and memory of an architecture on this machine, with random weights.

    Example: lmxlab bench gpt --tiny

    Args:
        seq_len: Tokens in the forward pass and in the prompt.
        gen_tokens: Tokens to generate.
    """
    cmd_bench(argparse.Namespace(arch=arch, tiny=tiny, seq_len=seq_len, gen_tokens=gen_tokens, json=json))


PARTS = ("attention", "norm", "ffn")
BLOCK_FIELDS = ("d_model", "attention", "n_heads", "head_dim", "ffn", "d_ff", "norm", "position", "max_seq_len", "bias")
MODEL_FIELDS = ("n_layers", "vocab_size", "tie_embeddings")


def cmd_list(args: argparse.Namespace) -> None:
    """Prints every architecture with its attention, norm, ffn and presets."""
    blocks = {name: config().block for name, (config, _) in ARCHITECTURES.items()}
    if getattr(args, "json", False):
        out_json(
            {
                name: {**{key: getattr(block, key) for key in PARTS}, "presets": list(FAMILIES[name].presets)}
                for name, block in blocks.items()
            }
        )
        return
    width = max(len(name) for name in blocks)
    out("Available architectures:")
    for name, block in blocks.items():
        parts = "  ".join(f"{key}={getattr(block, key)}" for key in PARTS)
        out(f"  {name:<{width}}  {parts}  {FAMILIES[name].description}")
        for line in textwrap.wrap(f"presets: {', '.join(FAMILIES[name].presets)}", 100):
            out(f"  {'':<{width}}  {line}")


def cmd_info(args: argparse.Namespace) -> None:
    """Prints the settings of one architecture that are in use, what its cache takes, and its block diagram."""
    title, config = _config(args)
    per_token, fixed = cache_bytes(config)
    if getattr(args, "json", False):
        cache = {"bytes_per_token": per_token, "bytes_fixed": fixed}
        out_json({"architecture": args.arch, "tiny": _tiny(args), "config": config.to_dict(), "cache": cache})
        return
    out(f"Architecture: {title}")
    if config.block_configs and len(set(config.block_configs)) > 1:
        out("  Layers differ: these are the settings of the template; the diagram below has those of each.")
    for name, value in {**_settings(config.block, BLOCK_FIELDS), **_settings(config, MODEL_FIELDS)}.items():
        if dataclasses.is_dataclass(value):
            value = ", ".join(in_words(name, value))
        out(f"  {name + ':':<16} {value:,}" if type(value) is int else f"  {name + ':':<16} {value}")
    model = LanguageModel(config)  # lazy: shapes only
    total, idle = model.count_parameters(), idle_parameters(model)
    active = f", {total - idle:,} of them for each token" if idle else ""
    out(f"  {'parameters:':<16} {total:,}{active}")
    beside = f", and up to {fixed:,} bytes for windows and states" if fixed else ""
    out(f"  {'cache:':<16} {per_token:,} bytes per token in 16-bit numbers{beside}")
    out("")
    for line in block_diagram(config):
        out(f"  {line}")


def idle_parameters(model: LanguageModel) -> int:
    """Those of the experts that a token does not go through."""
    mixtures = [module for module in model.modules() if isinstance(module, MoEFFN)]
    experts: list[tuple[MoEFFN, Any]] = [(moe, tree_flatten(moe.experts.parameters())) for moe in mixtures]
    sizes = [(moe, sum(array.size for _, array in leaves)) for moe, leaves in experts]
    return sum(size - size * moe.router.top_k // moe.experts.n_experts for moe, size in sizes)


def _settings(config: Any, always: tuple[str, ...]) -> dict[str, Any]:
    """The fields that every architecture has, and of the others those that are set to something of their own."""
    default = type(config)()
    own = [
        f.name
        for f in dataclasses.fields(config)
        if f.name not in ("block", "block_configs") and getattr(config, f.name) != getattr(default, f.name)
    ]
    return {name: getattr(config, name) for name in dict.fromkeys((*always, *own))}


def cmd_count(args: argparse.Namespace) -> None:
    """Prints the number of parameters, with --detail also per component."""
    title, config = _config(args)
    model = LanguageModel(config)  # lazy: shapes only
    total = model.count_parameters()
    parts = count_parameters_by_module(model) if getattr(args, "detail", False) else {}
    if getattr(args, "json", False):
        out_json({"architecture": args.arch, "tiny": _tiny(args), "parameters": total, "by_module": parts or None})
        return
    out(f"{title}: {total:,} parameters")
    for name, size in parts.items():
        out(f"  {name:<14} {size:>16,}  {100 * size / total:5.1f}%")


def cmd_bench(args: argparse.Namespace) -> None:
    """Builds the model with random weights and prints its memory and speed."""
    import mlx.core as mx

    title, config = _config(args)
    seq_len, gen_tokens = getattr(args, "seq_len", 32), getattr(args, "gen_tokens", 20)
    if seq_len < 1 or gen_tokens < 1:
        raise UserError(f"--seq-len and --gen-tokens must be at least 1, got {seq_len} and {gen_tokens}.")
    model = LanguageModel(config)
    memory = memory_estimate(model)
    note(f"measuring {title} ({memory['total_mb']:,.0f} MB of weights) ...")
    mx.eval(model.parameters())
    tokens = mx.random.randint(0, config.vocab_size, (1, seq_len))
    forward = profile_forward(model, tokens)
    generation = profile_generation(model, tokens, max_tokens=gen_tokens)
    if getattr(args, "json", False):
        out_json({"architecture": args.arch, "memory": memory, "forward": forward, "generation": generation})
        return
    out(f"{title}")
    out(f"Parameters: {memory['param_count']:,}")
    out(f"Memory: {memory['total_mb']:,.1f} MB")
    out(f"Forward pass ({seq_len} tokens): {forward['mean_ms']:.2f} ms, {forward['tokens_per_sec']:,.0f} tokens/s")
    out(f"Generation ({gen_tokens} tokens): {generation['total_ms']:.2f} ms")
    out(f"  Prefill: {generation['prefill_ms']:.2f} ms")
    out(f"  Decode: {number(generation['decode_ms_per_token'], 2)} ms per token")


def _config(args: argparse.Namespace) -> tuple[str, ModelConfig]:
    """Title and config of the architecture or preset asked for; an unknown one ends the command with status 1."""
    if _tiny(args) and args.arch in ARCHITECTURES:
        return f"{args.arch} (tiny)", ARCHITECTURES[args.arch][1]()
    try:
        config = resolve(args.arch)
    except UnknownNameError as error:
        note(f"lmxlab: {error}")
        raise SystemExit(1) from None
    if _tiny(args):
        raise UserError(f"--tiny goes with an architecture ({', '.join(ARCHITECTURES)}); {args.arch} is a preset.")
    return args.arch, config


def _tiny(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "tiny", False))
