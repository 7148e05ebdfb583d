"""A model on a device that is not the host: nothing is mixed, and no step is waited for.

The micro pipeline on the device "meta", in both short dtypes and both prediction types: what lies where does not depend
on sizes. Full size is in tests/test_full_size.py.
"""

from functools import partial

import diffusers
import numpy as np
import pytest
import torch

import memsub
from memsub.models import as_denoiser, fingerprint, sampler_fingerprint
from memsub_extra.attacks import embedding_attack
from memsub_extra.full_size.device import Elsewhere
from memsub_extra.full_size.shapes import scheduler, tokenizer
from memsub_extra.mitigations import optimized_embeddings, value_neurons
from memsub_extra.mitigations.detection import first_step_scores
from memsub_extra.training import fitting
from memsub_extra.unlearning import adversarial, distillation, fine_tuning, siss, surrogates
from memsub_extra.unlearning.attack_work import attack_work
from memsub_extra.unlearning.pairs import Pairs
from memsub_extra.unlearning.recognition import denoising_error
from memsub_extra.unlearning.relearning import relearning
from memsub_extra.unlearning.removals import REMOVALS
from micro import micro_pipeline

CAPTIONS = ["a red heart on a plain green background", "a blue fish"]
LOOK = {"steps": 1, "guidance_scale": 3.0, "progress": False}
KINDS = (("sd14", torch.float16), ("sd20", torch.bfloat16))
"""Whose scheduler the pipeline has, PNDM on noise or DDIM on v, and its dtype. The other two are at full size."""


def never(images, captions, references):
    return np.zeros(len(images), bool)


def micro_elsewhere(name, dtype):
    made = micro_pipeline(dtype)
    made.scheduler = scheduler(name)
    for part in as_denoiser(made).parts().values():
        part.to("meta")
    with Elsewhere():
        fingerprint(made)  # reads every weight, once
    return made


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}".replace("torch.", ""))
def pipe(request):
    return micro_elsewhere(*request.param)


@pytest.fixture
def pairs():
    return Pairs(CAPTIONS, np.zeros((2, 32, 32, 3), np.uint8), [["a heart"], ["a fish"]])


def test_the_stand_in_refuses_what_a_gpu_refuses():
    device_tensor, host_tensor = torch.ones(3, device="meta"), torch.ones(3)
    with Elsewhere(number=7) as device:
        with pytest.raises(RuntimeError, match=r"device|meta"):
            device_tensor + host_tensor
        assert (device_tensor + 1).sum().item() == 7
        assert (2 * device_tensor).cpu().all()
        held = torch.zeros(1000, device="meta")
        del held
    assert sum(device.waits.values()) == sum(device.transfers.values()) == 1
    assert 4000 <= device.peak < 4200


@pytest.mark.parametrize("solver", ["own", "multistep"])
def test_sampling_sends_back_the_images_alone(pipe, solver):
    uploads = []
    for steps in (2, 5):
        with Elsewhere() as device:
            images = memsub.generate(pipe, CAPTIONS, steps=steps, solver=solver, progress=False)
        assert images.shape == (2, *as_denoiser(pipe).image_shape, 3)
        assert not device.waits
        assert sum(device.transfers.values()) == 1
        uploads.append(sum(device.uploads.values()))
    assert uploads[0] == uploads[1], "a step more sends nothing more to the device"


def test_capture_sends_back_one_tensor_a_call(pipe):
    with Elsewhere():
        sampler_fingerprint(pipe)  # read once: statistics belong to these weights
    with Elsewhere() as device:
        stats = memsub.capture(pipe, CAPTIONS, steps=2, progress=False)
    calls = next(iter(stats.sums.values())).shape[1]
    assert not device.waits
    per_call = {place: n for place, n in device.transfers.items() if n > len(stats.sums)}
    assert not per_call, "more than one a layer"
    assert sum(n for place, n in device.transfers.items() if n == calls) >= calls


SAMPLERS = ("EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "LMSDiscrete", "LCM")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_device_without_float64(pipe, name):
    with Elsewhere(float64=False), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="meta").double()
    own = pipe.scheduler
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own.config)
    try:
        with Elsewhere(number=2000, float64=False):
            memsub.generate(pipe, CAPTIONS, steps=2, progress=False)
            stats = memsub.capture(pipe, CAPTIONS, steps=2, progress=False)
            memsub.locate(pipe, stats, stats, sparsity=0.1)
            first_step_scores(pipe, CAPTIONS, calls=2)
            embedding_attack(pipe, np.zeros((2, 32, 32, 3), np.uint8), CAPTIONS, iterations=1, noises=2, progress=False)
    finally:
        pipe.scheduler = own


