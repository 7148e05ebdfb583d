"""What is loaded is known before it is read: folders and single files, right, or refused by a sentence."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import memsub
from memsub.models import ADAPTERS, find_contents, find_model, inspect, model_of
from single_file import save_single_file, single_file_tensors

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "progress": False}
UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.fixture(scope="module")
def saved(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    micro.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def file(micro, tmp_path_factory):
    return save_single_file(micro, tmp_path_factory.mktemp("file") / "dreamy.safetensors")


def changed(path: Path, **entries) -> None:
    """A configuration with other entries; None removes one."""
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "removed"}))


def refused(path, match, **options):
    """It is refused by a sentence that says so, before any weight is read."""
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        memsub.load_pipeline(path, device="cpu", **options)
    assert not isinstance(caught.value, UnicodeError | json.JSONDecodeError)
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.fixture
def no_weights_read(monkeypatch):
    import diffusers

    def fail(*args, **kwargs):
        pytest.fail("weights were read")

    for name in ("from_pretrained", "from_single_file"):
        monkeypatch.setattr(diffusers.StableDiffusionPipeline, name, fail)


def same_weights(one, other):
    for part in ("unet", "vae", "text_encoder"):
        weights, others = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)


# --- what loads -------------------------------------------------------------------------------------------------------


def test_a_single_file_is_the_pipeline_that_it_was_made_of(micro, saved, file):
    pipe = memsub.load_pipeline(file, device="cpu", config=saved)
    same_weights(pipe, micro)
    assert memsub.fingerprint(pipe) == memsub.fingerprint(micro)
    one, other = (memsub.capture(p, ["a red heart"], **OPTIONS).sums for p in (pipe, micro))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert model_of(pipe).source == str(file)


def test_the_embedded_model_loads_from_a_single_file(pipe, tmp_path):
    """Its UNet is of a class of its own, with rows of another width: both come from the configuration."""
    file = save_single_file(pipe, tmp_path / "tiny.safetensors")
    again = memsub.load_pipeline(file, device="cpu", config=find_model("tiny").source)
    same_weights(again, pipe)
    assert memsub.fingerprint(again) == memsub.fingerprint(pipe)


def test_a_single_file_says_what_it_needs_without_a_network(file):
    assert "give --config FOLDER" in refused(file, "configuration and tokenizer of its family are not on this machine")


def test_the_prediction_type_is_what_is_asked_for(saved, file):
    pipe = memsub.load_pipeline(file, device="cpu", config=saved, prediction_type="v_prediction")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    pipe = memsub.load_pipeline(saved, device="cpu", prediction_type="v_prediction")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    refused(saved, "prediction type|predicts 'velocity'", prediction_type="velocity")


def second_edition(tmp_path, **more):
    """A file of Stable Diffusion 2's width, all else being tiny."""
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024),
        "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
        "cond_stage_model.model.token_embedding.weight": (8, 1024),
    } | more
    path = tmp_path / "second.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, path)
    return path


def test_the_prediction_type_of_a_second_edition_is_asked_not_guessed(tmp_path, folder):
    file = second_edition(tmp_path)
    message = refused(file, "does not say what its network predicts")
    assert "epsilon" in message and "v_prediction" in message
    assert not inspect(file, prediction_type="v_prediction").problems
    changed(folder / "unet" / "config.json", cross_attention_dim=1024)
    changed(folder / "text_encoder" / "config.json", hidden_size=1024)
    assert not inspect(file, config=folder).problems  # the sampler there says it
    assert inspect(file, config=folder).prediction_type == "epsilon"
    changed(folder / "scheduler" / "scheduler_config.json", prediction_type="removed")
    assert "does not say" in inspect(file, config=folder).problems[0]


def test_a_file_may_say_itself_what_its_network_predicts(tmp_path):
    assert inspect(second_edition(tmp_path, v_pred=(1,))).prediction_type == "v_prediction"


def test_variants_and_shards_load(micro, tmp_path):
    micro.save_pretrained(tmp_path / "variant", variant="fp16")
    assert inspect(tmp_path / "variant").variant == "fp16"
    same_weights(memsub.load_pipeline(tmp_path / "variant", device="cpu"), micro)
    micro.save_pretrained(tmp_path / "shards", max_shard_size="100KB", variant="fp16")
    assert list((tmp_path / "shards" / "unet").glob("*-of-*"))
    same_weights(memsub.load_pipeline(tmp_path / "shards", device="cpu"), micro)


