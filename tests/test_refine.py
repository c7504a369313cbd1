"""Prompts rewritten by a chat model: a local service that speaks OpenAI's protocol, and a toy model in a folder."""

import json
import weakref

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flashvideo.refine import INSTRUCTION, clean_answer, refine_prompt
from flashvideo.text import build_word_tokenizer

PROMPT = "a red kite"
LONG = " ".join(
    ["A red kite with a long yellow tail climbs into a pale morning sky above a wide green meadow."] * 5
)


@pytest.fixture
def ask(chat_service):
    """`ask()` has the prompt refined by the service."""
    return lambda **options: refine_prompt(
        PROMPT, **{"endpoint": chat_service.url, "model": "toy-chat", "timeout": 5, **options}
    )


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


# --- A service --------------------------------------------------------------------------------------------------------


def test_a_short_prompt_becomes_the_answer_of_the_service(chat_service, ask, caplog):
    chat_service.answer = LONG
    assert ask() == LONG
    ((path, headers, body),) = chat_service.requests
    assert path == "/v1/chat/completions"
    assert body["model"] == "toy-chat"
    assert (body["temperature"], body["seed"]) == (0, 0)
    assert body["messages"] == [{"role": "user", "content": INSTRUCTION + PROMPT}]
    assert "Authorization" not in headers
    assert not caplog.records


def test_address_and_key_come_from_the_environment_where_none_are_given(chat_service, monkeypatch):
    chat_service.answer = LONG
    monkeypatch.setenv("OPENAI_BASE_URL", chat_service.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment\n")
    assert refine_prompt(PROMPT, model="toy-chat") == LONG
    assert refine_prompt(PROMPT, model="toy-chat", api_key="given") == LONG
    keys = [headers["Authorization"] for _, headers, _ in chat_service.requests]
    assert keys == ["Bearer from-environment", "Bearer given"]


@pytest.mark.parametrize("end", ["", "/", "/chat/completions"])
def test_an_address_may_end_in_several_ways(chat_service, ask, end):
    chat_service.answer = LONG
    assert ask(endpoint=chat_service.url + end) == LONG
    assert chat_service.requests[0][0] == "/v1/chat/completions"


def test_an_address_without_a_path_is_asked_at_v1(chat_service, ask):
    chat_service.answer = LONG
    assert ask(endpoint=chat_service.url.removesuffix("/v1")) == LONG
    assert chat_service.requests[0][0] == "/v1/chat/completions"


def test_a_service_that_takes_no_settings_is_asked_without_and_that_is_said(chat_service, ask, caplog):
    chat_service.answer, chat_service.takes_settings = LONG, False
    assert ask() == LONG
    assert "temperature" not in chat_service.requests[1][2]
    (message,) = warnings_of(caplog)
    assert message.endswith("takes no settings for 'toy-chat': another run may refine the prompt differently")


def test_a_prompt_that_is_long_already_is_left_as_it_is_and_not_sent(chat_service, caplog):
    assert refine_prompt(LONG, endpoint=chat_service.url, model="toy-chat") == LONG
    assert not chat_service.requests
    assert warnings_of(caplog) == ["the prompt has 95 words already and is left as it is"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            401,
            r"http://127.0.0.1:\d+ does not accept the key \(HTTP 401\); set \$OPENAI_API_KEY to a valid one",
        ),
        (404, r"has no model 'toy-chat' or no chat completions at /v1/chat/completions \(HTTP 404\)"),
        (429, r"cannot refine the prompt \(HTTP 429\): out of quota"),
        (400, r"cannot refine the prompt \(HTTP 400\): out of quota"),
        (500, r"cannot refine the prompt \(HTTP 500\): out of quota"),
    ],
)
def test_a_service_that_refuses_is_one_sentence(chat_service, ask, status, message):
    chat_service.status, chat_service.raw = status, b"out of\nquota"
    with pytest.raises(ValueError, match=message) as raised:
        ask(api_key="secret")
    assert "secret" not in str(raised.value)


