"""Every method as a run: it learns, resumes exactly, takes adapters and accumulation, and refuses what cannot serve."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from lmxlab.core.adapters import adapters_of
from lmxlab.data import CharTokenizer, DataConfig, load_tokenizer
from lmxlab.errors import UserError
from lmxlab.experiments.finetune import LoRAConfig
from lmxlab.experiments.interrupt import Interrupted
from lmxlab.experiments.loaded import base_tokenizer, build_model, trained
from lmxlab.experiments.make_task import make_task
from lmxlab.experiments.methods import DPO, GRPO, MTP, SFT, Distill, Method
from lmxlab.experiments.recorder import Observer
from lmxlab.experiments.run import execute, score_run
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import load_model
from lmxlab.models.llama import llama_config
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

OF_TEXT = (Distill, MTP)
METHODS: dict[str, Method] = {
    "sft": SFT(),
    "dpo": DPO(beta=0.5),
    "grpo": GRPO(group_size=4, max_gen_tokens=2, beta=0.05, updates=2),
    "mtp": MTP(n_predict=2),
    "distill": Distill(teacher="BASE"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of every kind: the letter after a letter; and a run of a model that has seen the alphabet."""
    folder = tmp_path_factory.mktemp("methods")
    letters = "abcdefghijklmnop"
    pairs = list(zip(letters, letters[1:] + "a", strict=True))
    rows = {
        "sft": [{"prompt": f"{a}{b}", "completion": b + a} for a, b in pairs],
        "dpo": [{"prompt": a, "chosen": b + b, "rejected": a + a} for a, b in pairs],
        "grpo": [{"prompt": a * 2, "answer": b} for a, b in pairs],
    }
    for name, examples in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    (folder / "text.txt").write_text(f"{letters}\n" * 60)
    CharTokenizer(letters + "\n", bos=True).save(folder / "tokenizer.json")
    execute(spec_of(folder, Method(), steps=60), RunFolder(folder / "base"))
    return folder


def spec_of(folder: Path, method: Method, steps: int = 6, **changes: Any) -> RunSpec:
    """A run of the method, from the base where it is there."""
    base = str(folder / "base")
    if isinstance(method, Distill):
        method = replace(method, teacher=base)
    if isinstance(method, Method) and type(method) is not Method and not isinstance(method, OF_TEXT):
        changes = {"pretrained": base} | changes
    extra = {"mtp_n_predict": method.n_predict, "mtp_lambda": method.weight} if isinstance(method, MTP) else {}
    data = folder / ("text.txt" if method.of_text else f"{method.name}.jsonl")
    tokenizer = base_tokenizer(base) if (folder / "base").exists() else str(folder / "tokenizer.json")
    optim = TrainConfig(
        **{"learning_rate": 3e-3, "batch_size": 8, "max_steps": steps, "warmup_steps": 1, "compile_step": False}
        | {"eval_interval": 3, "checkpoint_interval": 2, "log_interval": 1}
        | changes.pop("optim", {})
    )
    spec = RunSpec(
        method.name or "base",
        replace(llama_config(18, 32, 2, 2, 1, 48, max_seq_len=32), **extra),
        DataConfig(str(data), tokenizer, cache_dir=str(folder)),
        optim,
        seq_len=16,
        eval_tokens=200,
        sample_tokens=3,
        method=method,
    )
    return replace(spec, **changes)


class StopsAt(Observer):
    """Asks for an end after a number of steps, as Ctrl-C does."""

    requested = False

    def __init__(self, steps: int):
        self.steps = steps

    def step(self, spec: RunSpec, progress: Any) -> None:
        self.requested = progress.step >= self.steps


@pytest.mark.parametrize("name", METHODS)
def test_a_method_resumes_where_it_was_interrupted_bit_for_bit(name: str, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, METHODS[name])
    assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    straight = execute(spec, RunFolder(tmp_path / "straight"))
    stop = StopsAt(3)
    with pytest.raises(Interrupted):
        execute(spec, RunFolder(tmp_path / "again"), observer=stop, stop=stop)  # type: ignore[arg-type]
    resumed = execute(spec, RunFolder(tmp_path / "again"), resume=True)
    metric = spec.method.metric
    assert straight.value(metric) is not None and resumed.value(metric) == straight.value(metric)
    assert resumed.metrics["curve"] == straight.metrics["curve"]
    assert score_run(RunFolder(tmp_path / "again"))[metric] == pytest.approx(straight.value(metric), abs=1e-6)
    weights = [load_model(RunFolder(tmp_path / which))[1].embed.weight for which in ("straight", "again")]
    assert mx.array_equal(*weights)


@pytest.mark.parametrize("name", ["sft", "dpo", "mtp", "distill"])
def test_a_method_learns(name: str, folder: Path, tmp_path: Path) -> None:
    short, longer = (
        execute(spec_of(folder, METHODS[name], steps), RunFolder(tmp_path / str(steps))).train_loss for steps in (1, 40)
    )
    assert longer < short - 0.1


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_what_is_written_ends_where_completions_do(name: str, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, METHODS[name], 1)
    execute(spec, RunFolder(tmp_path))
    assert trained(RunFolder(tmp_path)).stop_tokens == [load_tokenizer(folder / "tokenizer.json").bos_id]
    assert trained(RunFolder(folder / "base")).stop_tokens == []  # a text goes on
    task = make_task(spec)
    task.ends = tuple(range(18))  # type: ignore[attr-defined]  # whatever comes first is an end
    assert task.sample(load_model(RunFolder(tmp_path))[1])["text"] == ""


