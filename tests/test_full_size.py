"""UNets with the exact configurations of SD1.4 and SD2.0 and random weights go through the whole method."""

import pytest
import torch
from tools.fullsize import random_pipeline

from memsub.activations import capture
from memsub.models import as_denoiser
from memsub.neurons import locate
from memsub.pruning import Edit, pruned

WIDTHS = [320] * 2 + [640] * 2 + [1280] * 3 + [1280] * 3 + [640] * 3 + [320] * 3  # down, mid, up


@pytest.mark.parametrize(
    ("name", "calls", "million"),
    [("sd14", 3, 859.5), ("sd20", 2, 865.9)],  # PNDM makes one call more than steps
)
def test_capture_locate_and_prune_at_full_size(name, calls, million):
    pipe = random_pipeline(name, sample_size=8)
    denoiser = as_denoiser(pipe)
    assert sum(p.numel() for p in denoiser.network.parameters()) / 1e6 == pytest.approx(million, abs=0.1)
    layers = denoiser.layers()
    assert [tuple(m.weight.shape) for m in layers.values()] == [(d, 4 * d) for d in WIDTHS]
    order = []
    handles = [m.register_forward_hook(lambda *_, n=n: order.append(n)) for n, m in layers.items()]
    stats = capture(pipe, ["a red heart on a plain green background"], steps=2, progress=False)
    for handle in handles:
        handle.remove()
    assert order == list(layers) * calls
    masks = locate(pipe, stats, capture(pipe, [""], steps=2, progress=False))
    assert masks.provenance["sparsity"] == 0.01
    assert masks.density().shape == (calls, 16)
    assert 0 < masks.density().max() <= 0.01
    edit = masks.union(steps=2)
    last = list(layers)[-1]
    before = layers[last].weight.detach().clone()
    with pruned(pipe, edit):
        zeroed = layers[last].weight.detach().view(-1)[edit.positions[last]]
        assert len(zeroed)
        assert not zeroed.any()
    assert torch.equal(layers[last].weight, before)
    of_another = Edit(edit.positions, edit.shapes, edit.provenance | {"model": "0" * 64})
    with pytest.raises(ValueError, match="made for another model"):
        of_another.apply(pipe)
    assert torch.equal(layers[last].weight, before)
