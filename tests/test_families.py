"""Stable Diffusion XL and the generic adapter against a naive reference: hooks of its own while `pipe(...)` runs."""

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import diffusers as d
import numpy as np
import pytest
import torch

import memsub
from families import BUILDERS, EULER, stable_diffusion_xl, vae
from memsub.models import (
    ADAPTERS,
    Conditioning,
    Denoiser,
    as_denoiser,
    initial_noise,
    module_fingerprint,
)
from memsub_extra.attacks.embedding import EmbeddingAttack
from memsub_extra.families.generic import GenericDenoiser
from memsub_extra.families.stable_diffusion_xl import StableDiffusionXLDenoiser
from memsub_extra.mitigations import optimized_embeddings
from memsub_extra.mitigations.detection import first_step_scores
from memsub_extra.mitigations.value_neurons import value_layers
from naive import is_tie, naive_mask

STEPS, PROMPTS, SEED = 2, ["a red heart on a plain green background", "a blue fish"], 3
SMALL = {"height": 32, "width": 32}
PIXART = {"height": 32, "width": 32, "use_resolution_binning": False, "clean_caption": False}
OPTIONS = {
    "FluxPipeline": SMALL,
    "BriaPipeline": SMALL,
    "ChromaPipeline": SMALL,
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "HunyuanDiTPipeline": {"use_resolution_binning": False},
}
"""Of the pipeline's call: small images, and none of the published sizes that some round to."""
GUIDANCE = {"ChromaPipeline": 1.0}
HALVES = {"FluxPipeline": 1, "ChromaPipeline": 1, "LatentConsistencyModelPipeline": 1}
"""Of a network call: one where the guidance is an input of the network, or none."""
LAYERS = {"FluxPipeline": "transformer_blocks", "HunyuanDiTPipeline": "blocks"}
FAMILIES = {"StableDiffusionXLPipeline": stable_diffusion_xl, **BUILDERS}
QUIET = pytest.mark.filterwarnings("ignore")  # of diffusers, about what it will change one day


@pytest.fixture(scope="module")
def families():
    """Each pipeline is built once; a test that changes one works on a copy."""
    built = {}
    return lambda name: built.setdefault(name, None) or built.update({name: FAMILIES[name]()}) or built[name]


@pytest.fixture(scope="module")
def xl():
    return stable_diffusion_xl()


def denoiser_of(pipe):
    options = OPTIONS.get(type(pipe).__name__)
    return GenericDenoiser(pipe, **options) if options else as_denoiser(pipe)


