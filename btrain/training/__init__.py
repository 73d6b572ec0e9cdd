"""Training as a function of (parameters, public seed): gradients, optimizer steps, certified state, evaluation."""

from btrain.training.building import Training, build_oracle, build_trainer, build_training, choose_device
from btrain.training.evaluation import Evaluator
from btrain.training.oracle import GradientOracle, TaskError
from btrain.training.parameters import ShapeError, flatten, vector_digest
from btrain.training.schedule import Schedule
from btrain.training.state import State, StateError, states_close
from btrain.training.task import CrossEntropy, Evaluation, Task
from btrain.training.trainer import ApplyError, Trainer

__all__ = [
    "ApplyError",
    "CrossEntropy",
    "Evaluation",
    "Evaluator",
    "GradientOracle",
    "Schedule",
    "ShapeError",
    "State",
    "StateError",
    "Task",
    "TaskError",
    "Trainer",
    "Training",
    "build_oracle",
    "build_trainer",
    "build_training",
    "choose_device",
    "flatten",
    "states_close",
    "vector_digest",
]
