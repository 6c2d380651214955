"""Label regimes as recipes, the training loop, evaluation, and runs that survive a kill."""

from pyddfast.train.check_set import SetReport, check_set
from pyddfast.train.evaluate import evaluate, predict, predict_batches, sampling_error
from pyddfast.train.execution import Execution
from pyddfast.train.experts import Sharpness, expert_recipe, train_experts
from pyddfast.train.labels import soft_labels
from pyddfast.train.plan import Budget, Epochs, Plan, Samples, Steps
from pyddfast.train.progress import progress
from pyddfast.train.recipes import Protocol, Recipe, Regime, Scale, official_recipe, recipe
from pyddfast.train.record import Recorder, Recording
from pyddfast.train.relabel import relabel
from pyddfast.train.run import RunFolder, environment
from pyddfast.train.student import SeedResult, StudentResult, train_student
from pyddfast.train.teacher import Teacher, teacher_recipe, train_teacher
from pyddfast.train.transfer import TransferResult, dcbench_students, train_transfer
from pyddfast.train.unroll import functional, sgd_step

__all__ = [
    "Budget",
    "Epochs",
    "Execution",
    "Plan",
    "Protocol",
    "Recipe",
    "Recorder",
    "Recording",
    "Regime",
    "RunFolder",
    "Samples",
    "Scale",
    "SeedResult",
    "SetReport",
    "Sharpness",
    "Steps",
    "StudentResult",
    "Teacher",
    "TransferResult",
    "check_set",
    "dcbench_students",
    "environment",
    "evaluate",
    "expert_recipe",
    "functional",
    "official_recipe",
    "predict",
    "predict_batches",
    "progress",
    "recipe",
    "relabel",
    "sampling_error",
    "sgd_step",
    "soft_labels",
    "teacher_recipe",
    "train_experts",
    "train_student",
    "train_teacher",
    "train_transfer",
]
