"""Pipelines that people changed: right, or refused by one sentence. The kinds are rows of docs/what-works.md."""

import re

import pytest
import torch
from tools import what_works

import memsub
from kinds import KINDS, Kind, adapter, changed, chunks, compiled, mid_block, one_block_compiled
from memsub.models import as_denoiser, fingerprint, sampler_fingerprint
from memsub.models.sampling import _is_out_of_memory
from memsub_extra.mitigations.value_neurons import deactivated, value_layers
from micro import CAPTIONS, micro_pipeline

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "progress": False}
WORKS, REFUSED = (
    [
        pytest.param(kind, id=kind.what, marks=[pytest.mark.slow] * kind.slow)
        for kind in KINDS
        if bool(kind.refused) is no
    ]
    for no in (False, True)
)


@pytest.fixture(scope="module")
def plain(micro):
    """Of the pipeline as it is: statistics, those of the contrast, and the edit."""
    return located(micro)


def located(pipe):
    stats, null = memsub.capture(pipe, CAPTIONS[:2], **OPTIONS), memsub.capture(pipe, [""], **OPTIONS)
    return stats, null, memsub.locate(pipe, stats, null, sparsity=0.1).union(steps=2)


def tensors(pipe):
    """Every weight as bits, by name."""
    state = pipe.unet.state_dict()
    return {name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone() for name, tensor in state.items()}


