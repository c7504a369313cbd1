"""Text embeddings that are kept: the same video, without the text encoder."""

import dataclasses
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from flashvideo.pipelines.device_memory import DeviceMemory
from flashvideo.pipelines.embeds import PromptEmbeds, stored_text_encoder_id, text_encoder_id
from flashvideo.pipelines.text_cache import cached_embeds
from flashvideo.pipelines.two_stage import FlashVideoPipeline

PROMPT = "a red circle moves left"


@pytest.fixture
def without_encoder(pipeline):
    """The same pipeline without its text encoder."""
    bare = FlashVideoPipeline(**{**pipeline.components, "text_encoder": None}, preset=pipeline.preset)
    bare.set_progress_bar_config(disable=True)
    return bare


@pytest.fixture
def kept(pipeline, tmp_path):
    """Embeddings of the prompt, saved and loaded."""
    return PromptEmbeds.load(pipeline.encode_prompt(PROMPT).save(tmp_path / "text.safetensors"))


# --- The value --------------------------------------------------------------------------------------------------------


def test_embeddings_give_the_video_of_their_prompt_bit_for_bit_without_the_encoder(
    pipeline, without_encoder, kept, seeded
):
    prompted = pipeline(PROMPT, generator=seeded(), guidance_scale=2, output_type="pt")
    given = without_encoder(prompt_embeds=kept, generator=seeded(), guidance_scale=2, output_type="pt")
    assert torch.equal(given.frames, prompted.frames)
    assert torch.equal(given.preview_frames, prompted.preview_frames)
    assert given.preview.settings == prompted.preview.settings


def test_continuing_from_a_preview_with_embeddings_is_bit_identical_too(
    pipeline, without_encoder, kept, seeded
):
    whole = pipeline(PROMPT, generator=seeded(), output_type="pt")
    stopped = without_encoder(prompt_embeds=kept, preview_only=True, generator=seeded())
    continued = without_encoder(prompt_embeds=kept, preview=stopped.preview, output_type="pt")
    assert torch.equal(continued.frames, whole.frames)


def test_embeddings_of_another_prompt_replace_that_of_a_preview(pipeline, seeded):
    preview = pipeline(PROMPT, preview_only=True, generator=seeded()).preview
    prompted = pipeline("a blue square", preview=preview, output_type="pt").frames
    embeds = pipeline.encode_prompt("a blue square")
    assert torch.equal(pipeline(prompt_embeds=embeds, preview=preview, output_type="pt").frames, prompted)


def test_one_prompts_embeddings_serve_all_clips_of_a_video(pipeline, kept, clip, seeded):
    clips = torch.cat([clip, clip.flip(1)])[:, :5]
    prompted = pipeline(PROMPT, preview=clips, generator=seeded(), output_type="pt").frames
    given = pipeline(prompt_embeds=kept, preview=clips, generator=seeded(), output_type="pt").frames
    assert torch.equal(given, prompted)


def test_several_prompts_and_a_prefix_are_kept(pipeline, seeded, tmp_path):
    prompts = [PROMPT, "a square"]
    path = pipeline.encode_prompt(prompts, prompt_prefix="left,").save(tmp_path / "text.safetensors")
    kept = PromptEmbeds.load(path)
    assert (kept.prompts, kept.prompt_prefix, kept.model) == (tuple(prompts), "left,", "toy")
    prompted = pipeline(prompts, prompt_prefix="left,", generator=seeded(), output_type="pt").frames
    assert torch.equal(pipeline(prompt_embeds=kept, generator=seeded(), output_type="pt").frames, prompted)


def test_embeddings_can_be_made_without_the_transformers(pipeline):
    nothing = dict.fromkeys(("vae", "stage1_transformer", "stage2_transformer"))
    text_only = FlashVideoPipeline(**{**pipeline.components, **nothing}, preset=pipeline.preset)
    assert torch.equal(text_only.encode_prompt(PROMPT).stage2, pipeline.encode_prompt(PROMPT).stage2)


def test_a_saved_pipeline_can_be_loaded_without_its_text_encoder(pipeline, kept, tmp_path, seeded):
    pipeline.save_pretrained(tmp_path / "model")
    bare = FlashVideoPipeline.from_pretrained(tmp_path / "model", text_encoder=None)
    bare.set_progress_bar_config(disable=True)
    assert bare.text_encoder is None
    assert bare(prompt_embeds=kept, generator=seeded(), output_type="pt").frames.shape == (1, 5, 3, 32, 48)


