"""The transformer's contract: shapes, conditions, positions, and what diffusers' users expect of a model."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from flashvideo.models.attention import FlashVideoAttnProcessor
from flashvideo.models.initialization import init_for_training
from flashvideo.models.rope import (
    PositionEmbedding3D,
    apply_rope,
    axis_dims,
    neighbour_query_key,
    rope_tables,
)
from flashvideo.models.transformer import FlashVideoTransformer3DModel


@pytest.fixture
def inputs(generator):
    latents = torch.randn(2, 3, 8, 4, 6, generator=generator)
    text = torch.randn(2, 8, 12, generator=generator)
    return latents, text, torch.tensor([1000.0, 384.6])


@torch.no_grad()
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_prediction_has_the_shape_of_the_latents(tiny_transformer, stage, patch_size):
    model = tiny_transformer(stage, patch_size=patch_size)
    latents, text = torch.zeros(1, 2, 8, 4, 12), torch.zeros(1, 5, 12)
    noise_step = 675 if stage == 2 else None
    sample = model(latents, text, torch.tensor(500.0), noise_step=noise_step).sample
    assert sample.shape == latents.shape
    (as_tuple,) = model(latents, text, torch.tensor(500.0), noise_step=noise_step, return_dict=False)
    assert as_tuple.equal(sample)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(tiny_transformer, inputs):
    model = tiny_transformer(2)
    latents, text, timestep = inputs
    steps = torch.tensor([675, 200])
    both = model(latents, text, timestep, noise_step=steps).sample
    for i in range(2):
        one = model(latents[i : i + 1], text[i : i + 1], timestep[i : i + 1], noise_step=int(steps[i])).sample
        torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_input_matters(tiny_transformer, inputs):
    model = tiny_transformer(2)
    latents, text, timestep = inputs
    base = model(latents, text, timestep, noise_step=675).sample
    others = {
        "latents": model(latents + 0.1, text, timestep, noise_step=675),
        "text order": model(latents, text.flip(1), timestep, noise_step=675),
        "text": model(latents, text * 0, timestep, noise_step=675),
        "time": model(latents, text, timestep - 50, noise_step=675),
        "noise step": model(latents, text, timestep, noise_step=600),
    }
    changed = {name: float((other.sample - base).abs().max()) for name, other in others.items()}
    # Text tokens carry no position, so their order must not matter.
    assert changed.pop("text order") < 1e-5
    assert min(changed.values()) > 1e-4, changed


@torch.no_grad()
def test_the_number_of_frames_is_a_condition_of_stage2_alone(tiny_transformer):
    text, timestep = torch.zeros(1, 8, 12), torch.tensor([500.0])
    for stage, noise_step in ((1, None), (2, 675)):
        model = tiny_transformer(stage)
        three, five = (
            model.embed_conditions(timestep, noise_step, torch.zeros(1, f, 8, 4, 4), torch.zeros(1, 8, 12))
            for f in (3, 5)
        )
        assert three.equal(five) == (stage == 1)
    assert text.shape[1] == model.config.max_text_seq_length


def test_new_stage2_embedders_leave_a_stage1_model_as_it_is():
    config = {"num_attention_heads": 1, "attention_head_dim": 16, "time_embed_dim": 8, "num_layers": 1}
    stage1 = FlashVideoTransformer3DModel(**config, text_embed_dim=4)
    stage2 = FlashVideoTransformer3DModel(
        **config, text_embed_dim=4, noise_step_embed=True, num_frames_embed=True
    )
    missing, unexpected = stage2.load_state_dict(stage1.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"noise_step_embedding", "num_frames_embedding"}
    latents, text, timestep = torch.randn(1, 1, 16, 4, 4), torch.randn(1, 3, 4), torch.tensor(300.0)
    torch.testing.assert_close(
        stage2(latents, text, timestep, noise_step=675).sample, stage1(latents, text, timestep).sample
    )


@torch.no_grad()
def test_absolute_positions_and_pooled_text_have_no_effect_until_they_learn(tiny_transformer, inputs):
    plain = tiny_transformer(1)
    config = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    config |= {"position_embed": True, "pooled_text_embed": True}
    model = FlashVideoTransformer3DModel(**config).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    expected = plain(*inputs).sample
    torch.testing.assert_close(model(*inputs).sample, expected)
    for embedding in (model.position_embedding.linear, model.pooled_text_embedding.linear_2):
        embedding.weight.normal_()
        changed = model(*inputs).sample
        assert not torch.allclose(changed, expected)
        expected = changed


@torch.no_grad()
def test_absolute_positions_follow_frames_taken_out_of_a_longer_clip():
    embedding = PositionEmbedding3D(16, 2, 8)
    embedding.linear.weight.normal_()
    whole, some = torch.zeros(1, 5, 3, 4, 6), torch.zeros(1, 3, 3, 4, 6)
    chosen = embedding(some, torch.tensor([0, 2, 4])).unflatten(0, (3, 6))
    torch.testing.assert_close(chosen, embedding(whole).unflatten(0, (5, 6))[::2])
    assert not torch.allclose(chosen[0, 0], chosen[0, 1])


@torch.no_grad()
def test_a_model_started_for_training_predicts_zero_and_learns(tiny_transformer, inputs):
    model = tiny_transformer(1)
    init_for_training(model)
    latents, text, timestep = inputs
    assert model(latents, text, timestep).sample.abs().max() == 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        with torch.enable_grad():
            loss = (model(latents, text, timestep).sample - latents).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_started_model_is_a_scale_away_from_its_input(power):
    """With the output's scale at zero instead of minus one, latents pass through, whatever a patch's energy."""
    model = FlashVideoTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1, patch_size=2,
        time_embed_dim=8, text_embed_dim=4,
    )  # fmt: skip
    init_for_training(model)
    model.norm_out.linear.bias.zero_()
    latents = power * torch.randn(1, 3, 4, 8, 12)
    output = model(latents, torch.zeros(1, 5, 4), torch.tensor([500.0])).sample
    gain = (output * latents).sum() / latents.square().sum()
    assert 0.6 < gain < 1.4
    assert (output - gain * latents).square().mean() < 0.03 * output.square().mean()


@torch.no_grad()
def test_a_model_started_from_examples_has_one_gain_for_each_principal_component(generator):
    """Where signal and noise lie in different directions, one output scale for each gives the signal alone."""
    model = FlashVideoTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1, patch_size=2,
        time_embed_dim=8, text_embed_dim=4,
    )  # fmt: skip
    coarse = torch.randn(2048, 1, 4, 1, 1, generator=generator).expand(
        2048, 1, 4, 2, 2
    )  # one value for each patch
    noise = 0.1 * torch.randn(2048, 1, 4, 2, 2, generator=generator)
    noise -= noise.mean((-1, -2), keepdim=True)
    init_for_training(model, coarse + noise, coarse)
    assert model(coarse, torch.zeros(2048, 5, 4), torch.tensor(500.0)).sample.abs().max() == 0

    directions = model.proj_out.weight[:, :16]  # what each component adds to a patch
    model.norm_out.linear.bias.zero_()
    output = model(coarse + noise, torch.zeros(2048, 5, 4), torch.tensor(500.0)).sample
    assert (directions.norm(dim=0) > 0.5).sum() == 4  # of sixteen, four hold all that is to be predicted
    assert (output - coarse).square().mean() < 0.05 * coarse.square().mean()
    spread = output - output.mean((-1, -2), keepdim=True)
    assert spread.square().mean() < 0.02 * noise.square().mean()


def test_gradient_checkpointing_changes_no_gradient(tiny_transformer, inputs):
    latents, text, timestep = inputs
    gradients = []
    for checkpointing in (False, True):
        model = tiny_transformer(1)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        model(latents, text, timestep).sample.square().mean().backward()
        gradients.append(model.transformer_blocks[0].attn1.to_q.weight.grad)
    torch.testing.assert_close(*gradients)


def test_autocast_keeps_the_result_close_and_trains(tiny_transformer, inputs):
    model = tiny_transformer(1)
    latents, text, timestep = inputs
    with torch.no_grad():
        exact = model(latents, text, timestep).sample
    with torch.autocast("cpu", torch.bfloat16):
        sample = model(latents, text, timestep).sample
        sample.float().square().mean().backward()
    assert (sample - exact).abs().max() < 0.05 * exact.abs().max()
    assert model.patch_embed.proj.weight.grad.isfinite().all()


@torch.no_grad()
def test_a_model_survives_a_folder(tiny_transformer, inputs, tmp_path):
    model = tiny_transformer(2)
    model.save_pretrained(tmp_path)
    loaded = FlashVideoTransformer3DModel.from_pretrained(tmp_path)
    assert dict(loaded.config)["noise_step_embed"] is True
    assert loaded(*inputs, noise_step=675).sample.equal(model(*inputs, noise_step=675).sample)


def test_the_parameters_are_named_as_in_diffusers_cogvideox():
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8, "num_layers": 2}
    config |= {"text_embed_dim": 6, "max_text_seq_length": 4}
    theirs = CogVideoXTransformer3DModel(**config, use_rotary_positional_embeddings=True)
    ours = FlashVideoTransformer3DModel(**config)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@torch.no_grad()
def test_with_cogvideox_weights_and_epsilon_the_prediction_is_cogvideoxs():
    config = {"num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 8, "num_layers": 2}
    config |= {"text_embed_dim": 6, "max_text_seq_length": 4}
    theirs = CogVideoXTransformer3DModel(**config, use_rotary_positional_embeddings=True).eval()
    ours = FlashVideoTransformer3DModel(**config, norm_out_eps=1e-5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    latents, text, timestep = torch.randn(2, 3, 16, 4, 8), torch.randn(2, 4, 6), torch.tensor([999, 20])
    tables = get_3d_rotary_pos_embed(32, ((0, 0), (2, 4)), (2, 4), 3)
    expected = theirs(latents, text, timestep, image_rotary_emb=tables).sample
    torch.testing.assert_close(ours(latents, text, timestep).sample, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_the_rotary_tables_equal_diffusers_for_every_head_size(head_dim):
    ours = rope_tables(3, 4, 5, head_dim)
    theirs = get_3d_rotary_pos_embed(head_dim, ((0, 0), (4, 5)), (4, 5), 3)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_head_is_split_in_a_quarter_and_two_times_three_eighths():
    assert axis_dims(64) == (16, 24, 24)
    with pytest.raises(ValueError, match="attention_head_dim must be a multiple of 16, got 24"):
        axis_dims(24)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone(generator):
    tables = rope_tables(1, 1, 8, 16)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator).expand(2, 1, 8, 1, 16)
    query, key = apply_rope(query, tables), apply_rope(key, tables)
    torch.testing.assert_close(query.norm(dim=-1), query[:, :1].norm(dim=-1).expand(1, 8, 1))
    products = torch.einsum("bqhd,bkhd->qk", query, key)
    for distance in range(-3, 4):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@torch.no_grad()
def test_the_attention_backend_is_the_one_that_was_set(tiny_transformer, inputs, monkeypatch):
    model = tiny_transformer(1)
    seen = []
    dispatch = "flashvideo.models.attention.dispatch_attention_fn"
    monkeypatch.setattr(dispatch, lambda q, k, v, **options: seen.append(options["backend"]) or q)
    model.set_attention_backend("_native_math")
    model(*inputs)
    assert {backend.value for backend in seen} == {"_native_math"}
    assert len(seen) == 2
    assert {type(p) for p in model.attn_processors.values()} == {FlashVideoAttnProcessor}


@torch.no_grad()
def test_a_lora_of_rank_2_attaches_and_changes_the_prediction(tiny_transformer, inputs):
    peft = pytest.importorskip("peft")
    model = tiny_transformer(1)
    before = model(*inputs).sample
    targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "norm1.linear",
        "norm2.linear",
    ]
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert not torch.allclose(model(*inputs).sample, before)
    model.disable_adapters()
    torch.testing.assert_close(model(*inputs).sample, before)


def test_what_the_class_declares_exists(tiny_transformer):
    model = tiny_transformer(2)
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) | set(model._repeated_blocks) <= names
    modules = dict(model.named_modules())
    assert all(name in modules for name in model._cp_plan)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 8, 3, 4, 4), (1, 8, 12)), r"\(batch, frames, 8, height, width\), got \(1, 8, 3, 4, 4\)"),
        (((1, 3, 8, 5, 4), (1, 8, 12)), "multiples of the patch size 2, got 5x4"),
        (((1, 3, 8, 4, 4), (1, 9, 12)), r"at most 8 tokens, 12\), got \(1, 9, 12\)"),
        (((1, 3, 8, 4, 4), (1, 8, 11)), r"at most 8 tokens, 12\), got \(1, 8, 11\)"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(tiny_transformer, shapes, message):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(1)(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.tensor(1.0))


def test_a_noise_step_missing_at_stage2_or_given_at_stage1_is_an_error(tiny_transformer, inputs):
    with pytest.raises(ValueError, match="this transformer needs noise_step"):
        tiny_transformer(2)(*inputs)
    with pytest.raises(ValueError, match="this transformer does not take noise_step"):
        tiny_transformer(1)(*inputs, noise_step=675)


@pytest.mark.parametrize("offset", [(0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), (0, 0, 0)])
def test_a_neighbour_query_attends_to_the_neighbour(offset):
    frames, height, width = 5, 6, 7
    tables = rope_tables(frames, height, width, 64)
    query, key = (
        torch.nn.functional.layer_norm(x, (64,)).expand(1, frames * height * width, 1, 64)
        for x in neighbour_query_key(offset, 64)
    )
    query, key = apply_rope(query, tables)[0, :, 0], apply_rope(key, tables)[0, :, 0]
    attention = (query @ key.T / 8).softmax(dim=-1).unflatten(0, (frames, height, width))[2, 3, 3]
    spatial = attention.unflatten(0, (frames, height, width)).sum(0)
    assert divmod(int(spatial.argmax()), width) == (3 + offset[1], 3 + offset[2])


@torch.no_grad()
def test_frames_out_of_a_longer_clip_keep_their_positions(tiny_transformer):
    whole = rope_tables(5, 2, 3, 16)
    some = rope_tables(3, 2, 3, 16, frame_positions=torch.tensor([0, 2, 4]))
    for a, b in zip(whole, some, strict=True):
        assert torch.equal(a.unflatten(0, (5, 6))[::2].flatten(0, 1), b)
    model, latents, text = tiny_transformer(1), torch.randn(1, 3, 8, 4, 6), torch.randn(1, 8, 12)
    moved, usual, default = (
        model(latents, text, torch.tensor([500.0]), frame_positions=p).sample
        for p in (torch.tensor([0, 2, 4]), torch.arange(3), None)
    )
    assert torch.equal(usual, default)
    assert not torch.allclose(moved, usual)


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [1, 7, 18, 1000])
@pytest.mark.parametrize("stage", [1, 2])
def test_tokens_in_chunks_give_the_result_of_all_at_once(tiny_transformer, generator, stage, chunk_size):
    transformer = tiny_transformer(stage)
    arguments = (
        torch.randn(2, 3, 8, 4, 6, generator=generator),
        torch.randn(2, 5, 12, generator=generator),
        torch.tensor([500.0, 20.0]),
    )
    noise_step = 675 if stage == 2 else None
    expected = transformer(*arguments, noise_step=noise_step).sample
    before = [argument.clone() for argument in arguments]
    transformer.enable_forward_chunking(chunk_size)
    found = transformer(*arguments, noise_step=noise_step).sample
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, before, strict=True))
    transformer.disable_forward_chunking()
    assert torch.equal(transformer(*arguments, noise_step=noise_step).sample, expected)


def test_chunks_are_left_out_where_gradients_are_wanted(tiny_transformer, generator):
    transformer = tiny_transformer(1)
    transformer.enable_forward_chunking(4)
    transformer(
        torch.randn(1, 1, 8, 4, 6, generator=generator),
        torch.randn(1, 5, 12, generator=generator),
        torch.tensor(3.0),
    ).sample.sum().backward()
    assert all(parameter.grad is not None for parameter in transformer.parameters())


@pytest.mark.parametrize(("chunk_size", "dim"), [(0, 1), (8, 0)])
def test_an_impossible_chunk_is_an_error(tiny_transformer, chunk_size, dim):
    with pytest.raises(ValueError, match="forward chunking needs chunk_size of at least 1 and dim 1"):
        tiny_transformer(1).enable_forward_chunking(chunk_size, dim)
