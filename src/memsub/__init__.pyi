"""The public names, and where each lies: read by type checkers, and by `lazy_loader` when a name is used."""

from .activations import ActivationStats as ActivationStats
from .activations import capture as capture
from .measure.distances import fid as fid
from .measure.distances import kid as kid
from .measure.evaluation import score as score
from .measure.evaluation import summary as summary
from .measure.intervals import interval as interval
from .measure.metric import CopyMetric as CopyMetric
from .measure.metric import PromptMetric as PromptMetric
from .measure.metrics import Metrics as Metrics
from .measure.metrics import load_metrics as load_metrics
from .models import Conditioning as Conditioning
from .models import Denoiser as Denoiser
from .models import as_denoiser as as_denoiser
from .models import fingerprint as fingerprint
from .models import generate as generate
from .models import load_pipeline as load_pipeline
from .neurons import WeightMasks as WeightMasks
from .neurons import importance as importance
from .neurons import locate as locate
from .neurons import memorized as memorized
from .overlap import pairwise_iou as pairwise_iou
from .prompts import Prompts as Prompts
from .prompts import load_prompts as load_prompts
from .pruning import Edit as Edit
from .pruning import pruned as pruned

__version__: str
