"""Text to tokens to batches: tokenizers, a registry of datasets, a cache of token shards, batches."""

from lmxlab.data.batching import EvalBatches, TokenBatches, batch_iterator, eval_batches
from lmxlab.data.bpe import BPETokenizer
from lmxlab.data.config import DataConfig, default_cache_dir
from lmxlab.data.dataset import HFDataset, TextDataset, TokenDataset
from lmxlab.data.glassllm import load_glassllm
from lmxlab.data.packing import PackedBatches, PackedRows
from lmxlab.data.preferences import PreferenceBatches, Preferences, load_preferences, make_preferences
from lmxlab.data.prepare import PreparedData, describe, prepare
from lmxlab.data.sources import DATASETS, Dataset, default_dataset, list_datasets
from lmxlab.data.tokenizer import (
    CharTokenizer,
    CorpusTokenizer,
    HFTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    UnknownCharacterError,
    check_vocabulary,
    load_tokenizer,
)

__all__ = [
    "DATASETS",
    "BPETokenizer",
    "CharTokenizer",
    "CorpusTokenizer",
    "DataConfig",
    "Dataset",
    "EvalBatches",
    "HFDataset",
    "HFTokenizer",
    "PackedBatches",
    "PackedRows",
    "PreferenceBatches",
    "Preferences",
    "PreparedData",
    "TextDataset",
    "TiktokenTokenizer",
    "TokenBatches",
    "TokenDataset",
    "Tokenizer",
    "UnknownCharacterError",
    "batch_iterator",
    "check_vocabulary",
    "default_cache_dir",
    "default_dataset",
    "describe",
    "eval_batches",
    "list_datasets",
    "load_glassllm",
    "load_preferences",
    "load_tokenizer",
    "make_preferences",
    "prepare",
]
