"""What the pipelines say of prompts that are too long or negative, and the prefix of Stage II's prompts."""

import dataclasses

import pytest
import torch

from flashvideo.pipelines.two_stage import FlashVideoPipeline

PROMPT = "a red circle moves left"
LONG = "a red circle moves left , a blue square moves slowly"


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("flashvideo")]


def with_preset(pipeline, *, stage1=None, stage2=None):
    preset = dataclasses.replace(
        pipeline.preset,
        stage1=dataclasses.replace(pipeline.preset.stage1, **stage1 or {}),
        stage2=dataclasses.replace(pipeline.preset.stage2, **stage2 or {}),
    )
    other = FlashVideoPipeline(**pipeline.components, preset=preset)
    other.set_progress_bar_config(disable=True)
    return other


# --- Long prompts -----------------------------------------------------------------------------------------------------


def test_each_stage_says_what_it_cuts_where_they_cut_elsewhere(pipeline, caplog):
    pipeline.encode_prompt(LONG)
    assert warnings_of(caplog) == [
        "at Stage I the prompt is longer than 6 tokens, this is cut off: , a blue square moves slowly",
        "at Stage II the prompt with its prefix 'slowly,' is longer than 8 tokens, this is cut off: "
        ", a blue square moves slowly",
    ]


def test_one_message_is_enough_where_both_stages_cut_the_same(pipeline, caplog):
    same = with_preset(pipeline, stage1={"max_text_tokens": 8}, stage2={"prompt_prefix": ""})
    same.encode_prompt(LONG)
    assert warnings_of(caplog) == [
        "the prompt is longer than 8 tokens, this is cut off: blue square moves slowly"
    ]


def test_a_prompt_that_only_the_prefix_makes_too_long_is_warned_of(pipeline, caplog):
    longer = with_preset(pipeline, stage1={"max_text_tokens": 8})
    longer.encode_prompt(
        "a red circle moves left slowly a"
    )  # 7 words and the end; at Stage II two tokens more
    assert warnings_of(caplog) == [
        "at Stage II the prompt with its prefix 'slowly,' is longer than 8 tokens, this is cut off: slowly a"
    ]


def test_a_run_warns_of_what_it_reads_and_an_enhancement_of_its_own_stage(pipeline, clip, generator, caplog):
    pipeline(LONG, generator=generator, preview_only=True)
    assert [message[:10] for message in warnings_of(caplog)] == ["at Stage I"]
    caplog.clear()
    pipeline(LONG, generator=generator)
    assert [message[:11] for message in warnings_of(caplog)] == ["at Stage I ", "at Stage II"]
    caplog.clear()
    pipeline.stage2(clip, LONG, generator=generator, num_inference_steps=1)
    assert warnings_of(caplog)[0].startswith("the prompt with its prefix 'slowly,' is longer than 8 tokens")


def test_a_sentencepiece_tokenizer_is_cut_with_its_prefix(pipeline, sentencepiece_tokenizer, caplog):
    pipeline.text_encoder.resize_token_embeddings(len(sentencepiece_tokenizer))
    pipeline.tokenizer = sentencepiece_tokenizer
    lengths = {"max_text_tokens": 226}
    long = with_preset(pipeline, stage1=lengths, stage2={**lengths, "prompt_prefix": "medium motion,"})
    prompt = "the star spins above the green grass, " * 20
    embeds = long.encode_prompt(prompt)
    assert embeds.stage1.shape == embeds.stage2.shape == (1, 226, 12)
    first, second = warnings_of(caplog)
    assert first.startswith("at Stage I the prompt is longer than 226 tokens, this is cut off: ")
    assert second.startswith(
        "at Stage II the prompt with its prefix 'medium motion,' is longer than 226 tokens"
    )
    cut1, cut2 = (message.split("cut off: ")[1] for message in (first, second))
    assert prompt.strip().endswith(cut1)
    assert cut2.endswith(cut1)
    assert len(cut2) > len(cut1)


