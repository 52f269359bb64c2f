"""Folders of weights that are torn, incomplete or in shards; and that reading one holds no second copy of it."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.llama import llama_config
from lmxlab.models.weight_files import INDEX, WeightFiles, check_whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LLaMA of 1 M parameters in shards of half a megabyte."""
    mx.random.seed(0)
    model = LanguageModel(llama_config(128, 128, 4, 4, 6, 256, 64))
    export_model(model, tmp_path / "model", shard_bytes=500_000)
    return tmp_path / "model"


def test_a_truncated_shard_is_named_before_anything_is_read(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[3]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{shard.name} is truncated: {len(whole) - 1:,} of {len(whole):,} bytes"):
        load_from_hf(str(folder))
    shard.write_bytes(whole[:100])
    with pytest.raises(UserError, match=f"{shard.name} cannot be read as safetensors: its header is damaged"):
        load_from_hf(str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[2].unlink()
    with pytest.raises(UserError, match=rf"lacks model-00003-of-.*\.safetensors, which its {INDEX} names"):
        load_from_hf(str(folder))


def test_only_the_shards_of_the_index_are_read(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"another copy, in another format")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    assert WeightFiles(folder).names == set(weight_map)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        check_whole(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("dtype", "bits"), [(mx.float32, None), (mx.bfloat16, None), (mx.bfloat16, 8)])
def test_no_second_copy_is_held_while_loading(dtype: mx.Dtype, bits: int | None, folder: Path) -> None:
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _ = load_from_hf(str(folder), dtype=dtype, quantize=bits)
    size = mx.get_active_memory() - before
    assert size > 100_000 and model.config.n_layers == 6
    assert (mx.get_peak_memory() - before) / size < 1.5  # of a large model below 1.2: benchmarks/load_memory.py
