"""The adapter: everything the library needs of a model, shown by a model that is no Stable Diffusion at all."""

import copy
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler, RePaintScheduler
from diffusers.configuration_utils import FrozenDict
from torch.nn.utils import parametrizations, prune

import memsub
from memsub.models import (
    ADAPTERS,
    Denoiser,
    StableDiffusionDenoiser,
    as_denoiser,
    check_model,
    check_plain,
    fingerprint,
    sampler_fingerprint,
)
from memsub_extra.mitigations import optimized_embeddings
from memsub_extra.mitigations.base import declare
from memsub_extra.mitigations.detection import first_step_scores
from micro import CAPTIONS, micro_pipeline
from toys import Toy

LAYER = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=["diffusion", "flow"])
def test_the_whole_method_works_on_another_kind_of_model(scheduler):
    toy = Toy(scheduler)
    assert isinstance(toy, Denoiser)
    options = {"steps": 3, "progress": False}
    both, null = memsub.capture(toy, ["a", "a longer one"], **options), memsub.capture(toy, [""], **options)
    conditional = memsub.capture(toy, ["a", "a longer one"], cfg_half="cond", **options)
    assert both.sums["second"].shape == (1, 3, 12)
    assert (both.sums["second"] >= conditional.sums["second"]).all()
    edit = memsub.locate(toy, both, null).union(steps=3)
    assert edit.provenance["sparsity"] == 0.01  # not in the registry: the paper's
    before = memsub.generate(toy, ["a"], **options)
    with memsub.pruned(toy, edit):
        assert (toy.network.second.weight.view(-1)[edit.positions["second"]] == 0).all()
    np.testing.assert_array_equal(memsub.generate(toy, ["a"], **options), before)
    scores = first_step_scores(toy, ["a", "bb"], steps=3, scores=["text magnitude"])
    assert scores["text magnitude"].shape == (2,)
    moved = optimized_embeddings(toy, ["a"], target=0.0, steps=3, iterations=2)
    assert moved.embeddings.shape == (1, 3, 4) and memsub.generate(toy, moved, **options).shape == before.shape


def test_an_unknown_pipeline_is_named():
    with pytest.raises(TypeError, match="object is no pipeline that memsub knows; expected StableDiffusionPipeline"):
        as_denoiser(object())


def test_an_adapter_is_a_line_of_the_registry(monkeypatch):
    class OtherPipeline:
        pass

    monkeypatch.setitem(ADAPTERS, "OtherPipeline", lambda pipe: Toy())
    assert as_denoiser(OtherPipeline()).source == "toy"


def test_stable_diffusion_through_the_adapter(micro):
    denoiser = as_denoiser(micro)
    assert isinstance(denoiser, StableDiffusionDenoiser) and isinstance(denoiser, Denoiser)
    assert as_denoiser(denoiser) is denoiser and denoiser.scheduler is micro.scheduler
    assert (denoiser.latent_shape, denoiser.image_shape) == ((4, 8, 8), (32, 32))
    assert len(denoiser.embed(["a", "b"])) == 2
    prompt, conditional = denoiser.call_rows(3, 7.5)
    assert prompt.tolist() == [0, 1, 2, 0, 1, 2]
    assert conditional.tolist() == [False] * 3 + [True] * 3
    assert denoiser.call_rows(2, 1.0)[1].tolist() == [True, True]


NO_PLAIN = {
    "inpainting": (lambda: micro_pipeline(in_channels=9), "9 input and 4 output channels, as for inpainting"),
    "numbered classes": (lambda: micro_pipeline(num_class_embeds=3), "class embeddings"),
    "addition embeddings": (
        lambda: micro_pipeline(addition_embed_type="text", addition_embed_type_num_heads=4),
        "addition embeddings",
    ),
    "no size": (lambda: micro_pipeline(sample_size=None), "no sample_size"),
    "another text encoder": (lambda: micro_pipeline(cross_attention_dim=32), "cross-attention of 32 numbers"),
    "another autoencoder": (
        lambda: with_part("vae", AutoencoderKL(latent_channels=16)),
        "4 channels where its autoencoder has 16",
    ),
    "flow matching": (lambda: with_part("scheduler", FlowMatchEulerDiscreteScheduler()), "a sampler for flow matching"),
    "repainting": (lambda: with_part("scheduler", RePaintScheduler()), "the sampler RePaintScheduler"),
}


