"""The VAE's objective at toy size: its terms, a frozen decoder's encoder, a start from another compression in time."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo.training.descriptions import DECODES_ONLY, weights_fingerprint
from flashvideo.training.draws import Draws
from flashvideo.training.recipes import VAEPhase, VAERecipe
from flashvideo.training.vae import VAETask, local_contrast

CPU = torch.device("cpu")


def _task(vae: AutoencoderKLCogVideoX, folder: Path, **changes) -> VAETask:
    vae.save_pretrained(folder / "vae")
    model = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    model |= changes.pop("model", {})
    contrast = changes.pop("contrast_weight", 0.0)
    phase = VAEPhase(steps=1, batch=1, frames=5, crop=(16, 16), learning_rate=1e-3, contrast_weight=contrast)
    recipe = VAERecipe(
        task="vae",
        output=str(folder / "run"),
        start=str(folder),
        model=model,
        phases=(phase,),
        bf16=False,
        **changes,
    )
    return VAETask(recipe, CPU)


def _loss(task: VAETask, pixels: torch.Tensor) -> torch.Tensor:
    return task.loss(pixels, 0, Draws(0, 0, (0,), 1))[0]


@pytest.fixture
def pixels(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(1, 5, 3, 16, 16, generator=generator) * 2 - 1


def test_local_contrast_is_the_root_mean_square_of_each_window() -> None:
    differences = torch.zeros(1, 1, 1, 8, 16)
    differences[..., 8:] = 0.5
    assert local_contrast(differences).flatten().tolist() == pytest.approx([0.01, 0.5001], abs=1e-4)


def test_contrast_weight_asks_for_detail(tiny_vae, tmp_path, pixels) -> None:
    """The term adds to the loss of a blurred reconstruction, in proportion to its weight."""
    none, one, two = (
        _loss(_task(tiny_vae, tmp_path, contrast_weight=w), pixels).item() for w in (0.0, 1.0, 2.0)
    )
    assert one > none
    assert two - one == pytest.approx(one - none, rel=1e-3)


def test_a_frozen_encoder_keeps_its_latents(tiny_vae, tmp_path, pixels) -> None:
    task = _task(tiny_vae, tmp_path, freeze_encoder=True)
    before = weights_fingerprint(task.vae, without=DECODES_ONLY)
    _loss(task, pixels).backward()
    assert all(p.grad is None for p in task.vae.encoder.parameters())
    assert any(p.grad is not None for p in task.vae.decoder.parameters())
    with torch.no_grad():
        task.vae.decoder.conv_out.conv.weight.add_(1)
        assert weights_fingerprint(task.vae, without=DECODES_ONLY) == before
        task.vae.encoder.conv_in.conv.weight.add_(1)
    assert weights_fingerprint(task.vae, without=DECODES_ONLY) != before


def test_a_start_may_change_the_compression_in_time(tiny_vae, tmp_path, pixels) -> None:
    task = _task(tiny_vae, tmp_path, model={"temporal_compression_ratio": 2})
    assert task.vae.config.temporal_compression_ratio == 2
    weights = task.vae.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in tiny_vae.state_dict().items())
    assert _loss(task, pixels).isfinite()


def test_a_better_picture_is_worth_more_and_a_much_worse_one_is_warned_of(tiny_vae, tmp_path) -> None:
    task = _task(tiny_vae, tmp_path)
    good = {"world_psnr": 34.0, "world_energy": 0.9, "natural_psnr": 30.0, "natural_energy": 1.2}
    blurred, noisy = good | {"world_energy": 0.6}, good | {"natural_psnr": 26.0}
    assert task.score(good) == pytest.approx(32 + 4 * 1.9)
    assert task.score(good) > task.score(blurred) and task.score(good) > task.score(noisy)
    assert not task.warnings(blurred, [good]) and len(task.warnings(noisy, [good])) == 1


def test_a_run_resumed_at_its_end_saves_the_latent_scale_that_validation_found(
    tiny_vae, tmp_path, pixels, monkeypatch
) -> None:
    monkeypatch.setattr("flashvideo.training.vae.held_out_clips", lambda *arguments, **sizes: pixels)
    validated, resumed = _task(tiny_vae, tmp_path), _task(tiny_vae, tmp_path)
    validated.validate(tmp_path)
    scales = []
    for name, task in (("validated", validated), ("resumed", resumed)):
        task.save(tmp_path / name)
        scales.append(AutoencoderKLCogVideoX.load_config(tmp_path / name / "vae")["scaling_factor"])
    assert scales[0] == scales[1] != tiny_vae.config.scaling_factor
