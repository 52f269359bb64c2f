"""Reading a run folder back: its spec, its result, its model, and whether it is the run that is to be resumed."""

import json

from lmxlab.core.fields import flat
from lmxlab.errors import UserError
from lmxlab.experiments.finetune import fold_adapters, put_adapters
from lmxlab.experiments.spec import RunSpec, read_config
from lmxlab.experiments.tracking import LogEntry
from lmxlab.models.base import LanguageModel
from lmxlab.training.checkpoints import load_checkpoint
from lmxlab.training.run_folder import RunFolder


def load_model(folder: RunFolder) -> tuple[RunSpec, LanguageModel]:
    """The spec and the trained model of a run folder, from its last good checkpoint, its adapters folded in.

    Raises:
        UserError: if the folder has no config.json or no checkpoint that can be read.
    """
    spec = read_spec(folder)
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{folder.path} has no checkpoint that can be read: train it first.")
    model = LanguageModel(spec.model)
    put_adapters(model, spec.lora)
    load_checkpoint(checkpoint, model)
    fold_adapters(model, spec.lora)
    return spec, model


def read_spec(folder: RunFolder) -> RunSpec:
    """The spec that a run folder was made with; UserError when it is no run folder."""
    return RunSpec.from_dict(read_config(folder.config))


def read_result(folder: RunFolder) -> LogEntry | None:
    """The result of a run that ended well, None while it has none."""
    try:
        entry = LogEntry(**json.loads(folder.result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    whole = isinstance(entry.config, dict) and isinstance(entry.metrics, dict) and isinstance(entry.val_bpb, float)
    return entry if whole else None


def check_same_run(spec: RunSpec, folder: RunFolder, data_hash: str) -> RunSpec:
    """The folder's own spec, after checking that it is the run that was asked for.

    Raises:
        UserError: naming the settings, or the data, that differ.
    """
    stored = read_spec(folder)
    asked, there = flat(spec.to_dict()), flat(stored.to_dict())
    # These follow from the budget and the seed, which are compared themselves.
    derived = {"optim.max_steps", "optim.warmup_steps", "optim.seed"}
    keys = sorted((asked.keys() | there.keys()) - derived)
    differ = [key for key in keys if asked.get(key) != there.get(key)]
    if differ:
        changes = ", ".join(f"{key} is {there.get(key)!r} there, {asked.get(key)!r} asked" for key in differ[:4])
        raise UserError(
            f"{folder.path} is a run with other settings: {changes}. Resume it without settings, or start a new run."
        )
    check_same_data(folder, data_hash)
    return stored


def check_same_data(folder: RunFolder, data_hash: str) -> None:
    """UserError when the data is not what the run was started on: other text, so perhaps other ids for its tokens."""
    settings = json.loads(folder.config.read_text(encoding="utf-8"))
    data = settings.get("data")
    if not isinstance(data, dict) or data.get("hash") != data_hash:
        raise UserError(
            f"The data of {folder.path} has changed since the run was started, and with it what its tokens mean: "
            "bring the data back, or train anew."
        )
