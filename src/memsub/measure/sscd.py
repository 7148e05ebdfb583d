"""SSCD (Pizzi et al., CVPR 2022), the copy descriptor of the literature on memorization.

It is published as TorchScript, which is a program: loading executes it with the rights of the user. So only files of
known content are executed; other files require the user's consent (`CONSENT`). An ONNX file is data.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..io.downloads import fetch_url
from .metric import CopyMetric, resized

SSCD = {
    name: f"https://dl.fbaipublicfiles.com/sscd-copy-detection/{name}.torchscript.pt"
    for name in ("sscd_disc_large", "sscd_disc_mixup")
}
KNOWN = {"9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56": "sscd_disc_mixup"}
"""sha256 of published files, as several projects that use them state it. No sha256 of the large model is published."""
CONSENT = "MEMSUB_TORCHSCRIPT"
"""Environment variable with the sha256 of files that may be executed, separated by commas. No file can set it."""


def sscd(source: str | Path = "sscd_disc_large", device: str | torch.device = "cpu") -> CopyMetric:
    """SSCD with its authors' preprocessing: 320 x 320 pixels, ImageNet's mean and standard deviation. Two images count
    as copies if their cosine is above 0.7, as in the literature on memorization.

    Args:
        source: a published name (fetched on first use), or the path of a TorchScript (`.pt`) or ONNX (`.onnx`) file.

    Raises:
        ImportError, FileNotFoundError, ConnectionError, ValueError: as `sscd_file`, or it is neither kind of file.
    """
    path, content = sscd_file(source)
    try:
        run = _onnx(content) if path.suffix == ".onnx" else torch.jit.load(io.BytesIO(content), device).eval()
    except (RuntimeError, ValueError) as error:
        kind = "ONNX" if path.suffix == ".onnx" else "TorchScript"
        raise ValueError(f"{path} is no {kind} file: {str(error).splitlines()[0]}") from None

    def embed(images: np.ndarray) -> torch.Tensor:
        x = resized(images, 320).to(device)
        mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        return F.normalize(run((x - mean[:, None, None]) / std[:, None, None]), dim=1)

    return CopyMetric(embed, 0.7, f"sscd {hashlib.sha256(content).hexdigest()}", batch_size=16)


def sscd_file(source: str | Path) -> tuple[Path, bytes]:
    """The path and the content of an SSCD file; nothing is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the file cannot be fetched.
        ValueError: the file is a program that is not in `KNOWN`, without consent (`CONSENT`).
    """
    path = fetch_url(SSCD[str(source)], "copy descriptor") if source in SSCD else Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no SSCD model at {path}; expected one of {', '.join(SSCD)}, or a file.")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix != ".onnx" and digest not in (*KNOWN, *os.environ.get(CONSENT, "").replace(" ", "").split(",")):
        raise ValueError(
            f"{path} is TorchScript, a program that runs as soon as it is loaded, and its content is unknown here. If "
            f"you trust its makers, consent by the environment variable {CONSENT}={digest}; or use ONNX, which is data."
        )
    return path, content


def _onnx(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime  # in the extra `onnx`

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ValueError(str(error)) from None
    entry = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {entry: x.cpu().numpy()})[0])