def assert_restored(pipe, before):
    for name, bits in tensors(pipe).items():
        assert torch.equal(bits, before[name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WORKS)
def test_what_works(micro, plain, kind):
    if kind.needs:
        pytest.importorskip(kind.needs)
    pipe = changed(micro, kind)
    stats, _, edit = located(pipe)
    assert list(stats.sums) == list(plain[0].sums) and edit.positions.keys() == plain[2].positions.keys()
    if kind.same:
        assert fingerprint(pipe) == fingerprint(micro)
        for name, sums in plain[0].sums.items():
            torch.testing.assert_close(stats.sums[name], sums, rtol=1e-4, atol=1e-7)
            assert torch.equal(edit.positions[name], plain[2].positions[name])
    before = tensors(pipe)
    images = memsub.generate(pipe, CAPTIONS[:2], **OPTIONS)
    with pytest.raises(RuntimeError, match="planted"), memsub.pruned(pipe, edit):
        for name, layer in as_denoiser(pipe).layers().items():
            assert not layer.weight.detach().float().flatten()[edit.positions[name]].any()
        edited = memsub.generate(pipe, CAPTIONS[:2], **OPTIONS)
        raise RuntimeError("planted")
    assert images.shape == edited.shape == (2, 32, 32, 3)
    assert (edited != images).any() or "autoencoder" in kind.what
    assert_restored(pipe, before)
    assert as_denoiser(pipe).encode(images).shape == (2, 4, 8, 8)
    edit.apply(pipe)
    assert fingerprint(pipe) != stats.provenance["model"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(micro, kind):
    if kind.needs:
        pytest.importorskip(kind.needs)
    pipe = changed(micro, kind)
    with pytest.raises((ValueError, RuntimeError), match=re.escape(kind.refused)) as raised:
        memsub.capture(pipe, CAPTIONS[:2], **OPTIONS)
    assert re.search(r"\S+_blocks?\.\S+ ", str(raised.value)) or "IP" in kind.what
    assert not any(m._forward_pre_hooks for name, m in pipe.unet.named_modules() if not name.endswith("net.2"))


def test_the_page_is_what_the_tests_try():
    assert what_works.PAGE.read_text(encoding="utf-8") == what_works.page(), "run python -m tools.what_works"


# --- what a fingerprint sees ------------------------------------------------------------------------------------------


def test_a_write_that_hides_from_the_count_of_writes_is_seen():
    pipe = micro_pipeline()
    before = fingerprint(pipe)
    mid_block(pipe).ff.net[2].weight.data[3, 5] += 1  # as peft fuses an adapter, and diffusers copies an average
    assert fingerprint(pipe) != before
    mid_block(pipe).ff.net[2].weight.data[3, 5] -= 1


def test_a_fused_adapter_is_part_of_the_weights(micro):
    pytest.importorskip("peft")
    fused, loose = (changed(micro, Kind("", adapter(["ff.net.2"], fused))) for fused in (True, False))
    one = fingerprint(fused)
    assert one != fingerprint(micro)
    fused.unload_lora_weights()
    assert fingerprint(fused) == one
    scaled = fingerprint(loose)
    loose.set_adapters(["style"], [0.5])
    assert fingerprint(loose) != scaled


def test_images_depend_on_switches_that_are_no_weights():
    pipe = micro_pipeline()
    network, whole = fingerprint(pipe), sampler_fingerprint(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert fingerprint(pipe) == network and sampler_fingerprint(pipe) != whole
    pipe.disable_freeu()
    assert sampler_fingerprint(pipe) == whole


def test_a_wrapped_network_is_captured_before_it_is_compiled(micro, plain):
    pipe = changed(micro, Kind("", compiled))
    stats = memsub.capture(pipe, CAPTIONS[:2], **OPTIONS)
    assert stats.provenance == plain[0].provenance and stats.prompts == plain[0].prompts
    assert all(torch.equal(sums, plain[0].sums[name]) for name, sums in stats.sums.items())
    assert list(value_layers(as_denoiser(pipe))) == list(value_layers(as_denoiser(micro)))
    with memsub.pruned(pipe, plain[2]):
        assert fingerprint(pipe) != fingerprint(micro)


# --- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # compiling takes seconds
def test_an_edit_takes_effect_in_the_next_compiled_call(micro, plain):
    pipe = changed(micro, Kind("", one_block_compiled))
    unedited = memsub.generate(pipe, CAPTIONS[:1], **OPTIONS)
    plain[2].apply(pipe)
    expected = micro_pipeline()
    plain[2].apply(expected)
    edited = memsub.generate(pipe, CAPTIONS[:1], **OPTIONS)
    assert (edited != unedited).any() and (edited == memsub.generate(expected, CAPTIONS[:1], **OPTIONS)).all()


def test_weights_that_were_replaced_meanwhile_come_back(plain):
    pipe = micro_pipeline()
    before = tensors(pipe)
    with memsub.pruned(pipe, plain[2]):
        layer = mid_block(pipe).ff.net[2]
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())  # as offloading may do
    assert_restored(pipe, before)


# --- value neurons ----------------------------------------------------------------------------------------------------


def test_value_neurons_of_fused_projections_are_refused():
    pipe = micro_pipeline()
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"to_v is fused with others: call pipe\.unfuse_qkv_projections\(\) first"):
        value_layers(as_denoiser(pipe))


def test_a_value_layer_that_is_not_called_is_named():
    pipe = micro_pipeline()
    mask = {name: torch.zeros(1, 16, dtype=torch.bool) for name in value_layers(as_denoiser(pipe))}
    attention = mid_block(pipe).attn2
    attention.forward = lambda hidden, *args, **kwargs: hidden
    message = r"layer mid_block\S+to_v was called 0 times in network call 0"
    with deactivated(pipe, mask), pytest.raises(RuntimeError, match=message):
        memsub.generate(pipe, ["a"], **OPTIONS)


@pytest.mark.slow
def test_value_neurons_silence_in_a_compiled_network(micro):
    def one_attention(pipe):
        mid_block(pipe).attn2.compile(backend="eager")

    pipe = changed(micro, Kind("", one_attention))
    mask = {name: torch.ones(1, 16, dtype=torch.bool) for name in value_layers(as_denoiser(micro))}
    with deactivated(micro, mask):
        expected = memsub.generate(micro, CAPTIONS[:1], **OPTIONS)
    memsub.generate(pipe, CAPTIONS[:1], **OPTIONS)
    with deactivated(pipe, mask):
        assert (memsub.generate(pipe, CAPTIONS[:1], **OPTIONS) == expected).all()


@pytest.mark.filterwarnings("ignore:memory ends")
def test_value_neurons_of_a_batch_that_was_halved_are_refused(micro):
    mask = {name: torch.ones(2, 16, dtype=torch.bool) for name in value_layers(as_denoiser(micro))}
    message = "neurons of 2 prompts do not fit a UNet call on 2 rows"
    with deactivated(micro, mask), fits(micro, rows=2), pytest.raises(ValueError, match=message):
        memsub.generate(micro, CAPTIONS[:2], **OPTIONS)


# --- what fits --------------------------------------------------------------------------------------------------------


class fits:
    """While open, memory ends in the last block of a network call on more rows than these."""

    def __init__(self, pipe, rows, message="CUDA out of memory. Tried to allocate 2.00 GiB."):
        self.pipe, self.rows, self.message = pipe, rows, message

    def __enter__(self):
        self.handle = self.pipe.unet.conv_out.register_forward_pre_hook(self)
        self.calls = []

    def __call__(self, module, args):
        self.calls.append(len(args[0]))
        if len(args[0]) > self.rows:
            raise torch.OutOfMemoryError(self.message) if "CUDA" in self.message else RuntimeError(self.message)

    def __exit__(self, *error):
        self.handle.remove()


MESSAGES = [
    "MPS backend out of memory (MPS allocated: 17.00 GB, max allowed: 18.13 GB). Tried to allocate 2 GB.",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_what_devices_say_where_memory_ends(message):
    assert _is_out_of_memory(RuntimeError(message)) and not _is_out_of_memory(ValueError(message))


def test_where_memory_ends_the_batch_is_halved(exact_micro):
    whole, images = memsub.capture(exact_micro, CAPTIONS, **OPTIONS), memsub.generate(exact_micro, CAPTIONS, **OPTIONS)
    with fits(exact_micro, 4), pytest.warns(UserWarning, match="memory ends at 4 prompts.*going on with 2") as told:
        stats = memsub.capture(exact_micro, CAPTIONS, batch_size=4, **OPTIONS)
        again = memsub.generate(exact_micro, CAPTIONS, batch_size=4, **OPTIONS)
    assert len([w for w in told if "memory ends" in str(w.message)]) == 2  # once a capture, once a generate
    for name, sums in whole.sums.items():
        torch.testing.assert_close(stats.sums[name], sums, rtol=1e-5, atol=1e-9)
    assert abs(images.astype(int) - again).max() <= 1


def test_where_not_even_one_fits_a_sentence_says_so(micro):
    with fits(micro, 1), pytest.raises(MemoryError, match="memory ends with one prompt at a time: CUDA out of memory"):
        memsub.generate(micro, CAPTIONS[:1], **OPTIONS)


def test_other_errors_are_let_through(micro):
    with fits(micro, 1, "planted"), pytest.raises(RuntimeError, match="planted"):
        memsub.generate(micro, CAPTIONS[:1], **OPTIONS)


# --- chunks of several kinds ------------------------------------------------------------------------------------------


def test_an_edit_of_a_chunked_network_is_the_same(micro, plain):
    for size, dim in ((2, 0), (8, 1), (8, -2)):
        pipe = changed(micro, Kind("", chunks(size, dim)))
        for name, positions in located(pipe)[2].positions.items():
            assert torch.equal(positions, plain[2].positions[name])
