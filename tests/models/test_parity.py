"""Every family against the reference classes of transformers, through the folders that save_pretrained writes."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.kernels import switch
from lmxlab.models.convert import CONVERTERS, load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.generate import generate, stream_generate

from . import delta_hybrids, dense, mixtures, reference, state_space

pytestmark = pytest.mark.oracle

# Largest gap of float32 logits (spread 1 to 3), with MLX's own operations and with the kernels of a CPU.
EXACT_GAP, FAST_GAP = 1e-5, 5e-5
LARGEST_GAP = 1e-4  # of correctness.md
TABLE = Path(__file__).parents[2] / "docs" / "zoo.md"  # make_zoo_table.py writes it

GROUPS = (dense, mixtures, state_space, delta_hybrids)
CASES: dict[str, tuple[str, dict[str, Any]]] = {case: spec for group in GROUPS for case, spec in group.CASES.items()}
GREEDY = [case for group in GROUPS for case in group.GREEDY]
SLACK = {case: group.SLACK for group in (state_space, delta_hybrids) for case in group.CASES}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with model and expected results for every case."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    root = tmp_path_factory.mktemp("references")
    folders = {case: root / str(i) for i, case in enumerate(CASES)}
    spec = root / "spec.json"
    spec.write_text(json.dumps({str(folders[case]): definition for case, definition in CASES.items()}))
    subprocess.run([sys.executable, reference.__file__, str(spec)], check=True, capture_output=True)
    return folders


@pytest.fixture(params=["exact", "fast"])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Runs a test with each form of the kernels and says how near the logits must be."""
    exact = request.param == "exact"
    monkeypatch.setattr(switch, "_exact", exact)
    monkeypatch.setattr(switch, "FEWEST_ELEMENTS", 0)
    return EXACT_GAP if exact else FAST_GAP


@pytest.mark.parametrize("case", sorted(CASES))
def test_logits_equal_the_reference(case: str, tolerance: float, folders: dict[str, Path]) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    expected = np.load(folders[case] / "expected.npz")
    tolerance = min(tolerance * SLACK.get(case, 1), LARGEST_GAP)
    for length in reference.LENGTHS:
        logits, _ = model(mx.array(expected[f"x{length}"]))
        assert expected[f"logits{length}"].std() > 0.3  # else a wrong model would be as near
        np.testing.assert_allclose(np.array(logits), expected[f"logits{length}"], atol=tolerance, rtol=0)


def test_every_family_has_a_case_and_every_case_a_row_in_the_docs() -> None:
    assert {kind for kind, _ in CASES.values()} == set(CONVERTERS)
    told = re.findall(r"^\| ([^|]+) \| \w+ForCausalLM|^\| ([^|]+) \| \w+LMHeadModel", TABLE.read_text(), re.M)
    assert {a or b for a, b in told} == set(CASES)


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_decoding_equals_the_reference(case: str, folders: dict[str, Path]) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    expected = np.load(folders[case] / "expected.npz")
    prompt = mx.array(expected["greedy"][:, :6])
    settings: dict[str, Any] = {"max_tokens": 20, "temperature": 0.0}
    assert generate(model, prompt, **settings).tolist() == expected["greedy"].tolist()
    assert list(stream_generate(model, prompt[:1], **settings)) == expected["greedy"][0, 6:].tolist()
    assert expected["penalised"].tolist() != expected["greedy"].tolist()
    penalised = generate(model, prompt, repetition_penalty=1.7, **settings)
    assert penalised.tolist() == expected["penalised"].tolist()


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_the_older_config_layout_means_the_same_model(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders[f"llama, rope {kind}"]
    fields = json.loads((folder / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    if kind != "default":
        fields["rope_scaling"] = rope | {"type": rope.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    _, config = load_from_hf(str(tmp_path), dtype=mx.float32)
    assert config == load_from_hf(str(folder))[1]


def test_shards_and_old_buffers_load(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = mx.load(str(folders["gpt2"] / "model.safetensors"))
    assert isinstance(weights, dict)
    weights |= {"h.0.attn.bias": mx.ones((1, 1, 48, 48)), "h.0.attn.masked_bias": mx.array(-1e4)}
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(weights))}
    for shard in set(weight_map.values()):
        held = {name: weights[name] for name, file in weight_map.items() if file == shard}
        mx.save_safetensors(str(tmp_path / shard), held)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    model, _ = load_from_hf(str(tmp_path), dtype=mx.float32)
    expected = np.load(folders["gpt2"] / "expected.npz")
    np.testing.assert_allclose(
        np.array(model(mx.array(expected["x12"]))[0]), expected["logits12"], atol=FAST_GAP, rtol=0
    )


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_checkpoint_that_is_written_again_has_the_same_names_and_values(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    export_model(model, tmp_path / "again")
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (folders[case], tmp_path / "again"))
    assert isinstance(before, dict) and isinstance(after, dict)
    before = {name.removeprefix("transformer."): array for name, array in before.items()}  # GPT-2's hub files have none
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
