"""Sample text: as long as asked for, the same for the same seed."""

from lmxlab.data import CharTokenizer
from lmxlab.experiments.sample import sample_text
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt2_config


def test_a_sample_may_be_longer_than_the_context() -> None:
    tokenizer = CharTokenizer("abcdefgh")
    model = LanguageModel(gpt2_config(vocab_size=8, d_model=16, n_heads=2, n_layers=1, max_seq_len=8))
    text = sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=3)
    assert len(text) == 50 and set(text) <= set("abcdefgh")
    assert text == sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=3)
    assert text != sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=4)
