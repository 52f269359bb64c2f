"""eval: a run is scored on the data it was trained on, and an unfinished one is said to be one."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lmxlab.data import BPETokenizer
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import config_from_hf

from .conftest import Cli, only_run


def test_a_model_is_not_scored_on_another_text_but_writes_with_its_own_tokenizer(cli: Cli, folder: Path) -> None:
    text = folder / "book.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    assert cli("train", "tiny.toml", "--data.dataset", text, "--budget.steps", "2").code == 0
    text.write_text("the quick brown fox jumps over the lazy cow. " * 200)
    run = only_run(folder)
    done = cli("eval", run)
    assert done.code == 2 and "has changed" in done.err
    done = cli("generate", run, "--prompt", "the lazy fox", "--seed", "1")
    assert done.code == 0 and done.out.startswith("the lazy fox")


def test_an_unfinished_run_is_said_to_be_one(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "40").code == 0
    run = only_run(folder)
    assert "has not ended" not in cli("eval", run).err
    assert "has ended already" in cli("train", "--resume", run).err
    (run / "result.json").unlink()
    assert "has not ended" in cli("eval", run).err


def small_run(cli: Cli, folder: Path) -> Path:
    assert cli("train", "tiny.toml", "--budget.steps", "2").code == 0
    return only_run(folder)


def write_task(folder: Path, name: str, body: str) -> None:
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    questions = [{"question": f"The {n} of", "right": " Python", "wrong": " Perl"} for n in ("end", "list", "name")]
    (tasks / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{tasks / 'questions.jsonl'}'}}}}\n"
    (tasks / f"{name}.yaml").write_text(f"task: {name}\n{data}test_split: test\n{body}")


CHOICE = """\
output_type: multiple_choice
doc_to_text: '{{question}}'
doc_to_choice: [' Python', ' Perl']
doc_to_target: 0
"""


def test_tasks_of_lm_eval_are_told_and_kept_in_the_run(cli: Cli, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    run = small_run(cli, folder)
    write_task(folder, "mine", CHOICE)
    asked = ("eval", run, "--tasks", "mine", "--include-path", folder / "tasks")
    done = cli(*asked, "--limit", "2", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    accuracy = report["results"]["mine"]["metrics"]["acc"]
    assert 0 <= accuracy["value"] <= 1 and accuracy["higher_is_better"] and accuracy["stderr"] is not None
    assert report["results"]["mine"]["questions"] == 2 and report["options"]["limit"] == 2
    (kept,) = (run / "evals").iterdir()
    assert json.loads(kept.read_text()) == report and report["checkpoint"].endswith("2")
    done = cli(*asked)
    assert done.code == 0 and "mine" in done.out and "acc" in done.out
    assert len(list((run / "evals").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "mime", "--include-path", "tasks"], "Unknown task 'mime'; did you mean 'mine'?"),
        (["--tasks", ","], "--tasks is empty"),
        (["--tasks", "mine", "--include-path", "nowhere"], "no folder of tasks 'nowhere'"),
        (["--tasks", "mine", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--tasks", "mine", "--fewshot", "-1"], "--fewshot must be 0 or more, got -1"),
    ],
)
def test_bad_input_is_told_in_one_line(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    # Only the tasks of the folder: reading the 10,000 of lm-eval takes seconds.
    small = partial(manager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, **_: small(include_path=include_path))
    run = small_run(cli, folder)
    write_task(folder, "mine", CHOICE)
    done = cli("eval", run, *arguments)
    assert done.code == 2 and message in done.err, done.err


def test_without_lm_eval_the_command_says_what_to_install(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(cli, folder)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = cli("eval", run, "--tasks", "hellaswag")
    assert done.code == 2 and "pip install 'lmxlab[eval]'" in done.err


def test_a_folder_of_hugging_face_is_asked_too_unless_its_tokenizer_is_another_models(cli: Cli, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    fields = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": [0, 1],
    }  # fmt: skip
    there = folder / "model"
    there.mkdir()
    (there / "config.json").write_text(json.dumps(fields))
    model = LanguageModel(config_from_hf(fields))
    mx.save_safetensors(str(there / "model.safetensors"), hf_weights(model))
    BPETokenizer.train(["The name of Python " * 9], vocab_size=270).save(there / "tokenizer.json")
    write_task(folder, "mine", CHOICE)
    done = cli("eval", there, "--tasks", "mine", "--include-path", "tasks", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["context"] == 32 and not (there / "evals").exists()
    small = cli("eval", "glassllm", "--tasks", "mine", "--include-path", "tasks", "--json")
    assert small.code == 0 and json.loads(small.out)["run"] == "glassllm", small.err
    done = cli("eval", there)
    assert done.code == 2 and "no validation split: give --tasks" in done.err
    BPETokenizer.train(["".join(map(chr, range(32, 1000))) * 9], vocab_size=400).save(there / "tokenizer.json")
    done = cli("eval", there, "--tasks", "mine", "--include-path", "tasks")
    assert done.code == 2 and "model's vocabulary only 300" in done.err


def hf_weights(model: LanguageModel) -> dict[str, mx.array]:
    """The names of a Llama of transformers."""
    names = {
        "embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head", "blocks": "model.layers",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attention": "self_attn", "ffn": "mlp",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    }  # fmt: skip
    leaves: Any = tree_flatten(model.parameters())
    return {".".join(names.get(part, part) for part in name.split(".")): array for name, array in leaves}
