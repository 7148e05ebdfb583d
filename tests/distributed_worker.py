"""What each process of tests/test_distributed.py does: `distributed_worker.py OUT [rank to kill]`."""

import os
import sys
from pathlib import Path

import numpy as np
import torch

import memsub
from memsub.io import distributed
from memsub.io.files import save_json, save_tensors
from memsub_extra.attacks import sample_to_folder
from micro import micro_pipeline

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "batch_size": 2, "progress": False}


def main(out: Path, killed: int | None) -> None:
    torch.set_num_threads(1)
    assert distributed.processes() == int(os.environ.get("EXPECTED_PROCESSES", "1"))
    # float64: what batches of other sizes differ by lies far below the float32 of the sums
    pipe = micro_pipeline(torch.float64)
    prompts = memsub.load_prompts("tiny").memorized[:7]
    if killed is not None:  # dies after its first batch is on disk
        save = memsub.ActivationStats.save

        def save_and_die(self, path):
            save(self, path)
            if distributed.rank() == killed:
                os._exit(3)

        memsub.ActivationStats.save = save_and_die
    groups = {"a": [0, 1, 2], "b": [1, 3, 4, 5, 6, 6]}
    stats = memsub.capture(pipe, prompts, groups=groups, checkpoint=out / "stats.partial", **OPTIONS)
    null = memsub.capture(pipe, [""], **OPTIONS)
    images = memsub.generate(pipe, prompts, seeds=range(7), **OPTIONS)
    sample_to_folder(pipe, prompts[:2], out / "extraction", images=3, **OPTIONS)
    with distributed.first_on_each_machine():  # all are on this one
        if not (out / "first").exists():
            (out / "first").write_text(str(distributed.rank()))
    assert (out / "first").read_text() == "0"
    real, sampled = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float32)
    distances = [*memsub.kid(real, sampled), memsub.fid(real, sampled)]  # every process has all features
    if distributed.is_main():
        save_json(distances, out / "distances.json")
        stats.save(out / "stats.safetensors")
        memsub.locate(pipe, stats, null, 0.05, "b").save(out / "masks.safetensors")
        save_tensors({"images": torch.from_numpy(images)}, out / "images.safetensors", {})
    distributed.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
