"""Every component that stands in a file of its own, under the name that configs give it."""

from lmxlab.core.attention import attention_registry
from lmxlab.core.deltanet import GatedDeltaNet
from lmxlab.core.mamba1 import Mamba1
from lmxlab.core.mamba2 import Mamba2

attention_registry.register("gated_deltanet", GatedDeltaNet)
attention_registry.register("mamba1", Mamba1)
attention_registry.register("mamba2", Mamba2)
