import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.families import resolve
from lmxlab.models.gpt import gpt2_tiny, gpt_config, gpt_tiny
from lmxlab.models.llama import llama_config, llama_tiny

from .architectures import ARCHITECTURES, build, gap, tokens


def weights(model: LanguageModel) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def test_the_parts_have_the_names_of_the_api() -> None:
    model = LanguageModel(llama_tiny())
    for part in ("embed", "embed_dropout", "blocks", "final_norm", "head"):
        assert part in model
    for part in ("attention", "ffn", "attn_norm", "ffn_norm", "resid_dropout", "position"):
        assert part in model.blocks[0]
    assert "head" not in LanguageModel(gpt_tiny())
    assert isinstance(model.head, nn.Linear) and "bias" not in model.head


def test_hidden_states_and_output_weight_give_the_logits() -> None:
    for config in (gpt_tiny(), llama_tiny(), gpt_config(64, 32, 2, 2, 64, 32, mup_base_width=8)):
        model, x = build(config), tokens(2, 7)
        logits, caches, hidden = model(x, return_hidden=True)
        projected, _ = model.hidden_states(x)
        assert gap(projected @ model.output_weight.T, logits) < 1e-5
        assert gap(hidden / config.width_mult, projected) < 1e-6
        assert len(caches) == config.n_layers and gap(model(x)[0], logits) == 0


def test_mup_divides_the_logits() -> None:
    config = dataclasses.replace(gpt_tiny(), mup_base_width=16)
    model, x = build(gpt_tiny()), tokens(1, 5)
    logits, _ = model(x)
    model.config = config
    assert gap(model(x)[0] * 4, logits) < 1e-5


def test_mup_leaves_the_embedding_and_an_equal_width_alone() -> None:
    def draw(base_width: int | None) -> dict[str, mx.array]:
        mx.random.seed(5)
        return weights(LanguageModel(gpt_config(64, 32, 2, 2, 64, 32, mup_base_width=base_width)))

    plain, same, wide = draw(None), draw(32), draw(8)
    assert all(mx.array_equal(plain[name], same[name]) for name in plain)
    assert mx.array_equal(plain["embed.weight"], wide["embed.weight"])
    assert gap(wide["blocks.0.ffn.up.weight"] * 2, plain["blocks.0.ffn.up.weight"]) < 1e-7


def test_initial_weights_are_those_of_gpt2() -> None:
    model = LanguageModel(gpt_config(500, 128, 4, 8, 512, 64, tie_embeddings=False))
    for name, array in weights(model).items():
        values = np.array(array)
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        else:
            std = 0.02 / math.sqrt(16) if "o_proj" in name or "down" in name else 0.02
            assert values.std() == pytest.approx(std, rel=0.03), name
            assert abs(values.mean()) < 4 * std / math.sqrt(values.size), name
    assert np.array(LanguageModel(gpt2_tiny()).embed_position.weight).std() == pytest.approx(0.02, rel=0.05)


def test_a_new_model_predicts_uniformly() -> None:
    for config in (gpt_tiny(), gpt2_tiny(), llama_tiny()):
        logits, _ = LanguageModel(config)(tokens(4, 32))
        loss = nn.losses.cross_entropy(logits[:, :-1], tokens(4, 31)).mean()
        assert float(loss) == pytest.approx(math.log(256), abs=0.15)


def test_equal_seeds_give_equal_models() -> None:
    models = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        models.append(weights(LanguageModel(llama_tiny())))
    assert all(mx.array_equal(models[0][name], models[1][name]) for name in models[0])
    assert not mx.array_equal(models[0]["embed.weight"], models[2]["embed.weight"])


def test_building_draws_no_weight_before_it_is_needed() -> None:
    before = mx.get_active_memory()
    model = LanguageModel(resolve("gpt_medium"))
    assert mx.get_active_memory() - before < 100e6  # its 353 M weights take 1.4 GB
    assert model.count_parameters() == pytest.approx(353e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt_10m", 10), ("gpt_30m", 30), ("llama_10m", 10), ("llama_30m", 30), ("gpt2", 124.44), ("gpt2_xl", 1557.6)]
    + [
        ("llama32_1b", 1235.8),
        ("llama3_8b", 8030.3),
        ("llama31_8b", 8030.3),
        ("gpt2_medium", 354.8),
        ("gpt2_large", 774),
        ("mistral_7b", 7241.7),
        ("qwen2_0_5b", 494.0),
        ("qwen2_7b", 7615.6),
        ("qwen3_0_6b", 596.0),
        ("qwen3_8b", 8190.7),
        ("qwen3_next_80b_a3b", 79674.4),
        ("qwen35_9b", 8953.8),
        ("qwen35_27b", 26895.9),
        ("olmo2_7b", 7298.9),
        ("smollm3_3b", 3075.1),
        ("gemma_2b", 2506.2),
        ("gemma_7b", 8537.7),
        ("gemma2_2b", 2614.3),
        ("gemma2_9b", 9241.7),
        ("gemma3_1b", 999.9),
    ],
)
def test_presets_have_their_published_sizes(name: str, millions: float) -> None:
    tolerance = 0.1 if millions in (10, 30) else 1e-3
    assert LanguageModel(resolve(name)).count_parameters() / 1e6 == pytest.approx(millions, rel=tolerance)


