"""A run: parameters, data, models, and all computations of the notebooks."""

from .parameters import Parameters
from .run import Run
from .specs import EditSpec, Group

__all__ = ["EditSpec", "Group", "Parameters", "Run"]