def network_of(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def own_call(pipe, prompts, seeds, guidance, output="np"):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": output}
    return pipe(prompt=prompts, generator=generators, **options | OPTIONS.get(type(pipe).__name__, {})).images


def naive_squares(pipe, prompts, guidance):
    """Name of each layer to its sums of squares, float64 (parts of a call, steps, neurons), one prompt at a time."""
    modules = [(n, m) for n, m in network_of(pipe).named_modules() if n.endswith(".ff.net.2")]
    sums, kept = {}, {name: [] for name, _ in modules}
    handles = [
        m.register_forward_hook(lambda _, args, out, calls=kept[name]: calls.append(args[0].double().numpy()))
        for name, m in modules
    ]
    for prompt in prompts:
        own_call(pipe, [prompt], [SEED], guidance, "latent")
        for name, calls in kept.items():
            unit = [hidden / np.linalg.norm(hidden, axis=-1, keepdims=True) for hidden in calls]
            sums[name] = sums.get(name, 0) + np.stack([(u**2).sum(1) for u in unit], 1)
            calls.clear()
    for handle in handles:
        handle.remove()
    return sums


# --- every family: the method -----------------------------------------------------------------------------------------


@QUIET
@pytest.mark.parametrize("name", FAMILIES)
def test_sums_and_masks_are_those_of_hooks_of_ones_own(families, name):
    pipe, guidance, halves = families(name), GUIDANCE.get(name, 3.0), HALVES.get(name, 2)
    denoiser = denoiser_of(pipe)
    assert isinstance(denoiser, Denoiser)
    options = {"steps": STEPS, "guidance_scale": guidance, "seed": SEED, "progress": False}
    stats, null = (memsub.capture(denoiser, prompts, **options) for prompts in (PROMPTS, [""]))
    conditional = memsub.capture(denoiser, PROMPTS, cfg_half="cond", **options)
    alone = memsub.capture(denoiser, PROMPTS, batch_size=1, **options)
    squares, null_squares = naive_squares(pipe, PROMPTS, guidance), naive_squares(pipe, [""], guidance)
    assert set(stats.sums) == set(squares)
    masks = memsub.locate(denoiser, stats, null, sparsity=0.1)
    for layer, expected in squares.items():
        assert expected.shape[:2] == (halves, STEPS)
        np.testing.assert_allclose(stats.sums[layer][0], expected.sum(0), rtol=1e-3)
        np.testing.assert_allclose(alone.sums[layer][0], expected.sum(0), rtol=1e-3)
        np.testing.assert_allclose(conditional.sums[layer][0], expected[-1], rtol=1e-3)
        weight = network_of(pipe).get_submodule(layer).weight.detach().double().numpy()
        norms, null_norms = np.sqrt(expected.sum(0)[1] / len(PROMPTS)), np.sqrt(null_squares[layer].sum(0)[1])
        wrong = np.argwhere(masks.dense(layer, 1).numpy() != naive_mask(weight, norms, null_norms, 0.1))
        assert all(is_tie(weight, norms, null_norms, 0.1, i, j) for i, j in wrong) and len(wrong) < 0.01 * weight.size


@QUIET
@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_the_pipelines_own_and_come_back_after_pruning(families, name):
    pipe, guidance = families(name), GUIDANCE.get(name, 3.0)
    denoiser, seeds = denoiser_of(pipe), [0, 7]
    options = {"steps": STEPS, "guidance_scale": guidance, "progress": False}
    images = memsub.generate(denoiser, PROMPTS, seeds=seeds, **options)
    own = (own_call(pipe, PROMPTS, seeds, guidance) * 255).round().astype(int)
    assert np.abs(images - own).max() <= 1 and (images == own).mean() > 0.999 and images.std() > 10
    one_by_one = memsub.generate(denoiser, PROMPTS, seeds=seeds, batch_size=1, **options)
    assert np.abs(images.astype(int) - one_by_one).max() <= 1
    stats, null = (memsub.capture(denoiser, p, **options) for p in (PROMPTS, [""]))
    edit, before = (
        memsub.locate(denoiser, stats, null, sparsity=0.3).union(steps=STEPS),
        module_fingerprint(network_of(pipe)),
    )
    with memsub.pruned(denoiser, edit):
        assert (memsub.generate(denoiser, PROMPTS, seeds=seeds, **options) != images).any()
    assert module_fingerprint(network_of(pipe)) == before
    np.testing.assert_array_equal(memsub.generate(denoiser, PROMPTS, seeds=seeds, **options), images)


# --- Stable Diffusion XL ----------------------------------------------------------------------------------------------

PUBLISHED = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
"""unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, where it is not the default."""


def test_the_published_configuration_has_seventy_layers_in_execution_order():
    with torch.device("meta"):
        unet = d.UNet2DConditionModel(**PUBLISHED)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    layers = StableDiffusionXLDenoiser.layers(SimpleNamespace(network=unet))
    places = [name.split(".")[0] for name in layers]
    assert places == ["down_blocks"] * 24 + ["mid_block"] * 10 + ["up_blocks"] * 36
    assert next(iter(layers)) == "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
    assert sum(layer.in_features for layer in layers.values()) == 332_800


def exact(pipe, prompts, guidance, **call):
    """What the pipeline's own call makes of given noise, as uint8."""
    noise = initial_noise(pipe, [0] * len(prompts or call["prompt_embeds"]))
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np"}
    return (pipe(prompt=prompts, latents=noise, **options, **call).images * 255).round().astype(np.uint8)


@pytest.mark.parametrize("guidance", [5.0, 1.0, 0.0])
@pytest.mark.parametrize("zeros", [True, False])
def test_xl_samples_as_its_pipeline_from_captions_and_from_their_conditioning(zeros, guidance):
    """The unconditional half is the pipeline's own: zeros or the encoded empty prompt."""
    pipe = stable_diffusion_xl(zeros=zeros)
    denoiser, expected = as_denoiser(pipe), exact(pipe, PROMPTS, guidance)
    options = {"steps": STEPS, "guidance_scale": guidance, "progress": False}
    for prompts in (PROMPTS, denoiser.embed(PROMPTS)):
        np.testing.assert_array_equal(memsub.generate(pipe, prompts, **options), expected)
    if guidance > 1:
        other = exact(stable_diffusion_xl(zeros=not zeros), PROMPTS, guidance)
        assert (other != expected).any()


def test_turbo_samples_in_one_step_without_guidance_by_a_sampler_that_draws_noise():
    turbo = d.EulerAncestralDiscreteScheduler(**EULER | {"timestep_spacing": "trailing"})
    pipe, seeds = stable_diffusion_xl(scheduler=turbo), [0, 7]
    for steps in (1, 4):
        options = {"steps": steps, "guidance_scale": 0.0, "progress": False}
        images = memsub.generate(pipe, PROMPTS, seeds=seeds, **options)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = {"num_inference_steps": steps, "guidance_scale": 0.0, "generator": generators, "output_type": "np"}
        np.testing.assert_array_equal(images, (pipe(prompt=PROMPTS, **call).images * 255).round())
        stats = memsub.capture(pipe, PROMPTS, **options)
        assert next(iter(stats.sums.values())).shape[1] == steps
        one_half = memsub.capture(pipe, PROMPTS, cfg_half="cond", **options)
        assert all(torch.equal(stats.sums[name], one_half.sums[name]) for name in stats.sums)


def test_xl_whose_network_takes_the_scale_makes_calls_of_one_half():
    """As LCM's distillation of it: the scale is an input of the network, in sampling and for attacks."""
    pipe = stable_diffusion_xl(time_cond_proj_dim=16)
    denoiser, options = as_denoiser(pipe), {"steps": STEPS, "guidance_scale": 5.0, "progress": False}
    np.testing.assert_array_equal(memsub.generate(pipe, PROMPTS, **options), exact(pipe, PROMPTS, 5.0))
    assert denoiser.call_rows(2, 5.0)[1].tolist() == [True, True]
    memsub.capture(pipe, PROMPTS, **options)
    text, x = denoiser.embed(PROMPTS), initial_noise(pipe, [0, 1])
    with torch.no_grad():
        default, same, other = (
            denoiser.predict(x, torch.tensor(500), each)
            for each in (text, *(replace(text, guidance=torch.full((2,), scale)) for scale in (7.5, 2.0)))
        )
    assert torch.equal(default, same) and not torch.equal(default, other)


def test_the_empty_prompt_is_encoded_as_the_pipeline_does(xl):
    """Zeros stand for no negative prompt; the contrast, a prompt, is none of them."""
    empty, options = as_denoiser(xl).embed([""]), {"steps": STEPS, "guidance_scale": 1.0, "progress": False}
    assert empty.embeddings.any() and empty.pooled.any() and empty.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]]
    np.testing.assert_array_equal(memsub.generate(xl, [""], **options), exact(xl, [""], 1.0))
    np.testing.assert_array_equal(memsub.generate(xl, empty, **options), exact(xl, [""], 1.0))