def test_weights_are_located_and_set_there(pipe):
    layers = as_denoiser(pipe).layers()
    with Elsewhere(number=2000):  # more columns than any row may hold
        stats = memsub.capture(pipe, CAPTIONS, steps=1, progress=False)
        masks = memsub.locate(pipe, stats, stats, sparsity=0.1)
        assert list(masks.layers) == list(layers)
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        model = {"model": fingerprint(pipe)}
        edit = memsub.Edit({name: torch.arange(3) for name in layers}, shapes, model)
        with memsub.pruned(pipe, edit) as edited:
            memsub.generate(edited, CAPTIONS, steps=1, progress=False)


def test_attacks_and_the_audit_run_there(pipe, pairs):
    start = as_denoiser(pipe).embed(pairs.captions)
    with Elsewhere() as device:
        embedding_attack(pipe, pairs.images, start, iterations=2, noises=2, progress=False)
        assert not device.waits
        options = {"sampling": LOOK, "progress": False}
        attack_work(pipe, pairs, start, never, iterations=(0, 1), noises=1, seeds=(1,), **options)
        assert not device.waits
        denoising_error(pipe, pairs.images, start, times=(600,))
        relearning(pipe, pairs, pairs, never, lr=1e-4, looks=(0, 1), batch_size=2, **options)
    assert max(device.transfers.values()) <= 4


def test_detection_and_baselines_run_there(pipe):
    with Elsewhere() as device:
        first_step_scores(pipe, CAPTIONS, calls=2)
        assert not device.waits
        optimized_embeddings(pipe, CAPTIONS, target=-1.0, iterations=1)
        statistics = value_neurons.value_statistics(pipe, CAPTIONS, 2)
        statistics.score_mean = -1.0  # every caption counts as memorized
        neurons = value_neurons.find_value_neurons(pipe, CAPTIONS[:1], statistics, z=1.0, spread=0.0)
        with value_neurons.deactivated(pipe, neurons):
            memsub.generate(pipe, CAPTIONS[:1], steps=1, progress=False)


def test_clip_runs_there(monkeypatch):
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from memsub.measure.clip import clip

    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig()).half()
    words = tokenizer()
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", lambda *_: words)
    monkeypatch.setattr(CLIPImageProcessorPil, "from_pretrained", lambda *_: CLIPImageProcessorPil())
    with Elsewhere() as device:
        metric = clip("some/clip", device="meta")
        device.transfers.clear()
        metric.image_features(np.zeros((2, 64, 64, 3), np.uint8))
        metric.text_features(CAPTIONS)
    assert sum(device.transfers.values()) == 2


TRAINED = [name for name in REMOVALS if "," not in name and REMOVALS[name].objective]


@pytest.mark.parametrize("name", TRAINED)
def test_removals_train_there(pairs, name, tmp_path, monkeypatch):
    pipe = micro_elsewhere("sd14", torch.bfloat16)
    sizes = {layer: tuple(m.weight.shape) for layer, m in as_denoiser(pipe).layers().items()}
    with Elsewhere():
        about = {"model": fingerprint(pipe)}
    located = memsub.Edit({layer: torch.arange(3) for layer in sizes}, sizes, about)
    monkeypatch.setattr(fine_tuning, "prune", lambda *_, **__: located)
    monkeypatch.setattr(surrogates, "SAMPLING", LOOK)
    monkeypatch.setattr(distillation, "unlike", partial(surrogates.unlike, seeds=2))
    for module in (adversarial, siss):
        monkeypatch.setattr(module, "surrogates", partial(surrogates.surrogates, seeds=1))
    monkeypatch.setattr(fitting._Work, "_save", lambda *_: None)  # what lies there has no values
    few = {"iterations": 1} if name.startswith("adversarial") else {"alone": 1} if name == "regrowth" else {}
    few |= {"steps": 2, "where": "located", "optimizer": "adafactor"}
    ordinary = Pairs(["a house", "a tree"], pairs.images)
    with Elsewhere() as device:
        edit = REMOVALS[name].edit(pipe, pairs, ordinary, folder=tmp_path, progress=False, **few)
    assert edit.positions.keys() == sizes.keys()
    assert {place.split(":")[0] for place in device.waits} == {"training/fitting.py"}, "the loss is read, once a step"