def with_part(name, part):
    pipe = micro_pipeline()
    setattr(pipe, name, part)
    return pipe


@pytest.mark.parametrize("kind", NO_PLAIN)
def test_a_pipeline_that_is_no_plain_stable_diffusion_is_refused_before_anything_runs(kind):
    build, sentence = NO_PLAIN[kind]
    with pytest.raises(ValueError, match=f"this StableDiffusionPipeline: it has {sentence}.*no plain Stable Diffusion"):
        as_denoiser(build())


class Wrapper(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.inner, self.config, self.down_blocks = unet, unet.config, [*unet.down_blocks]

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_module_around_the_network_is_refused_by_its_name():
    pipe = micro_pipeline()
    pipe.unet = Wrapper(pipe.unet)
    with pytest.raises(ValueError, match=r"pipe\.unet is a Wrapper, where a UNet is expected, .* put the one that it"):
        as_denoiser(pipe)


def test_decoding_is_the_inverse_of_encoding(pipe, prompts):
    denoiser, images = as_denoiser(pipe), prompts.images("verbatim", 0, 2)
    assert np.abs(denoiser.decode(denoiser.encode(images)).astype(int) - images).mean() < 8


def test_a_sampler_s_fingerprint_is_the_same_in_every_process(micro):
    """diffusers keeps the names of options that were left out in a set, whose order changes from process to process."""
    other = copy.copy(micro)
    other.scheduler = copy.copy(micro.scheduler)
    left_out = list(micro.scheduler.config["_use_default_values"])
    other.scheduler._internal_dict = FrozenDict({**micro.scheduler.config, "_use_default_values": left_out[::-1]})
    assert len(left_out) > 1
    assert sampler_fingerprint(other) == sampler_fingerprint(micro)


def test_fingerprints_tell_what_changed(micro):
    pipe = deepcopy(micro)
    network, sampler = fingerprint(pipe), sampler_fingerprint(pipe)
    assert (network, sampler) == (fingerprint(micro), sampler_fingerprint(micro))
    weight = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[0, 0] += 1
    assert fingerprint(pipe) == network  # an edit still belongs to the network
    assert sampler_fingerprint(pipe) != sampler  # but images change
    check_model(pipe, network, "this edit was made for")
    pipe = deepcopy(micro)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    assert fingerprint(pipe) == network and sampler_fingerprint(pipe) != sampler
    with torch.no_grad():
        as_denoiser(pipe).layers()[LAYER].weight[0, 0] += 1
    assert fingerprint(pipe) != network
    with pytest.raises(ValueError, match=f"this edit was made for another model: .* {network[:12]}, .* already edited"):
        check_model(pipe, network, "this edit was made for")


def test_a_loop_of_unknown_length_declares_its_bound_to_a_model_that_counts(micro):
    declare(micro, 5)  # a model that does not count ignores it
    toy, rows = Toy(), []
    toy.declare = rows.append
    declare(toy, 5)
    assert rows == [5]


# --- layers whose weight is not what they multiply with ---


class Adapted(torch.nn.Module):
    """As peft wraps a layer: the weight below it is not the effective one."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.weight = layer, layer.weight


class Packed(torch.Tensor):
    """As torchao stores a weight: a tensor of another class."""


def prune_by_torch(layer):
    prune.random_unstructured(layer, "weight", 0.1)
    return layer


def pack(layer):
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))
    return layer


NOT_PLAIN = {
    "an adapter that is not fused": (Adapted, "test_denoiser's Adapted: fuse the adapter first: pipe.fuse_lora()"),
    "parametrized": (parametrizations.weight_norm, "parametrized: call .*remove_parametrizations"),
    "pruned by torch": (prune_by_torch, "computed at each call: call torch.nn.utils.prune.remove"),
    "quantized": (pack, "stored as Packed of torch.float32: load the model in a plain floating dtype"),
    "stored in 8 bits": (lambda layer: layer.to(torch.float8_e4m3fn), "stored as Parameter of torch.float8_e4m3fn"),
    "offloaded": (lambda layer: layer.to("meta"), "offloaded: load the model without sequential offloading"),
    "of another class": (lambda layer: torch.nn.Conv2d(1, 1, 1), "torch's Conv2d: load the model without quantization"),
}


@pytest.mark.parametrize("change", NOT_PLAIN)
def test_a_layer_that_is_not_plain_is_refused_by_one_rule(micro, change):
    make, message = NOT_PLAIN[change]
    pipe = deepcopy(micro)
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff
    block.net[2] = make(block.net[2])
    with pytest.raises(ValueError, match=f"layer {LAYER} is no plain linear map with a floating weight, but {message}"):
        memsub.capture(pipe, ["a"], steps=1, progress=False)


def test_a_convolution_pruned_by_torch_is_refused_in_the_same_words(micro):
    pipe = deepcopy(micro)
    prune_by_torch(pipe.unet.conv_in)
    shape = tuple(pipe.unet.conv_in.weight.shape)
    edit = memsub.Edit({"conv_in": torch.tensor([3])}, {"conv_in": shape}, {"model": fingerprint(pipe)})
    with pytest.raises(
        ValueError, match=r"layer conv_in .* computed at each call: call torch\.nn\.utils\.prune\.remove"
    ):
        edit.apply(pipe)


def test_a_held_denoiser_follows_its_pipelines_scheduler(micro):
    pipe = deepcopy(micro)
    denoiser = as_denoiser(pipe)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    assert denoiser.scheduler is pipe.scheduler and denoiser.calls(4) == 5


def test_an_adapter_of_peft_is_refused_until_it_is_fused(micro):
    peft, pipe = pytest.importorskip("peft"), deepcopy(micro)
    config = peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["ff.net.2"])
    pipe.unet.add_adapter(config, adapter_name="style")
    with pytest.raises(ValueError, match="but peft's Linear: fuse the adapter first"):
        as_denoiser(pipe).layers()
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    assert not torch.equal(as_denoiser(pipe).layers()[LAYER].weight, as_denoiser(micro).layers()[LAYER].weight)


def test_a_network_of_shapes_alone_has_layers_and_an_offloaded_one_has_none(micro):
    from accelerate import cpu_offload

    pipe = deepcopy(micro)
    pipe.unet.to("meta")
    assert len(as_denoiser(pipe).layers()) == 4
    pipe = deepcopy(micro)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="but offloaded"):
        as_denoiser(pipe).layers()
    edit = memsub.Edit({LAYER: torch.tensor([3])}, {LAYER: (16, 64)}, {"model": fingerprint(micro)})
    with pytest.raises(ValueError, match="is offloaded: load the model without sequential offloading"):
        edit.apply(pipe)


def test_plain_layers_are_accepted():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_plain("layer", torch.nn.Linear(2, 2, dtype=dtype))


@pytest.mark.parametrize("length", [None, int(1e30), 100])
def test_a_tokenizer_without_a_length_takes_that_of_its_text_encoder(length):
    """1e30 is what transformers writes for a tokenizer whose files say none."""
    plain, pipe = micro_pipeline(), micro_pipeline()
    del pipe.tokenizer.model_max_length
    if length:
        pipe.tokenizer.model_max_length = length
    expected = memsub.as_denoiser(plain).embed(CAPTIONS)
    assert torch.equal(memsub.as_denoiser(pipe).embed(CAPTIONS).embeddings, expected.embeddings)
    assert pipe.tokenizer.model_max_length == plain.tokenizer.model_max_length
