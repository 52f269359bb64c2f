"""Reading a Hugging Face config.json: every field that may change the computation is read, or refused by name."""

import re
from typing import Any

from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UserError

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
        self.model_type = str(self.fields.get("model_type", "unknown"))
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self.fields[name]

    def get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        return self.fields.get(name, default)

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


def rope_from_hf(hf: HFConfig, max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from either layout: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""
    newer, older = hf.get("rope_parameters", None), hf.get("rope_scaling", {})
    trained_length = hf.get("original_max_position_embeddings", None)
    rope = dict(newer or older)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    theta = float(rope.pop("rope_theta", hf.get("rope_theta", 10000.0)))
    if rope.pop("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"Unsupported field in a {hf.model_type} config: partial_rotary_factor")
    original = rope.pop("original_max_position_embeddings", None)
    rope = {key: value for key, value in rope.items() if value is not None}
    if kind == "default":
        return theta, None
    # The dynamic kind is defined by the config's own context, the others by the pre-training one.
    original = max_seq_len if kind == "dynamic" else trained_length or original or max_seq_len
    known = {
        "linear": {"factor"},
        "dynamic": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
        "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
    }
    if kind not in known:
        raise UserError(f"Unsupported rope type {kind!r} in a {hf.model_type} config; built are {sorted(known)}")
    foreign = sorted(set(rope) - known[kind])
    if foreign:
        raise UserError(f"Unsupported fields of rope type {kind!r} in a {hf.model_type} config: {foreign}")
    if kind == "yarn":
        rope.setdefault("factor", max_seq_len / original)
    if "factor" not in rope:
        raise UserError(f"The {hf.model_type} config is missing required fields of rope type {kind!r}: ['factor']")
    return theta, RopeScaling(kind, original_max_seq_len=None if kind == "linear" else original, **rope)
