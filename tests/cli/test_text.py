"""Prompts on the command line: too long, with a prefix, negative, refined; and a folder of text embeddings."""

import json

import pytest

from flashvideo.pipelines.preview import load_preview
from flashvideo.video import read_metadata

PROMPT = "a red circle moves left"
LONG = "a red circle moves left a red circle moves left"
REFINED = "A red circle moves left. " * 16  # 80 words


@pytest.fixture
def generate(flashvideo):
    return lambda *words: flashvideo("generate", *words)


@pytest.fixture
def released_like(call, toy_pipeline, tiny_transformer, sentencepiece_tokenizer, tmp_path):
    """`released_like("generate", ...)` runs a toy model that reads as the released one: its tokenizer, its prefix."""
    pipeline = toy_pipeline(
        ["a"],
        stage1={"max_text_tokens": 226},
        stage2={"max_text_tokens": 226, "prompt_prefix": "medium motion,"},
    )
    pipeline.text_encoder.resize_token_embeddings(len(sentencepiece_tokenizer), mean_resizing=False)
    pipeline.tokenizer = sentencepiece_tokenizer
    pipeline.stage1_transformer = tiny_transformer(1, max_text_seq_length=226)
    pipeline.stage2_transformer = tiny_transformer(2, max_text_seq_length=226)
    pipeline.save_pretrained(tmp_path / "model")
    return lambda *words: call(*words, "--model", tmp_path / "model", "--device", "cpu", "--dtype", "float32")


# --- Long prompts -----------------------------------------------------------------------------------------------------


def test_what_is_cut_of_a_prompt_is_one_warning_where_both_stages_read_the_same(generate, tmp_path):
    outcome = generate(LONG, "-o", tmp_path / "out.mp4", "--json")
    sentence = "the prompt is longer than 8 tokens, this is cut off: circle moves left"
    assert outcome.err == f"flashvideo: warning: {sentence}\n"
    assert json.loads(outcome.out)["warnings"] == [sentence]


def test_what_is_cut_is_said_per_stage_where_a_prefix_makes_a_difference(released_like, tmp_path):
    prompt = ("the star spins above the green grass " * 20).strip()
    outcome = released_like("generate", prompt, "-o", tmp_path / "out.mp4", "--json")
    first, second = json.loads(outcome.out)["warnings"]
    assert first.startswith("at Stage I the prompt is longer than 226 tokens, this is cut off: ")
    assert second.startswith(
        "at Stage II the prompt with its prefix 'medium motion,' is longer than 226 tokens, "
    )
    assert outcome.err == "".join(f"flashvideo: warning: {sentence}\n" for sentence in (first, second))
    for sentence in (first, second):
        assert prompt.endswith(sentence.partition("cut off: ")[2])


def test_enhance_says_what_is_cut_too(released_like, video_file, tmp_path):
    path = video_file(num_frames=1)
    outcome = released_like("enhance", path, "-o", tmp_path / "out.mp4", "--prompt", "the star spins " * 100)
    assert "warning: the prompt with its prefix 'medium motion,' is longer than 226 tokens" in outcome.err
    assert outcome.err.count("\n") == 1


# --- The prefix -------------------------------------------------------------------------------------------------------


def test_the_prefix_that_was_used_is_noted(released_like, tmp_path):
    for name, words, expected in (
        ("own", [], "medium motion,"),
        ("none", ["--motion-prefix", ""], ""),
        ("given", ["--motion-prefix", "the star,"], "the star,"),
    ):
        outcome = released_like("generate", "a star", "-o", tmp_path / f"{name}.mp4", "--seed", 3, *words)
        assert outcome.code == 0
        assert read_metadata(tmp_path / f"{name}.mp4")["settings"]["stage2"]["prompt_prefix"] == expected


def test_a_prefix_changes_a_video_as_text_before_its_prompt_does(generate, flashvideo, video_file, tmp_path):
    path = video_file(num_frames=5)
    common = [path, "--seed", 3, "--no-prompt-metadata", "-o"]
    flashvideo("enhance", *common, tmp_path / "one.mp4", "--prompt", "red circle", "--motion-prefix", "a ")
    flashvideo("enhance", *common, tmp_path / "two.mp4", "--prompt", "a red circle")
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_a_prefix_is_left_out_of_the_file_with_the_prompt(generate, tmp_path):
    outcome = generate(
        PROMPT, "-o", tmp_path / "out.mp4", "--motion-prefix", "left left", "--no-prompt-metadata"
    )
    assert outcome.code == 0
    assert b"left left" not in (tmp_path / "out.mp4").read_bytes()