def test_a_prompt_without_a_text_encoder_is_refused_before_anything_is_computed(
    without_encoder, pipeline, seeded
):
    preview = pipeline(PROMPT, preview_only=True, generator=seeded()).preview
    for arguments in ({"prompt": PROMPT}, {"preview": preview}):
        with pytest.raises(ValueError, match="this model has no text encoder; name one"):
            without_encoder(**arguments)
    with pytest.raises(ValueError, match="has no text encoder"):
        without_encoder.encode_prompt(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": PROMPT}, "prompt is in prompt_embeds already; pass one of the two"),
        ({"prompt_prefix": ""}, "prompt_prefix is in prompt_embeds already; pass one of the two"),
    ],
)
def test_what_contradicts_embeddings_is_refused(pipeline, kept, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(prompt_embeds=kept, **arguments)


def test_a_tensor_is_no_prompt_embeds(pipeline):
    with pytest.raises(
        ValueError, match="prompt_embeds must be a PromptEmbeds, got Tensor; make it with encode"
    ):
        pipeline(prompt_embeds=torch.zeros(1, 6, 12))


def test_both_stages_embeddings_are_no_tensor_for_one(pipeline, kept, clip):
    with pytest.raises(ValueError, match=r"must be a tensor \(B, L, D\), got PromptEmbeds; pass its stage1"):
        pipeline.stage1(prompt_embeds=kept)
    with pytest.raises(ValueError, match=r"must be a tensor \(B, L, D\), got PromptEmbeds; pass its stage1"):
        pipeline.stage2(clip, prompt_embeds=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "other"},
            r"made for the model 'other' \(6 and 8 tokens of 12 channels\), but this is 'toy'",
        ),
        (
            {"stage2": torch.zeros(1, 5, 12)},
            r"'toy' \(6 and 5 tokens of 12 channels\), but this is 'toy' \(6 and 8",
        ),
        ({"text_encoder": "0" * 64}, "another text encoder \\(000000000000\\) than this model 'toy' has"),
    ],
)
def test_embeddings_for_another_model_are_refused(pipeline, kept, change, message):
    with pytest.raises(ValueError, match=message):
        pipeline(prompt_embeds=dataclasses.replace(kept, **change))


def test_embeddings_that_do_not_belong_together_are_refused(kept):
    with pytest.raises(ValueError, match=r"must be \(B, L, D\) for B prompts at both stages"):
        dataclasses.replace(kept, prompts=("one", "two"))


