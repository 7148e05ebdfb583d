"""What the notebooks run: parameters, data, models, and everything that is computed of them."""

from .parameters import Parameters
from .run import Run
from .specs import EditSpec, Group

__all__ = ["EditSpec", "Group", "Parameters", "Run"]
