"""What people do to a pipeline, and what becomes of a capture then: the table in docs/what-works.md.

`tests/test_weights.py` tries every row, and `python -m tools.what_works` writes the page. A row that works gives the
sums and the edit of the plain pipeline (or, where numbers change, is captured and edited, and restored bit for bit). A
row that is refused ends with its sentence, before anything is sampled or at the first network call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch.nn.utils import parametrizations, prune

LAYER = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"


@dataclass(frozen=True)
class Kind:
    """`change` does it to a pipeline. `refused` is the sentence; empty: works, with the `same` numbers or others."""

    what: str
    change: Callable[[Any], Any]
    refused: str = ""
    same: bool = True
    needs: str = ""
    slow: bool = False


def mid_block(pipe: Any) -> Any:
    return pipe.unet.mid_block.attentions[0].transformer_blocks[0]


def compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_and_used(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")
    pipe(["a"], num_inference_steps=1, output_type="latent")


def one_block_compiled(pipe: Any) -> None:
    mid_block(pipe).ff = torch.compile(mid_block(pipe).ff, backend="eager")
    mid_block(pipe).ff.net[2] = torch.compile(mid_block(pipe).ff.net[2], backend="eager")


def blocks_compiled(pipe: Any) -> None:
    for module in pipe.unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.compile(backend="eager")


def chunks(size: int, dim: int) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        for module in pipe.unet.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(size, dim)

    return change


def own_chunks(pipe: Any) -> None:
    forward = mid_block(pipe).ff.forward
    mid_block(pipe).ff.forward = lambda hidden: torch.cat([forward(part) for part in hidden.chunk(2)])


def cached(pipe: Any) -> None:
    last: list[torch.Tensor] = []
    forward = mid_block(pipe).forward

    def every_other(*args: Any, **kwargs: Any) -> torch.Tensor:
        last[:] = [] if last else [forward(*args, **kwargs)]
        return last[0] if last else args[0]

    mid_block(pipe).forward = every_other


def adapter(names: list[str], fused: bool = False, unloaded: bool = False) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        import peft

        config = peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=names)
        pipe.unet.add_adapter(config, adapter_name="style")
        if fused:
            pipe.fuse_lora(components=["unet"])
        if unloaded:
            pipe.unload_lora_weights()

    return change


def adapter_by_a_script(pipe: Any) -> None:
    layer = mid_block(pipe).ff.net[2]
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def hook_on_the_output(pipe: Any) -> None:
    mid_block(pipe).ff.net[2].register_forward_hook(lambda module, args, output: 2 * output)


def sequential_offload(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))


def quantized(pipe: Any) -> None:
    class Packed(torch.Tensor):
        pass

    layer = mid_block(pipe).ff.net[2]
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed))


def tied(pipe: Any) -> None:
    one, other = (block.transformer_blocks[0].ff.net[2] for block in pipe.unet.up_blocks[0].attentions)
    other.weight = one.weight


def frozen_in_inference_mode(pipe: Any) -> None:
    with torch.inference_mode():
        for module in pipe.unet.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.clone(), requires_grad=False))


def processors(pipe: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())


def training_mode(pipe: Any) -> None:
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    pipe.unet.train()


def ip_adapter(pipe: Any) -> None:
    pipe.unet.encoder_hid_proj = torch.nn.Linear(16, 16)


def float8(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def tiny_autoencoder(pipe: Any) -> None:
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    channels = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    pipe.vae = AutoencoderTiny(**blocks, **channels).eval()


def merged_tokens(pipe: Any) -> None:
    """As the package tomesd does: blocks of another class."""

    class Merging(type(mid_block(pipe))):  # type: ignore[misc]
        pass

    mid_block(pipe).__class__ = Merging


def autocast(pipe: Any) -> None:
    forward = pipe.unet.forward

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    pipe.unet.forward = cast


def exported(pipe: Any) -> None:
    mid_block(pipe).ff = torch.jit.trace(mid_block(pipe).ff, torch.zeros(2, 64, 16))


def broadcast(pipe: Any) -> None:
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    options = {"cross_attention_block_skip_range": 2, "cross_attention_block_identifiers": ("transformer_blocks",)}
    config = PyramidAttentionBroadcastConfig(**options, current_timestep_callback=lambda: 500)
    apply_pyramid_attention_broadcast(pipe.unet, config)


NOT_PLAIN = "is no plain linear map with a floating weight, but "
FUSE = "fuse the adapter first: pipe.fuse_lora(), then pipe.unload_lora_weights()"
KINDS = [
    Kind("`pipe.unet = torch.compile(pipe.unet)`", compiled, slow=True),
    Kind("`pipe.unet.compile()`, and used before", compiled_and_used, slow=True),
    Kind("single blocks or layers under `torch.compile`", one_block_compiled),
    Kind("`pipe.unet.compile_repeated_blocks()`", blocks_compiled, slow=True),
    Kind("feed-forward layers in chunks of rows (`set_chunk_feed_forward(1, dim=0)`)", chunks(1, 0)),
    Kind("in chunks of tokens (`set_chunk_feed_forward(16, dim=1)`)", chunks(16, 1)),
    Kind("code that calls a feed-forward layer in parts of its own", own_chunks, "was called 2 times"),
    Kind("caching helpers that skip blocks (DeepCache, FasterCache)", cached, "was called 0 times in network call 1"),
    Kind("diffusers' own caches (pyramid attention broadcast)", broadcast, "keeps what it returned at earlier steps"),
    Kind("blocks exported by TorchScript", exported, "is exported (TorchScript) and calls no hooks: load it again"),
    Kind("a network under `torch.autocast`", autocast, same=False),
    Kind("`enable_model_cpu_offload()`", lambda pipe: pipe.enable_model_cpu_offload(device="cpu")),
    Kind("sequential offload", sequential_offload, NOT_PLAIN + "offloaded: load the model without sequential"),
    Kind("`unet.to(memory_format=torch.channels_last)`", lambda p: p.unet.to(memory_format=torch.channels_last)),
    Kind("layerwise casting to float8", float8, same=False),
    Kind("weights in float8", lambda pipe: mid_block(pipe).ff.net[2].to(torch.float8_e4m3fn), NOT_PLAIN + "stored as"),
    Kind("quantized weights (torchao, bitsandbytes)", quantized, NOT_PLAIN + "stored as Packed of torch.float32"),
    Kind(
        "weight normalization and other parametrizations",
        lambda pipe: parametrizations.weight_norm(mid_block(pipe).ff.net[2]),
        NOT_PLAIN + "parametrized: call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first",
    ),
    Kind(
        "masks of `torch.nn.utils.prune`",
        lambda pipe: prune.random_unstructured(mid_block(pipe).ff.net[2], "weight", 0.1),
        NOT_PLAIN + "computed at each call: call torch.nn.utils.prune.remove(layer, 'weight') or its like first",
    ),
    Kind("a LoRA on feed-forward layers, not fused", adapter(["ff.net.2"]), f"but peft's Linear: {FUSE}", needs="peft"),
    Kind("a LoRA, fused", adapter(["ff.net.2"], fused=True), same=False, needs="peft"),
    Kind("a LoRA, fused and unloaded", adapter(["ff.net.2"], True, True), same=False, needs="peft"),
    Kind("a LoRA on attention alone, not fused", adapter(["to_v"]), same=False, needs="peft"),
    Kind("an adapter that replaces `forward`", adapter_by_a_script, NOT_PLAIN + "one whose `forward` was replaced"),
    Kind("a hook that changes a layer's output", hook_on_the_output, "is not that of its weight"),
    Kind("tied weights", tied, same=False),
    Kind("weights that ask for gradients", lambda pipe: pipe.unet.requires_grad_(True)),
    Kind("gradient checkpointing", lambda pipe: pipe.unet.enable_gradient_checkpointing()),
    Kind("weights made in inference mode", frozen_in_inference_mode),
    Kind("training mode, with dropout", training_mode),
    Kind("`set_attn_processor`", processors),
    Kind("`fuse_qkv_projections()`", lambda pipe: pipe.unet.fuse_qkv_projections(), same=False),
    Kind("`enable_freeu()`", lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6), same=False),
    Kind("token merging", merged_tokens),
    Kind("an IP-Adapter", ip_adapter, "needs an image beside the prompt: call pipe.unload_ip_adapter() first"),
    Kind("a tiny autoencoder (`AutoencoderTiny`)", tiny_autoencoder),
    Kind("`enable_vae_slicing()`, `enable_vae_tiling()`", lambda p: (p.vae.enable_slicing(), p.vae.enable_tiling())),
    Kind(
        "network and text encoder in bfloat16, autoencoder in float32",
        lambda pipe: (pipe.unet.to(torch.bfloat16), pipe.text_encoder.to(torch.bfloat16)),
        same=False,
    ),
    Kind("the text encoder in another dtype", lambda pipe: pipe.text_encoder.to(torch.float64), same=False),
]


def changed(pipe: Any, kind: Kind) -> Any:
    """A copy of the pipeline to which it was done."""
    pipe = copy.deepcopy(pipe)
    kind.change(pipe)
    return pipe
