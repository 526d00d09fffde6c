"""Tasks become token ids by the model's template, a plain one, or a file's."""

from pathlib import Path
from typing import Any

import pytest

from funicular.actors.prompts import Prompts, load_tokenizer
from funicular.rewards.types import Message, Task
from tests.tiny import make_tiny_model

MESSAGES = (Message(role="system", content="Be brief."), Message(role="user", content="one plus two"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(folder))


def task(prompt: str | tuple[Message, ...]) -> Task:
    return Task(task_id="t1", prompt=prompt, answer=None, verifier="none")


def test_messages_go_through_the_models_template_with_its_special_tokens(tokenizer: Any) -> None:
    ids = Prompts(tokenizer, "auto").render(task(MESSAGES))
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none plus two<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3


def test_a_model_without_a_template_gets_the_plain_one(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    ids = Prompts(tokenizer, "auto").render(task(MESSAGES))
    assert tokenizer.decode(ids) == "System: Be brief.\nUser: one plus two\nAssistant:"


def test_plain_overrides_the_models_template(tokenizer: Any) -> None:
    ids = Prompts(tokenizer, "plain").render(task(MESSAGES))
    assert tokenizer.decode(ids) == "System: Be brief.\nUser: one plus two\nAssistant:"


def test_plain_starts_with_the_token_that_the_tokenizer_puts_before_texts(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    ids = Prompts(tokenizer, "plain").render(task(MESSAGES))
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]


def test_a_template_may_come_from_a_file(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert tokenizer.decode(Prompts(tokenizer, str(file)).render(task(MESSAGES))) == "[Be brief.][one plus two]"


def test_a_file_that_is_not_there_is_named(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.chat_template=none\.jinja: no such file; expected auto, plain"):
        Prompts(tokenizer, "none.jinja")


def test_text_is_tokenised_as_it_is(tokenizer: Any) -> None:
    text = "  Question: one plus two\n"
    ids = Prompts(tokenizer, "auto").render(task(text))
    assert ids == tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_template_that_refuses_a_role_names_task_and_roles(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match=r"task t1: .* roles system, user: no system role"):
        Prompts(tokenizer, str(file)).render(task(MESSAGES))


def test_decoding_leaves_special_tokens_out_and_spaces_alone(tokenizer: Any) -> None:
    ids = [*tokenizer(" a , b .")["input_ids"], tokenizer.eos_token_id]
    assert Prompts(tokenizer, "auto").decode(ids) == " a , b ."
