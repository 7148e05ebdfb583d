"""Sampling: an image depends on its prompt and seed alone."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import memsub
from memsub.audit import by_exact_test
from memsub.testbed import deletion
from memsub.testbed.dataset import weights_folder

TWO = ["a red heart on a plain green background", "a blue fish and a pink moon on a striped white background"]


def test_same_seed_same_bytes(pipe):
    options = {"steps": 4, "progress": False}
    np.testing.assert_array_equal(
        memsub.generate(pipe, TWO, seeds=5, **options), memsub.generate(pipe, TWO, seeds=5, **options)
    )


def test_batches_and_order_do_not_matter(exact_pipe):
    pipe = exact_pipe
    options = {"steps": 4, "progress": False}
    together = memsub.generate(pipe, TWO, seeds=[1, 2], **options)
    apart = memsub.generate(pipe, TWO[::-1], seeds=[2, 1], batch_size=1, **options)[::-1]
    assert together.shape == (2, 32, 32, 3) and together.dtype == np.uint8
    assert np.abs(together.astype(int) - apart).max() <= 1  # a value at the edge of rounding


def test_the_multistep_solver_gives_the_verdicts_of_many_steps(pipe, prompts):
    """Of a pruned model, where few steps of the model's own scheduler do not; which is in place again afterwards."""
    captions, images, own = prompts.memorized[:16], prompts.images("verbatim", 0, 16), pipe.scheduler
    options = {"guidance_scale": 3.0, "progress": False, "seeds": range(16)}
    with memsub.pruned(pipe, memsub.Edit.load(deletion.edits()["pruning"])):
        many, few, multistep = (
            by_exact_test(memsub.generate(pipe, captions, steps=steps, solver=solver, **options), captions, images)
            for steps, solver in ((50, "own"), (8, "own"), (8, "multistep"))
        )
    assert (multistep == many).mean() >= max(0.9, (few == many).mean())
    assert pipe.scheduler is own


def test_seeds_and_prompts_matter(pipe):
    a, b = memsub.generate(pipe, TWO[:1] * 2, seeds=[1, 2], steps=4, progress=False)
    assert (a != b).mean() > 0.5


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([3], {}, "must be strings; got 3"),
        (TWO, {"seeds": [1]}, "1 seeds for 2 prompts"),
        (TWO, {"batch_size": 0}, "batch_size and steps must be at least 1"),
        (TWO, {"steps": 0}, "batch_size and steps must be at least 1"),
        (TWO, {"solver": "dpm"}, "unknown solver 'dpm'; expected one of own, multistep"),
    ],
)
def test_bad_input_is_named(pipe, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        memsub.generate(pipe, prompts, **options)


def test_the_folder_is_an_ordinary_diffusers_pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(weights_folder(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(TWO[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (32, 32)
    assert {p.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder) for p in m.parameters()} == {torch.float32}


def test_the_unet_has_the_feed_forward_layers_of_sd14(pipe):
    names = [name for name, _ in pipe.unet.named_modules() if name.endswith("ff.net.2")]
    expected = [f"down_blocks.{b}.attentions.{a}" for b in range(3) for a in range(2)] + ["mid_block.attentions.0"]
    expected += [f"up_blocks.{b}.attentions.{a}" for b in range(1, 4) for a in range(3)]
    assert sorted(names) == sorted(f"{e}.transformer_blocks.0.ff.net.2" for e in expected)
    assert len(names) == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tny", "Did you mean 'tiny'"),
        ("sd41", "Did you mean 'sd14'"),
        ("qqqq", "Expected one of tiny, tiny-twin, sd14, sd20"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        memsub.load_pipeline(name)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        memsub.load_pipeline(tmp_path)
