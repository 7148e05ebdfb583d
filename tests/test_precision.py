"""Mixed precision: products in bfloat16 where the CPU has instructions for them, and nowhere else."""

from threading import Event, Thread

import pytest
import torch

from memsub_extra.training import precision


@pytest.mark.parametrize(("pays", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_short_only_where_it_pays(monkeypatch, pays, dtype):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: pays)
    layer = torch.nn.Linear(4, 3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with precision.mixed_precision(torch.device("cpu")):
        y = layer(x)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32  # over when the block is left


def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: True)
    with precision.mixed_precision(torch.device("meta")):
        assert torch.nn.Linear(4, 3)(torch.zeros(2, 4)).dtype == torch.float32


def test_threads_that_overlap_leave_attention_to_each_other(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: True)
    fused = torch.backends.cuda.flash_sdp_enabled  # the flag of CPUs too
    ours, theirs = (precision.mixed_precision(torch.device("cpu")) for _ in "ab")
    assert fused()
    with ours:
        entered, leave = Event(), Event()

        def other() -> None:
            with theirs:
                entered.set()
                leave.wait()

        thread = Thread(target=other)
        thread.start()
        entered.wait()
    still = fused()  # ours is left, theirs is not
    leave.set()
    thread.join()
    assert not still
    assert fused()