def test_a_folder_may_lack_parts_that_nothing_needs(micro, folder):
    entry = ["transformers", "CLIPImageProcessor"]
    changed(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    changed(folder / "model_index.json", feature_extractor=entry, image_encoder="removed")
    same_weights(memsub.load_pipeline(folder, device="cpu"), micro)


def test_home_folders_and_relative_paths(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.chdir(saved.parent)
    for name in ("~/model", "./model", "model", "model/"):
        assert Path(find_model(name).source).resolve() == saved.resolve()


# --- what a path is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("runs/repaird", r"no folder or file at runs/repaird\. Did you mean runs/repaired\?"),
        ("runs/dreamy.safetensor", "Did you mean runs/dreamy.safetensors"),
        ("./nothing", "no folder or file at nothing"),
        ("~/nothing", "no folder or file at /"),
        ("/nowhere/at/all", "no folder or file"),
        ("a/b/c", "no folder or file"),
        ("nowhere/model.safetensors", "no folder or file"),
        ("dreamy.ckpt", "no folder or file"),
        ("https://huggingface.co/owner/model/tree/main", "give the hub id, 'owner/model'"),
        ("https://civitai.com/models/1", "is an address"),
        ("", "unknown model ''"),
        ("owner/model", "is not on this machine and the hub does not answer"),
        ("/dev/null", "no file at /dev/null"),
    ],
)
def test_a_path_is_not_asked_of_the_hub(tmp_path, monkeypatch, name, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "repaired").mkdir(parents=True)
    (tmp_path / "runs" / "dreamy.safetensors").touch()
    if name != "owner/model":
        monkeypatch.setattr("memsub.models.hub._snapshot", lambda *a: pytest.fail("the hub was asked"))
    refused(name, match)


def test_a_pipeline_that_is_loaded_is_not_a_name(micro):
    refused(micro, "got a StableDiffusionPipeline: a pipeline is used as it is")


def test_hub_ids_of_all_kinds():
    for name in ("owner/model", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/sd.v1.5"):
        assert find_model(name).source == name


# --- folders that are refused -----------------------------------------------------------------------------------------


def index_of(kind):
    return lambda folder: changed(folder / "model_index.json", _class_name=kind)


def config_of(part, name="config.json", **entries):
    return lambda folder: changed(folder / part / name, **entries)


def entry_of(**entries):
    return lambda folder: changed(folder / "model_index.json", **entries)


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder):
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def renamed(name, to):
    return lambda folder: (folder / name).rename(folder / to)


def weights_of(name, **changes):
    def change(folder):
        tensors = load_file(folder / name)
        for old, new in changes.items():
            first = next(n for n in tensors if n.endswith(old.replace("__", ".")))
            tensor = tensors.pop(first)
            if new is not None:
                tensors |= new(first, tensor)
        save_file(tensors, folder / name)

    return change


def adapted(name, tensor):
    return {
        name.replace(".weight", ".base_layer.weight"): tensor,
        name.replace(".weight", ".lora_A.weight"): tensor.clone(),
    }


def eight_bits(name, tensor):
    return {name: tensor.to(torch.float8_e4m3fn)}


