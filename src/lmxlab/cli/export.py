"""`lmxlab export`: a trained model as a folder that transformers and mlx-lm load."""

import math
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, Runs, option
from lmxlab.cli.render import note, out, out_json
from lmxlab.cli.runs import find_run
from lmxlab.data.hf_files import tokenizer_files
from lmxlab.errors import UserError
from lmxlab.experiments.loaded import run_tokenizer
from lmxlab.experiments.stored import load_model
from lmxlab.models.convert import shapes_of
from lmxlab.models.export import export_model, hf_config_of
from lmxlab.models.mlx_lm import mlx_lm_lacks


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="export")(export)


def export(
    run: Annotated[Positional[str], option("A run's folder, or its name in `lmxlab log list`.", "RUN")],
    folder: Annotated[Positional[Path], option("Where to write it.", "DIR")],
    /,
    *,
    overwrite: Annotated[bool, option("Replace the folder if it is there.", default="")] = False,
    tokenizer: Annotated[bool, option("Leave out the tokenizer's files.", default="")] = True,
    shard_gb: float = 5.0,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Write a trained model as config.json, safetensors and tokenizer.json, for transformers and mlx-lm.

    Example: lmxlab export runs/llama/20260101-120000 my-model

    Args:
        shard_gb: Weights are split into files of at most so many gigabytes.
    """
    if shard_gb <= 0:
        raise UserError(f"--shard-gb must be above 0, got {shard_gb}.")
    found = find_run(run, runs)
    spec, model = load_model(found)
    hf_config_of(spec.model)  # says at once what cannot be exported
    own = run_tokenizer(found)
    files = tokenizer_files(own, spec.model.block.max_seq_len) if tokenizer else {}
    model_type = export_model(
        model,
        folder,
        tokens={"bos_token_id": own.bos_id, "eos_token_id": getattr(own, "eos_token_id", None) or own.bos_id},
        files=files,
        shard_bytes=int(shard_gb * 1e9),
        overwrite=overwrite,
    )
    if json:
        written = sorted(path.name for path in folder.iterdir())
        out_json({"run": str(found.path), "folder": str(folder), "model_type": model_type, "files": written})
        return
    left_out = sum(math.prod(shape) for name, shape in shapes_of(model).items() if name.startswith("mtp_heads."))
    out(f"{folder}: a {model_type} model of {model.count_parameters() - left_out:,} parameters")
    note(f"transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    lacks = mlx_lm_lacks(model.config, model_type)
    use = f"mlx_lm.generate --model {folder}" if lacks is None else f"would compute other logits, or none: it {lacks}"
    note(f"mlx-lm:       {use}")
