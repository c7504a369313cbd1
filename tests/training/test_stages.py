"""Both stages' tasks at toy size: objectives, gradients, determinism, resumable data."""

import copy
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from PIL import Image
from torch.utils.data import default_collate

from flashvideo.data.shapes_world import is_held_out
from flashvideo.schedule import velocity_target, velocity_towards
from flashvideo.training.draws import Draws
from flashvideo.training.pool import build_pool, load_pool, pool_scene
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe
from flashvideo.training.rollout import visited_table
from flashvideo.training.stage1 import Stage1Task, keyframes, noisy_timesteps
from flashvideo.training.stage2 import Stage2Task
from flashvideo.training.vae import contrast_distance
from flashvideo.training.world import CaptionedCrops, held_out_scenes
from flashvideo.vae import decode_latents

CPU = torch.device("cpu")
TRANSFORMER = {
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 8,
    "num_layers": 1,
    "patch_size": 2,
    "max_text_seq_length": 28,
}
TEXT = {"d_model": 12, "d_kv": 6, "num_heads": 2, "d_ff": 8, "num_layers": 1, "dropout_rate": 0.0}
SIZE = (24, 40)


PHASE2 = Stage2Phase(steps=2, batch=1, frames=5, learning_rate=1e-3, crops=((16, 16),), times_per_clip=3)


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_vae_config: dict[str, Any]
) -> tuple[Stage1Task, Stage2Task]:
    """Both tasks, which take a while to build; tests get copies."""
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    AutoencoderKLCogVideoX(**tiny_vae_config).save_pretrained(folder / "vae")
    common = {"output": str(folder / "run"), "vae": str(folder / "vae"), "bf16": False}
    stage1 = Stage1Recipe(
        task="stage1",
        model=TRANSFORMER,
        text=TEXT,
        phases=(Stage1Phase(steps=2, batch=4, frames=5, learning_rate=1e-3),),
        size=SIZE,
        clips={5: 8},
        **common,
    )
    stage2 = Stage2Recipe(
        task="stage2",
        model=TRANSFORMER | {"text_embed_dim": 12, "noise_step_embed": True, "num_frames_embed": True},
        phases=(PHASE2,),
        size=(32, 48),
        watch_clips=2,
        **common,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashvideo.training.pool.SHARD", 4)
        return Stage1Task(stage1, CPU), Stage2Task(stage2, CPU)


@pytest.fixture
def stage1(built: tuple[Stage1Task, Stage2Task]) -> Stage1Task:
    return copy.deepcopy(built[0])


@pytest.fixture
def stage2(built: tuple[Stage1Task, Stage2Task]) -> Stage2Task:
    return copy.deepcopy(built[1])


def _batch(task: Stage1Task | Stage2Task, count: int) -> list[Any]:
    dataset = task.dataset(0, count)
    return default_collate([dataset[0, place] for place in range(count)])


def _draws(count: int, step: int = 0) -> Draws:
    return Draws(0, step, range(count), count)


def test_stage_1_loss_of_an_untrained_model_is_the_variance_of_v(stage1: Stage1Task) -> None:
    latents, *_ = batch = _batch(stage1, 8)
    losses = [stage1.loss(batch, 0, _draws(8, step))[0].item() for step in range(20)]
    # The output starts at zero, so the loss is E v^2, between the latents' variance and the noise's, 1.
    low, high = sorted((1.0, latents.float().square().mean().item()))
    assert 0.9 * low < np.mean(losses) < 1.1 * high


def test_stage_1_trains_transformer_and_text_encoder_together(stage1: Stage1Task) -> None:
    for parameter in stage1.modules.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    stage1.loss(_batch(stage1, 4), 0, _draws(4))[0].backward()
    text = [p for p in stage1.text_encoder.parameters() if p.grad is not None and p.grad.any()]
    assert text and not any(p.requires_grad for p in stage1.vae.parameters())


def test_stage_1_keyframes_are_some_frames_of_a_clip_at_their_positions(stage1: Stage1Task) -> None:
    phase = dataclasses.replace(stage1.recipe.phases[0], keyframes=1)
    stage1.recipe = dataclasses.replace(stage1.recipe, phases=(phase,))
    seen = []
    forward = stage1.transformer.forward

    def spy(latents: torch.Tensor, *args: object, frame_positions: torch.Tensor, **kwargs: object) -> object:
        seen.append((latents.shape[1], tuple(frame_positions.tolist())))
        return forward(latents, *args, frame_positions=frame_positions, **kwargs)

    stage1.transformer.forward = spy
    for step in range(20):
        stage1.loss(_batch(stage1, 2), 0, _draws(2, step))
    # Five frames are two latent frames.
    assert set(seen) == {(1, (0,)), (1, (1,))}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_steps_has_its_keyframes_at_the_clips_ends(stage1: Stage1Task, share: float) -> None:
    phase = dataclasses.replace(stage1.recipe.phases[0], keyframes=2, ends=share)
    generator = torch.Generator().manual_seed(0)
    drawn = [keyframes(9, phase, generator) for _ in range(400)]
    ends = np.mean([positions.tolist() == [0, 8] for positions in drawn])
    by_chance = 1 / 36  # pairs of nine
    assert abs(ends - (share + (1 - share) * by_chance)) < 0.07


def test_of_a_picture_among_clips_its_one_frame_is_taken_once(stage1: Stage1Task) -> None:
    phase = dataclasses.replace(stage1.recipe.phases[0], lengths=(1, 17), keyframes=2, ends=1.0)
    positions = keyframes(1, phase, torch.Generator().manual_seed(0))
    assert positions is not None and positions.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": 0.5}, "ends needs keyframes: 2 of more than one frame, got 0 of 5"),
        (
            {"ends": 0.5, "keyframes": 2, "frames": 1},
            "ends needs keyframes: 2 of more than one frame, got 2 of 1",
        ),
        ({"sampler_steps": 1001}, "sampler_steps must be 0 to 1000, got 1001"),
        ({"sampler_steps": 6, "rollout": 1.5}, "rollout must be between 0 and 1, got 1.5"),
        ({"sampler_steps": 2, "rollout": 0.5}, "rollout needs sampler_steps of at least 3, got 2"),
        ({"ends": 1.5, "keyframes": 2}, r"ends in \[0, 1\], got 2 and 1.5"),
        ({"keyframes": -1}, "keyframes must be at least 0"),
    ],
)
def test_keyframes_that_make_no_sense_are_an_error(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage1Phase(**{"steps": 1, "batch": 1, "frames": 5, "learning_rate": 1e-3} | changes)


@pytest.mark.parametrize("name", ["model", "text"])
def test_stage_1_starts_from_weights_or_from_a_description_not_both(stage1: Stage1Task, name: str) -> None:
    with pytest.raises(ValueError, match=f"must give either start or '{name}', got neither"):
        dataclasses.replace(stage1.recipe, **{name: {}})
    everything = {"start": "folder", "model": {}, "text": {}}
    with pytest.raises(ValueError, match=f"must give either start or '{name}', got both"):
        dataclasses.replace(stage1.recipe, **everything | {name: {"d": 1}})


def test_stage_1_samples_have_the_size_of_a_preview_and_follow_the_seed(stage1: Stage1Task) -> None:
    options = {"steps": 2, "guidance": 2.0, "frames": 5}
    first, again = (stage1.previews.sample(["a red ball"], seed=1, **options) for _ in range(2))
    assert first.shape == (1, 5, 3, *SIZE)
    assert torch.equal(first, again)
    assert not torch.equal(first, stage1.previews.sample(["a red ball"], seed=2, **options))


def test_stage_1_is_judged_by_the_readers_and_leaves_a_picture(stage1: Stage1Task, tmp_path: Path) -> None:
    values = stage1.validate(tmp_path, count=2)
    assert set(values) == {"color", "shape", "motion", "background", "all"}
    assert all(0 <= v <= 1 for v in values.values())
    assert all((tmp_path / name).exists() for name in ("validation.png", "guess.png"))
    assert stage1.score(values) == pytest.approx(np.mean([v for k, v in values.items() if k != "all"]))
    assert stage1.warnings(values, [values]) == []


def test_the_first_guess_is_the_clean_clip_that_v_of_pure_noise_means(stage1: Stage1Task) -> None:
    clean, noise = stage1.pools[5][:1].float(), torch.randn(1)
    seen = []

    def forward(latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        seen.append(timestep.item())
        return SimpleNamespace(
            sample=velocity_target(clean, noise.expand(clean.shape), stage1.scheduler.table[-1])
        )

    stage1.transformer.forward = forward
    expected = decode_latents(stage1.vae, clean, scale=stage1.vae.config.scaling_factor, clamp=True)
    torch.testing.assert_close(stage1.previews.guess(["a red ball"], frames=5), expected)
    assert seen == [999.0]


def test_stage_1_goes_on_from_saved_weights(stage1: Stage1Task, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in stage1.modules.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    stage1.save(tmp_path / "model")
    continued = Stage1Task(
        dataclasses.replace(stage1.recipe, start=str(tmp_path / "model"), model={}, text={}), CPU
    )
    for a, b in zip(stage1.modules.parameters(), continued.modules.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_new_stage_1_starts_from_the_principal_components_of_its_noisy_clips(stage1: Stage1Task) -> None:
    recipe = dataclasses.replace(stage1.recipe, model=TRANSFORMER | {"num_attention_heads": 3})
    task = Stage1Task(recipe, CPU)
    noisy, _ = task._examples()
    tokens = task.transformer.patch_embed.proj(noisy.flatten(0, 1)).movedim(1, -1).flatten(0, -2)
    tokens = tokens[:, :32]  # patches of 8 channels and 2 x 2 elements; the other 16 hold the constant
    torch.testing.assert_close(tokens.T.cov(), torch.eye(32), atol=1e-3, rtol=0)


def test_an_epoch_uses_every_clip_once_and_captions_change_between_epochs(stage1: Stage1Task) -> None:
    dataset = stage1.dataset(0, 4)
    first, second = (
        [dataset[step, place] for step in (2 * epoch, 2 * epoch + 1) for place in range(4)]
        for epoch in range(2)
    )
    sums = [sorted(float(x.float().sum()) for x, *_ in epoch) for epoch in (first, second)]
    assert sums[0] == sums[1]
    assert {t for _, t, _ in first} != {t for _, t, _ in second}


def test_no_pool_clip_shows_a_held_out_combination_and_every_prompt_of_the_judge_does() -> None:
    assert not any(is_held_out(*pool_scene(2, i).combination) for i in range(300))
    assert all(is_held_out(*s.combination) for s in held_out_scenes(50))


def test_a_pool_is_continued_and_one_of_another_vae_is_refused(
    tiny_vae: AutoencoderKLCogVideoX, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashvideo.training.pool.SHARD", 2)
    options = {"seed": 1, "count": 4, "frames": 5, "size": SIZE, "emphasis": {}, "spread": 1.0, "bf16": False}
    build_pool(tmp_path, tiny_vae, **options)
    whole = load_pool(tmp_path, 4)
    (tmp_path / "00001.safetensors").unlink()
    (tmp_path / "00001.safetensors.1-abcd.part").touch()  # of a killed process
    os.utime(tmp_path / "pool.json", (0, 0))
    build_pool(tmp_path, tiny_vae, **options)
    assert (tmp_path / "pool.json").stat().st_mtime == 0  # other processes may be reading it
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
        "pool.json",
    ]
    assert torch.equal(whole, load_pool(tmp_path, 4))
    with torch.no_grad():
        next(tiny_vae.parameters()).add_(1)
    with pytest.raises(ValueError, match="another VAE"):
        build_pool(tmp_path, tiny_vae, **options)


def test_a_pool_of_another_spread_has_other_clips_and_is_refused(
    tiny_vae: AutoencoderKLCogVideoX, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashvideo.training.pool.SHARD", 1)
    options = {"seed": 1, "count": 1, "frames": 5, "size": SIZE, "emphasis": {}, "bf16": False}
    build_pool(tmp_path / "wide", tiny_vae, **options, spread=1.0)
    build_pool(tmp_path / "narrow", tiny_vae, **options, spread=0.25)
    assert not torch.equal(load_pool(tmp_path / "wide", 1), load_pool(tmp_path / "narrow", 1))
    with pytest.raises(ValueError, match=r"another .* spread"):
        build_pool(tmp_path / "wide", tiny_vae, **options, spread=0.25)
    # Pools did not always tell.
    about = json.loads((tmp_path / "wide" / "pool.json").read_text())
    del about["spread"]
    (tmp_path / "wide" / "pool.json").write_text(json.dumps(about))
    build_pool(tmp_path / "wide", tiny_vae, **options, spread=1.0)


def test_what_is_emphasised_is_drawn_more_often() -> None:
    def share(emphasis: dict[str, float]) -> float:
        return sum(pool_scene(2, i, emphasis).motion == "growing" for i in range(60)) / 60

    assert share({"growing": 8.0}) > 2 * share({}) > 0
    assert pool_scene(2, 0, {"growing": 8.0}) == pool_scene(2, 0, {"growing": 8.0})


@pytest.mark.parametrize(
    ("emphasis", "message"),
    [
        ({"spining": 3.0}, "got 'spining'; did you mean 'spinning'"),
        ({"ring": float("inf")}, "emphasis.ring must be a positive number, got inf"),
        ({"ring": -1.0}, "emphasis.ring must be a positive number"),
        ({"ring": float("nan")}, "emphasis.ring must be a positive number"),
    ],
)
def test_an_emphasis_that_makes_no_sense_is_named(
    built: tuple[Stage1Task, Stage2Task], emphasis: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(built[0].recipe, emphasis=emphasis)


def test_crops_larger_than_the_frame_are_refused(built: tuple[Stage1Task, Stage2Task]) -> None:
    phase = dataclasses.replace(PHASE2, crops_by_frames={PHASE2.frames: ((16, 64),)})
    with pytest.raises(ValueError, match=r"crops within the recipe's size, \[32, 48\], got \[16, 64\]"):
        dataclasses.replace(built[1].recipe, phases=(phase,))


def test_a_pool_of_another_latent_scale_is_refused(
    tiny_vae: AutoencoderKLCogVideoX, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashvideo.training.pool.SHARD", 1)
    options = {"seed": 1, "count": 1, "frames": 5, "size": SIZE, "emphasis": {}, "spread": 1.0, "bf16": False}
    build_pool(tmp_path, tiny_vae, **options)
    tiny_vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(ValueError, match="latent scale"):
        build_pool(tmp_path, tiny_vae, **options)


def test_the_timestep_density_leans_to_noise() -> None:
    u = (torch.arange(2000) + 0.5) / 2000
    uniform, shifted = (noisy_timesteps(u, p).float() for p in (1.0, 2.5))
    assert uniform.mean() == pytest.approx(499.5, abs=2)
    # E k = 999 (1 - 1 / (p + 1))
    assert shifted.mean() == pytest.approx(999 * (1 - 1 / 3.5), abs=2)
    assert shifted.min() >= 0 and shifted.max() <= 999


def test_timesteps_can_be_those_of_a_sampler_alone(stage1: Stage1Task) -> None:
    seen = []
    stage1.transformer.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[2].tolist()))
    phase = dataclasses.replace(stage1.recipe.phases[0], sampler_steps=2)
    stage1.recipe = dataclasses.replace(stage1.recipe, phases=(phase,))
    for step in range(4):
        stage1.loss(_batch(stage1, 4), 0, _draws(4, step))
    assert set(seen) == {499, 999}


def _of_four_steps(stage1: Stage1Task, **values: Any) -> None:
    phase = dataclasses.replace(stage1.recipe.phases[0], sampler_steps=4, density=1.0, **values)
    stage1.recipe = dataclasses.replace(stage1.recipe, phases=(phase,))


@pytest.mark.parametrize("rollout", [0.0, 1.0])
def test_a_samplers_levels_and_what_it_made_are_learned_from(stage1: Stage1Task, rollout: float) -> None:
    """A model that says v = 0 has for a loss the mean square of the v that leads from what it saw to the clip."""
    seen = []

    def silent(noisy: torch.Tensor, text: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> SimpleNamespace:
        seen.append((noisy, timesteps.long()))
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    stage1.transformer.forward = silent
    _of_four_steps(stage1, rollout=rollout)
    batch = _batch(stage1, 4)
    loss, _ = stage1.loss(batch, 0, _draws(4))
    assert len(seen) == (3 if rollout else 1)
    noisy, timesteps = seen[-1]
    a = visited_table(stage1.scheduler, 4)[timesteps]
    assert loss.item() == pytest.approx(
        velocity_towards(batch[0].float(), noisy, a).square().mean().item(), rel=1e-4
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_the_gradient_is_of_the_last_pass_alone(stage1: Stage1Task, bf16: bool) -> None:
    passes = []
    stage1.transformer.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    _of_four_steps(stage1, rollout=1.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = stage1.loss(_batch(stage1, 4), 0, _draws(4))
    assert passes == [False, False, True]
    loss.backward()
    gradients = [p.grad for p in stage1.transformer.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients) and stage1.transformer.proj_out.weight.grad.any()


def test_held_out_clips_are_judged_without_what_the_sampler_makes(stage1: Stage1Task) -> None:
    losses = []
    stage1.modules.eval()
    for rollout in (0.0, 1.0):
        _of_four_steps(stage1, rollout=rollout)
        losses.append(stage1.loss(_batch(stage1, 4), 0, _draws(4))[0].item())
    assert losses[0] == losses[1]


def test_stage_2_loss_of_an_untrained_model_is_the_mean_square_of_the_velocity(stage2: Stage2Task) -> None:
    loss, _ = stage2.loss(_batch(stage2, 1), 0, _draws(1))
    assert torch.isfinite(loss) and loss.item() > 0
    loss.backward()
    assert stage2.transformer.proj_out.weight.grad.any()


def _added_by(stage2: Stage2Task, weight: str, z_hq: torch.Tensor, v: torch.Tensor) -> float:
    """What a term of weight 1 adds to the loss of velocities `v` half way from zeros to `z_hq`."""
    stage2._pair = lambda *_: (z_hq, torch.zeros_like(z_hq))
    stage2._draw = lambda z, *_: (z, torch.full((len(z),), 0.5), torch.zeros(len(z), dtype=torch.long))
    stage2.transformer.forward = lambda x, *_, **__: SimpleNamespace(sample=v.expand_as(x))
    losses = []
    for value in (0.0, 1.0):
        phase = dataclasses.replace(stage2.recipe.phases[0], **{weight: value})
        stage2.recipe = dataclasses.replace(stage2.recipe, phases=(phase,))
        losses.append(stage2.loss(_batch(stage2, 1), 0, _draws(1))[0].item())
    return losses[1] - losses[0]


@pytest.mark.parametrize(("share_of_velocity", "has_all_detail"), [(1.0, True), (0.0, False)])
def test_stage_2_contrast_term_asks_for_the_detail_that_a_velocity_leaves_out(
    stage2: Stage2Task, share_of_velocity: float, has_all_detail: bool
) -> None:
    z_hq = torch.randn(1, 3, 4, 17, 17, generator=torch.Generator().manual_seed(0))
    term = _added_by(stage2, "contrast_weight", z_hq, share_of_velocity * z_hq)
    clean = 0.5 * z_hq + 0.5 * share_of_velocity * z_hq
    assert term == pytest.approx(contrast_distance(clean, z_hq).item(), abs=1e-5)
    assert (term < 1e-6) == has_all_detail


def test_stage_2_still_contrast_term_asks_for_detail_that_stays_not_for_flicker(stage2: Stage2Task) -> None:
    still = torch.randn(1, 1, 4, 17, 17, generator=torch.Generator().manual_seed(0))
    z_hq = still.repeat(1, 4, 1, 1, 1)
    flicker = torch.tensor((1.0, -1.0, 1.0, -1.0)).view(1, 4, 1, 1, 1) * still
    terms = [_added_by(stage2, "still_contrast_weight", z_hq, v) for v in (z_hq, z_hq + flicker, 0 * z_hq)]
    assert terms[:2] == pytest.approx([0, 0], abs=1e-6)
    assert terms[2] == pytest.approx(contrast_distance(still / 2, still).item(), abs=1e-5)
    assert _added_by(stage2, "contrast_weight", z_hq, z_hq + flicker) > 0.1


@pytest.mark.parametrize(
    ("offsets", "expected"), [((0.2, 0.2, 0.2), 0.0), ((0.0, 0.2, 0.0), 0.1), ((0.0, 0.0, 0.4), 0.1)]
)
def test_stage_2_difference_term_is_against_errors_that_change_between_frames(
    stage2: Stage2Task, offsets: tuple[float, ...], expected: float
) -> None:
    z_hq = torch.randn(1, 3, 4, 17, 17, generator=torch.Generator().manual_seed(0))
    # Half of the path is left, and with it half of the error.
    v = z_hq + torch.tensor(offsets)[None, :, None, None, None]
    assert _added_by(stage2, "difference_weight", z_hq, v) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["difference_weight", "still_contrast_weight"])
def test_terms_of_stage_2_over_time_need_more_than_one_frame(stage2: Stage2Task, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs more than one frame, got frames: 1"):
        dataclasses.replace(stage2.recipe.phases[0], **{name: 0.3, "frames": 1})


def test_stage_2_without_a_text_encoder_ignores_prompts(stage2: Stage2Task) -> None:
    pixels, _ = _batch(stage2, 1)
    losses = [stage2.loss((pixels, [text]), 0, _draws(1))[0].item() for text in ("", "a red ball")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stage_2_sends_its_share_of_small_clips_through_the_vae(stage2: Stage2Task, share: float) -> None:
    phase = dataclasses.replace(stage2.recipe.phases[0], round_trip=share)
    stage2.recipe = dataclasses.replace(stage2.recipe, phases=(phase,))
    seen = []
    stage2.pairs.round_trip = lambda small: seen.append(small.shape[-2:]) or small
    stage2.loss(_batch(stage2, 1), 0, _draws(1))
    assert seen == ([(4, 4)] if share else [])


def test_stage_2_is_judged_at_full_size_and_leaves_a_picture(stage2: Stage2Task, tmp_path: Path) -> None:
    values = stage2.validate(tmp_path)
    assert {"steps1_gain", "steps2_bank", "steps4_energy", "steps8_fidelity", "floor_energy"} <= set(values)
    assert all(np.isfinite(v) for v in values.values())
    with Image.open(tmp_path / "validation.png") as sheet:
        assert sheet.size == (4 * 48, 2 * 32)  # input, 1 step, 4 steps and truth of both clips


def test_stage_2_enhances_to_scale_times_the_size(stage2: Stage2Task) -> None:
    low = torch.zeros(1, 5, 3, 8, 12)
    results = stage2.enhance(low, ["a red ball"], steps=(2, 3), noise_step=250)
    assert [result.shape for result in results] == [(1, 5, 3, 32, 48)] * 2


def test_crops_of_one_batch_share_their_size_and_batches_alternate() -> None:
    phase = Stage2Phase(
        steps=2, batch=2, frames=5, learning_rate=1e-3, crops=((16, 16), (32, 48)), natural=0.5
    )
    dataset = CaptionedCrops(0, phase, (96, 160))
    sizes = [tuple(dataset[step, place][0].shape[-2:]) for step in range(3) for place in range(2)]
    assert sizes == [(16, 16)] * 2 + [(32, 48)] * 2 + [(16, 16)] * 2


def test_each_length_of_a_phase_meets_each_of_its_sizes() -> None:
    phase = dataclasses.replace(
        PHASE2, frames=5, lengths=(1, 5), crops=((16, 16), (16, 32)), crops_by_frames={1: ((32, 48),)}
    )
    assert [phase.shape_at(step) for step in range(4)] == [(1, 32, 48), (5, 16, 16), (1, 32, 48), (5, 16, 32)]
    assert phase.shapes() == ((1, 32, 48), (5, 16, 16), (5, 16, 32))
    dataset = CaptionedCrops(0, phase, (96, 160))
    assert [dataset[step, 0][0].shape[0] for step in range(2)] == [1, 5]


@pytest.mark.parametrize("natural", [0.0, 1.0])
def test_faster_clips_change_more_between_frames(natural: float) -> None:
    changes = []
    for speed in (0.25, 1.0, 4.0):
        phase = dataclasses.replace(PHASE2, crops=((96, 160),), natural=natural, speeds=(speed, speed))
        dataset = CaptionedCrops(3, phase, (96, 160))
        changes.append(np.mean([float(dataset[0, i][0].diff(dim=0).abs().mean()) for i in range(3)]))
    assert changes[0] < changes[1] < changes[2]


def test_noise_steps_follow_the_number_of_frames_and_cover_their_range(stage2: Stage2Task) -> None:
    phase = dataclasses.replace(
        PHASE2,
        lengths=(1, 5),
        noise_steps=(0, 11),
        noise_steps_by_frames={1: (100, 103)},
        times_per_clip=4,
    )
    # Five frames are two latent frames. Four times of three clips: one noise step in each twelfth of the range.
    for latent_frames, expected in ((2, list(range(12))), (1, sorted(3 * list(range(100, 104))))):
        _, times, steps = stage2._draw(torch.zeros(3, latent_frames, 8, 4, 4), phase, _draws(3))
        assert sorted(steps.tolist()) == expected
        assert len(times) == 12 and times.min() >= 0 and times.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_steps": (5, 1000)}, r"noise_steps must rise within 0 to 999, got \[5, 1000\]"),
        (
            {"noise_steps_by_frames": {9: (0, 1)}},
            "noise_steps_by_frames must be of lengths of the phase, 5, got 9",
        ),
        ({"crops": ()}, "crops must give at least one"),
        ({"strong": 1.5}, "strong must be between 0 and 1, got 1.5"),
        ({"speeds": (2.0, 1.0)}, "speeds must be positive and rise"),
        ({"times_per_clip": 0}, "times_per_clip must be at least 1, got 0"),
    ],
)
def test_phases_of_stage_2_that_make_no_sense_are_an_error(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PHASE2, **changes)


def test_sizes_that_the_model_cannot_take_are_refused_before_any_work(stage2: Stage2Task) -> None:
    phase = dataclasses.replace(PHASE2, crops=((20, 16),))
    with pytest.raises(ValueError, match="height"):
        Stage2Task(dataclasses.replace(stage2.recipe, phases=(phase,)), CPU)


def test_captions_get_the_prompt_prefix_and_no_caption_stays_no_text(stage2: Stage2Task) -> None:
    seen = []
    stage2.tokenizer = stage2.text_encoder = object()
    stage2.recipe = dataclasses.replace(stage2.recipe, prompt_prefix="medium motion,")

    def encode(texts: list[str], *_: object, max_text_tokens: int) -> torch.Tensor:
        seen.extend(texts)
        return torch.ones(len(texts), max_text_tokens, 12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashvideo.training.stage2.encode_prompts", encode)
        text = stage2.encode_text(["a red ball", ""])
    assert seen[0] == "medium motion,a red ball"
    assert text[0].all() and not text[1].any()


def test_natural_clips_come_without_a_caption() -> None:
    natural = Stage2Phase(steps=1, batch=1, frames=5, learning_rate=1e-3, crops=((16, 16),), natural=1.0)
    assert CaptionedCrops(0, natural, (96, 160))[0, 0][1] == ""


def test_pictures_in_place_of_videos_are_watched_within_their_own_noise_steps(
    stage2: Stage2Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = dataclasses.replace(PHASE2, lengths=(1, 5), noise_steps_by_frames={1: (600, 750)})
    stage2.recipe = dataclasses.replace(stage2.recipe, phases=(phase,), watch_noise_step=20)
    stage2.watched = [(torch.zeros(frames, 3, 32, 48), "") for frames in (5, 1)]
    noise_steps = []

    def enhance(low: torch.Tensor, *arguments: object, noise_step: int, **options: object) -> list:
        noise_steps.append(noise_step)
        return [torch.zeros(1, low.shape[1], 3, 32, 48)] * 4

    monkeypatch.setattr(stage2, "enhance", enhance)
    stage2.validate(tmp_path)
    assert noise_steps == [20, 675]