def test_a_redirect_does_not_take_the_key_along(chat_service, ask):
    chat_service.redirect = chat_service.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    with pytest.raises(ValueError, match="something else than a chat completion"):
        ask(api_key="secret")
    first, second = (headers.get("Authorization") for _, headers, _ in chat_service.requests)
    assert (first, second) == ("Bearer secret", None)


def test_a_service_that_is_slow_is_one_sentence(chat_service, ask):
    chat_service.delay = 5
    with pytest.raises(ValueError, match=r"did not answer within 0.2 seconds; try again, or another model"):
        ask(timeout=0.2)


def test_a_service_that_is_not_there_is_one_sentence(chat_service, ask):
    chat_service.server.shutdown()
    chat_service.server.server_close()
    with pytest.raises(ValueError, match=r"nothing answers at http://127.0.0.1:\d+ \(connection refused\)"):
        ask()


def test_a_name_that_is_no_host_is_one_sentence(ask):
    with pytest.raises(ValueError, match=r"http://nowhere.invalid cannot be reached \("):
        ask(endpoint="http://nowhere.invalid/v1")


@pytest.mark.parametrize(
    "raw", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"\xff"]
)
def test_an_answer_in_another_protocol_is_one_sentence(chat_service, ask, raw):
    chat_service.raw = raw
    with pytest.raises(ValueError, match="answered with something else than a chat completion"):
        ask()


def test_an_answer_that_broke_off_is_one_sentence(chat_service, ask):
    chat_service.answer, chat_service.finish_reason = LONG, "length"
    with pytest.raises(ValueError, match="broke off at its greatest length; try another model"):
        ask()


@pytest.mark.parametrize("endpoint", ["ftp://host/v1", "localhost:8000", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(ask, endpoint):
    with pytest.raises(ValueError, match=r"endpoint must be an http\(s\) address such as"):
        ask(endpoint=endpoint)


def test_a_password_in_the_address_is_refused_and_not_shown(ask):
    with pytest.raises(ValueError, match="endpoint must not hold a user's name or password") as raised:
        ask(endpoint="http://ada:secret@127.0.0.1:9/v1")
    assert "secret" not in str(raised.value)


def test_a_key_that_cannot_be_one_is_refused_and_not_shown(ask):
    with pytest.raises(ValueError, match="holds characters that no key has") as raised:
        ask(api_key="sec\nret")
    assert "ret" not in str(raised.value).replace("characters", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no model to refine prompts; name a chat model .*--refine-model.* or the folder"),
        (
            {"model": "toy-chat"},
            r"'toy-chat' is no folder with a config.json, and there is no service .*OPENAI_BASE",
        ),
    ],
)
def test_without_a_configuration_it_is_said_how_to_make_one(chat_service, options, message):
    with pytest.raises(ValueError, match=message):
        refine_prompt(PROMPT, **options)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt must not be empty"):
        refine_prompt(" ", model="toy-chat")


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "left_out"),
    [
        (f'"{LONG}"', "quotation marks"),
        (f"“{LONG}”", "quotation marks"),
        (f"Here is the refined prompt:\n\n{LONG}", "an introduction"),
        (f"Sure! Here's a more detailed version of it: {LONG}", "an introduction"),
        (f"**Prompt:** {LONG}", "marks of emphasis, an introduction"),
        (LONG.replace("red kite", "**red** *kite*"), "marks of emphasis"),
        (f"# The Kite\n\n{LONG}", "a heading"),
        (f"```text\n{LONG}\n```", "a code block's marks"),
        (LONG.replace("meadow. A", "meadow.\n\nA"), "breaks between paragraphs"),
        (f"{LONG}\n\nLet me know if it shall be shorter!", "a remark"),
        (f"<think>\n- a kite\n- red\n</think>\n{LONG}", "the model's thoughts"),
    ],
)
def test_what_an_answer_is_wrapped_in_is_left_out_and_that_is_said(
    chat_service, ask, caplog, answer, left_out
):
    chat_service.answer = answer
    assert ask() == LONG
    assert warnings_of(caplog) == [f"the refined prompt came with {left_out}, left out here"]


