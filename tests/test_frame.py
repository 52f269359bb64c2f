"""Laws of the project as a whole: what may import what, what is never committed, what the README promises."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lmxlab

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lmxlab"
# A room imports from itself and from rooms to its left (shared with the architecture: some are yet to be built).
ROOMS = [
    "errors files platform blas doctor".split(),
    *([room] for room in "core models data analysis training inference eval experiments research cli".split()),
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Tests of more than one module: laws, parity, the pages, the two halves of what became too long for one file.
NOT_MIRRORED = {
    "test_docs.py",
    "test_frame.py",
    "test_recipes.py",
    "cli/test_resuming.py",
    "core/test_ffn_and_norm.py",
    "experiments/test_exports.py",
    "experiments/test_tracking_writers.py",
    "models/test_cache_laws.py",
    "models/test_torn_folders.py",
    "models/test_adapters.py",
    "models/test_parity.py",
    "models/test_properties.py",
    "training/test_adapters.py",
    "training/test_mup.py",
    "training/test_optimizer_contract.py",
    "training/test_precision.py",
}
MOST_LINES = 300
# What api.md promises of the packages whose exports are not all names of their modules.
EXPORTS = {
    "core": """BlockConfig ModelConfig ConfigurableBlock Registry MHA GQA SlidingWindowGQA ChunkedGQA MLA GatedDeltaNet
        Mamba3 StandardFFN GatedFFN MoEFFN SharedExpertMoEFFN rms_norm layer_norm rope sinusoidal alibi LoRALinear
        apply_lora merge_lora lora_parameters save_lora_adapters load_lora_adapters LoRAQuantizedLinear apply_qlora
        quantize_model dequantize_model""",
    "models": """LanguageModel generate stream_generate config_from_hf convert_weights load_from_hf gpt_small gpt_medium
        llama_7b llama_13b llama4_maverick_config llama4_maverick_tiny""",
    "inference": "best_of_n majority_vote speculative_decode beam_search RewardModel",
    "eval": "perplexity bits_per_byte pass_at_k evaluate_pass_at_k",
    "training": """TrainConfig Trainer create_schedule create_optimizer save_checkpoint load_checkpoint Callback
        MetricsLogger ThroughputMonitor EarlyStopping FLOPCounter HardwareMonitor ValTracker standard_callbacks
        dpo_loss grpo_loss GRPOConfig GRPOTrainer MTPHead MultiTokenPrediction length_curriculum difficulty_curriculum
        distillation_loss soft_target_loss detect_peak_tflops GradientStatsCallback WeightStatsCallback
        ActivationStatsCallback AttentionEntropyCallback LossCurvatureCallback EffectiveRankCallback""",
    "analysis": "ActivationCapture extract_attention_maps LinearProbe train_probe probe_accuracy",
}
HEAVY = "mlx numpy scipy matplotlib transformers datasets torch rich tyro tokenizers psutil pyarrow".split()


def source_files() -> list[Path]:
    """Every module but the package's own front door, which offers names of all rooms."""
    doors = (SOURCE / "__init__.py", SOURCE / "__main__.py")
    return [path for path in sorted(SOURCE.rglob("*.py")) if path not in doors]


def imported_rooms(path: Path) -> set[str]:
    """Rooms of lmxlab that the file imports, also inside functions: a late import is an import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("lmxlab.")}
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_downward(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    exports = set(lmxlab.__all__)  # `from lmxlab import __version__`
    upward = {other for other in imported_rooms(path) - exports if LEVEL[other] > LEVEL[room]}
    assert not upward


def test_every_test_file_is_named_after_the_module_that_it_tests():
    tests = ROOT / "tests"
    found = {path.relative_to(tests) for path in tests.rglob("test_*.py")}
    sources = {path: SOURCE / path.parent / path.stem.removeprefix("test_") for path in found}
    astray = {
        str(path) for path, source in sources.items() if not (source.with_suffix(".py").is_file() or source.is_dir())
    }
    assert found
    assert astray == NOT_MIRRORED


def test_a_file_holds_one_idea_in_at_most_300_lines():
    files = [path for folder in ("src", "tests", "benchmarks", "recipes") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}
    assert lines.keys() >= {"src/lmxlab/__init__.py", "tests/test_frame.py"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_registry_address_and_no_machine_path_is_committed():
    forbidden = re.compile(
        r"https?://[^\s\"]*(?:/simple|/packages/|registry)|index-url|pythonhosted"
        r"|(?:^|[^\w.~-])/(?:work|root|farm|home|Users)/",
        re.M,
    )
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]!r}" for match in forbidden.finditer(text)]
    assert found == []


def test_no_big_or_binary_file_is_committed():
    for path in tracked_files():
        content = path.read_bytes()
        assert len(content) < 500_000, path
        assert b"\0" not in content or path.suffix in (".png", ".safetensors"), path


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    for need in map(Requirement, needs):
        assert need.specifier.contains(pins()[canonicalize_name(need.name)]), need
    assert [name for name, version in pins().items() if not re.fullmatch(r"[\w.]+", version)] == []


def test_the_readme_opens_with_the_two_commands_and_names_only_targets_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    block = re.search(r"```\w*\n(.*?)```", readme, re.S)
    assert block
    assert re.findall(r"^make (\w+)", block[1], re.M) == ["compare", "test"]
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)`", readme)) <= targets


def test_import_lmxlab_imports_nothing_heavy():
    code = f"import sys, lmxlab; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_lmxlab_exports_what_it_promises():
    assert {name: getattr(lmxlab, name).__name__ for name in lmxlab.__all__ if name != "__version__"} == {
        name: name for name in lmxlab.__all__ if name != "__version__"
    }
    assert re.match(r"\d+\.\d+", lmxlab.__version__)
    assert set(lmxlab.__all__) <= set(dir(lmxlab))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lmxlab.nonsense  # noqa: B018


@pytest.mark.parametrize("package", EXPORTS)
def test_a_package_exports_what_it_promises(package):
    module = importlib.import_module(f"lmxlab.{package}")
    assert set(EXPORTS[package].split()) - set(module.__all__) == set()
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
