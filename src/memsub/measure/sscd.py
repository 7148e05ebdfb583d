"""SSCD (Pizzi et al., CVPR 2022), the copy descriptor of the literature on memorization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pooch
import torch
import torch.nn.functional as F

from ..io.downloads import fetch_url
from .metric import CopyMetric, resized

SSCD = {
    name: f"https://dl.fbaipublicfiles.com/sscd-copy-detection/{name}.torchscript.pt"
    for name in ("sscd_disc_large", "sscd_disc_mixup")
}


def sscd(
    source: str | Path = "sscd_disc_large",
    device: str | torch.device = "cpu",
    threshold: float = 0.7,
    batch_size: int = 16,
) -> CopyMetric:
    """SSCD with the preprocessing of its authors: 320 x 320 pixels, ImageNet's mean and deviation.

    Args:
        source: a published name (fetched on first use), or the path of a TorchScript (`.pt`) or ONNX (`.onnx`) file.
        threshold: cosine above which two images count as copies, as in the literature on memorization.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the file has to be fetched and cannot be.
        ValueError: the file is neither TorchScript nor ONNX.
    """
    path = fetch_url(SSCD[str(source)], "copy descriptor") if source in SSCD else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no SSCD model at {path}; expected one of {', '.join(SSCD)}, or a file.")
    if path.suffix == ".onnx":
        import onnxruntime  # in the extra `onnx`

        session = onnxruntime.InferenceSession(path)
        entry = session.get_inputs()[0].name

        def run(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {entry: x.cpu().numpy()})[0])

    else:
        try:
            run = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from None

    def embed(images: np.ndarray) -> torch.Tensor:
        x = resized(images, 320).to(device)
        mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        return F.normalize(run((x - mean[:, None, None]) / std[:, None, None]), dim=1)

    return CopyMetric(embed, threshold, f"sscd {pooch.file_hash(str(path))}", batch_size)
