"""Conditioning as a value: rows are chosen, joined, moved and hashed together."""

import pytest
import torch

from memsub.models import Conditioning, as_conditioning, as_denoiser, generate, sampler_fingerprint
from micro import micro_pipeline


def full(n: int, seed: int = 0) -> Conditioning:
    """A conditioning with all that a larger model is told of n prompts."""
    rng = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(n, 5, 3, generator=rng),
        pooled=torch.randn(n, 4, generator=rng),
        time_ids=torch.arange(6 * n).view(n, 6),
        mask=torch.rand(n, 5, generator=rng) > 0.5,
        guidance=torch.linspace(1, 2, n),
    )


def same(a: Conditioning, b: Conditioning) -> bool:
    return a.fingerprint == b.fingerprint


def test_rows_are_chosen_from_every_tensor():
    c = full(4)
    assert len(c) == 4 and c[1:3].pooled.equal(c.pooled[1:3])
    assert len(c[2]) == 1 and c[2].embeddings.equal(c.embeddings[2:3]) and same(c[-1], c[3])
    assert c[[3, 1]].guidance.equal(c.guidance[[3, 1]]) and same(c[range(2)], c[:2])
    assert same(c[torch.tensor([3, 1])], c[[3, 1]]) and same(c[torch.tensor(2)], c[2])
    assert same(c[torch.tensor([True, False, False, True])], c[[0, 3]])
    assert [row.time_ids[0, 0].item() for row in c] == [0, 6, 12, 18]
    with pytest.raises(IndexError):
        c[4]


def test_rows_are_joined_and_repeated():
    c = full(3)
    assert same(Conditioning.cat([c[:1], c[1:]]), c)
    assert same(c.repeat(2), Conditioning.cat([c, c]))
    assert same(c.repeat_interleave(2), c[[0, 0, 1, 1, 2, 2]])
    assert same(c[1].expand(3), c[[1, 1, 1]]) and c[1].expand(3).embeddings.stride(0) == 0  # no copies
    with pytest.raises(ValueError, match="one row can be expanded; these are 3"):
        c.expand(2)
    with pytest.raises(ValueError, match="only some of these prompts have pooled"):
        Conditioning.cat([Conditioning(c.embeddings, pooled=c.pooled), Conditioning(c.embeddings)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        Conditioning.cat([])


def test_a_dtype_is_that_of_what_is_floating():
    c = full(2).to("cpu", torch.bfloat16)
    assert [t.dtype for t in c.tensors().values()] == [torch.bfloat16] * 2 + [torch.int64, torch.bool, torch.bfloat16]
    assert full(2).to("meta").pooled.is_meta and full(2).to(dtype=torch.float64).embeddings.dtype == torch.float64
    assert same(full(2).to(), full(2))


def test_other_embeddings_leave_the_rest():
    c, moved = full(2), torch.zeros(2, 5, 3, requires_grad=True)
    changed = c.with_embeddings(moved)
    assert changed.embeddings is moved and changed.pooled is c.pooled
    assert changed.repeat_interleave(3).embeddings.requires_grad and not changed.detach().embeddings.requires_grad


def test_a_digest_is_that_of_its_row_alone():
    c = full(3)
    assert c[[2, 0]].row_digests() == [c.row_digests()[2], c.row_digests()[0]]
    assert len(set(c.row_digests())) == 3
    for name, tensor in c.tensors().items():
        changed = tensor.clone()
        changed[1] = ~changed[1] if name == "mask" else changed[1] + 1
        other = Conditioning(**c.tensors() | {name: changed})
        assert [a == b for a, b in zip(other.row_digests(), c.row_digests(), strict=True)] == [True, False, True], name
        assert other.fingerprint != c.fingerprint
    assert c[[1, 0, 2]].fingerprint != c.fingerprint  # the order counts
    assert Conditioning(c.embeddings).fingerprint != c.fingerprint
    assert c.to(dtype=torch.bfloat16).fingerprint != c.fingerprint


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"embeddings must have the shape .* got \(5, 3\)"):
        Conditioning(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="pooled has 3 rows, the embeddings have 2"):
        Conditioning(torch.zeros(2, 5, 3), pooled=torch.zeros(3, 4))


def test_captions_tensors_and_conditionings_are_the_same_prompts(exact_micro):
    denoiser, captions = as_denoiser(exact_micro), ["a red heart", "a blue fish"]
    embedded = as_conditioning(captions, denoiser)
    assert same(embedded, denoiser.embed(captions)) and as_conditioning(embedded, denoiser) is embedded
    assert same(as_conditioning(embedded.embeddings, denoiser), embedded)
    options = {"steps": 2, "progress": False}
    images = [generate(denoiser, p, **options) for p in (captions, embedded, embedded.embeddings)]
    assert (images[0] == images[1]).all() and (images[1] == images[2]).all()
    (alone,) = generate(denoiser, embedded[1], **options)
    assert abs(alone.astype(int) - images[0][1]).max() <= 1  # a value at the edge of rounding


@pytest.mark.parametrize("lacking", [("text_encoder", "tokenizer"), ("tokenizer",)])
def test_a_pipeline_that_cannot_embed_captions_takes_embeddings_without_guidance(micro, lacking):
    pipe, options = micro_pipeline(), {"steps": 2, "progress": False}
    text = as_denoiser(pipe).embed(["a red heart"])
    for part in lacking:
        setattr(pipe, part, None)
    for prompts in (["a red heart"], text):
        with pytest.raises(ValueError, match=f"has no {' and no '.join(lacking)}, which captions .*guidance_scale=1"):
            generate(pipe, prompts, **options)
    images = [generate(each, text, guidance_scale=1.0, **options) for each in (pipe, micro)]
    assert (images[0] == images[1]).all()
    assert (sampler_fingerprint(pipe) == sampler_fingerprint(micro)) == ("text_encoder" not in lacking)


def test_what_stable_diffusion_is_not_told_is_refused(micro):
    denoiser = as_denoiser(micro)
    text = denoiser.embed(["a"])
    larger = Conditioning(text.embeddings, pooled=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="token embeddings alone; this conditioning has pooled too"):
        denoiser.predict(torch.zeros(1, *denoiser.latent_shape), torch.tensor(5), larger)
    with pytest.raises(ValueError, match="token embeddings alone"):
        generate(denoiser, larger, steps=1, progress=False)
