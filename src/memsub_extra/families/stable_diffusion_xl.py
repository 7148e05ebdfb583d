"""The adapter for diffusers' `StableDiffusionXLPipeline`: base, turbo and other distilled models.

    pipe = StableDiffusionXLPipeline.from_pretrained(...)       # memsub finds the adapter itself
    stats, null = capture(pipe, prompts), capture(pipe, [""])
    turbo = {"steps": 1, "guidance_scale": 0.0}                 # options of capture and generate

The conditioning of a prompt has the token embeddings of both text encoders, the pooled embedding of the second one, and
six more numbers: original size, crop and target size, with the pipeline's defaults (the size of the image, no crop).

SDXL has two kinds of empty prompt. The prompt "" is encoded like any other in `capture(pipe, [""])` (the contrast), in
`embed([""])` and in `pipe(prompt="")`. The unconditional half of a guided call is the pipeline's default negative
prompt: zeros if its configuration has `force_zeros_for_empty_prompt` (the base model), else "". There is no watermark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memsub.models import Conditioning, StableDiffusionDenoiser
from memsub.models.stable_diffusion import evaluated, limit_captions

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

ADDED = 6
"""Number of added values: height and width of the original, top and left of its crop, target height and width."""


class StableDiffusionXLDenoiser(StableDiffusionDenoiser):
    """See `Denoiser`, and `StableDiffusionDenoiser` for all members that are not overridden.

    Raises:
        ValueError: the parts of the pipeline are of another family, or do not fit together (`refuses`).
    """

    def __init__(self, pipe: StableDiffusionXLPipeline):
        super().__init__(pipe)
        limit_captions(pipe.tokenizer_2, pipe.text_encoder_2)
        self.tokenizer = pipe.tokenizer or pipe.tokenizer_2

    @staticmethod
    def refuses(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Why models of these configurations, by part, are no SDXL for captions: at most one sentence."""
        return _refused(configs)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """As in the protocol, with pooled embeddings and time ids; without gradients."""
        tokens, _, pooled, _ = self._encoded({"prompt": list(prompts)}, False)
        ids = torch.tensor([[*self.image_shape, 0, 0, *self.image_shape]], dtype=self.dtype, device=self.device)
        return Conditioning(tokens, pooled, ids.repeat(len(tokens), 1))

    @torch.no_grad()
    def _encoded(self, text: Mapping[str, Any], guided: bool) -> list[Any]:
        """The pipeline's token embeddings, those of the unconditional half, and the pooled embeddings of both.

        They are cast, because text encoders may have another dtype than the network.
        """
        with evaluated(self.pipe.text_encoder, self.pipe.text_encoder_2):
            encoded = self.pipe.encode_prompt(**text, device=self.device, do_classifier_free_guidance=guided)
        return [None if tensor is None else tensor.to(self.device, self.dtype) for tensor in encoded]

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """As in the protocol; raises ValueError like `_check_conditioning`.

        A network that takes the guidance scale gets that of the conditioning, or 7.5.
        """
        self._check_conditioning(conditioning)
        text = conditioning.to(dtype=self.dtype)
        options: dict[str, Any] = {"added_cond_kwargs": {"text_embeds": text.pooled, "time_ids": text.time_ids}}
        if width := self.network.config.time_cond_proj_dim:
            scales = torch.full((len(text),), 7.5) if text.guidance is None else text.guidance.float()
            scales = self.pipe.get_guidance_scale_embedding(scales - 1, embedding_dim=width)
            options["timestep_cond"] = scales.to(latents)
        with evaluated(self.network):
            return self._called(latents, t, encoder_hidden_states=text.embeddings, return_dict=False, **options)[0]

    def _call_arguments(self, prompts: list[str] | Conditioning, guidance_scale: float) -> dict[str, Any]:
        text: dict[str, Any] = {"prompt": prompts}
        sizes: dict[str, Any] = dict(zip(("height", "width"), self.image_shape, strict=True))
        if isinstance(prompts, Conditioning):
            self._check_conditioning(prompts)
            text = {"prompt": None, "prompt_embeds": prompts.embeddings, "pooled_prompt_embeds": prompts.pooled}
            sizes |= _sizes(prompts)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return sizes | dict(zip(names, self._encoded(text, self._guided(guidance_scale)), strict=True))

    def _check_conditioning(self, conditioning: Conditioning) -> None:
        """Raises ValueError for a conditioning that is not of this model, before anything is computed of it."""
        config = self.network.config
        pooled = self.network.add_embedding.linear_1.in_features - ADDED * config.addition_time_embed_dim
        widths = {"embeddings": config.cross_attention_dim, "pooled": pooled, "time_ids": ADDED}
        tensors = conditioning.tensors()
        for name, width in widths.items():
            if name not in tensors:
                raise ValueError(
                    f"Stable Diffusion XL takes embeddings, pooled and time_ids; this conditioning has no {name}: "
                    "begin with denoiser.embed(prompts), and change its embeddings by with_embeddings."
                )
            if tensors[name].shape[-1] != width:
                raise ValueError(f"{name} must have {width} numbers a row or token; got {tensors[name].shape[-1]}.")
        if conditioning.mask is not None:
            raise ValueError("Stable Diffusion XL takes no mask of tokens; this conditioning has one.")

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """As in the protocol."""
        with _without_overflow(self.pipe.vae) as vae:
            latents = super().encode(images)
        mean, std = _statistics(latents, vae)
        return (latents - mean) / std

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """As in the protocol; without a watermark."""
        with _without_overflow(self.pipe.vae) as vae:
            mean, std = _statistics(latents, vae)
            return super().decode(latents * std + mean)