def test_the_reference_of_dpo_rounds_as_the_policy_does(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, METHODS["dpo"], 1, optim={"dtype": "bfloat16"})
    execute(spec, RunFolder(tmp_path / "run"))
    first = RunFolder(tmp_path / "run").read_metrics()[0]
    assert abs(first["chosen_reward"]) < 1e-6 and abs(first["rejected_reward"]) < 1e-6


def test_grpo_raises_the_reward_of_a_model_that_half_knows(folder: Path, tmp_path: Path) -> None:
    execute(spec_of(folder, Method(), 12), RunFolder(tmp_path / "young"))
    optim = {"batch_size": 64, "learning_rate": 3e-3}
    method = GRPO(group_size=8, max_gen_tokens=1)
    spec = spec_of(folder, method, 30, optim=optim, pretrained=str(tmp_path / "young"))
    entry = execute(spec, RunFolder(tmp_path / "run"))
    rewards = [row["mean_reward"] for row in RunFolder(tmp_path / "run").read_metrics() if "mean_reward" in row]
    assert len(rewards) == 30 and entry.value("val_mean_reward") is not None
    assert sum(rewards[-10:]) > 1.5 * sum(rewards[:10])


def test_a_grpo_run_scores_at_the_temperature_that_it_samples_at_and_scales_as_it_is_told(folder: Path) -> None:
    task: Any = make_task(spec_of(folder, GRPO(max_gen_tokens=2, temperature=0.5, scale_rewards="none")))
    task.reward = lambda completions: [i % 3 for i in range(len(completions))]
    model = build_model(task.spec)
    batch = next(iter(task.batches(model)))
    loss = task.objective(model)(model, *batch)
    assert float(loss.metrics["ratio"] / loss.counted) == pytest.approx(1, abs=1e-5)
    advantages, rewards = batch[2].reshape(-1, 4), batch[3].reshape(-1, 4)
    assert rewards.any() and mx.allclose(advantages, rewards - rewards.mean(axis=1, keepdims=True))


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_adapters_and_accumulation_serve_every_method(name: str, folder: Path, tmp_path: Path) -> None:
    optim = {"batch_size": 4, "grad_accumulation_steps": 2}
    spec = spec_of(folder, METHODS[name], 2, lora=LoRAConfig(2), optim=optim)
    entry = execute(spec, RunFolder(tmp_path / "run"))
    assert entry.value(spec.method.metric) is not None
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    _, model = load_model(RunFolder(tmp_path / "run"))
    assert not adapters_of(model)


def test_accumulation_takes_the_updates_of_grpo_one_after_the_other(folder: Path) -> None:
    """A step's micro-batches are parts of one round: two updates of half a round would be one step of it twice."""
    spec = spec_of(folder, METHODS["grpo"], optim={"batch_size": 8, "grad_accumulation_steps": 2})
    task = make_task(spec)
    rollouts: Any = task.batches(build_model(spec))
    steps = [[next(rollouts) for _ in range(2)] for _ in range(3)]
    written = [sorted(row for micro in step for row in micro[0].tolist()) for step in steps]
    assert [len(micro[0]) for step in steps for micro in step] == [8] * 6
    assert written[0] == written[1] and len(written[0]) == 16
    assert written[2] != written[0]
    task.batches(build_model(spec))
    assert len(task.callbacks()) == 1


def test_multi_token_prediction_goes_on_from_a_model_without_heads(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, METHODS["mtp"], 1, pretrained=str(folder / "base"))
    entry = execute(spec, RunFolder(tmp_path / "run"))
    fresh = execute(spec_of(folder, METHODS["mtp"], 1), RunFolder(tmp_path / "fresh"))
    assert entry.val_loss < fresh.val_loss - 0.3
    assert "mtp_loss" in RunFolder(tmp_path / "run").read_metrics()[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sft", {"data": DataConfig("shakespeare", "glassllm")}, "The tokenizer has|vocab"),
        ("sft", {"data": DataConfig("shakespeare"), "pretrained": ""}, "goes on from a model and its tokenizer"),
        ("grpo", {"seq_len": 3}, "has a prompt of 3 tokens; with seq_len 3"),
        ("distill", {"method": Distill()}, "There is no teacher"),
        ("distill", {"method": Distill("glassllm")}, "The teacher 'glassllm' has 4096|The teacher 'glassllm' has"),
    ],
)
def test_what_cannot_serve_is_refused_before_anything_is_computed(
    name: str, changes: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        make_task(replace(spec_of(folder, METHODS[name]), **changes))


def test_a_text_is_no_file_of_examples(folder: Path) -> None:
    spec = spec_of(folder, METHODS["sft"])
    with pytest.raises(UserError, match="sft learns from a file of examples, and 'shakespeare' is none"):
        make_task(replace(spec, data=replace(spec.data, dataset="shakespeare")))
