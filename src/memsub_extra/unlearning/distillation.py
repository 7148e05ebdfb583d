"""Adversarial distillation (this project): under attack, the model predicts what it predicts for an unseen image.

The attacker looks for an embedding with which the model denoises a training image x* better than an unseen image. With
other wording alone, the model still recognizes a noised x*. But it was never trained on the *mirror image* of x*. The
teacher therefore is the model before this training. It gets the mirrored image, and a caption with the same content in
other words; its prediction is mirrored back:

    || eps_student(x*_t, t, y) - mirror eps_teacher(mirror x*_t, t, other wording) ||^2

where y is the memorized caption, the empty prompt (then the teacher gets it as well), or an attacked embedding. The
same distance, without mirrors, is taken on images that the model samples for other wording. The loss on ordinary pairs
is added. On mirrored images the teacher's error is that of a model that never saw x*; on x* itself it is much smaller
(`tests/test_removal.py`).

The attack advances a few iterations with each training step. It begins again every 100 steps, where checkpoints are
written, so that a killed training resumes exactly. Two additions had no effect on relearning, and were left out: noise
in the weights before training, and distilling at the weights of an attacker who learns a few pairs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memsub.models import Conditioning, Pipeline, as_denoiser, noise_schedule
from memsub.pruning import Edit
from memsub_extra.attacks import EmbeddingAttack

from ..training.fitting import CHECKPOINT_STEPS
from .attack_work import STARTS, starts
from .fine_tuning import BATCH, dropped, either, fine_tunings, teacher_of
from .losses import Encoded, denoising_loss, step_weights, weighted_error
from .pairs import Pairs
from .recognition import mirror
from .surrogates import unlike


class Distillation:
    """The objective.

    Args:
        iterations: iterations of the attack on a pair each time it is in the batch, with `noises` noises each.
    """

    def __init__(
        self,
        pipe: Pipeline,
        memorized: Pairs,
        ordinary: Pairs,
        *,
        located: Callable[[], Edit],
        iterations: int = 4,
        noises: int = 1,
        seed: int = 0,
    ):
        self.pipe, self.images, self.n, self.seed = pipe, memorized.images, len(memorized), seed
        self.iterations, self.noises = iterations, noises
        self.denoiser, self.kept = as_denoiser(pipe), Encoded(pipe, ordinary)
        self.teacher = teacher_of(pipe)
        self.instead = torch.stack([self.denoiser.encode(images) for images in unlike(pipe, memorized, seed=seed)])
        self.latents = self.denoiser.encode(memorized.images)
        self.mirrored = self.denoiser.encode(mirror(memorized.images))
        self.beginnings, self.empty = starts(pipe, memorized.captions, seed), self.denoiser.embed([""])
        self.captions = self.beginnings["its caption"]
        self.other_wording = self.denoiser.embed(memorized.other_wording("adversarial distillation"))
        self.schedule, self.weights = noise_schedule(self.denoiser), step_weights(self.denoiser)
        self.attacks: dict[int, EmbeddingAttack] = {}

    def __call__(self, step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        batch = min(BATCH, self.n)
        kept, rows = self.kept.rows(2 * BATCH, rng), torch.randint(self.n, (batch,), generator=rng)
        context = dropped(self.kept.context[kept], self.empty, rng)
        ordinary = denoising_loss(self.pipe, self.kept.latents[kept], context, rng, self.weights)
        chosen, attack = torch.randperm(self.n, generator=rng)[:batch], self._attack(step // CHECKPOINT_STEPS)
        attack.advance(self.iterations, chosen.tolist())
        student, teacher = self._wordings(rows, rng)
        # Interleaved, so that both halves of the batch hold captions and attacked embeddings.
        in_turn = torch.stack([torch.arange(batch), batch + torch.arange(batch)], 1).flatten()
        pairs = torch.cat([rows, chosen])[in_turn]
        student = Conditioning.cat([student, attack.embeddings(chosen.tolist())])[in_turn]
        teacher = Conditioning.cat([teacher, self.other_wording[chosen]])[in_turn]
        return ordinary + self._distilled(pairs, student, teacher, rng)

    def _wordings(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[Conditioning, Conditioning]:
        """Conditionings of student and teacher: the empty prompt (one in four), else captions in their two wordings."""
        empty = torch.rand(len(rows), generator=rng) < 0.25
        return either(self.empty, self.captions[rows], empty), either(self.empty, self.other_wording[rows], empty)

    def _distilled(
        self, rows: torch.Tensor, student: Conditioning, teacher: Conditioning, rng: torch.Generator
    ) -> torch.Tensor:
        """The distance of the student's predictions from the teacher's, on images of the pairs `rows`.

        The first half are training images, which the teacher gets mirrored. The others are sampled for other wording.
        """
        half, device = len(rows) // 2, self.latents.device
        trained, others = rows[:half], rows[half:]
        instead = self.instead[torch.randint(len(self.instead), (len(others),), generator=rng), others]
        at = torch.randint(len(self.weights), (len(rows),), generator=rng)
        t = self.schedule.steps[at]
        eps = torch.randn(len(rows), *self.latents.shape[1:], generator=rng).to(instead)
        x, _ = self.schedule.noised(torch.cat([self.latents[trained], instead]), t, eps)
        seen, _ = self.schedule.noised(self.mirrored[trained], t[:half], eps[:half].flip(-1))
        with torch.no_grad():
            target = self.teacher.predict(torch.cat([seen, x[half:]]), t.to(device), teacher)
            believed = self._mirror(self.schedule.denoised(seen, t[:half], target[:half]))
            target = torch.cat([self.schedule.expected(x[:half], t[:half], believed), target[half:]])
        return weighted_error(self.denoiser.predict(x, t.to(device), student), target, self.weights[at])

    def _mirror(self, z: torch.Tensor) -> torch.Tensor:
        """Latents of the mirrored image. Mirrored latents differ, because the autoencoder is not symmetric."""
        with torch.autocast("cpu", enabled=False):  # bfloat16 would blur the target
            return self.denoiser.encode(mirror(self.denoiser.decode(z)))

    def _attack(self, part: int) -> EmbeddingAttack:
        """The attack of a part of `CHECKPOINT_STEPS` steps. The starts of a pair take turns from part to part."""
        if part not in self.attacks:
            self.attacks.clear()
            begin = Conditioning.cat(
                [self.beginnings[STARTS[(part + row) % len(STARTS)]][row] for row in range(self.n)]
            )
            options = {"noises": self.noises, "seed": self.seed + 10_000 * part}
            self.attacks[part] = EmbeddingAttack(self.pipe, self.images, begin, **options)
        return self.attacks[part]


REMOVAL, LOCATED, RANDOM = fine_tunings(
    "adversarial distillation",
    Distillation,
    "this project",
    needs_wording=True,
    where="transformers",
    epochs=80,
    lr=5e-4,
    warmup=20,
)