def test_xl_sizes_reach_the_network(xl):
    text = as_denoiser(xl).embed(PROMPTS)
    cropped = replace(text, time_ids=torch.tensor([[64.0, 48, 8, 4, 32, 32]] * 2))
    sizes = {"original_size": (64, 48), "crops_coords_top_left": (8, 4), "target_size": (32, 32)}
    options = {"steps": STEPS, "guidance_scale": 5.0, "progress": False}
    images = memsub.generate(xl, cropped, **options)
    np.testing.assert_array_equal(images, exact(xl, PROMPTS, 5.0, **sizes))
    assert (images != memsub.generate(xl, text, **options)).any()


def test_attacks_scores_and_baselines_work_on_xl(xl):
    denoiser = as_denoiser(xl)
    scores = first_step_scores(xl, PROMPTS, steps=3, scores=["text magnitude"])
    assert scores["text magnitude"].shape == (2,)
    moved = optimized_embeddings(xl, PROMPTS, target=0.0, steps=3, iterations=2)
    assert moved.pooled.shape == (2, 16) and memsub.generate(xl, moved, steps=1, progress=False).shape[0] == 2
    images = memsub.generate(xl, PROMPTS[:1], steps=1, progress=False)
    text = denoiser.embed(PROMPTS[:1]).with_embeddings(denoiser.embed(PROMPTS[:1]).embeddings.requires_grad_())
    denoiser.predict(denoiser.encode(images), torch.tensor([500]), text).sum().backward()
    assert text.embeddings.grad.any()
    attack = EmbeddingAttack(xl, images, denoiser.embed(PROMPTS[:1]), seed=0)
    assert attack is not None
    assert len(value_layers(denoiser)) == 2 and "text_encoder_2" in denoiser.parts()


