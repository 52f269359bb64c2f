"""Reading a Hugging Face config.json: every field that may change the computation is read, or refused by name."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UserError
from lmxlab.models.decoder import decoder_block, layered
from lmxlab.models.weight_map import Rule, Transfer, renaming, transfers

# Fields that no forward pass of a model in evaluation depends on.
HARMLESS = re.compile(
    r"""_.*|architectures|model_type|torch_dtype|dtype|transformers_version|.*_token_id|.*_token_ids|use_cache
    |initializer_range|initializer_cutoff_factor|.*dropout|.*_pdrop|pretraining_tp|summary_.*|task_specific_params
    |id2label|label2id|problem_type|return_dict|output_.*|tokenizer_class|auto_map|num_labels|n_ctx|gradient_checkpointing
    |finetuning_task|keys_to_ignore_at_inference|router_aux_loss_coef|use_flash_attn|mup_.*_comment""",
    re.VERBOSE,
)


class HFConfig:
    """A config.json's fields, with the questions that the families ask of them; `null` counts as absent.

    It remembers which fields were asked for: `finish` refuses what is left.
    """

    def __init__(self, fields: dict[str, Any]):
        self.fields = {key: value for key, value in fields.items() if value is not None}
        self._nulls = fields.keys() - self.fields.keys()
        self.model_type = str(self.fields.get("model_type", "unknown"))
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.require(name)
        self._read.add(name)
        return self.fields[name]

    def get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        return self.fields.get(name, default)

    def get_or_off(self, name: str, default: Any) -> Any:
        """As `get` for a field that `null` or 0 switches off: None then; `default` only where the field is absent."""
        return None if name in self._nulls else self.get(name, default) or None

    def finish(self) -> None:
        """Raises UserError for a field that is set to something and that nobody has asked for."""
        left = {name: value for name, value in self.fields.items() if value and name not in self._read}
        unread = [f"{name} = {value!r}" for name, value in left.items() if not HARMLESS.fullmatch(name)]
        if unread:
            raise UserError(f"Unsupported field in a {self.model_type} config: {', '.join(sorted(unread)[:5])}")

    def require(self, *names: str) -> None:
        """Raises UserError naming the fields that are not there."""
        missing = [name for name in names if name not in self.fields]
        if missing:
            raise UserError(f"The {self.model_type} config is missing required fields: {missing}")

    def refuse_unless(self, **expected: Any) -> None:
        """Raises UserError if a field that is there has another value than the one that is built."""
        for name, value in expected.items():
            if self.get(name, value) != value:
                raise UserError(
                    f"Unsupported value in a {self.model_type} config: {name} = {self[name]!r}; only {value!r} is built"
                )

    def choose(self, name: str, table: dict[str, str], default: str) -> str:
        """What `table` says for the field's value; UserError if it says nothing."""
        value = self.get(name, default)
        if value not in table:
            raise UserError(
                f"Unsupported value in a {self.model_type} config: {name} = {value!r}; one of {sorted(table)} is built"
            )
        return table[value]