@contextmanager
def _without_overflow(vae: Any) -> Iterator[Any]:
    """The autoencoder in float32 if it is stored in float16 and would overflow there, as SDXL's own does."""
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast")
    try:
        yield vae.to(torch.float32) if upcast else vae
    finally:
        if upcast:
            vae.to(torch.float16)  # the same bits as before


def _statistics(latents: torch.Tensor, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, scaled: some autoencoders have them besides a scale (Playground v2.5)."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return latents.new_zeros(()), latents.new_ones(())
    scale = vae.config.scaling_factor
    return latents.new_tensor(mean)[:, None, None] * scale, latents.new_tensor(std)[:, None, None]


def _sizes(conditioning: Conditioning) -> dict[str, tuple[int, int]]:
    """Size arguments of the pipeline's call, from `time_ids`; raises ValueError if they differ within the batch."""
    ids = conditioning.time_ids
    assert ids is not None
    if (ids != ids[:1]).any():
        raise ValueError("images of one batch have the same time_ids in SDXL: sample rows with other sizes apart.")
    numbers = [round(number) for number in ids[0].tolist()]
    pairs = [(numbers[i], numbers[i + 1]) for i in (0, 2, 4)]
    return dict(zip(("original_size", "crops_coords_top_left", "target_size"), pairs, strict=True))


# --- what is no SDXL for captions -------------------------------------------------------------------------------------


def _refused(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """As `StableDiffusionXLDenoiser.refuses`."""
    index, unet = configs[""], configs.get("unet", {})
    lacking = [part for part in ("unet", "vae", "scheduler") if (index.get(part) or [None])[0] is None]
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        missing = [part for part in (encoder, tokenizer) if (index.get(part) or [None])[0] is None]
        if len(missing) == 1 or encoder == "text_encoder_2":
            lacking += missing  # some models have no first encoder, and no tokenizer of it
    if lacking:
        return [f"an SDXL without {', '.join(lacking)} cannot sample for captions: load it with all of its parts."]
    if unet.get("addition_embed_type") != "text_time":
        kind = unet.get("addition_embed_type")
        return [
            f"its UNet is of another family (addition_embed_type {kind!r}, where SDXL has 'text_time'): load it by the "
            "pipeline of that family, for example StableDiffusionPipeline."
        ]
    inputs, latents = unet.get("in_channels", 4), configs.get("vae", {}).get("latent_channels", 4)
    if inputs != latents or inputs != unet.get("out_channels", 4):
        return [
            f"its UNet takes {inputs} channels and gives {unet.get('out_channels', 4)}, where its autoencoder has "
            f"{latents}: it is one for inpainting or editing. memsub takes text-to-image models alone."
        ]
    return _of_other_text(configs)


def _of_other_text(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why text encoders and UNet do not fit together: at most one sentence."""
    unet, index = configs["unet"], configs[""]
    encoders = [p for p in ("text_encoder", "text_encoder_2") if (index.get(p) or [None])[0] is not None]
    width, pooled = unet.get("addition_time_embed_dim") or 0, configs["text_encoder_2"].get("projection_dim", 512)
    inputs = unet.get("projection_class_embeddings_input_dim")
    if inputs == 5 * width + pooled:
        return [
            "it is the refiner of SDXL (its UNet takes an aesthetic score in place of a size), which repaints images: "
            "load the base model."
        ]
    if inputs != ADDED * width + pooled:
        return [
            f"its UNet takes {inputs} added numbers, where {ADDED} sizes and a pooled embedding of {pooled} make "
            f"{ADDED * width + pooled}: UNet and text_encoder_2 are of different models."
        ]
    tokens, taken = sum(configs[e].get("hidden_size", 512) for e in encoders), unet.get("cross_attention_dim", 1280)
    if tokens != taken:
        return [
            f"its text encoders ({', '.join(encoders)}) give {tokens} numbers a token, where the UNet takes {taken}: "
            "an encoder is missing, or of another model."
        ]
    return []
