"""Sampling: an image depends on its prompt and seed alone."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import memsub
from memsub.controls import random_edit, random_masks
from memsub.measure.verdict import by_exact_test
from memsub.models import as_denoiser, draws_noise, multistep, one_seed_each
from memsub.models.sampling import _NOISE
from memsub.world import WORLDS
from memsub_extra.unlearning import shipped
from micro import micro_pipeline
from toys import Toy

TWO = ["a red heart on a plain green background", "a blue fish and a pink moon on a striped white background"]
WEIGHTS = files("memsub") / "testbed" / "weights"


def test_same_seed_same_bytes(micro):
    options = {"steps": 4, "progress": False}
    np.testing.assert_array_equal(
        memsub.generate(micro, TWO, seeds=5, **options), memsub.generate(micro, TWO, seeds=5, **options)
    )


def test_batches_and_order_do_not_matter(exact_micro):
    options = {"steps": 4, "progress": False}
    together = memsub.generate(exact_micro, TWO, seeds=[1, 2], **options)
    apart = memsub.generate(exact_micro, TWO[::-1], seeds=[2, 1], batch_size=1, **options)[::-1]
    assert together.shape == (2, 32, 32, 3) and together.dtype == np.uint8
    assert np.abs(together.astype(int) - apart).max() <= 1  # a value at the edge of rounding


OF_FIFTY_STEPS = [False, False, True, True]
"""Verdicts of four images of a pruned model after 50 steps of its own scheduler (`tools.solvers` compares more)."""


def test_the_multistep_solver_gives_the_verdicts_of_many_steps(pipe, prompts):
    """In eight steps, of a pruned model; the pipeline's own scheduler is in place again afterwards."""
    n, scheduler, replicates = len(OF_FIFTY_STEPS), pipe.scheduler, by_exact_test(WORLDS["testbed"])
    captions, images = prompts.memorized[:n], prompts.images("verbatim", 0, n)
    options = {"guidance_scale": 3.0, "progress": False, "seeds": range(n), "steps": 8, "solver": "multistep"}
    with memsub.pruned(pipe, memsub.Edit.load(shipped.edits()["pruning"])):
        generated = memsub.generate(pipe, captions, **options)
    assert replicates(generated, captions, images).tolist() == OF_FIFTY_STEPS
    assert pipe.scheduler is scheduler


