"""From a run's settings to its task."""

from lmxlab.data import PreparedData, prepare
from lmxlab.experiments.distill_task import DistillTask
from lmxlab.experiments.methods import DPO, GRPO, SFT, Distill
from lmxlab.experiments.preference_task import PreferenceTask
from lmxlab.experiments.rollout_task import RolloutTask
from lmxlab.experiments.sft_task import SFTTask
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import Task, TextTask


def make_task(spec: RunSpec, prepared: PreparedData | None = None) -> Task:
    """The task of the run's method on its data.

    Args:
        prepared: the text of `spec.data`, when the caller has it already.

    Raises:
        UserError: data that is missing, too little, or not of the kind that the method needs.
    """
    method = spec.method
    if isinstance(method, SFT):
        return SFTTask(spec, method)
    if isinstance(method, DPO):
        return PreferenceTask(spec, method)
    if isinstance(method, GRPO):
        return RolloutTask(spec, method)
    prepared = prepared or prepare(spec.data)
    return DistillTask(spec, prepared, method) if isinstance(method, Distill) else TextTask(spec, prepared)
