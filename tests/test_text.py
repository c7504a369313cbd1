"""Text: padding, no mask, zeros, what is cut, what is unknown, and the word-level tokenizer."""

import logging

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from flashvideo.text import (
    build_word_tokenizer,
    encode_prompts,
    truncated_text,
    unconditional_like,
    unknown_words,
    with_prefix,
)

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "right", ","]


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(WORDS)


@pytest.fixture(scope="module")
def text_encoder():
    torch.manual_seed(0)
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval().requires_grad_(False)


def test_prompts_become_embeddings_of_a_fixed_length(tokenizer, text_encoder):
    embeddings = encode_prompts(["a red circle", "a square"], tokenizer, text_encoder, max_text_tokens=6)
    assert embeddings.shape == (2, 6, 8)


def test_a_single_string_is_a_batch_of_one(tokenizer, text_encoder):
    one = encode_prompts("a red circle", tokenizer, text_encoder, max_text_tokens=6)
    batch = encode_prompts(["a red circle"], tokenizer, text_encoder, max_text_tokens=6)
    assert torch.equal(one, batch)


def test_the_encoder_attends_to_the_padding(tokenizer, text_encoder):
    ours = encode_prompts("a red circle", tokenizer, text_encoder, max_text_tokens=6)
    tokens = tokenizer("a red circle", padding="max_length", max_length=6, return_tensors="pt")
    assert torch.equal(ours, text_encoder(tokens.input_ids)[0])
    masked = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    assert not torch.allclose(ours, masked, atol=1e-4)


def test_a_long_prompt_is_cut_and_still_ends_with_the_end_token(tokenizer, text_encoder):
    long = encode_prompts("a red circle moves left", tokenizer, text_encoder, max_text_tokens=4)
    cut = encode_prompts("a red circle", tokenizer, text_encoder, max_text_tokens=4)
    assert torch.equal(long, cut)


def test_what_is_cut_is_reported(tokenizer):
    assert truncated_text("a red circle moves left", tokenizer, 4) == "moves left"
    assert truncated_text("a red circle moves left", tokenizer, 6) == ""


def test_what_is_cut_is_quoted_as_it_was_written(tokenizer):
    assert truncated_text("A red Zebra, moves LEFT", tokenizer, 3) == "Zebra, moves LEFT"


def test_what_is_cut_is_decoded_where_a_tokenizer_does_not_know_its_places():
    assert truncated_text("a red circle", ByT5Tokenizer(), 6) == " circle"


def test_a_sentencepiece_tokenizer_cuts_what_is_reported(sentencepiece_tokenizer):
    prompt = "the star spins above the green grass, " * 20
    for max_text_tokens in (5, 50, 226):
        cut = truncated_text(prompt, sentencepiece_tokenizer, max_text_tokens)
        ids = sentencepiece_tokenizer(prompt, truncation=True, max_length=max_text_tokens).input_ids
        kept = sentencepiece_tokenizer.decode(ids, skip_special_tokens=True)
        assert cut
        assert (kept + cut).replace(" ", "") == prompt.replace(" ", "")
    assert truncated_text(prompt, sentencepiece_tokenizer, 2000) == ""


def test_a_sentencepiece_tokenizer_spells_words_and_knows_no_foreign_script(sentencepiece_tokenizer):
    assert unknown_words("a steam camera, Wal 猫", sentencepiece_tokenizer) == ["Wal", "猫"]


def test_a_long_prompt_raises_no_alarm_in_transformers(sentencepiece_tokenizer, monkeypatch, caplog):
    # Its logger does not hand on to the root, where pytest listens.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert truncated_text("the star spins " * 100, sentencepiece_tokenizer, 226)
    assert not caplog.records


def test_no_text_is_zeros():
    embeddings = torch.randn(2, 3, 4, dtype=torch.float16)
    zeros = unconditional_like(embeddings)
    assert torch.equal(zeros, torch.zeros(2, 3, 4, dtype=torch.float16))


def test_the_prefix_goes_before_the_prompt_without_a_space():
    assert with_prefix("a cat", "medium motion,") == "medium motion,a cat"
    assert with_prefix("a cat", "") == "a cat"


def test_unknown_words_are_listed_once_in_order(tokenizer):
    assert unknown_words("A purple circle, a purple dog", tokenizer) == ["purple", "dog"]
    assert unknown_words("a red circle", tokenizer) == []


def test_case_and_punctuation_do_not_hide_a_word(tokenizer):
    assert tokenizer("A RED circle,").input_ids == tokenizer("a red circle ,").input_ids


def test_special_tokens_have_the_ids_of_t5(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == 3 + len(WORDS)


def test_ids_do_not_depend_on_the_order_of_the_words(tokenizer):
    assert build_word_tokenizer(reversed(WORDS)).get_vocab() == tokenizer.get_vocab()


def test_a_word_tokenizer_survives_a_round_trip_through_a_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    prompt = "a red dog, moves"
    assert loaded(prompt).input_ids == tokenizer(prompt).input_ids
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_gradients_reach_the_encoder_for_training(tokenizer):
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config)
    encode_prompts("a red circle", tokenizer, encoder, max_text_tokens=6).sum().backward()
    assert encoder.shared.weight.grad is not None


@pytest.mark.parametrize("prompts", [[], [1], ["a", None]])
def test_prompts_that_are_not_strings_are_refused(prompts, tokenizer, text_encoder):
    with pytest.raises(ValueError, match="prompts must be a string or a non-empty list of strings"):
        encode_prompts(prompts, tokenizer, text_encoder, max_text_tokens=6)


@pytest.mark.parametrize(("words", "message"), [([], "got none"), (["two words"], "'two words'")])
def test_a_vocabulary_that_could_not_be_matched_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        build_word_tokenizer(words)