def test_other_autoencoders_of_xl(xl):
    pipe, images = copy.copy(xl), memsub.generate(xl, PROMPTS, steps=1, progress=False)
    noise, options = initial_noise(xl, [0, 0]), {"num_inference_steps": 1, "guidance_scale": 7.5, "output_type": "np"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.vae = vae(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]).eval()
    own = pipe(prompt=PROMPTS, latents=noise, **options).images
    np.testing.assert_array_equal(memsub.generate(pipe, PROMPTS, steps=1, progress=False), (own * 255).round())
    half = copy.copy(xl)
    half.vae = copy.deepcopy(xl.vae).half()
    assert half.vae.config.force_upcast
    close = memsub.generate(half, PROMPTS, steps=1, progress=False)
    assert half.vae.dtype == torch.float16 and np.abs(close.astype(int) - images).max() <= 2
    z = as_denoiser(half).encode(images)
    assert z.dtype == torch.float32 and half.vae.dtype == torch.float16
    torch.testing.assert_close(z, as_denoiser(xl).encode(images), atol=1e-2, rtol=1e-2)


def test_text_encoders_may_be_of_another_dtype_than_the_unet(xl):
    pipe = copy.copy(xl)
    pipe.text_encoder, pipe.text_encoder_2 = (copy.deepcopy(e).bfloat16() for e in (xl.text_encoder, xl.text_encoder_2))
    options = {"steps": STEPS, "progress": False}
    images, expected = (memsub.generate(p, PROMPTS, **options).astype(int) for p in (pipe, xl))
    assert 0 < np.abs(images - expected).mean() < 3


def test_xl_without_its_first_text_encoder_works_where_the_unet_is_made_for_it():
    pipe = stable_diffusion_xl(cross_attention_dim=16)
    with pytest.raises(ValueError, match=r"\(text_encoder, text_encoder_2\) give 32 numbers a token, .* takes 16"):
        as_denoiser(pipe)
    pipe.text_encoder = pipe.tokenizer = None
    assert as_denoiser(pipe).tokenizer is pipe.tokenizer_2 and "text_encoder" not in as_denoiser(pipe).parts()
    images = memsub.generate(pipe, PROMPTS, steps=STEPS, guidance_scale=5.0, progress=False)
    np.testing.assert_array_equal(images, exact(pipe, PROMPTS, 5.0))


