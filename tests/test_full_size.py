"""Networks with the exact configurations of SD1.4 and SD2.0: from shapes, and once whole with random weights."""

import pytest
import torch
from tools.fullsize import random_pipeline

import memsub
from memsub.activations import capture
from memsub.models import as_denoiser, fingerprint
from memsub.neurons import locate
from memsub.pruning import Edit, pruned
from memsub_extra.full_size import memory
from memsub_extra.full_size.device import Elsewhere, size
from memsub_extra.full_size.shapes import shapes
from memsub_extra.run.parameters import Parameters
from micro import micro_pipeline

WIDTHS = [320] * 2 + [640] * 2 + [1280] * 3 + [1280] * 3 + [640] * 3 + [320] * 3  # down, mid, up
CAPTION = "a red heart on a plain green background"
MODELS = [("sd14", 3, 859.5), ("sd20", 2, 865.9)]
"""Name, network calls of two steps (PNDM makes one more than steps), and millions of parameters of the network."""


@pytest.mark.parametrize(("name", "calls", "million"), [MODELS[0], pytest.param(*MODELS[1], marks=pytest.mark.slow)])
def test_the_method_meets_the_published_shapes(name, calls, million):
    """In the dtype that tests/test_elsewhere.py does not combine with this model's scheduler."""
    pipe = shapes(name, torch.bfloat16 if name == "sd14" else torch.float16, sample_size=8)
    denoiser = as_denoiser(pipe)
    assert sum(p.numel() for p in denoiser.network.parameters()) / 1e6 == pytest.approx(million, abs=0.1)
    layers = denoiser.layers()
    sizes = {layer: tuple(m.weight.shape) for layer, m in layers.items()}
    assert list(sizes.values()) == [(d, 4 * d) for d in WIDTHS]
    assert [layer.split("_")[0] for layer in layers] == ["down"] * 6 + ["mid"] + ["up"] * 9
    order = []
    handles = [m.register_forward_hook(lambda *_, n=n: order.append(n)) for n, m in layers.items()]
    with Elsewhere(number=60) as device:  # the paper's 1 % of the widest row is 51
        stats = capture(pipe, [CAPTION], steps=2, progress=False)
        assert not device.waits
        for handle in handles:
            handle.remove()
        masks = locate(pipe, stats, stats)
        edit = Edit({layer: torch.arange(3) for layer in sizes}, sizes, {"model": fingerprint(pipe)})
        with pruned(pipe, edit) as edited:
            images = memsub.generate(edited, [CAPTION], steps=1, progress=False)
    assert order == list(layers) * calls
    assert [tuple(sums.shape) for sums in stats.sums.values()] == [(1, calls, 4 * d) for d in WIDTHS]
    assert list(masks.layers) == list(layers)
    assert masks.provenance["sparsity"] == 0.01
    assert images.shape == (1, 64, 64, 3)


PARTS = [
    "sampling, 4 images",
    "capture, 4 prompts",
    "embedding attack, 4 rows",
    "fine-tuning all weights (AdamW), 4 pairs",
]


def estimated(monkeypatch, sides):
    monkeypatch.setattr(memory, "SIDES", sides)
    monkeypatch.setattr(memory, "gradient_rows", lambda denoiser, batch_size: 4)
    return memory.memory(Parameters.checked({"model": "sd14", "sampling": {"batch_size": 4}}))


def check_parts(table, pipe, side):
    weights = size(as_denoiser(pipe).parts().values()) / 1e9
    network = size([as_denoiser(pipe).network]) / 1e9
    assert table.index.tolist() == PARTS
    assert (table[side] > weights).all()
    assert table[side].iloc[3] > weights + 3 * network, "gradients, and two numbers of AdamW a weight"


def test_peak_memory_is_estimated_from_shapes(monkeypatch):
    """Of the micro pipeline in the place of the published one; that one is slow."""

    def micro_shapes(name, dtype, side):
        pipe = micro_pipeline(dtype)
        pipe.unet.register_to_config(sample_size=side)
        for part in as_denoiser(pipe).parts().values():
            part.to("meta")
        return pipe

    monkeypatch.setattr(memory, "shapes", micro_shapes)
    table = estimated(monkeypatch, (32, 64))
    assert list(table.columns) == ["32 pixels", "64 pixels"]
    check_parts(table, micro_shapes("sd14", torch.float16, 4), "32 pixels")
    assert (table["64 pixels"] > table["32 pixels"]).all()
    monkeypatch.setattr(memory, "memory", lambda parameters: table)
    text = memory.describe(Parameters())
    assert text.startswith("on a GPU, peak gigabytes from shapes (weights included), times 1.35:\n")
    monkeypatch.setattr(memory, "memory", lambda parameters, sides: table)
    of_run = memory.of_run(Parameters.checked({"model": "sd14"}))
    assert of_run.to_dict() == (1.35 * table.iloc[:3, 0]).to_dict()  # a run trains nothing


@pytest.mark.slow
def test_peak_memory_is_estimated_from_the_published_shapes(monkeypatch):
    check_parts(estimated(monkeypatch, (256,)), shapes("sd14"), "256 pixels")


def test_other_models_have_no_estimate_of_memory():
    assert memory.memory(Parameters()) is None
    assert memory.describe(Parameters()) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "calls", "million"), MODELS)
def test_capture_locate_and_prune_at_full_size(name, calls, million):
    pipe = random_pipeline(name, sample_size=8)
    denoiser = as_denoiser(pipe)
    assert sum(p.numel() for p in denoiser.network.parameters()) / 1e6 == pytest.approx(million, abs=0.1)
    layers = denoiser.layers()
    assert [tuple(m.weight.shape) for m in layers.values()] == [(d, 4 * d) for d in WIDTHS]
    order = []
    handles = [m.register_forward_hook(lambda *_, n=n: order.append(n)) for n, m in layers.items()]
    stats = capture(pipe, [CAPTION], steps=2, progress=False)
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
