"""The embedded pretrained model with its tokenizer."""

import json

import mlx.core as mx
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmxlab.data.bpe import BPETokenizer
from lmxlab.models.base import LanguageModel
from lmxlab.models.glassllm import load_glassllm_model, weights_folder

SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")  # its ids 0 to 3


def load_glassllm(language: str = "en", dtype: mx.Dtype = mx.float32) -> tuple[LanguageModel, BPETokenizer]:
    """A real pretrained model of 0.85 M parameters and its tokenizer, without a network.

    Args:
        language: "en" or "pt".

    Raises:
        UserError: no such language, or glassllm is not installed.

    >>> model, tokenizer = load_glassllm()
    >>> model.count_parameters(), tokenizer.decode(tokenizer.encode("Once upon a time"))
    (852608, 'Once upon a time')
    """
    return load_glassllm_model(language, dtype), glassllm_tokenizer(language)


def glassllm_tokenizer(language: str = "en") -> BPETokenizer:
    """Its tokenizer, pairs of characters with marks for spaces, as one of the tokenizers library."""
    saved = json.loads((weights_folder(language) / f"{language}.tokenizer.json").read_text(encoding="utf-8"))
    merges = [(left, right) for left, right in saved["merges"]]
    tokens = [*SPECIALS, *saved["alphabet"], *(left + right for left, right in merges)]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    # Lines, and words with the spaces before them: merges do not cross their borders.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return BPETokenizer(backend)
