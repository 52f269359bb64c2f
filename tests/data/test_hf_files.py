"""Tokenizers written for AutoTokenizer: the same ids, the same text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from lmxlab.data.hf_files import tokenizer_files
from lmxlab.data.tokenizer import BPETokenizer, CharTokenizer, TiktokenTokenizer, Tokenizer
from lmxlab.errors import UserError

TEXT = "To be,  or not\n to be — être 12!"
TOKENIZERS: dict[str, Tokenizer] = {
    "char": CharTokenizer(TEXT, bos=True),
    "char, one running text": CharTokenizer(TEXT),
    "bpe": BPETokenizer.train([TEXT] * 5, 300),
}
READ = """
import json, sys
from transformers import AutoTokenizer
found = {}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(json.load(open(folder + "/text.json")))["input_ids"]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    found[folder] = [ids, tokenizer.decode(ids), ends, tokenizer.model_max_length, len(tokenizer)]
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_library_itself_gives_the_same_ids_and_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    backend = Backend.from_str(tokenizer_files(tokenizer, 64)["tokenizer.json"])
    assert backend.encode(TEXT).ids == tokenizer.encode(TEXT)
    assert backend.decode(tokenizer.encode(TEXT)) == TEXT
    assert backend.get_vocab_size() == tokenizer.vocab_size


@pytest.mark.oracle
def test_autotokenizer_gives_the_same_ids_and_text(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folders = {kind: tmp_path / str(i) for i, kind in enumerate(TOKENIZERS)}
    for kind, folder in folders.items():
        folder.mkdir()
        for name, content in {**tokenizer_files(TOKENIZERS[kind], 64), "text.json": json.dumps(TEXT)}.items():
            (folder / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-c", READ, *map(str, folders.values())]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for kind, folder in folders.items():
        tokenizer = TOKENIZERS[kind]
        bos = tokenizer.bos_id  # type: ignore[attr-defined]
        assert found[str(folder)] == [tokenizer.encode(TEXT), TEXT, [bos, bos], 64, tokenizer.vocab_size]


def test_what_cannot_be_written_says_so() -> None:
    borrowed = TiktokenTokenizer.__new__(TiktokenTokenizer)
    borrowed.encoding_name = "gpt2"
    with pytest.raises(UserError, match="tiktoken:gpt2 cannot be written as tokenizer.json"):
        tokenizer_files(borrowed, 64)
