"""Rollouts as a run: the order of prompts, what counts as right, and programs judged in the sandbox."""

import json
import string
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.data import CharTokenizer, DataConfig
from lmxlab.errors import UserError
from lmxlab.experiments.methods import GRPO
from lmxlab.experiments.rollout_task import Cycle, RolloutTask
from lmxlab.experiments.spec import RunSpec
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training.config import TrainConfig
from lmxlab.training.sampling import Completion, Prompt


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    tokenizer = CharTokenizer(string.printable, bos=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    model = llama_config(tokenizer.vocab_size, 16, 2, 2, 1, 16, max_seq_len=128)
    data = DataConfig("problems:arithmetic", str(tmp_path / "tokenizer.json"))
    return RunSpec("rl", model, data, TrainConfig(batch_size=8), 112, method=GRPO(max_gen_tokens=12))


def completion(task: RolloutTask, prompt: Prompt, text: str) -> Completion:
    tokens = mx.array([*task.tokenizer.encode(text), *task.ends[-1:]])
    return Completion(prompt.tokens, tokens, True, mx.zeros(tokens.shape), prompt.about)


def test_programs_are_judged_in_the_sandbox(spec: RunSpec) -> None:
    pytest.importorskip("wasmtime")
    task = RolloutTask(spec, GRPO(max_gen_tokens=12))
    prompts = task._train[:2]
    answers = [completion(task, prompt, prompt.about.answer) for prompt in prompts]
    wrong = [completion(task, prompts[0], "None"), completion(task, prompts[1], "x +")]
    assert task.reward([*answers, *wrong]) == [1.0, 1.0, 0.0, 0.0]
    assert {p.about.name for p in task._train}.isdisjoint(p.about.name for p in task._held)
    assert task.scorer(LanguageModel(spec.model))("batch") == {"val_mean_reward": 0.0, "scored_prompts": 1}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("problems:chess", "Unknown family of problems 'chess'"),
        ("problems:arithmetic:hard", "write problems:FAMILY or problems:FAMILY:DIFFICULTY"),
        ("problems:arithmetic:99", "difficulty is"),
    ],
)
def test_problems_that_do_not_exist_are_refused(dataset: str, message: str, spec: RunSpec) -> None:
    with pytest.raises(UserError, match=message):
        RolloutTask(replace(spec, data=replace(spec.data, dataset=dataset)), GRPO(max_gen_tokens=12))


def test_an_answer_is_one_line(spec: RunSpec, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = RolloutTask(replace(spec, data=replace(spec.data, dataset=str(tmp_path / "q.jsonl"))), GRPO())
    assert task.tokenizer.encode("\n")[0] in task.ends and task.tokenizer.bos_id in task.ends
    prompt = task._train[0]
    assert task.reward([completion(task, prompt, prompt.about.answer), completion(task, prompt, "99")]) == [1.0, 0.0]


def test_prompts_come_round_in_another_order_and_the_place_is_kept() -> None:
    items = [Prompt(mx.array([i])) for i in range(5)]
    cycle = Cycle(items, seed=1)
    drawn = [int(next(cycle).tokens.item()) for _ in range(13)]
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == list(range(5)) and drawn[:5] != drawn[5:10]
    again = Cycle(items, seed=1)
    again.load_state_dict({"drawn": 10})
    assert [int(next(again).tokens.item()) for _ in range(3)] == drawn[10:]
