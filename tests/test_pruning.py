"""Edits: applied wholly or not at all, taken back bit for bit, combined as sets, and kept in files that are checked."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memsub import pruning
from memsub.activations import ActivationStats, capture
from memsub.controls import random_edit, random_masks
from memsub.io.files import FORMAT
from memsub.models import as_denoiser, fingerprint, generate
from memsub.neurons import WeightMasks, locate
from memsub.pruning import Edit, pruned
from micro import CAPTIONS, micro_pipeline

OPTIONS = {"steps": 3, "guidance_scale": 5.0, "progress": False}
MID = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
"""A feed-forward layer of the micro pipeline, (16, 64)."""


@pytest.fixture(scope="module")
def masks(micro):
    stats, null = capture(micro, CAPTIONS, **OPTIONS), capture(micro, [""], **OPTIONS)
    return locate(micro, stats, null, sparsity=0.05)


@pytest.fixture
def edit(masks):
    return masks.union(steps=2)


def weights(pipe):
    return {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}


def assert_unchanged(pipe, before):
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), before[name].reshape(-1).view(torch.uint8)), name


# --- applied and taken back -------------------------------------------------------------------------------------------


def test_pruned_changes_images_and_restores_bit_for_bit(micro, edit):
    before = weights(micro)
    unedited = generate(micro, CAPTIONS[:1], steps=3, progress=False)
    with pytest.raises(RuntimeError, match="planted"), pruned(micro, edit):
        for name, linear in as_denoiser(micro).layers().items():
            assert (linear.weight.view(-1)[edit.positions[name]] == 0).all()
        assert (generate(micro, CAPTIONS[:1], steps=3, progress=False) != unedited).any()
        raise RuntimeError("planted")
    assert_unchanged(micro, before)
    with pruned(micro, None) as same:
        assert same is micro
        assert_unchanged(micro, before)


def test_apply_sets_the_weights_and_no_others(edit):
    pipe = micro_pipeline()
    before = weights(pipe)
    edit.apply(pipe)
    for name, tensor in pipe.unet.state_dict().items():
        expected, layer = before[name].clone(), name.removesuffix(".weight")
        expected.view(-1)[edit.positions.get(layer, [])] = 0
        assert torch.equal(tensor, expected)


def convolutions(pipe):
    """An edit with values of its own: of a convolution, a norm and a linear map in part, of a convolution the whole."""
    layers = ["conv_in", "conv_out", "down_blocks.0.resnets.0.norm1", MID]
    shapes = {name: tuple(pipe.unet.get_submodule(name).weight.shape) for name in layers}
    positions = {name: torch.arange(1, torch.Size(shape).numel(), 3) for name, shape in shapes.items()}
    positions["conv_out"] = torch.arange(torch.Size(shapes["conv_out"]).numel(), dtype=torch.int32)
    values = {name: torch.linspace(-1, 1, len(p)).half() for name, p in positions.items()}
    return Edit(positions, shapes, {"model": fingerprint(pipe)}, values)


@pytest.mark.parametrize("switch", ["before", "within"])
def test_any_memory_format(switch):
    pipe, plain = micro_pipeline(), micro_pipeline()
    edit = convolutions(pipe)
    before = weights(pipe)
    if switch == "before":
        pipe.unet.to(memory_format=torch.channels_last)
    with pruned(pipe, edit), pruned(plain, edit):
        assert_unchanged(pipe, weights(plain))
        assert not torch.equal(pipe.unet.conv_in.weight, before["conv_in.weight"])
        if switch == "within":
            pipe.unet.to(memory_format=torch.channels_last)
    assert_unchanged(pipe, before)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    edit.apply(pipe)
    edit.apply(plain)
    assert_unchanged(pipe, weights(plain))


@pytest.mark.parametrize(
    "use", [Edit.apply, lambda edit, pipe: pruned(pipe, edit).__enter__()], ids=["apply", "pruned"]
)
def test_an_edit_that_is_interrupted_leaves_nothing(use, edit, monkeypatch):
    pipe = micro_pipeline()
    before, addressed, calls = weights(pipe), pruning._addressed, []

    def interrupt_once(weight, positions):
        calls.append(weight)
        if len(calls) == 4 + 3:  # all four layers have been read, and two are written
            assert any(not torch.equal(t, before[name]) for name, t in pipe.unet.state_dict().items())
            raise KeyboardInterrupt
        return addressed(weight, positions)

    monkeypatch.setattr(pruning, "_addressed", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        use(edit, pipe)
    assert_unchanged(pipe, before)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_edit_of_another_model_is_refused_and_nothing_changes(micro, masks):
    other = copy.deepcopy(micro.unet)
    with torch.no_grad():
        other.mid_block.attentions[0].transformer_blocks[0].ff.net[2].weight[0, 0] += 1
    edit, own = masks.union(steps=1), micro.unet
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    micro.unet = other
    try:
        with pytest.raises(ValueError, match="this edit was made for another model"):
            edit.apply(micro)
        assert_unchanged(micro, before)
    finally:
        micro.unet = own


def test_an_edit_of_no_weights_is_refused(micro, edit):
    nothing = edit - edit
    assert nothing.density == 0
    with pytest.raises(ValueError, match="this edit sets no weights: it would change nothing"):
        nothing.apply(micro)
    with pytest.raises(ValueError, match="this edit sets no weights"), pruned(micro, nothing):
        pass


def test_a_path_in_place_of_an_edit_is_refused_in_a_sentence(micro, edit):
    with pytest.raises(ValueError, match=r"an Edit is expected; got 'a.txt': .*Edit\.load"), pruned(micro, "a.txt"):
        pass
    with pytest.raises(ValueError, match=r"combines with another; got 'a.txt': .*Edit\.load"):
        edit | "a.txt"


SHAPE = (16, 64)
BROKEN = [
    (torch.tensor([-1, 3]), None, SHAPE, "must lie between 0 and 1023; got -1 to 3"),
    (torch.tensor([3, 1024]), None, SHAPE, "must lie between 0 and 1023; got 3 to 1024"),
    (torch.tensor([3, 3]), None, SHAPE, "must ascend, each of them once"),
    (torch.tensor([5, 3]), None, SHAPE, "must ascend, each of them once"),
    (torch.tensor([3.0, 5.0]), None, SHAPE, "must be integers in one row; got torch.float32"),
    (torch.tensor([True, False]), None, SHAPE, "must be integers in one row; got torch.bool"),
    (torch.tensor([[3, 5]]), None, SHAPE, r"must be integers in one row; got torch.int64 of shape \(1, 2\)"),
    (torch.tensor(3), None, SHAPE, r"must be integers in one row; got torch.int64 of shape \(\)"),
    (torch.tensor([3, 5]), torch.tensor([1.0]), SHAPE, r"2 positions need as many values; got \(1,\)"),
    (torch.tensor([3, 5]), torch.tensor([1.0, float("nan")]), SHAPE, "some of its values are not finite"),
    (torch.tensor([3, 5]), torch.tensor([1.0, float("inf")]), SHAPE, "some of its values are not finite"),
]


@pytest.mark.parametrize(("positions", "values", "shape", "message"), BROKEN)
def test_a_broken_edit_changes_nothing(micro, edit, positions, values, shape, message, tmp_path):
    before = weights(micro)
    broken = Edit(
        edit.positions | {MID: positions},
        edit.shapes | {MID: shape},
        edit.provenance,
        {} if values is None else {MID: values.half()},
    )
    with pytest.raises(ValueError, match=f"layer {MID} of this edit: .*{message}"):
        broken.apply(micro)
    with pytest.raises(ValueError, match=message), pruned(micro, broken):
        pass
    assert_unchanged(micro, before)
    tensors = {MID: positions} | ({} if values is None else {f"{MID}.values": values.half()})
    about = {"kind": "Edit", "format": FORMAT, "shapes": {MID: shape}, "whole": [], "provenance": {"model": "m"}}
    save_file(tensors, tmp_path / "broken.safetensors", {"about": json.dumps(about)})
    with pytest.raises(ValueError, match=rf"broken\.safetensors: layer {MID} of this edit: .*{message}"):
        Edit.load(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        ("mid_block.nothing", (16, 64), "sets layer mid_block.nothing, but the network has no weight of that name"),
        ("mid_block", (16, 64), "sets layer mid_block, but the network has no weight of that name"),
        (MID, (64, 16), rf"sets layer {MID} of shape \(64, 16\), but that of the network is \(16, 64\)"),
        (MID, None, f"layer {MID} of this edit: its shape is missing"),
    ],
)
def test_an_edit_of_other_layers_changes_nothing(micro, edit, layer, shape, message):
    before = weights(micro)
    shapes = edit.shapes | {layer: shape}
    shapes = {name: shape for name, shape in shapes.items() if shape}
    other = Edit(edit.positions | {layer: torch.tensor([3])}, shapes, edit.provenance)
    with pytest.raises(ValueError, match=message):
        other.apply(micro)
    assert_unchanged(micro, before)


def test_an_adapter_that_is_not_fused_is_refused():
    pipe = micro_pipeline()
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]

    class Adapted(torch.nn.Module):  # as peft wraps a layer: its weight is that of the layer alone
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        @property
        def weight(self):
            return self.base_layer.weight

    block.ff.net[2] = Adapted(block.ff.net[2])
    edit = Edit({MID: torch.tensor([3])}, {MID: SHAPE}, {"model": fingerprint(pipe)})
    before = weights(pipe)
    with pytest.raises(ValueError, match=rf"layer {MID} .*fuse_lora"):
        edit.apply(pipe)
    assert_unchanged(pipe, before)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"shapes": None}, "is no edit as memsub writes it: shapes, whole or provenance is missing"),
        ({"whole": "all"}, "is no edit as memsub writes it"),
        ({"provenance": []}, "is no edit as memsub writes it"),
        ({"provenance": {}}, "does not say which model it belongs to"),
        ({"shapes": {MID: [16, "64"]}}, f"layer {MID} of this edit: .* is no shape"),
        ({"shapes": {MID: 1024}}, f"layer {MID} of this edit: 1024 is no shape"),
        ({"shapes": {MID: [16, -64]}}, f"layer {MID} of this edit: .* is no shape"),
        ({"shapes": {"other": [16, 64]}}, "layer other of this edit: its positions are missing"),
    ],
)
def test_a_file_with_other_words_is_named(tmp_path, about, message):
    given = {"shapes": {MID: SHAPE}, "whole": [], "provenance": {"model": "m"}} | about
    text = json.dumps({"kind": "Edit", "format": FORMAT} | given)
    save_file({MID: torch.tensor([3])}, tmp_path / "bad.safetensors", {"about": text})
    with pytest.raises(ValueError, match=rf"bad\.safetensors.*{message}"):
        Edit.load(tmp_path / "bad.safetensors")


# --- combined, saved, compared ----------------------------------------------------------------------------------------


def test_edits_combine_as_sets(masks):
    early, late = masks.union(steps=1), masks.union(steps=3)
    for name in early.positions:
        a, b = set(early.positions[name].tolist()), set(late.positions[name].tolist())
        assert set((early | late).positions[name].tolist()) == a | b
        assert set((early & late).positions[name].tolist()) == a & b
        assert set((late - early).positions[name].tolist()) == b - a
    assert random_edit(late, seed=1).density == late.density
    down = late.only(["down_blocks", "mid_block"])
    assert {n for n, p in down.positions.items() if len(p)} == {n for n in late.positions if not n.startswith("up")}
    with pytest.raises(ValueError, match="no layer's name begins with 'dwn'"):
        late.only(["dwn"])


def test_of_two_values_a_union_takes_the_right_one():
    one, other = (
        Edit({"a": torch.tensor(p)}, {"a": (9,)}, {"model": "m"}, {"a": torch.tensor(v).half()})
        for p, v in (([1, 2], [1.0, 2.0]), ([2, 3], [5.0, 6.0]))
    )
    assert (one | other).values["a"].tolist() == [1, 5, 6]
    assert (one & other).values["a"].tolist() == [2]
    assert (one - other).values["a"].tolist() == [1]
    with pytest.raises(ValueError, match="edits of two models do not combine: m and n"):
        one | Edit({}, {}, {"model": "n"})


def test_random_masks_mark_equally_many_of_each_row(masks):
    shuffled = random_masks(masks, seed=1)
    assert torch.equal(shuffled.density(), masks.density())
    for name, mask in masks.layers.items():
        assert torch.equal(shuffled.dense(name, 0).sum(1), masks.dense(name, 0).sum(1))
        assert not torch.equal(shuffled.layers[name].columns, mask.columns)
        assert torch.equal(random_masks(masks, seed=1).layers[name].columns, shuffled.layers[name].columns)


def test_a_fingerprint_is_of_what_the_edit_does(edit, masks, tmp_path):
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    again.provenance = {"model": "another"}
    assert again.fingerprint == edit.fingerprint
    layers = dict(reversed(edit.positions.items()))
    assert Edit({n: p.int() for n, p in layers.items()}, edit.shapes, {}).fingerprint == edit.fingerprint
    ones = {name: torch.ones(len(p)).half() for name, p in edit.positions.items()}
    others = [
        masks.union(steps=1),
        Edit(edit.positions, edit.shapes, edit.provenance, ones),
        Edit(edit.positions, edit.shapes | {MID: (64, 16)}, edit.provenance),
        Edit({f"{n}x": p for n, p in layers.items()}, {f"{n}x": s for n, s in edit.shapes.items()}, edit.provenance),
    ]
    assert len({edit.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_artifacts_come_back_as_they_were(micro, masks, tmp_path):
    stats = capture(micro, CAPTIONS[:2], groups={"x": [0], "y": [0, 1]}, **OPTIONS)
    stats.save(tmp_path / "stats.safetensors")
    again = ActivationStats.load(tmp_path / "stats.safetensors")
    assert (again.counts, again.provenance, again.prompts, list(again.sums)) == (
        stats.counts,
        stats.provenance,
        stats.prompts,
        list(stats.sums),
    )
    assert all(torch.equal(again.sums[name], sums) for name, sums in stats.sums.items())
    masks.save(tmp_path / "masks.safetensors")
    again = WeightMasks.load(tmp_path / "masks.safetensors")
    assert torch.equal(again.density(), masks.density()) and list(again.layers) == list(masks.layers)
    edit = masks.union(steps=2)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert all(torch.equal(again.positions[n], p) for n, p in edit.positions.items())
    assert again.density == edit.density > 0
    whole = (tmp_path / "edit.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.safetensors is truncated"):
        Edit.load(tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="holds WeightMasks, expected Edit"):
        Edit.load(tmp_path / "masks.safetensors")
    with pytest.raises(FileNotFoundError, match="no Edit at"):
        Edit.load(tmp_path / "nothing.safetensors")


def test_what_was_counted_by_numpy_can_be_saved(micro, tmp_path):
    options = {"steps": np.int64(2), "first": np.int32(1), "seed": np.int64(3), "guidance_scale": np.float32(3)}
    stats, null = (capture(micro, prompts, **options, progress=False) for prompts in (CAPTIONS[:1], [""]))
    edit = locate(micro, stats, null, sparsity=np.float32(0.1)).union(np.int64(1), threshold=np.float32(0))
    for thing in (stats, edit):
        thing.save(tmp_path / "file.safetensors")
        assert type(thing).load(tmp_path / "file.safetensors").provenance == thing.provenance


def test_layers_that_are_set_whole_need_no_coordinates_in_a_file(micro, tmp_path):
    edit = convolutions(micro)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.fingerprint == edit.fingerprint
    assert all(torch.equal(again.values[name], values) for name, values in edit.values.items())