@dataclass(frozen=True)
class Converter:
    """How one kind of Hugging Face checkpoint becomes ours, and ours becomes one again.

    Args:
        model_type, architecture: what stands in its config.json, such as "llama" and "LlamaForCausalLM".
        config: its config.json -> our config; every field is read, or refused by name.
        to_hf: our config -> the fields of a config.json that mean it, without model_type and architectures. What it
            makes of a config of another family need not be right: a folder is written only if `config` makes the same
            config of it again (see `export`). A UserError says that the class cannot express it, either.
        rules: how the weights are named and laid out: see `weight_map`; a function where that depends on the config.
        prefix: what newer files put before some of their names (GPT-2: "transformer."); the rules are without it.
        ignored: pattern of names that the file may have and the model has not, such as heads that only training used.
        rename_by_pattern: names for `convert_weights` where they depend on the pattern of the layers' kinds.
    """

    model_type: str
    architecture: str
    config: Callable[[HFConfig], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    rules: Sequence[Rule] | Callable[[ModelConfig], Sequence[Rule]]
    prefix: str = ""
    ignored: str | None = None
    rename_by_pattern: Callable[[str], Callable[[str], str | None]] | None = None

    @property
    def rename(self) -> Callable[[str], str | None] | None:
        """The function from their names to ours (None: it has no such weight), where names are all that differs."""
        if callable(self.rules) or not all(rule.only_renames for rule in self.rules):
            return None
        return renaming(self.rules)

    def transfers(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[Transfer]:
        """The rules at every place of a model of this config, whose weights have these shapes."""
        return transfers(self.rules(config) if callable(self.rules) else self.rules, shapes, config)


def block_from_hf(hf: HFConfig, **own: Any) -> BlockConfig:
    """`decoder_block` with the sizes that the config names; `own` adds to it or replaces what differs.

    Its `default_theta` is the rotary base where the config has none.
    """
    default_theta = own.pop("default_theta", 10000.0)
    hf.require("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    max_seq_len = hf.get("max_position_embeddings", 4096)
    if "rope_theta" not in own:
        own["rope_theta"], own["rope_scaling"] = rope_from_hf(hf, max_seq_len, default_theta=default_theta)
    fields = {
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "n_kv_heads": hf.get("num_key_value_heads", hf["num_attention_heads"]),
        "d_ff": hf["intermediate_size"],
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "max_seq_len": max_seq_len,
        "head_dim": hf.get("head_dim", None),
    }
    return decoder_block(**{**fields, **own})


def decoder(hf: HFConfig, blocks: Sequence[BlockConfig], tied: bool = False, **own: Any) -> ModelConfig:
    """`layered` with the vocabulary and the tying that the config names, tied or not where it names none."""
    return layered(blocks, hf["vocab_size"], hf.get("tie_word_embeddings", tied), **own)


def windowed(hf: HFConfig, block: BlockConfig, kinds: Sequence[str]) -> list[BlockConfig]:
    """A block per layer from `layer_types`: "full_attention", or "sliding_attention" within `sliding_window`.

    Both have defaults: `kinds`, and the 4,096 tokens of the classes that have windows.
    """
    kinds = hf.get("layer_types", list(kinds))
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != hf["num_hidden_layers"]:
        raise UserError(f"Unsupported layer_types in a {hf.model_type} config: {unknown or f'{len(kinds)} of them'}")
    window = hf.get_or_off("sliding_window", 4096)
    sliding = dataclasses.replace(block, attention="sliding_window_gqa", window_size=window) if window else block
    return [sliding if kind == "sliding_attention" else block for kind in kinds]


# What each kind of rope scaling is set by, under the same names there and here.
ROPE_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
}


def rope_from_hf(
    hf: HFConfig,
    max_seq_len: int,
    layer_type: str | None = None,
    default_theta: float = 10000.0,
    partial: bool = False,
    harmless: Sequence[str] = (),
) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from either layout: `rope_parameters`, or `rope_theta` beside `rope_scaling`.

    `layer_type` names the entry of `rope_parameters` where those are given per kind of layer; `partial` says that the
    family asks `partial_rotary_from_hf`, too; `harmless` fields of the rope do not concern it.
    """
    newer, older = hf.get("rope_parameters", None), hf.get("rope_scaling", {})
    if newer is not None and layer_type is not None:
        if not isinstance(newer, dict) or layer_type not in newer:
            raise UserError(f"The {hf.model_type} config is missing required fields: rope_parameters of {layer_type!r}")
        newer = newer[layer_type]
    if not isinstance(newer or older, dict):
        raise UserError(
            f"Unsupported rope scaling in a {hf.model_type} config: {newer or older!r} is no table of fields"
        )
    trained_length = hf.get("original_max_position_embeddings", None)
    rope = dict(newer or older)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    theta = float(rope.pop("rope_theta", hf.get("rope_theta", default_theta)))
    if rope.pop("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0 and not partial:
        raise UserError(f"Unsupported field in a {hf.model_type} config: partial_rotary_factor")
    original = rope.pop("original_max_position_embeddings", None)
    rope = {key: value for key, value in rope.items() if value is not None and key not in harmless}
    if kind == "default":
        if rope := {key: value for key, value in rope.items() if (key, value) != ("factor", 1.0)}:
            raise UserError(
                f"Unsupported fields of rope type 'default' in a {hf.model_type} config: {sorted(rope)}; which type?"
            )
        return theta, None
    # The dynamic kind is defined by the config's own context, the others by the pre-training one.
    original = max_seq_len if kind == "dynamic" else trained_length or original or max_seq_len
    if kind not in ROPE_FIELDS:
        raise UserError(f"Unsupported rope type {kind!r} in a {hf.model_type} config; built are {sorted(ROPE_FIELDS)}")
    foreign = sorted(set(rope) - set(ROPE_FIELDS[kind]))
    if foreign:
        raise UserError(f"Unsupported fields of rope type {kind!r} in a {hf.model_type} config: {foreign}")
    if kind == "yarn":
        rope.setdefault("factor", max_seq_len / original)
    if "factor" not in rope:
        raise UserError(f"The {hf.model_type} config is missing required fields of rope type {kind!r}: ['factor']")
    return theta, RopeScaling(kind, original_max_seq_len=None if kind == "linear" else original, **rope)


def partial_rotary_from_hf(hf: HFConfig, default: float) -> float:
    """The share of each head's channels that turn, from either layout."""
    rope = hf.get("rope_parameters", None) or hf.get("rope_scaling", None) or {}
    return float(rope.get("partial_rotary_factor", hf.get("partial_rotary_factor", default)))


def decoder_to_hf(config: ModelConfig, rotated: BlockConfig | None = None, **own: Any) -> dict[str, Any]:
    """What `decoder` and `block_from_hf` read, in the layout that older tools know, too; `own` adds to it or replaces.

    `rotated` is a layer that turns its queries, where the template does not.
    """
    block = config.block
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": block.d_model,
        "intermediate_size": block.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": block.n_heads,
        "num_key_value_heads": block.effective_n_kv_heads,
        "head_dim": int(block.head_dim),
        "hidden_act": "silu",
        "rms_norm_eps": block.norm_eps,
        "max_position_embeddings": block.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
    }
    return {**fields, **rope_to_hf(rotated or block), **own}


def layer_types_to_hf(config: ModelConfig) -> dict[str, Any]:
    """What `windowed` reads."""
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    kinds = ["sliding_attention" if layer.window_size else "full_attention" for layer in layers]
    return {"layer_types": kinds, "sliding_window": next((b.window_size for b in layers if b.window_size), None)}


def rope_to_hf(block: BlockConfig) -> dict[str, Any]:
    """What `rope_from_hf` reads: the older layout, which transformers and mlx-lm both know."""
    scaling = block.rope_scaling
    if scaling is None:
        return {"rope_theta": block.rope_theta, "rope_scaling": None}
    fields: dict[str, Any] = {"type": scaling.kind, "rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = scaling.original_max_seq_len
    own = {name: getattr(scaling, name) for name in ROPE_FIELDS[scaling.kind] if getattr(scaling, name) is not None}
    return {"rope_theta": block.rope_theta, "rope_scaling": fields | own}