def test_a_file_that_holds_no_embeddings_is_refused(tmp_path, kept):
    with pytest.raises(ValueError, match=r"are saved as \.safetensors, got 'text.pt'; change the suffix"):
        kept.save(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="does not exist"):
        PromptEmbeds.load(tmp_path / "missing.safetensors")
    (tmp_path / "prose.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a safetensors file of prompt embeddings"):
        PromptEmbeds.load(tmp_path / "prose.safetensors")
    save_file({"stage1": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold prompt embeddings of format 1"):
        PromptEmbeds.load(tmp_path / "other.safetensors")


def test_a_save_that_fails_leaves_no_file(kept, tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("flashvideo.pipelines.tensor_file.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        kept.save(tmp_path / "other.safetensors")
    assert sorted(tmp_path.iterdir()) == before


# --- Which encoder ----------------------------------------------------------------------------------------------------


def test_an_encoder_is_known_from_its_files_in_any_dtype(pipeline, tmp_path):
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    known = text_encoder_id(encoder, tokenizer)
    for dtype in (torch.float32, torch.bfloat16):
        encoder.to(dtype).save_pretrained(tmp_path / str(dtype))
        assert stored_text_encoder_id(tmp_path / str(dtype), tokenizer) == known
    assert text_encoder_id(encoder, tokenizer) == known


def test_other_weights_or_other_words_are_another_encoder(pipeline, toy_pipeline):
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    known = text_encoder_id(encoder, tokenizer)
    assert text_encoder_id(encoder, toy_pipeline(["a", "green"]).tokenizer) != known
    with torch.no_grad():
        encoder.encoder.final_layer_norm.weight[-1] += 0.1
    assert text_encoder_id(encoder, tokenizer) != known


@pytest.mark.parametrize("where", [{"device": "meta"}, {"dtype": torch.float8_e4m3fn}])
def test_an_encoder_whose_weights_cannot_be_read_is_not_known(pipeline, where):
    assert text_encoder_id(pipeline.text_encoder.to(**where), pipeline.tokenizer) == ""


def test_a_folder_without_weights_is_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"holds no \*.safetensors, expected the weights of a text encoder"):
        stored_text_encoder_id(tmp_path, pipeline.tokenizer)


# --- The folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(pipeline, without_encoder, tmp_path):
    """`cached(prompt)` looks a prompt up in a folder; `cached.folder` is it."""
    pipeline.save_pretrained(tmp_path / "model")

    def look_up(prompt=PROMPT, pipe=without_encoder, **options):
        return cached_embeds(pipe, prompt, cache=look_up.folder, model=tmp_path / "model", **options)

    look_up.folder = tmp_path / "texts" / "here"
    return look_up


@pytest.fixture
def no_loading(monkeypatch):
    """`no_loading()` makes loading a text encoder fail from now on."""

    def forbid():
        def fail(*arguments, **options):
            raise AssertionError("the text encoder was loaded")

        monkeypatch.setattr("flashvideo.pipelines.text_cache.T5EncoderModel.from_pretrained", fail)

    return forbid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_gives_what_the_encoder_gives_and_the_encoder_is_loaded_once(
    pipeline, without_encoder, cached, no_loading, dtype
):
    direct = pipeline.to(dtype).encode_prompt(PROMPT)
    without_encoder.to(dtype)
    first = cached()
    no_loading()
    second = cached()
    for embeds in (first, second):
        assert embeds.stage1.dtype == dtype
        assert torch.equal(embeds.stage1, direct.stage1)
        assert torch.equal(embeds.stage2, direct.stage2)
    assert without_encoder.text_encoder is None
    assert len(list(cached.folder.iterdir())) == 1


def test_the_encoder_follows_a_memory_plan_like_all_else(pipeline, without_encoder, cached, monkeypatch):
    budgets = []
    plan_for = DeviceMemory.plan_for

    def noted(memory, workload):
        budgets.append(memory.budget_bytes)
        plan = plan_for(memory, workload)
        assert [phase.phase for phase in plan.phases] == ["text"]
        return plan

    monkeypatch.setattr(DeviceMemory, "plan_for", noted)
    without_encoder.enable_memory_plans("cpu", budget_bytes=2**34)
    assert torch.equal(cached().stage2, pipeline.encode_prompt(PROMPT).stage2)
    assert budgets == [2**34]


def test_a_new_prompt_is_read_when_other_networks_are_gone_or_away(without_encoder, cached):
    without_encoder.enable_memory_plans("cpu")
    expected = cached(PROMPT)
    without_encoder.give_up("stage1_transformer")
    assert not torch.equal(cached("a square").stage2, expected.stage2)
    assert next(without_encoder.stage1_transformer.parameters()).is_meta


def test_prompts_prefixes_and_dtypes_have_files_of_their_own(cached, without_encoder):
    cached(PROMPT)
    cached("a square")
    cached([PROMPT, "a square"])
    cached(PROMPT, prompt_prefix="left,")
    cached(PROMPT, pipe=without_encoder.to(torch.bfloat16))
    assert len(list(cached.folder.iterdir())) == 5


def test_what_does_not_fit_is_said_also_when_nothing_is_encoded(cached, no_loading, caplog):
    said = []
    for _ in range(2):
        caplog.clear()
        cached("a red circle moves left slowly slowly , zebra")
        said.append([record.getMessage() for record in caplog.records])
        no_loading()
    assert said[0] == said[1]
    assert len(said[0]) == 3


def test_a_broken_file_is_made_anew_and_said_so(cached, caplog):
    first = cached()
    (path,) = cached.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = cached()
    assert "the text is encoded anew, since its embeddings cannot be read: " in caplog.text
    assert torch.equal(again.stage1, first.stage1)
    assert path.read_bytes() == whole


def test_writers_at_the_same_time_leave_one_whole_file(kept, tmp_path):
    path = tmp_path / "same.safetensors"
    errors = []

    def write():
        try:
            for _ in range(20):
                kept.save(path)
                PromptEmbeds.load(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.equal(PromptEmbeds.load(path).stage1, kept.stage1)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