def test_seeds_and_prompts_matter(micro):
    a, b = memsub.generate(micro, TWO[:1] * 2, seeds=[1, 2], steps=4, progress=False)
    assert (a != b).mean() > 0.5
    a, b = memsub.generate(micro, TWO, seeds=1, steps=4, progress=False)
    assert (a != b).any()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([3], {}, "must be strings; got 3"),
        ("a red heart", {}, r"got the string 'a red heart': give \['a red heart'\]"),
        (
            pd.DataFrame({"prompt": TWO}),
            {},
            "list of strings; got a DataFrame: give a list",
        ),
        ({"A": TWO[0]}, {}, "list of strings; got a dict"),
        ({*TWO}, {}, "list of strings; got a set"),
        (Path("captions.txt"), {}, "list of strings; got a PosixPath"),
        (TWO, {"seeds": [1]}, "1 seeds for 2 prompts"),
        (TWO, {"seeds": None}, "a seed must be a whole number from 0 to .*; got None"),
        (TWO, {"seeds": torch.Generator()}, "a seed must be a whole number from 0 to .*; got <torch._C.Generator"),
        (TWO, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (TWO, {"steps": 0}, "steps must be a whole number of at least 1"),
        (TWO, {"solver": "dpm"}, "unknown solver 'dpm'; expected one of own, multistep"),
    ],
)
def test_bad_input_is_named(micro, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        memsub.generate(micro, prompts, **options)


def test_one_seed_is_for_all():
    assert one_seed_each(3, 2) == [3, 3] and one_seed_each(np.int64(3), 1) == [3]
    assert one_seed_each(range(2), 2) == [0, 1]
    assert one_seed_each(torch.tensor(3), 2) == [3, 3] and one_seed_each(torch.tensor([3, 4]), 2) == [3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_default_dtype_of_the_process_changes_nothing(micro, dtype):
    options = {"steps": 2, "progress": False}
    images, stats = memsub.generate(micro, TWO, **options), memsub.capture(micro, TWO, **options)
    torch.set_default_dtype(dtype)
    try:
        np.testing.assert_array_equal(memsub.generate(micro, TWO, **options), images)
        again = memsub.capture(micro, TWO, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    for layer, sums in stats.sums.items():
        assert again.sums[layer].dtype == torch.float32 and torch.equal(again.sums[layer], sums)


def test_a_default_device_of_the_process_is_not_that_of_host_tensors(tmp_path):
    pipe, options = micro_pipeline(), {"steps": 2, "guidance_scale": 1.0, "progress": False}
    text = as_denoiser(pipe).embed([*TWO, ""]).embeddings  # the tokenizer's own tensors lie on the default device

    def everything():
        images = [memsub.generate(pipe, text[:2], solver=solver, **options) for solver in ("own", "multistep")]
        stats = memsub.capture(pipe, text[:2], groups={"A": [0], "B": [0, 1]}, **options)
        masks = memsub.locate(pipe, stats, memsub.capture(pipe, text[2:], **options), sparsity=0.1, group="B")
        assert memsub.pairwise_iou([masks, random_masks(masks)]).shape == (1, 2, 4)
        edit = masks.union(steps=2)
        edit.save(tmp_path / "edit.safetensors")
        edit = memsub.Edit.load(tmp_path / "edit.safetensors")
        with memsub.pruned(pipe, edit | random_edit(edit)):
            return [*images, memsub.generate(pipe, text[:2], **options)], edit.fingerprint

    images, edit = everything()
    torch.set_default_device("meta")  # where tensors hold no numbers: as a GPU would, it tells which lie there
    _NOISE.clear()
    try:
        again, same = everything()
    finally:
        torch.set_default_device(None)
    np.testing.assert_array_equal(again, images)
    assert same == edit


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_an_image_that_is_not_finite_is_an_error_not_black(part):
    pipe = micro_pipeline()
    with torch.no_grad():
        next(getattr(pipe, part).parameters()).fill_(float("nan"))
        pipe.vae.decoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="an image is not finite: try another dtype"):
        memsub.generate(pipe, TWO, steps=1, progress=False)


def test_a_check_is_made_once_and_leaves_the_random_numbers_alone(monkeypatch):
    toy = Toy(DDIMScheduler(beta_end=0.0123))
    state = torch.get_rng_state()
    draws_noise(toy)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(DDIMScheduler, "step", None)
    assert draws_noise(toy) is False
    assert (DDIMScheduler, str(dict(toy.scheduler.config)), "own") in _NOISE


def test_the_multistep_solver_has_the_noise_schedule_of_the_scheduler(micro):
    solver = multistep(micro.scheduler)
    assert torch.equal(solver.alphas_cumprod, micro.scheduler.alphas_cumprod)
    solver.set_timesteps(4)
    assert solver.timesteps[0] == 999  # from pure noise on


def test_the_folder_is_an_ordinary_diffusers_pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(TWO[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (32, 32)
    assert {p.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder) for p in m.parameters()} == {torch.float32}


def test_the_unet_has_the_feed_forward_layers_of_sd14(micro):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(WEIGHTS / "unet"))
    names = [name for name, _ in unet.named_modules() if name.endswith("ff.net.2")]
    expected = [f"down_blocks.{b}.attentions.{a}" for b in range(3) for a in range(2)] + ["mid_block.attentions.0"]
    expected += [f"up_blocks.{b}.attentions.{a}" for b in range(1, 4) for a in range(3)]
    expected = [f"{e}.transformer_blocks.0.ff.net.2" for e in expected]
    assert sorted(names) == sorted(expected)
    assert len(names) == 16
    denoiser = as_denoiser(micro)
    denoiser.network = unet
    assert list(denoiser.layers()) == expected  # in the order of execution