# --- The prefix -------------------------------------------------------------------------------------------------------


def test_the_models_own_prefix_is_the_default(pipeline, seeded):
    one = pipeline(PROMPT, generator=seeded(), output_type="pt").frames
    two = pipeline(PROMPT, prompt_prefix="slowly,", generator=seeded(), output_type="pt").frames
    assert torch.equal(one, two)


@pytest.mark.parametrize("prefix", ["", "left,"])
def test_another_prefix_changes_the_detail_and_not_the_preview(pipeline, seeded, prefix):
    own = pipeline(PROMPT, generator=seeded(), output_type="pt")
    other = pipeline(PROMPT, prompt_prefix=prefix, generator=seeded(), output_type="pt")
    assert torch.equal(other.preview_frames, own.preview_frames)
    assert not torch.equal(other.frames, own.frames)


def test_a_prefix_is_put_before_the_prompt_as_it_is(pipeline, stage2, clip, seeded):
    bare = with_preset(pipeline, stage2={"prompt_prefix": ""}).stage2
    written = bare(clip, "left,a circle", generator=seeded(), output_type="pt").frames
    given = stage2(clip, "a circle", prompt_prefix="left,", generator=seeded(), output_type="pt").frames
    streamed = stage2.stream(clip[0].unbind(0), "a circle", prompt_prefix="left,", generator=seeded())
    assert torch.equal(given, written)
    assert torch.equal(torch.cat(list(streamed)), given[0])


def test_a_prefix_can_be_chosen_when_continuing(pipeline, seeded):
    whole = pipeline(PROMPT, prompt_prefix="left,", generator=seeded(), output_type="pt")
    continued = pipeline(preview=whole.preview, prompt_prefix="left,", output_type="pt")
    assert torch.equal(continued.frames, whole.frames)


def test_unknown_words_of_a_prefix_are_named(pipeline, caplog):
    pipeline.encode_prompt("a circle", prompt_prefix="wild motion,")
    assert warnings_of(caplog) == [
        "this model has no word for wild, motion; it ignores them in 'wild motion,'"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": PROMPT, "prompt_prefix": 3}, 'prompt_prefix must be a string, got 3; "" is for none'),
        (
            {"preview": torch.zeros(1, 5, 3, 16, 24), "prompt_prefix": "left,"},
            "prompt_prefix goes before a prompt and there is none here, got 'left,'; pass prompt too",
        ),
    ],
)
def test_a_prefix_of_nothing_is_refused(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_a_prefix_without_a_prompt_is_refused_at_stage_two(stage2, clip):
    with pytest.raises(ValueError, match="prompt_prefix goes before a prompt"):
        stage2(clip, prompt_prefix="left,")


# --- Negative prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", ["blurry", ["blurry"]])
def test_a_negative_prompt_is_answered_once_and_changes_nothing(pipeline, clip, seeded, caplog, negative):
    stages = {
        pipeline: {"prompt": PROMPT},
        pipeline.stage1: {"prompt": PROMPT, "num_inference_steps": 1},
        pipeline.stage2: {"video": clip, "prompt": PROMPT, "num_inference_steps": 1},
    }
    for one, arguments in stages.items():
        plain = one(**arguments, generator=seeded(), output_type="pt").frames
        caplog.clear()
        given = one(**arguments, negative_prompt=negative, generator=seeded(), output_type="pt").frames
        assert torch.equal(plain, given)
        assert warnings_of(caplog) == [
            "the negative prompt has no effect: these models are guided against no text at all; say in the prompt "
            "itself what the video shall show"
        ]


def test_an_empty_negative_prompt_says_nothing_and_is_not_answered(pipeline, generator, caplog):
    pipeline(PROMPT, negative_prompt="", generator=generator, preview_only=True)
    assert not warnings_of(caplog)
