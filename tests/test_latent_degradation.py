"""Latent degradation, by its closed form."""

import pytest
import torch

from flashvideo.degradations.latent import degrade_latents
from flashvideo.schedule import alphas_cumprod_sqrt_table

SHAPE = (2, 3, 4, 8, 8)


def test_the_released_step_keeps_a_quarter_of_the_signal():
    z, noise = torch.ones(SHAPE), torch.zeros(SHAPE)
    degraded = degrade_latents(z, 675, noise=noise)
    assert degraded.unique().item() == pytest.approx(0.26395872, abs=1e-6)


def test_signal_and_noise_keep_unit_variance_together(generator):
    z = torch.randn(SHAPE, generator=generator)
    a = alphas_cumprod_sqrt_table()[675]
    noise = torch.randn(SHAPE, generator=generator)
    degraded = degrade_latents(z, 675, noise=noise)
    torch.testing.assert_close(degraded, a * z + (1 - a**2).sqrt() * noise)


def test_the_last_step_leaves_noise_only(generator):
    noise = torch.randn(SHAPE, generator=generator)
    assert degrade_latents(torch.ones(SHAPE), 999, noise=noise).equal(noise)


def test_each_sample_may_have_its_own_step(generator):
    z, noise = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    both = degrade_latents(z, torch.tensor([100, 700]), noise=noise)
    for index, step in enumerate((100, 700)):
        one = degrade_latents(z[index : index + 1], step, noise=noise[index : index + 1])
        torch.testing.assert_close(both[index : index + 1], one)


def test_the_same_seed_gives_the_same_noise():
    z = torch.zeros(SHAPE)
    first, again, other = (degrade_latents(z, 500, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_the_dtype_stays():
    assert degrade_latents(torch.zeros(SHAPE).bfloat16(), 500, torch.Generator()).dtype == torch.bfloat16


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_out_of_range_is_an_error(step):
    with pytest.raises(ValueError, match=rf"noise_step must be in 0\.\.999, got {step}"):
        degrade_latents(torch.zeros(SHAPE), step, torch.Generator())


def test_randomness_has_to_be_passed():
    with pytest.raises(ValueError, match=r"needs a torch\.Generator"):
        degrade_latents(torch.zeros(SHAPE), 500)