def test_xl_of_latents_that_are_no_square():
    pipe = stable_diffusion_xl(sample_size=(8, 12))
    assert memsub.generate(pipe, PROMPTS, steps=1, progress=False).shape == (2, 32, 48, 3)
    assert as_denoiser(pipe).embed(["a"]).time_ids.tolist() == [[32, 48, 0, 0, 32, 48]]


def without(*parts):
    return lambda pipe: [setattr(pipe, part, None) for part in parts]


NO_XL = {
    "no second tokenizer": ({}, without("tokenizer_2"), "without tokenizer_2 cannot sample for captions"),
    "no second encoder": ({}, without("text_encoder_2", "tokenizer_2"), "without text_encoder_2, tokenizer_2 cannot"),
    "no first encoder": ({}, without("text_encoder", "tokenizer"), r"\(text_encoder_2\) give 16 numbers .* takes 32"),
    "a tokenizer alone": ({}, without("text_encoder"), "without text_encoder cannot sample"),
    "the refiner": ({"projection_class_embeddings_input_dim": 56}, without(), "it is the refiner of SDXL"),
    "another pooled width": ({"projection_class_embeddings_input_dim": 80}, without(), "takes 80 added numbers, where"),
    "inpainting": ({"in_channels": 9}, without(), "takes 9 channels and gives 4, .*inpainting or editing"),
    "a Stable Diffusion UNet": (
        {"addition_embed_type": None},
        without(),
        "another family .*addition_embed_type None.* for example StableDiffusionPipeline",
    ),
}


@pytest.mark.parametrize("kind", NO_XL)
def test_what_is_no_xl_for_captions_is_refused_in_a_sentence(kind, tmp_path):
    unet, change, sentence = NO_XL[kind]
    pipe = stable_diffusion_xl(**unet)
    change(pipe)
    with pytest.raises(ValueError, match=f"this StableDiffusionXLPipeline: .*{sentence}"):
        memsub.capture(pipe, PROMPTS, progress=False)


NO_CONDITIONING = {
    "of Stable Diffusion": (lambda text: Conditioning(text.embeddings), "this conditioning has no pooled: begin with"),
    "of other widths": (lambda text: replace(text, pooled=text.pooled[:, :8]), "pooled must have 16 numbers .* got 8"),
    "of the refiner": (lambda text: replace(text, time_ids=text.time_ids[:, :5]), "time_ids must have 6 .* got 5"),
    "masked": (lambda text: replace(text, mask=torch.ones(2, 77)), "takes no mask of tokens"),
    "of two sizes": (
        lambda text: replace(text, time_ids=text.time_ids * torch.tensor([[1], [2]])),
        "sample rows with other sizes apart",
    ),
}


@pytest.mark.parametrize("kind", NO_CONDITIONING)
def test_a_conditioning_that_is_no_xls_is_refused_before_a_network_call(xl, kind):
    change, sentence = NO_CONDITIONING[kind]
    text, calls = change(as_denoiser(xl).embed(PROMPTS)), []
    handle = xl.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=sentence):
        memsub.capture(xl, text, steps=1, progress=False)
    handle.remove()
    assert not calls


# --- the generic adapter ----------------------------------------------------------------------------------------------


def test_adapters_of_ones_own_go_first(xl, micro):
    assert type(as_denoiser(xl)) is StableDiffusionXLDenoiser
    assert type(as_denoiser(micro)).__name__ == "StableDiffusionDenoiser"
    assert set(FAMILIES) | {"DiffusionPipeline", "StableDiffusionPipeline"} <= set(ADAPTERS)