def test_a_prefix_holds_for_the_detail_of_a_continued_preview(generate, tmp_path):
    words = ["--motion-prefix", "left", "--seed", 4]
    generate(PROMPT, "-o", tmp_path / "whole.mp4", "--preview", tmp_path / "p.mp4", *words)
    generate("--from-preview", tmp_path / "p.mp4", "-o", tmp_path / "continued.mp4", *words[:2])
    assert (tmp_path / "continued.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_prefix_without_a_prompt_is_wrong_usage(call, refusal, video_file, tmp_path):
    path = video_file()
    said = refusal(call, "enhance", path, "-o", tmp_path / "out.mp4", "--motion-prefix", "left,", code=2)
    assert said == "--motion-prefix goes before a prompt; add --prompt TEXT\n"


# --- Negative prompts -------------------------------------------------------------------------------------------------


def test_a_negative_prompt_is_answered_in_one_sentence_and_changes_nothing(generate, tmp_path):
    generate(PROMPT, "-o", tmp_path / "plain.mp4", "--seed", 3)
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--seed", 3, "--negative-prompt", "blurry")
    assert outcome.code == 0
    assert outcome.err.startswith("flashvideo: warning: the negative prompt has no effect: ")
    assert outcome.err.count("\n") == 1
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


# --- Refined prompts --------------------------------------------------------------------------------------------------


@pytest.fixture
def refined(generate, chat_service):
    """`refined(...)` generates with a prompt that the local service refines."""
    chat_service.answer = REFINED
    service = ["--refine-prompt", "--refine-model", "toy-chat", "--refine-endpoint", chat_service.url]
    return lambda *words: generate(*words, *service)


def test_a_refined_prompt_is_shown_used_and_noted_with_the_original(refined, generate, tmp_path):
    outcome = refined("a circle", "-o", tmp_path / "out.mp4", "--seed", 3, "--json")
    assert outcome.code == 0
    assert f"flashvideo: refined prompt: {REFINED.strip()}\n" in outcome.err
    assert "the prompt is longer than 8 tokens, this is cut off: " in outcome.err
    note = read_metadata(tmp_path / "out.mp4")
    assert note["prompt"] == REFINED.strip()
    assert note["settings"]["refinement"] == {"model": "toy-chat", "original_prompt": "a circle"}
    data = json.loads(outcome.out)
    assert (data["prompt"], data["original_prompt"]) == (REFINED.strip(), "a circle")
    assert list(data["seconds"])[:2] == ["refine", "load"]
    words = ["--seed", 3, "--no-prompt-metadata"]
    refined("a circle", "-o", tmp_path / "refined.mkv", *words)
    generate(REFINED.strip(), "-o", tmp_path / "written.mkv", *words)
    assert_same_frames(tmp_path / "refined.mkv", tmp_path / "written.mkv")


def test_neither_prompt_is_in_the_file_where_that_is_not_wanted(refined, tmp_path):
    outcome = refined("a blue square", "-o", tmp_path / "out.mp4", "--no-prompt-metadata", "--json")
    content = (tmp_path / "out.mp4").read_bytes()
    assert b"circle" not in content
    assert b"square" not in content
    assert read_metadata(tmp_path / "out.mp4")["settings"]["refinement"] == {"model": "toy-chat"}
    assert json.loads(outcome.out)["original_prompt"] == "a blue square"


def test_continuing_from_a_preview_of_a_refined_prompt_gives_the_same_file(refined, generate, tmp_path):
    refined("a circle", "-o", tmp_path / "whole.mp4", "--preview", tmp_path / "p.mp4", "--seed", 4)
    refined("a circle", "--preview-only", "--preview", tmp_path / "q.mp4", "--seed", 4)
    assert (tmp_path / "p.mp4").read_bytes() == (tmp_path / "q.mp4").read_bytes()
    assert load_preview(tmp_path / "q.safetensors").settings.original_prompt == "a circle"
    generate("--from-preview", tmp_path / "q.mp4", "-o", tmp_path / "continued.mp4")
    assert (tmp_path / "continued.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_previews_to_choose_from_are_of_one_refined_prompt(refined, chat_service, tmp_path):
    outcome = refined("a circle", "-o", tmp_path / "out.mp4", "--previews", 2, "--json")
    assert len(chat_service.requests) == 1
    assert json.loads(outcome.out)["original_prompt"] == "a circle"
    for i in (1, 2):
        note = read_metadata(tmp_path / f"out-preview-{i}.mp4")
        assert note["prompt"] == REFINED.strip()
        assert note["settings"]["refinement"]["original_prompt"] == "a circle"


def test_a_new_prompt_for_a_preview_is_refined_too(refined, generate, tmp_path):
    generate(PROMPT, "--preview-only", "-o", tmp_path / "p.mp4")
    assert refined("a circle", "--from-preview", tmp_path / "p.mp4", "-o", tmp_path / "out.mp4").code == 0
    note = read_metadata(tmp_path / "out.mp4")
    assert (note["prompt"], note["settings"]["stage1"]["prompt"]) == (REFINED.strip(), PROMPT)
    assert note["settings"]["refinement"]["original_prompt"] == "a circle"


def test_a_long_prompt_is_not_noted_as_refined(refined, tmp_path):
    outcome = refined(REFINED, "-o", tmp_path / "out.mp4")
    assert "the prompt has 80 words already and is left as it is" in outcome.err
    assert "refinement" not in read_metadata(tmp_path / "out.mp4")["settings"]


def test_the_small_model_inside_the_package_is_warned_of(call, refusal, chat_service, tmp_path):
    outcome = call(
        "generate",
        "a circle",
        "-o",
        tmp_path / "out.mp4",
        "--refine-prompt",
        "--refine-endpoint",
        chat_service.url,
    )
    warning, error = outcome.err.splitlines()
    assert warning.startswith("flashvideo: warning: nano knows only the words of its own small world")
    assert error.startswith("flashvideo: error: there is no model to refine prompts")


def test_a_service_that_fails_is_one_sentence_before_the_model_is_loaded(
    call, refusal, chat_service, tmp_path
):
    chat_service.status = 401
    words = ["--refine-prompt", "--refine-model", "m", "--refine-endpoint", chat_service.url]
    said = refusal(call, "generate", "a circle", "-o", tmp_path / "out.mp4", "--model", "none", *words)
    assert "does not accept the key (HTTP 401)" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--from-preview", "p.mp4", "--refine-prompt"],
            "--refine-prompt rewrites a PROMPT, and there is none",
        ),
        ([PROMPT, "--refine-model", "m"], "--refine-model is for --refine-prompt; add that"),
        ([PROMPT, "--refine-endpoint", "http://h"], "--refine-endpoint is for --refine-prompt; add that"),
    ],
)
def test_options_that_lack_one_another_are_wrong_usage(call, refusal, tmp_path, words, sentence):
    assert sentence in refusal(call, "generate", *words, "-o", tmp_path / "out.mp4", code=2)


