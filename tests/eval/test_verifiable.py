"""Problems as prompts, verdicts as rewards: what a model gets for its programs, and what it is trained on."""

import mlx.core as mx
import pytest

import lmxlab
from lmxlab.core import BlockConfig, ModelConfig
from lmxlab.data import CharTokenizer
from lmxlab.errors import UserError
from lmxlab.eval.problems import generate_problems
from lmxlab.eval.sandbox import Verdict
from lmxlab.eval.verifiable import ProblemPrompts, ProgramReward, problem_prompt, solve, verified_examples
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import Rollouts
from lmxlab.training.sampling import Completion

TOKENIZER = CharTokenizer("".join(map(chr, range(32, 127))) + "\n", bos=True)
NEWLINE = TOKENIZER.encode("\n")[0]
PROBLEMS = generate_problems(12, "arithmetic", (1, 3))


class ByHeart:
    """Stands for the sandbox: knows the right programs by heart, and pays others by a rule; it runs nothing."""

    def __init__(self):
        self.ran = []

    def run_many(self, programs):
        return [self.run(*program) for program in programs]

    def run(self, source, tests):
        self.ran.append(source)
        answers = {problem.solution: problem for problem in PROBLEMS}
        passed = source in answers
        return Verdict("passed" if passed else "failed", "", 6 if passed else sum(map(ord, source)) % 6, 6)


def completion(problem, text):
    tokens = mx.array(TOKENIZER.encode(text + "\n"))
    return Completion(problem_prompt(problem, TOKENIZER).tokens, tokens, True, mx.zeros(tokens.size), problem)


def model(seed=0):
    block = BlockConfig(attention="mha", d_model=16, n_heads=2, d_ff=32, max_seq_len=128)
    mx.random.seed(seed)
    return lmxlab.LanguageModel(ModelConfig(block, TOKENIZER.vocab_size, 1))


def test_the_reward_is_the_share_of_tests_passed_by_a_real_sandbox():
    pytest.importorskip("wasmtime", reason="the extra `sandbox` is not installed")
    from lmxlab.eval.sandbox import Limits, Sandbox

    problem = next(problem for problem in PROBLEMS if problem.difficulty == 1)
    with Sandbox(workers=1, limits=Limits(wall_s=20)) as sandbox:
        answers = [completion(problem, text) for text in (problem.answer, "x if x > 0 else None", "1 +", "exit()")]
        right, some, *wrong = ProgramReward(sandbox, TOKENIZER)(answers)
        assert (right, wrong) == (1.0, [0.0, 0.0])
        assert 0 <= some < 1
        assert ProgramReward(sandbox, TOKENIZER, all_or_nothing=True)(answers) == [1.0, 0.0, 0.0, 0.0]


def test_a_program_is_run_once_per_problem():
    sandbox = ByHeart()
    reward = ProgramReward(sandbox, TOKENIZER)
    first, second = PROBLEMS[:2]
    answers = [completion(first, "x"), completion(first, "x"), completion(second, "x")]
    assert reward(answers) == reward(answers)
    assert sandbox.ran == [first.program("x"), second.program("x")]
    assert (reward.programs, reward.ran) == (6, 2)


def test_only_verified_answers_are_learned_and_each_ends_in_a_newline():
    reward = ProgramReward(ByHeart(), TOKENIZER)
    answers = [problem.answer if i % 2 else "x" for i, problem in enumerate(PROBLEMS)]
    examples = verified_examples(PROBLEMS, reward, answers)
    assert [TOKENIZER.decode(e.completion) for e in examples] == [p.answer + "\n" for p in PROBLEMS[1::2]]
    assert [e.prompt for e in examples] == [[TOKENIZER.bos_id, *TOKENIZER.encode(p.prompt)] for p in PROBLEMS[1::2]]
    with pytest.raises(UserError, match="1 answers for 12 problems"):
        verified_examples(PROBLEMS, reward, ["x"])


def test_prompts_come_from_easy_to_hard_and_go_on_where_they_were():
    prompts = ProblemPrompts(PROBLEMS, TOKENIZER, 6, 4, seed=2)
    drawn = list(prompts)
    levels = [prompt.about.difficulty for prompt in drawn]
    assert (len(levels), set(levels[:4]), max(levels)) == (24, {1}, 3)
    first = ProblemPrompts(PROBLEMS, TOKENIZER, 6, 4, seed=2)
    source = iter(first)
    begun = [next(source).about for _ in range(7)]
    second = ProblemPrompts(PROBLEMS, TOKENIZER, 6, 4, seed=2)
    second.load_state_dict(first.state_dict())
    assert begun + [prompt.about for prompt in second] == [prompt.about for prompt in drawn]


def test_pass_at_k_of_a_model_that_knows_all_answers_and_of_one_that_knows_none(monkeypatch):
    from lmxlab.eval import verifiable

    reward = ProgramReward(ByHeart(), TOKENIZER)
    assert solve(model(), PROBLEMS[:2], reward, samples=4, k_values=(1, 4), max_tokens=4) == {"pass@1": 0, "pass@4": 0}
    known = []

    def answers(model, prompts, *rest):
        known.append(len(prompts))
        half = [p.about.answer if i % 2 else "x" for i, p in enumerate(prompts)]
        return [completion(p.about, text) for p, text in zip(prompts, half, strict=True)]

    monkeypatch.setattr(verifiable, "sample", answers)
    score = solve(model(), PROBLEMS, reward, samples=4, k_values=(1, 2, 4), batch_size=20)
    assert score == pytest.approx({"pass@1": 0.5, "pass@2": 1 - 1 / 6, "pass@4": 1.0})
    assert known == [20, 20, 8]


def test_grpo_on_verdicts_trains_and_goes_on_exactly(tmp_path):
    def trainer(net):
        prompts = ProblemPrompts(PROBLEMS, TOKENIZER, 4, 2)
        source = Rollouts(
            net,
            prompts,
            ProgramReward(ByHeart(), TOKENIZER),
            prompts_per_round=2,
            group_size=4,
            max_tokens=6,
            stop_tokens=[NEWLINE],
            beta=0.0,
        )
        settings = lmxlab.TrainConfig(learning_rate=1e-2, max_steps=4, warmup_steps=0, compile_step=False)
        return lmxlab.Trainer(net, settings, objective=GRPO(beta=0.0)), source

    whole, source = trainer(model())
    history = whole.train(source)
    rewards = [metrics["mean_reward"] for metrics in history]
    assert len(rewards) == 4
    assert all(metrics["grad_norm"] > 0 for metrics in history)

    first, source = trainer(model())
    first.config = lmxlab.TrainConfig(learning_rate=1e-2, max_steps=2, warmup_steps=0, compile_step=False)
    begun = [metrics["mean_reward"] for metrics in first.train(source)]
    first.save(tmp_path / "saved")
    second, source = trainer(model(seed=1))
    second.restore(tmp_path / "saved", ignore=["max_steps"])
    assert begun + [metrics["mean_reward"] for metrics in second.train(source)] == rewards


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r([completion(PROBLEMS[0], "x")._replace(about=None)]), "a prompt is about None"),
        (lambda r: ProblemPrompts([], TOKENIZER, 3), "Prompts need problems"),
        (lambda r: solve(model(), [], r), "no problem to solve"),
        (lambda r: solve(model(), PROBLEMS[:1], r, samples=2, k_values=(4,), max_tokens=2), "k"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(UserError, match=f"(?i){message}"):
        call(ProgramReward(ByHeart(), TOKENIZER))