def test_the_generic_adapter_tells_that_a_pipeline_was_never_tried(families):
    class ForkOfFluxPipeline(d.DiffusionPipeline):
        __call__, components = d.FluxPipeline.__call__, {"transformer": families("FluxPipeline").transformer}

        def __init__(self):
            self._internal_dict = {}

    pipe = ForkOfFluxPipeline()
    with pytest.warns(UserWarning, match="memsub was never tried with ForkOfFluxPipeline"):
        as_denoiser(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough; and not for those that were tried
        as_denoiser(pipe)
        as_denoiser(families("FluxPipeline"))


@QUIET
def test_streams_of_text_are_left_out(families):
    """Flux and SD3 have a `ff_context` beside each `ff`; the single blocks of Flux have no FeedForward at all."""
    for name in ("FluxPipeline", "StableDiffusion3Pipeline"):
        assert list(denoiser_of(families(name)).layers()) == [f"transformer_blocks.{i}.ff.net.2" for i in (0, 1)]
        assert any("ff_context.net.2" in n for n, _ in families(name).transformer.named_modules())


def test_a_guidance_that_is_an_input_makes_calls_of_one_half(families):
    flux = denoiser_of(families("FluxPipeline"))
    prompts, conditional = flux.call_rows(2, 3.5)
    assert prompts.tolist() == [0, 1] and conditional.all()


@QUIET
def test_what_needs_more_than_the_pipelines_call_says_so(families):
    flux, text = denoiser_of(families("FluxPipeline")), Conditioning(torch.zeros(1, 3, 4))
    image = np.zeros((1, 32, 32, 3), np.uint8)
    needs = "the generic adapter captures, locates, prunes and generates from captions; .* an adapter for FluxPipeline"
    for work in (
        lambda: first_step_scores(flux, PROMPTS, steps=2, scores=["text magnitude"]),
        lambda: optimized_embeddings(flux, PROMPTS, target=0.0),
        lambda: EmbeddingAttack(flux, image, text),
        lambda: memsub.generate(flux, text, progress=False),
        lambda: memsub.capture(flux, text, progress=False),
        flux.value_layers,
    ):
        with pytest.raises(ValueError, match=needs):
            work()


@QUIET
def test_halves_in_calls_of_their_own_are_refused_before_anything_is_sampled(families):
    with pytest.raises(ValueError, match="ChromaPipeline calls its network 2 times a step at guidance_scale=5"):
        memsub.capture(denoiser_of(families("ChromaPipeline")), PROMPTS, guidance_scale=5.0, progress=False)


def test_watching_a_pipeline_leaves_it_as_it_was(families):
    pipe = families("FluxPipeline")
    before = dict(vars(pipe)), dict(vars(pipe.transformer)), dict(vars(pipe.scheduler))
    GenericDenoiser(pipe, **SMALL).call_rows(2, 3.0)
    for owner, old in zip((pipe, pipe.transformer), before, strict=False):
        assert set(vars(owner)) - set(old) <= {
            "_guidance_scale",
            "_joint_attention_kwargs",
            "_current_timestep",
            "_interrupt",
            "_num_timesteps",
        }
    assert "step" not in vars(pipe.scheduler)


def lumina():
    heads = {"num_attention_heads": 2, "num_kv_heads": 2, "hidden_size": 16, "multiple_of": 16}
    return d.LuminaNextDiT2DModel(sample_size=4, num_layers=1, cross_attention_dim=32, ffn_dim_multiplier=None, **heads)


def sana():
    heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2}
    widths = {"cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 8, "sample_size": 8}
    return d.SanaTransformer2DModel(in_channels=4, out_channels=4, num_layers=1, **heads, **widths)


def aura_flow():
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": 16}
    return d.AuraFlowTransformer2DModel(sample_size=4, num_mmdit_layers=1, num_single_dit_layers=1, **heads)


def z_image():
    heads = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 4, 8], "axes_lens": [8, 8, 8]}
    return d.ZImageTransformer2DModel(in_channels=4, n_layers=1, n_refiner_layers=1, cap_feat_dim=16, **heads)


WITHOUT_BLOCKS = {
    lumina: "LuminaFeedForward",
    sana: "GLUMBConv",
    aura_flow: "AuraFlowFeedForward",
    z_image: "FeedForward",  # a namesake
    lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)): "nothing of the kind",
}


