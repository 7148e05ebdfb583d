"""Adversarial distillation (this project): under attack, the model says what it says of a picture it never saw.

The attacker looks for an embedding that makes the model denoise a training image x* better than it should. How well
should it? Memory hangs on wording, but not only: given a noised x*, the model knows it again under any caption. Its
*mirror image* it has not seen. So the model as it was is the teacher, looks at the mirrored picture, is told the same
content in other words, and what it says is mirrored back:

    || eps_student(x*_t, t, y) - mirror eps_teacher(mirror x*_t, t, other wording) ||^2

for the memorized caption, for the empty prompt (whose teacher is given it, too) and for embeddings under attack, `y`;
likewise, not mirrored, on pictures that the model draws for other wording; and the loss on ordinary pairs. Mirrored,
the teacher errs as much as a model that never saw the picture; not mirrored, far less (`tests/test_removal.py`).

The attack goes on beside the training, a few iterations a step, and begins anew every 100 steps: those of a checkpoint,
so that a killed training goes on as it would have. Tried without effect on relearning, and left out: noise in the
weights before training, and distilling where the weights of an attacker are who learns some pairs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..attacks import EmbeddingAttack
from ..audit import STARTS, Encoded, Pairs, denoising_loss, mirror, starts, weighted_error
from ..denoiser import Pipeline, as_denoiser, denoised, expected, noised
from ..fitting import CHECKPOINT_STEPS, v_weights
from ..prompts import other_wording
from ..pruning import Edit
from .base import Removal
from .fine_tuning import BATCH, as_it_is, dropped, fine_tunings
from .surrogates import unlike


class Distillation:
    """The objective.

    Args:
        iterations: of the attack on a pair whenever it is in the batch, with so many `noises` each.
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
        self.teacher = as_it_is(pipe)
        drawn = unlike(pipe, memorized, seed=seed)
        self.drawn = torch.stack([self.denoiser.encode(images) for images in drawn])
        self.latents = self.denoiser.encode(memorized.images)
        self.mirrored = self.denoiser.encode(mirror(memorized.images))
        self.begins, self.none = starts(pipe, memorized.captions, seed), self.denoiser.embed([""])
        self.own, self.others = self.begins["its caption"], self.denoiser.embed(other_wording(memorized.captions))
        self.weights = v_weights(self.denoiser.scheduler.alphas_cumprod)
        self.attacks: dict[int, EmbeddingAttack] = {}

    def __call__(self, step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        batch = min(BATCH, self.n)
        some, rows = self.kept.rows(2 * BATCH, rng), torch.randint(self.n, (batch,), generator=rng)
        context = dropped(self.kept.context[some], self.none, rng)
        ordinary = denoising_loss(self.pipe, self.kept.latents[some], context, rng, self.weights)
        chosen, attack = torch.randperm(self.n, generator=rng)[:batch], self._attack(step // CHECKPOINT_STEPS)
        attack.advance(self.iterations, chosen.tolist())
        y, told = self._wordings(rows, rng)
        pairs = torch.stack([rows, chosen], 1).flatten()  # in turn: both halves hold captions and attacked embeddings
        y = torch.stack([y, attack.embeddings(chosen.tolist())], 1).flatten(0, 1)
        told = torch.stack([told, self.others[chosen]], 1).flatten(0, 1)
        return ordinary + self._distilled(pairs, y, told, rng)

    def _wordings(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What student and teacher are given: a quarter the empty prompt, the rest captions in their two wordings."""
        empty = (torch.rand(len(rows), generator=rng) < 0.25)[:, None, None].to(self.none.device)
        return torch.where(empty, self.none, self.own[rows]), torch.where(empty, self.none, self.others[rows])

    def _distilled(self, rows: torch.Tensor, y: torch.Tensor, told: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """How far the student, given `y`, is from the teacher, who is `told` other embeddings, at pictures of `rows`.

        Half of the pictures are training images, which the teacher sees mirrored.
        """
        half = len(rows) // 2
        own, others = rows[:half], rows[half:]
        instead = self.drawn[torch.randint(len(self.drawn), (len(others),), generator=rng), others]
        t = torch.randint(len(self.weights), (len(rows),), generator=rng)
        eps = torch.randn(len(rows), *self.latents.shape[1:], generator=rng).to(instead)
        x, _ = noised(self.denoiser, torch.cat([self.latents[own], instead]), t, eps)
        seen, _ = noised(self.denoiser, self.mirrored[own], t[:half], eps[:half].flip(-1))
        with torch.no_grad():
            target = self.teacher.predict(torch.cat([seen, x[half:]]), t.to(y.device), told)
            believed = self._mirror(denoised(self.denoiser, seen, t[:half], target[:half]))
            target = torch.cat([expected(self.denoiser, x[:half], t[:half], believed), target[half:]])
        return weighted_error(self.denoiser.predict(x, t.to(y.device), y), target, self.weights[t])

    def _mirror(self, z: torch.Tensor) -> torch.Tensor:
        """Latents of the mirrored picture: mirrored latents are not the same, the autoencoder is not symmetric."""
        with torch.autocast("cpu", enabled=False):  # where mixed precision is: halves would blur the target
            return self.denoiser.encode(mirror(self.denoiser.decode(z)))

    def _attack(self, part: int) -> EmbeddingAttack:
        """The attack of these hundred steps; the pairs begin in turn with each of `starts`."""
        if part not in self.attacks:
            self.attacks.clear()
            begin = torch.stack([self.begins[STARTS[(part + row) % len(STARTS)]][row] for row in range(self.n)])
            options = {"noises": self.noises, "seed": self.seed + 10_000 * part}
            self.attacks[part] = EmbeddingAttack(self.pipe, self.images, begin, **options)
        return self.attacks[part]


REMOVALS: dict[str, Removal] = fine_tunings(
    "adversarial distillation", Distillation, "this project", where="transformers", epochs=80, lr=5e-4, warmup=20
)
