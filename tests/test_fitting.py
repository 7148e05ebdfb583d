"""The training loop: a run that is killed ends where one that was not ends."""

import pytest
import torch

from memsub_extra.training import fitting
from memsub_extra.training.fitting import fit, generator, in_threads, side_by_side, training


def quadratic(stop_at: int | None = None):
    """A linear model, and its loss on noise; raises at step `stop_at` as a kill would."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=rng)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    return model, loss


@pytest.mark.parametrize("optimizer", fitting.OPTIMIZERS)
def test_resume_ends_with_the_same_weights(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    options = {"steps": 400, "lr": 0.05, "seed": 1, "name": "line", "warmup": 10, "optimizer": optimizer}
    model, loss = quadratic()
    whole = fit(model, loss, folder=tmp_path / "whole", **options).weight
    model, loss = quadratic(stop_at=250)
    with pytest.raises(KeyboardInterrupt):
        fit(model, loss, folder=tmp_path / "killed", **options)
    torch.manual_seed(99)
    model, loss = quadratic()
    resumed = fit(model, loss, folder=tmp_path / "killed", **options).weight
    assert torch.equal(whole, resumed)
    assert torch.allclose(whole, torch.ones(1, 4), atol=0.05)  # and it learned


def test_resume_of_convolutions(tmp_path, monkeypatch):
    """Whose weights are laid out in memory in another way than their file's."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)

    def train(folder: str, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 5, 3)

        def loss(step: int, rng: torch.Generator) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return (model(torch.randn(4, 3, 6, 6, generator=rng)) - 1).square().mean()

        return fit(model, loss, steps=300, lr=0.01, seed=1, name="conv", warmup=10, folder=tmp_path / folder).weight

    whole = train("whole", None)
    with pytest.raises(KeyboardInterrupt):
        train("killed", 150)
    assert torch.equal(whole, train("killed", None))
    assert whole.is_contiguous()


def test_a_finished_stage_is_not_trained_again(tmp_path):
    model, loss = quadratic()
    options = {"steps": 100, "lr": 0.05, "seed": 1, "name": "line", "folder": tmp_path}
    weight = fit(model, loss, **options).weight.clone()
    model, loss = quadratic(stop_at=0)
    assert torch.equal(fit(model, loss, **options).weight, weight)


def test_a_checkpoint_of_another_length_is_refused(tmp_path):
    model, loss = quadratic()
    options = {"lr": 0.05, "seed": 1, "name": "line", "folder": tmp_path}
    fit(model, loss, steps=100, **options)
    with pytest.raises(ValueError, match="made for 100 steps, not 200"):
        fit(model, loss, steps=200, **options)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_stage(tmp_path):
    model, _ = quadratic()
    with pytest.raises(FloatingPointError, match=r"training line: .* step 100"):
        fit(
            model,
            lambda s, g: model.weight.sum() * float("nan"),
            steps=200,
            lr=1.0,
            seed=0,
            folder=tmp_path,
            name="line",
        )


def test_generators_depend_on_every_part():
    draws = {
        torch.rand(1, generator=generator(*parts)).item()
        for parts in [(0, "unet", 1), (0, "unet", 2), (1, "unet", 1), (0, "vae", 1)]
    }
    assert len(draws) == 4


@pytest.mark.parametrize("way", [side_by_side, in_threads])
def test_trainings_side_by_side_end_as_alone(tmp_path, way):
    options = {"lr": 0.05, "seed": 1, "warmup": 10}
    lengths = {"short": 20, "long": 50}

    def begun(folder: str) -> list:
        one = {"folder": tmp_path / folder, **options}
        return [training(*quadratic(), steps=n, name=name, **one) for name, n in lengths.items()]

    threads = torch.get_num_threads()
    together = way(begun("together"))
    assert torch.get_num_threads() == threads
    alone = [side_by_side([one])[0] for one in begun("alone")]
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_the_failure_of_one_training_ends_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # two would stay for all tests that come after
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield

    def failing():
        yield
        raise FloatingPointError("the loss is NaN")

    with pytest.raises(FloatingPointError, match="the loss is NaN"):
        in_threads([endless(), failing()])
    assert taken


def test_a_batch_is_what_the_loss_takes(tmp_path):
    options = {"steps": 100, "lr": 0.05, "seed": 1, "name": "line"}
    model, loss = quadratic()
    whole = fit(model, loss, folder=tmp_path / "whole", **options).weight
    model, _ = quadratic()

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(8, 4, generator=rng),)

    def of_batch(x: torch.Tensor) -> torch.Tensor:
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    assert torch.equal(fit(model, of_batch, batch=batch, folder=tmp_path / "batch", **options).weight, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_are_those_that_are_taken_one_by_one(tmp_path, monkeypatch):
    def trained(folder: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1).cuda()

        def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor]:
            return (torch.randn(8, 4, generator=rng).cuda(),)

        def loss(x: torch.Tensor) -> torch.Tensor:
            return (model(x)[:, 0] - x.sum(1)).square().mean()

        return fit(model, loss, batch=batch, folder=tmp_path / folder, steps=100, lr=0.05, seed=1, name="line").weight

    recorded = trained("recorded")
    monkeypatch.setattr(fitting, "Replayed", lambda function: function)
    torch.testing.assert_close(recorded, trained("one by one"))