@pytest.mark.parametrize("build", WITHOUT_BLOCKS)
def test_a_network_without_feed_forward_blocks_of_diffusers_is_refused(families, build):
    pipe = copy.copy(families("FluxPipeline"))
    denoiser = GenericDenoiser(pipe)
    denoiser.network = build()
    with pytest.raises(
        ValueError, match=rf"holds no FeedForward blocks of diffusers.*has instead: {WITHOUT_BLOCKS[build]}\.\)"
    ):
        denoiser.layers()


NO_TEXT_TO_IMAGE = {
    "DDPMPipeline": "takes no prompt",
    "DiTPipeline": "takes no prompt",
    "StableDiffusionImageVariationPipeline": "takes image",
    "StableDiffusionUpscalePipeline": "takes image",
    "StableDiffusionXLImg2ImgPipeline": "takes image",
    "StableDiffusionXLInpaintPipeline": "takes image, mask_image",
    "StableDiffusionXLControlNetPipeline": "takes image",
    "FluxControlPipeline": "takes control_image",
    "CogVideoXPipeline": "takes num_frames",
    "AnimateDiffPipeline": "takes num_frames",
    "WanPipeline": "takes num_frames",
    "StableVideoDiffusionPipeline": "takes image, num_frames",
    "AudioLDM2Pipeline": "takes no height, no width",
    "StableCascadeDecoderPipeline": "takes no height",
    "StableDiffusionAttendAndExcitePipeline": "needs token_indices beside the prompt",
}


@pytest.mark.parametrize("kind", NO_TEXT_TO_IMAGE)
def test_what_makes_no_images_of_text_is_refused_by_name(kind):
    pipe = object.__new__(getattr(d, kind))  # its call is looked at first, before any part
    with pytest.raises(ValueError, match=f"{kind} is no text-to-image pipeline .* its call {NO_TEXT_TO_IMAGE[kind]}"):
        memsub.capture(pipe, PROMPTS, progress=False)


@QUIET
def test_a_pipeline_that_cannot_be_watched_says_so(families):
    """As self-attention guidance, which looks into the network while it computes."""
    pipe = copy.copy(families("StableDiffusion3Pipeline"))
    pipe.prepare_latents = lambda *_, latents=None: None.shape
    with pytest.raises(ValueError, match=r"StableDiffusion3Pipeline cannot be watched: .* ends in AttributeError"):
        memsub.capture(pipe, PROMPTS, progress=False)


@QUIET
def test_perturbed_attention_guidance_is_refused_until_it_is_off(xl):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = d.StableDiffusionXLPAGPipeline(**xl.components, add_watermarker=False, pag_applied_layers=["mid"])
        pipe.set_progress_bar_config(disable=True)
        with pytest.raises(ValueError, match=r"calls its network on 6 rows for 3 prompts.*Switch off perturbed"):
            memsub.capture(pipe, PROMPTS, guidance_scale=1.0, progress=False)
        stats = memsub.capture(GenericDenoiser(pipe, pag_scale=0.0), PROMPTS, steps=STEPS, progress=False)
    own = memsub.capture(xl, PROMPTS, steps=STEPS, progress=False)
    for name, sums in own.sums.items():
        torch.testing.assert_close(stats.sums[name], sums)


@QUIET
def test_a_block_that_is_called_twice_in_a_call_is_refused_by_its_name(families):
    """As in CogView4, where both streams go through one `ff`."""
    pipe = copy.deepcopy(families("StableDiffusion3Pipeline"))
    feed_forward = pipe.transformer.transformer_blocks[0].ff
    own = feed_forward.forward
    feed_forward.forward = lambda hidden: own(own(hidden))
    with pytest.raises(RuntimeError, match=r"layer transformer_blocks\.0\.ff\.net\.2 was called 2 times"):
        memsub.capture(pipe, PROMPTS, steps=STEPS, progress=False)


def test_options_that_the_pipeline_does_not_take_are_refused(families):
    with pytest.raises(ValueError, match="the call of FluxPipeline takes no size"):
        GenericDenoiser(families("FluxPipeline"), size=3)