REFUSED = {
    "an SDXL inpainting pipeline": (index_of("StableDiffusionXLInpaintPipeline"), "XLInpaintPipeline; memsub takes St"),
    "a Flux Fill pipeline": (index_of("FluxFillPipeline"), "is a FluxFillPipeline; memsub takes St"),
    "a pipeline nobody knows": (index_of("../../Pipeline"), "memsub takes StableDiffusionPipeline"),
    "no class": (index_of("removed"), "names no _class_name"),
    "a class of strangers": (index_of(["pipeline", "Mine"]), "brings code of its own"),
    "a part of strangers": (entry_of(unet=["custom_unet", "Mine"]), "names code of 'custom_unet' for its unet"),
    "a part of the standard library": (entry_of(vae=["os", "system"]), "names code of 'os'"),
    "a module within diffusers": (entry_of(vae=["diffusers.utils.testing", "X"]), "names code of"),
    "entries of no pair": (entry_of(vae=["diffusers"]), r"vae should be \[library, class\]"),
    "entries of no text": (entry_of(vae=[1, 2]), r"vae should be \[library, class\]"),
    "code beside a configuration": (config_of("text_encoder", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "no text encoder": (entry_of(text_encoder=[None, None]), "without text_encoder cannot sample"),
    "no tokenizer named": (entry_of(tokenizer="removed"), "without tokenizer cannot sample"),
    "a missing part": (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no tokenizer/"),
    "another network": (entry_of(unet=["diffusers", "UNet3DConditionModel"]), "is of the class UNet3DConditionModel"),
    "inpainting": (config_of("unet", in_channels=9), "9 input and 4 output channels, as for inpainting"),
    "learned variances": (config_of("unet", out_channels=8), "4 input and 8 output channels"),
    "class embeddings": (config_of("unet", class_embed_type="timestep"), "class embeddings"),
    "numbered classes": (config_of("unet", num_class_embeds=10), "class embeddings"),
    "addition embeddings": (config_of("unet", addition_embed_type="text_time"), "addition embeddings"),
    "guidance embedded": (config_of("unet", time_cond_proj_dim=256), "guidance as an input"),
    "image prompts": (config_of("unet", encoder_hid_dim_type="ip_image_proj"), "projected embeddings"),
    "grounding": (config_of("unet", attention_type="gated"), "gated attention"),
    "no size": (config_of("unet", sample_size=None), "no sample_size"),
    "no cross-attention": (config_of("unet", down_block_types=["DownBlock2D"]), "no cross-attention"),
    "latents of another size": (config_of("vae", latent_channels=16), "4 channels where its autoencoder has 16"),
    "embeddings of another size": (config_of("text_encoder", hidden_size=32), "cross-attention of 16 numbers"),
    "an unknown prediction": (
        config_of("scheduler", "scheduler_config.json", prediction_type="flow_prediction"),
        "predicts 'flow_prediction'",
    ),
    "bits and bytes": (
        config_of("unet", quantization_config={"quant_method": "bitsandbytes"}),
        "quantized .bitsandbytes.",
    ),
    "float8": (weights_of(UNET, conv_in__weight=eight_bits), "quantized weights .F8_E4M3.*give dtype="),
    "an adapter not fused": (weights_of(UNET, net__2__weight=adapted), "a LoRA that is not fused"),
    "a lost tensor": (weights_of(UNET, net__2__weight=None), "lacks weights of its unet"),
    "a lost tensor of the autoencoder": (weights_of(VAE, conv_in__weight=None), "lacks weights of its vae|conv_in"),
    "sizes that contradict": (config_of("text_encoder", vocab_size=100), "vocab_size 100, but"),
    "pickles": (pickled, r"diffusion_pytorch_model\.bin is a pickle.*save_pretrained"),
    "no weights": (lambda folder: (folder / UNET).unlink(), "holds no weights"),
    "weights of Flax": (renamed(UNET, "unet/diffusion_flax_model.msgpack"), "only .*msgpack"),
    "variants that differ": (
        lambda folder: [f(folder) for f in (
            renamed(UNET, "unet/diffusion_pytorch_model.fp16.safetensors"),
            renamed(VAE, "vae/diffusion_pytorch_model.bf16.safetensors"),
        )],
        "no variant that is whole: unet as fp16, vae as bf16|no variant that is whole",
    ),
    "a tokenizer without vocabulary": (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "no vocabulary"),
    "layers without end": (config_of("unet", layers_per_block=10**7), "layers_per_block 10000000, its files 1"),
    "text layers without end": (config_of("text_encoder", num_hidden_layers=10**7), "num_hidden_layers 10000000"),
    "a number where a list belongs": (config_of("unet", down_block_types=5), "are not those of a StableDiffusion"),
    "text where a number belongs": (config_of("unet", in_channels="4"), "'4' input and 4 output channels"),
    "a size of text": (config_of("unet", sample_size="64"), "no sample_size"),
    "flow matching": (entry_of(scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]), "a sampler for flow match"),
    "a sampler nobody knows": (entry_of(scheduler=["diffusers", "MyScheduler"]), "could not be loaded.*MyScheduler"),
    "a function for a class": (entry_of(vae=["memsub", "load_pipeline"]), "could not be loaded as"),
    "wrapped weights": (weights_of(UNET, conv_in__weight=lambda n, t: {f"module.{n}": t}), "lacks weights of its unet"),
    "an empty file": (written(UNET, b""), "is empty"),
    "a pointer": (written(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:00"), "git lfs pull"),
    "a page": (written(UNET, b"<!DOCTYPE html><html><body>404"), "is a page of HTML"),
    "a server's answer": (written(UNET, b'{"error":"gated"}'), "is JSON, not a model"),
    "a header larger than its file": (written(UNET, struct.pack("<Q", 10**12) + b"{}"), "truncated or corrupt"),
    "a header of 2 ** 63": (written(UNET, b"\xff" * 7 + b"\x7f{}"), "truncated or corrupt"),
    "a header that is no JSON": (written(UNET, struct.pack("<Q", 4) + b"{abc"), "its header is not one of safetensors"),
    "a header nested without end": (written(UNET, struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000), "corrupt"),
    "a pickle of another name": (written(UNET, b"\x80\x02}q\x00(X\x01"), "is a pickle, whatever its name"),
    "a zip of another name": (written(UNET, b"PK\x03\x04" + b"\0" * 60), "is a pickle that torch.save wrote"),
    "noise": (written(UNET, bytes(range(100, 200))), "no safetensors file|truncated or corrupt"),
    "an empty index": (written("model_index.json", b""), "model_index.json is empty"),
    "an index that is no JSON": (written("model_index.json", b"{'a': 1"), "model_index.json is no JSON"),
    "an index that is a list": (written("model_index.json", b"[1]"), "holds a list"),
    "a binary index": (written("model_index.json", b"\xff\xfe\x00"), "model_index.json is no JSON"),
    "a nested index": (written("model_index.json", b'{"a":' * 60 + b"1" + b"}" * 60), "nested more than"),
    "an endless index": (written("model_index.json", b"[" * 200_000), "model_index.json is no JSON"),
    "a long number": (written("model_index.json", b'{"a":' + b"9" * 5000 + b"}"), "model_index.json is no JSON"),
    "an empty configuration": (written("unet/config.json", b""), "config.json is empty"),
    "a truncated configuration": (written("vae/config.json", b'{"latent'), "config.json is no JSON"),
    "a sampler that is no object": (written("scheduler/scheduler_config.json", b'"DDIM"'), "holds a str"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_is_refused_by_what_it_is(folder, kind):
    spoil, match = REFUSED[kind]
    spoil(folder)
    refused(folder, match)


def test_nothing_is_read_of_what_is_refused(folder, no_weights_read):
    config_of("unet", class_embed_type="timestep")(folder)
    refused(folder, "class embeddings")


def test_a_truncated_file_is_named_with_its_size(folder):
    whole = (folder / VAE).read_bytes()
    (folder / VAE).write_bytes(whole[:-100])
    assert f"{len(whole) - 100:,} of {len(whole):,} bytes" in refused(folder, "is truncated")
    (folder / VAE).write_bytes(whole + b"more")
    refused(folder, "is corrupt")


def test_shards_that_are_missing_or_too_many_are_named(micro, tmp_path):
    micro.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    shards = sorted((tmp_path / "m" / "unet").glob("*-of-*"))
    more = shards[0].with_name(shards[0].name.replace("-00001-", "-00099-"))
    shutil.copy(shards[0], more)
    refused(tmp_path / "m", f"{more.name} is a shard that .* does not name")
    more.unlink()
    shards[1].unlink()
    refused(tmp_path / "m", f"{shards[1].name} is missing, one of {len(shards)} shards")
    index = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    refused(tmp_path / "m", "has no weight_map of tensors to files beside it")


def test_weights_that_are_there_twice_are_told(micro, folder, tmp_path):
    micro.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    for file in (tmp_path / "m" / "unet").glob("*safetensors*"):
        shutil.copy(file, folder / "unet")
    refused(folder, "holds its weights twice")


def test_float8_is_cast_where_a_dtype_is_asked_for(folder):
    weights_of(UNET, conv_in__weight=eight_bits)(folder)
    pipe = memsub.load_pipeline(folder, device="cpu", dtype=torch.float32)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "it is empty"),
        ({"notes.txt": b""}, "nothing of a model"),
        ({"unet/config.json": b"{}"}, "it holds unet alone"),
        ({"config.json": b'{"_class_name": "UNet2DConditionModel"}'}, "one part of a pipeline .UNet2DConditionModel"),
        ({"config.json": b'{"model_type": "clip_text_model"}'}, "one part of a pipeline .clip_text_model"),
        ({"pytorch_lora_weights.safetensors": b""}, "it is a LoRA"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "it is a LoRA"),
        ({"unet/model.onnx": b""}, "an export to ONNX"),
        ({"dreamy.safetensors": b""}, "Give one of them, such as .*dreamy.safetensors"),
        ({"dreamy.ckpt": b""}, "Give one of them"),
        ({"v2/model_index.json": b"{}"}, "give one of its folders that do, such as .*v2"),
        ({"snapshots/0a1b/model_index.json": b"{}"}, "such as .*snapshots/0a1b"),
    ],
)
def test_a_folder_without_an_index_is_told_by_what_it_holds(tmp_path, files, match):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert "no model_index.json" in refused(tmp_path, match)


# --- single files that are refused ------------------------------------------------------------------------------------

NETWORK = "model.diffusion_model."
OTHERS = {
    "lora_unet_down_blocks_0.lora_down.weight": "a LoRA",
    "unet.down_blocks.0.attn.to_q.lora_A.weight": "a LoRA",
    "lora_te_text_model.hada_w1_a": "a LoRA",
    "ip_adapter.1.to_k_ip.weight": "an IP-Adapter",
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": "a motion module",
    "double_blocks.0.img_attn.qkv.weight": "a Flux transformer",
    NETWORK + "double_blocks.0.img_attn.qkv.weight": "a Flux transformer",
    NETWORK + "joint_blocks.0.context_block.attn.qkv.weight": "a Stable Diffusion 3 transformer",
    "blocks.0.adaLN_modulation.1.weight": "a diffusion transformer of another family",
    "conditioner.embedders.0.model.ln_final.weight": "an SDXL refiner",
    "down_blocks.0.resnets.0.conv1.weight": "a UNet alone",
    "input_blocks.0.0.weight": "a UNet alone",
    "first_stage_model.decoder.conv_in.weight": "an autoencoder alone",
    "decoder.conv_in.weight": "an autoencoder alone",
    "text_model.embeddings.token_embedding.weight": "a text encoder alone",
    "model.embed_tokens.weight": "a text encoder alone",
    "emb_params": "a textual inversion",
    "<cat-toy>": "a textual inversion",
    "RRDB_trunk.0.RDB1.conv1.weight": "an upscaler",
    "fc.weight": r"a layout that memsub does not know \(fc\.weight\)",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_single_files_are_told_by_their_tensors(tmp_path, name):
    save_file({name: torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", f"x.safetensors is (of )?{OTHERS[name]}")


def spoiled(micro, tmp_path, *without, **more):
    tensors = (
        {n: t for n, t in single_file_tensors(micro).items() if not n.startswith(without)}
        if without
        else (single_file_tensors(micro))
    )
    save_file(tensors | more, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_a_single_file_without_parts_is_told(micro, tmp_path):
    refused(spoiled(micro, tmp_path, "first_stage_model.", "cond_stage"), "a UNet without autoencoder and text encoder")


def test_a_single_file_for_inpainting_is_told(tmp_path):
    file = second_edition(tmp_path, **{f"{NETWORK}input_blocks.0.0.weight": (8, 9, 3, 3)})
    refused(file, "9 input and 4 output channels, as for inpainting", prediction_type="epsilon")


def test_an_sdxl_file_is_asked_of_the_registry(tmp_path, monkeypatch):
    file = second_edition(tmp_path, **{"conditioner.embedders.1.model.ln_final.weight": (8,), "v_pred": (1,)})
    if "StableDiffusionXLPipeline" not in ADAPTERS:
        refused(file, r"is an SDXL pipeline \(StableDiffusionXLPipeline\)")
        monkeypatch.setitem(ADAPTERS, "StableDiffusionXLPipeline", type("Adapter", (), {}))
    assert (inspect(file).kind, inspect(file).problems) == ("StableDiffusionXLPipeline", [])


def test_an_adapter_may_refuse_configurations(folder, monkeypatch):
    adapter = type(
        "Adapter", (), {"refuses": staticmethod(lambda configs: [f"{configs['unet']['in_channels']} is odd."])}
    )
    monkeypatch.setitem(ADAPTERS, "MinePipeline", adapter)
    changed(folder / "model_index.json", _class_name="MinePipeline")
    assert inspect(folder).problems == [f"{folder}: 4 is odd."]


def test_a_single_file_that_lacks_a_tensor_is_told(micro, saved, tmp_path):
    refused(
        spoiled(micro, tmp_path, f"{NETWORK}time_embed.2"), "lacks weights of a StableDiffusionPipeline", config=saved
    )


def test_quantized_single_files_are_told(micro, tmp_path):
    refused(spoiled(micro, tmp_path, scaled_fp8=torch.zeros(1)), "quantized weights .scaled_fp8")


def test_a_configuration_of_another_family_is_told(file, folder):
    changed(folder / "unet" / "config.json", cross_attention_dim=768)
    changed(folder / "text_encoder" / "config.json", hidden_size=768)
    refused(file, "is of another family", config=folder)
    refused(file, "is no diffusers folder", config=folder / "nothing")
    changed(folder / "model_index.json", unet=["custom", "Mine"])
    refused(file, "names code of 'custom'", config=folder)


def test_a_single_file_is_told_by_its_name_too(file, saved, tmp_path):
    for name in ("DREAMY.SAFETENSORS", "dreamy"):
        shutil.copy(file, tmp_path / name)
        refused(tmp_path / name, r"holds safetensors: call it \w+\.safetensors", config=saved)
    refused(saved / "model_index.json", "give the folder of the pipeline")
    refused(saved, "--config is for single files", config=saved)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickled_single_files_are_refused_with_what_converts_them(tmp_path, suffix):
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / f"x{suffix}")
    assert "torch.load(" in refused(tmp_path / f"x{suffix}", "is a pickle, which memsub does not read")


def test_the_commands_that_convert_do(micro, saved, tmp_path):
    import shlex
    import sys

    folder = Path(shutil.copytree(saved, tmp_path / "an 'old' $HOME one"))
    for name in (UNET, VAE, TEXT):
        bin_name = name.replace("model.safetensors", "model.bin").replace("text_encoder/", "text_encoder/pytorch_")
        torch.save(load_file(folder / name), folder / bin_name)
        (folder / name).unlink()
    torch.save({"state_dict": single_file_tensors(micro)}, tmp_path / "x.ckpt")
    for path in (folder, tmp_path / "x.ckpt"):
        command = shlex.split(refused(path, "Convert a").partition("trust: ")[2])
        assert command[:2] == ["python", "-c"]
        exec(compile(command[2], "converts", "exec"), {"__name__": "converts", "sys": sys})
    same_weights(memsub.load_pipeline(f"{folder}-safetensors", device="cpu"), micro)
    same_weights(memsub.load_pipeline(tmp_path / "x.ckpt.safetensors", device="cpu", config=saved), micro)


def test_find_contents_downloads_nothing_unless_asked(monkeypatch):
    asked = []
    monkeypatch.setattr("memsub.models.hub.names_of", lambda repo: asked.append(repo))
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        find_contents("owner/model")
    assert not asked


# --- a network over the parts of another pipeline ---


@pytest.fixture
def sharing(folder, other_micro):
    """A folder that has a network alone, in that of the pipeline whose other parts it shares."""
    other_micro.unet.save_pretrained(folder / "twin" / "unet")
    return folder / "twin"


def test_a_network_is_loaded_over_the_parts_of_another_pipeline(micro, other_micro, sharing, monkeypatch):
    row = find_model(sharing)
    assert (row.source, row.parts, row.controls) == (str(sharing), str(sharing.parent), {})
    pipe = memsub.load_pipeline(sharing, device="cpu")
    assert memsub.models.fingerprint(pipe) == memsub.models.fingerprint(other_micro)
    for part, module in {"vae": micro.vae, "text_encoder": micro.text_encoder}.items():
        weights = getattr(pipe, part).state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert pipe.config["_name_or_path"] == str(sharing)
    half = memsub.load_pipeline(sharing, device="cpu", dtype=torch.float16)
    assert {part.dtype for part in (half.unet, half.vae, half.text_encoder)} == {torch.float16}

    # By a name in the registry, as the embedded model's controls are.
    control = memsub.models.ModelInfo("a-twin", str(sharing), "tiny", "testbed", parts=str(sharing.parent))
    monkeypatch.setitem(memsub.models.MODELS, "a-twin", control)
    named = memsub.load_pipeline("a-twin", device="cpu")
    assert model_of(named) is control
    assert memsub.models.fingerprint(named) == memsub.models.fingerprint(pipe)


def test_a_network_that_lacks_weights_is_refused(sharing):
    weights = load_file(sharing / UNET)
    del weights["conv_out.bias"]
    save_file(weights, sharing / UNET)
    refused(sharing, r"lacks weights of its unet: conv_out\.bias")
    (sharing / UNET).unlink()
    refused(sharing, r"twin/unet/diffusion_pytorch_model\.safetensors")