# --- The folder of embeddings -----------------------------------------------------------------------------------------


def test_a_text_cache_changes_no_file_and_spares_the_text_encoder(generate, tmp_path, monkeypatch):
    common = ["--seed", 3, "--motion-prefix", "left"]
    cache = ["--text-cache", tmp_path / "texts"]
    names = [f"{name}{suffix}" for name in ("out", "p") for suffix in (".mp4",)] + ["p.safetensors"]
    for folder, words in (("without", []), ("filling", cache), ("using", cache)):
        (tmp_path / folder).mkdir()
        if folder == "using":
            monkeypatch.setattr("transformers.T5EncoderModel.from_pretrained", None)
        files = ["-o", tmp_path / folder / "out.mp4", "--preview", tmp_path / folder / "p.mp4"]
        assert generate(PROMPT, *files, *common, *words).code == 0
        for name in names:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert len(list((tmp_path / "texts").iterdir())) == 1


def test_a_text_cache_serves_continued_and_enhanced_videos(generate, flashvideo, video_file, tmp_path):
    source = video_file(num_frames=5)
    generate(PROMPT, "--preview-only", "-o", tmp_path / "p.mp4")
    cache = ["--text-cache", tmp_path / "texts"]
    for name, words in (("without", []), ("filling", cache), ("using", cache)):
        generate("--from-preview", tmp_path / "p.mp4", "-o", tmp_path / f"{name}.mp4", *words)
        enhanced = ["-o", tmp_path / f"{name}-e.mp4", "--prompt", PROMPT, "--seed", 3, "--guidance", 2]
        assert flashvideo("enhance", source, *enhanced, *words).code == 0
        for suffix in (".mp4", "-e.mp4"):
            made = (tmp_path / f"{name}{suffix}").read_bytes()
            assert made == (tmp_path / f"without{suffix}").read_bytes()
    assert len(list((tmp_path / "texts").iterdir())) == 1


def test_a_video_without_a_prompt_needs_no_text_cache(flashvideo, video_file, tmp_path):
    outcome = flashvideo(
        "enhance", video_file(num_frames=1), "-o", tmp_path / "o.mp4", "--text-cache", tmp_path / "texts"
    )
    assert outcome.code == 0
    assert not (tmp_path / "texts").exists()


def test_what_the_model_does_not_know_is_said_with_a_full_text_cache_too(generate, tmp_path):
    words = ["a red zebra", "-o", tmp_path / "out.mp4", "--text-cache", tmp_path / "texts"]
    assert [generate(*words).err for _ in range(2)] == [
        "flashvideo: warning: this model has no word for zebra; it ignores them in 'a red zebra'\n"
    ] * 2


@pytest.mark.parametrize("name", ["file.txt", "file.txt/texts"])
def test_a_text_cache_that_cannot_be_a_folder_is_refused(call, refusal, tmp_path, name):
    (tmp_path / "file.txt").write_text("text")
    words = ["--text-cache", tmp_path / name, "--model", "none"]
    said = refusal(call, "generate", PROMPT, "-o", tmp_path / "out.mp4", *words)
    assert f"cannot be a folder, since {tmp_path / 'file.txt'} is a file; choose another name" in said


def assert_same_frames(one, two):
    import torch

    from flashvideo.video import read_video

    assert torch.equal(read_video(one).frames, read_video(two).frames)
