"""Makes the folder of checkpoints C from what is parked: `python resume.py` beside C and the repository's weights.

Finished stages are loaded from it, so that `python -m memsub_extra.training.train --out W --checkpoints C` trains *other*
and the scorers, and writes the same bytes for all else (tests/test_loading's layout; fp16 to fp32 and back is exact).
"""
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

here, weights = Path(__file__).parent, Path("src/memsub/testbed/weights")
C = Path("C")
shutil.copytree(here / "checkpoints", C, dirs_exist_ok=True)
for name, folder in (("model", "unet"), ("twin", "twin/unet")):
    state = load_file(weights / folder / "diffusion_pytorch_model.safetensors")
    log = json.loads((C / f"{name}.json").read_text())
    meta = {"step": str(log["steps"]), "log": json.dumps(log)}
    save_file({f"module.{key}": value.contiguous() for key, value in state.items()}, C / f"{name}.safetensors", meta)
    print(name, log["steps"], len(state))
