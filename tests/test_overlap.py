"""IoU of masks, against sets of Python. (test_neurons.py compares it with the naive reference.)"""

import pytest
import torch

from memsub.neurons import WeightMasks, layer_mask
from memsub.overlap import pairwise_iou

SIZES = {"one": (6, 20), "two": (4, 30)}


def masks(seed, steps=3, sparsity=0.3, model="m"):
    rng = torch.Generator().manual_seed(seed)
    layers = {}
    for name, (d, f) in SIZES.items():
        weight, ours, theirs = torch.randn(d, f, generator=rng), *torch.rand(2, steps, f, generator=rng)
        layers[name] = layer_mask(weight, ours, theirs, sparsity)
    return WeightMasks(layers, {"model": model})


def iou(a, b, name, step):
    a, b = (set(each.layers[name].flat(step).tolist()) for each in (a, b))
    return len(a & b) / len(a | b)


def test_every_pair_of_sets():
    sets = [masks(seed) for seed in range(3)]
    overlap = pairwise_iou(sets)
    assert overlap.shape == (3, 3, 2)
    for row, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
        for step in range(3):
            for column, name in enumerate(SIZES):
                assert overlap[row, step, column] == iou(sets[a], sets[b], name, step) > 0
    assert (pairwise_iou([sets[0], sets[0]]) == 1).all()


def test_sets_against_others_and_chosen_pairs():
    ours, theirs = [masks(0), masks(1)], [masks(2), masks(3), masks(4)]
    every = pairwise_iou(ours, theirs)
    assert every.shape == (6, 3, 2)
    assert every[5, 0, 0] == iou(ours[1], theirs[2], "one", 0)
    torch.testing.assert_close(pairwise_iou(ours, theirs, pairs=[(1, 2), (0, 1)]), every[[5, 1]])
    torch.testing.assert_close(pairwise_iou(ours, pairs=[(1, 0)]), pairwise_iou(ours))


def test_nothing_in_common_and_nothing_at_all():
    rng = torch.Generator().manual_seed(0)
    weight, norms = torch.randn(6, 20, generator=rng), torch.rand(1, 20, generator=rng)
    empty = WeightMasks({"one": layer_mask(weight, norms, norms, 0.3)}, {"model": "m"})
    assert pairwise_iou([empty, empty]).tolist() == [[[0.0]]]


def test_sets_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="needs two sets or more; got 1"):
        pairwise_iou([masks(0)])
    for other in (masks(1, model="another"), masks(1, steps=2)):
        with pytest.raises(ValueError, match="different models or with different numbers of steps"):
            pairwise_iou([masks(0), other])
