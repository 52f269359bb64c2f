"""Training: config, schedules, optimizers, the loop with its callbacks, checkpoints and run folders."""

from lmxlab.training.callbacks import (
    Callback,
    EarlyStopping,
    FLOPCounter,
    HardwareMonitor,
    MetricsLogger,
    ThroughputMonitor,
    TimeBudget,
    ValTracker,
    standard_callbacks,
)
from lmxlab.training.checkpoints import load_checkpoint, save_checkpoint
from lmxlab.training.config import TrainConfig
from lmxlab.training.hardware import detect_peak_tflops
from lmxlab.training.mtp import MTPHead, MultiTokenPrediction, multi_token
from lmxlab.training.optimizers import create_optimizer, create_schedule
from lmxlab.training.run_folder import RunFolder
from lmxlab.training.trainer import NonFiniteLoss, Trainer

__all__ = [
    "Callback",
    "EarlyStopping",
    "FLOPCounter",
    "HardwareMonitor",
    "MTPHead",
    "MetricsLogger",
    "MultiTokenPrediction",
    "NonFiniteLoss",
    "RunFolder",
    "ThroughputMonitor",
    "TimeBudget",
    "TrainConfig",
    "Trainer",
    "ValTracker",
    "create_optimizer",
    "create_schedule",
    "detect_peak_tflops",
    "load_checkpoint",
    "multi_token",
    "save_checkpoint",
    "standard_callbacks",
]