@pytest.mark.parametrize("text", [LONG, "Here is where a kite flies: high up.", "It's a kite's 'tail'"])
def test_plain_prose_is_left_as_it_is(text):
    assert clean_answer(text) == (text, [])


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        (None, "is empty"),
        ("<think>It goes on and on", "is empty"),
        ("Kite.", "has 1 word, 'Kite.'"),
        ("A red kite flies.", "has 4 words, 'A red kite flies.'"),
        ("a kite " * 300, "has 600 words, 'a kite a kite"),
        ("I'm sorry, but I can't help with that request." + LONG, "is a refusal, \"I'm sorry"),
        ("1. A red kite.\n2. A blue kite.\n3. " + LONG, "is a list, '1. A red kite."),
        ("一只红色的风筝飞上天空。" * 10, "is not English"),
    ],
)
def test_an_answer_that_is_no_prompt_is_one_sentence(chat_service, ask, answer, problem):
    chat_service.answer = answer
    with pytest.raises(
        ValueError, match="expected one paragraph of 80 to 150 words for 'a red kite'"
    ) as raised:
        ask()
    assert str(raised.value).startswith(f"the model's answer {problem}")
    assert "\n" not in str(raised.value)


# --- A folder ---------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} kite {% endif %}"
)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A toy chat model with random weights, which ends after 40 words."""
    folder = tmp_path_factory.mktemp("chat")
    words = ["a", "red", "blue", "kite", "flies", "over", "green", "hills", "in", "the", "light"]
    tokenizer = build_word_tokenizer(words)
    # A chat model goes on after the prompt: no end token there.
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9, top_k=5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def forty_words(monkeypatch):
    """Lets random weights answer with words only, 40 of them: they would neither stop nor avoid special tokens."""
    generate = LlamaForCausalLM.generate

    def short(model, **options):
        options |= {"max_new_tokens": 41, "forced_eos_token_id": 1, "suppress_tokens": [0, 2]}
        return generate(model, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", short)


def test_a_folder_answers_the_same_each_time(chat_folder, forty_words, caplog):
    one, two = (refine_prompt(PROMPT, model=chat_folder) for _ in range(2))
    assert one == two
    assert 20 <= len(one.split()) <= 40
    assert not caplog.records


def test_a_folder_is_freed_afterwards(chat_folder, forty_words, monkeypatch):
    alive = []
    load = LlamaForCausalLM.__init__

    def remember(model, *arguments, **options):
        load(model, *arguments, **options)
        alive.append(weakref.ref(model))

    monkeypatch.setattr(LlamaForCausalLM, "__init__", remember)
    refine_prompt(PROMPT, model=str(chat_folder))
    assert len(alive) == 1
    assert alive[0]() is None


def test_an_address_that_is_given_goes_before_a_folder_of_the_models_name(chat_service, ask, chat_folder):
    chat_service.answer = LONG
    assert ask(model=str(chat_folder)) == LONG


def test_a_folder_without_a_chat_template_is_refused(chat_folder, tmp_path):
    for path in chat_folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="has no chat template; name a model that was made for conversation"):
        refine_prompt(PROMPT, model=tmp_path)


@pytest.mark.parametrize("config", ["not json", json.dumps({"model_type": "llamma"}), json.dumps({})])
def test_a_folder_that_is_no_chat_model_is_one_sentence(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="cannot be loaded as a chat model: ") as raised:
        refine_prompt(PROMPT, model=tmp_path)
    assert "\n" not in str(raised.value)


def test_words_that_never_end_are_one_sentence(chat_folder, monkeypatch):
    monkeypatch.setattr("flashvideo.refine._MAX_TOKENS", 3)
    with pytest.raises(ValueError, match="broke off at its greatest length"):
        refine_prompt(PROMPT, model=chat_folder)