def test_count_parameters_counts_a_tied_matrix_once() -> None:
    block = BlockConfig(d_model=8, n_heads=2, d_ff=16, bias=False)
    per_block = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 8
    assert LanguageModel(ModelConfig(block, 10, 3)).count_parameters() == 10 * 8 + 3 * per_block + 8
    assert LanguageModel(ModelConfig(block, 10, 3, False)).count_parameters() == 2 * 10 * 8 + 3 * per_block + 8


def test_a_sequence_beyond_the_trained_context() -> None:
    long = tokens(1, 130)
    assert LanguageModel(gpt_tiny())(long)[0].shape == (1, 130, 256)
    assert LanguageModel(llama_tiny())(long)[0].shape == (1, 130, 256)
    model = LanguageModel(gpt2_tiny())
    with pytest.raises(ValueError, match="130 tokens is longer than max_seq_len 128"):
        model(long)
    _, cache = model(long[:, :128])
    with pytest.raises(ValueError, match="129 tokens is longer than max_seq_len 128"):
        model(long[:, 128:129], cache=cache)


def test_what_is_no_batch_of_tokens_is_refused() -> None:
    model = LanguageModel(gpt_tiny())
    for bad in (mx.array([1, 2]), mx.zeros((1, 0), mx.int32), mx.zeros((1, 2, 3), mx.int32)):
        with pytest.raises(ValueError, match=r"a model takes \(batch, length\)"):
            model(bad)
    with pytest.raises(ValueError, match="The cache has 1 entries, the model 2 layers"):
        model(mx.array([[1]]), cache=[None])


def test_tokens_outside_the_vocabulary_are_found() -> None:
    check_tokens(mx.array([0, 255]), 256)
    check_tokens(mx.array([], dtype=mx.int32), 256)
    for bad in (mx.array([0, 256]), mx.array([-1, 3])):
        with pytest.raises(ValueError, match="vocabulary has 256 tokens"):
            check_tokens(bad, 256)


def test_a_plain_tuple_is_a_cache() -> None:
    model, x = build(llama_tiny()), tokens(1, 8)
    full, _ = model(x)
    _, cache = model(x[:, :5])
    out, _ = model(x[:, 5:], cache=[tuple(entry) for entry in cache])
    assert gap(out, full[:, 5:]) < 1e-5


def test_evaluating_turns_dropout_off_and_restores_every_flag() -> None:
    model = LanguageModel(dataclasses.replace(gpt_tiny(), block=dataclasses.replace(gpt_tiny().block, dropout=0.3)))
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    x = tokens(1, 6)
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert gap(model(x)[0], model(x)[0]) == 0
        raise RuntimeError
    assert [module.training for module in model.modules()] == flags and True in flags and False in flags
    assert gap(model(x)[0], model(x)[0]) > 0


def test_embeddings_are_scaled() -> None:
    config = gpt_tiny()
    assert config.embed_scale == 8.0
    model, x = build(dataclasses.replace(config, embed_scale=1.0)), tokens(1, 6)
    unscaled, _ = model.hidden_states(x)
    model.embed.weight = model.embed.weight / 8
    model.config = config
    assert gap(model.hidden_states(x)[0], unscaled) < 1e-5


def test_the_state_of_a_model_is_its_parameters_and_does_not_change_in_use() -> None:
    for name in ("gpt", "llama3-scaling", "alibi", "gpt2"):
        model = build(ARCHITECTURES[name]())
        before = {path for path, _ in tree_flatten(model.state)}
        model(tokens(1, 60 if name != "gpt2" else 40))
        assert {path for path, _ in tree_flatten(model.state)} == before == set(weights(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_has_the_loss_of_its_logits(tied: bool) -> None:
    model = LanguageModel(llama_config(96, 64, 4, 2, 2, 64, 16, tie_embeddings=tied))
    x, y = mx.random.randint(0, 96, (2, 2, 9))
    plain = model.nats(x, y)
    nn.quantize(model, group_size=32, bits=8)
    logits, _ = model(x)
    expected = nn.losses.cross_entropy(logits, y)
    assert gap(model.nats(x, y), expected) < 1e-5 and gap(model.nats(x, y), plain) < 0.05
