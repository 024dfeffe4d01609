"""Prompts in a chat template: one text for ids, lookups, targets, scores and generation, in every style of template."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import kedit_lab as kl
from kedit_lab.extract.trace import trace
from kedit_lab.measure.health import next_tokens
from kedit_lab.measure.metrics import score
from kedit_lab.model.chat import Chat
from kedit_lab.model.process import Source
from kedit_lab.model.tokens import encode, essence_rows, fact_row, self_test, target_ids
from kedit_lab.study.doctor import doctor
from tests.pico.tiny import KINDS, TEXTS, build, byte_level, sentence_piece

FACT = kl.Fact("John Smith", "The employer of {} is", "Greek", "London", "employer", ("John Smith works in",),
               (kl.Probe("Mary Jones works in", "Paris"),))  # fmt: skip
SUBJECTS = ("John Smith", "Zoë Núñez", "李小龍", "<s>", "{0} user", "[INST]")
PROMPTS = ("{} works in", "The employer of {} is", "The capital of France knows {}", "user: {}'s city (not user's) is")
RECIPE = kl.Recipe("memit", layers=(1,), lr=0.3, lr_unit="hidden", decay=0.0, kl=0.0, steps=20, lam=1e-3, prefixes=1,
                   prefix_length=4, statistics="identity", stop=0.01, clamp=3.0)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """A template, and what it should be found to put before and behind a prompt and between that and the answer."""

    template: str
    before: str
    after: str
    space: str = ""


STYLES = {
    "chatml": Style(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "inst": Style(  # writes its own BOS, an answer behind a space, and no generation prompt
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] ", " [/INST]", " ",
    ),
    "trimmed": Style(  # a system turn by default, trimmed words
        "{{ bos_token + 'Think.\\n' }}{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] | trim + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}",
        "<s>Think.\nuser:\n", "\nassistant:\n",
    ),
    "thinking": Style(  # an empty thought in front of every answer
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U ' + m['content'] + '\\n' }}{% else %}"
        "{{ 'A <think>\\n</think>\\n' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A ' }}{% endif %}",
        "U ", "\nA <think>\n</think>\n",
    ),
    "colon": Style("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
                   "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
                   "user: ", "\nassistant:", " "),
}  # fmt: skip


def dressed(tokenizer: PreTrainedTokenizerFast, template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer with a template, ChatML's marks as special tokens, and a BOS for templates that write one."""
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


@pytest.fixture(params=STYLES)
def style(request):
    return STYLES[request.param]


@pytest.fixture(params=[byte_level, sentence_piece])
def styled(request, style):
    return dressed(request.param(), style.template)


def squeezed(text: str) -> str:
    """A text without its spaces, which some tokenizers write around special tokens."""
    return "".join(text.split())


def lab_of(template, make=byte_level, **options):
    return kl.wrap(build(KINDS["llama"].config), dressed(make(), template), **options)


def test_what_stands_around_a_prompt(styled, style):
    assert Chat.of(styled) == Chat(style.before, style.after, style.space)
    assert self_test(styled, Chat.of(styled)) == []


def test_ids_are_those_of_the_template(styled, style):
    """As apply_chat_template gives them, up to what it leaves to the answer; a BOS is never doubled."""
    chat = Chat.of(styled)
    turns = [{"role": "user", "content": FACT.text}]
    theirs = styled.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids, answer = encode(styled, FACT.text, chat)[0], target_ids(styled, "Greek", chat)
    assert (ids == theirs) == (style not in (STYLES["thinking"], STYLES["colon"]))
    assert ids.count(styled.bos_token_id) == style.template.count("bos_token")
    assert squeezed(styled.decode([*ids, *answer])) == squeezed(chat.pose(FACT.text)) + "Greek"
    assert squeezed(styled.decode(answer)) == "Greek"
    assert answer == target_ids(styled, " Greek", chat)


def test_lookup_by_decoding(styled, style):
    """Up to the lookup token stands the subject's last character, one token earlier it does not: template words, the
    prefix and special-looking subjects do not confuse it."""
    chat = Chat.of(styled)
    for subject, prompt, prefix in product(SUBJECTS, PROMPTS, ("", "Therefore I think so. ")):
        fact = kl.Fact(subject, prompt, "Greek")
        row = fact_row(styled, fact, prefix, chat=chat)
        told = squeezed(style.before + prefix + prompt.split("{}")[0] + subject)
        before, at = (squeezed(styled.decode(row.prompt[: row.lookup + more])) for more in (0, 1))
        assert at.startswith(told)
        assert not before.startswith(told)
        assert not at.removeprefix(told).strip("'s,)")
        assert fact_row(styled, fact, prefix, "last", chat=chat).lookup == len(row.prompt) - 1


def test_the_essence_prompt_is_posed_too(styled):
    chat = Chat.of(styled)
    [row] = essence_rows(styled, ["John Smith"], chat)
    assert list(row.prompt) == encode(styled, "John Smith is a", chat)[0]
    assert row.lookup == fact_row(styled, kl.Fact("John Smith", "{} is a", "Greek"), chat=chat).lookup


def test_every_part_reads_the_same_text():
    """Keys, scores, answers and traces are those of the posed text written out by hand."""
    chat = lab_of(STYLES["inst"].template, chat=True)
    plain = chat.with_chat(False)
    text = chat.chat.pose(FACT.text)
    ids = plain.encode(text)[0]
    assert (chat.encode(FACT.text)[0], plain.chat) == (ids, None)
    written = kl.Fact("John Smith", chat.chat.pose(FACT.prompt), "Greek")
    torch.testing.assert_close(kl.keys(chat, [FACT], 1, None), kl.keys(plain, [written], 1, None))
    logits = plain.model(torch.tensor([[*ids, *chat.target("Greek")]])).logits[0].log_softmax(-1)
    spots = range(len(ids) - 1, len(ids) - 1 + len(chat.target("Greek")))
    nll = -sum(float(logits[at, token]) for at, token in zip(spots, chat.target("Greek"), strict=True)) / len(spots)
    assert score(chat, [(FACT.text, "Greek")])["nll"][0] == pytest.approx(nll, rel=1e-4)
    torch.testing.assert_close(next_tokens(chat, [FACT.text]), next_tokens(plain, [text]))
    assert chat.ask(FACT.text, 2).equals(plain.ask(text, 2))
    assert chat.generate([FACT.text], 3)[0].startswith(f"{FACT.text} ")
    traced = trace(chat, FACT, samples=2)
    subject = traced.loc[traced["is_subject"] & (traced["layer"] == 0), "token"]
    assert "".join(subject).strip() == "John Smith"
    assert traced["position"].nunique() == len(ids)


@pytest.mark.parametrize("name", ["chatml", "inst"])
@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_an_edit_made_and_measured_in_a_chat(name, kind, tmp_path):
    """The edit helps where it was asked; report, summary and file say that it was a chat, plain ones do not."""
    chat = lab_of(STYLES[name].template, kind, chat=True)
    plain = chat.with_chat(False)
    made = kl.edit(chat, [FACT], RECIPE)
    before = kl.evaluate(chat, [FACT], tokens=3)
    with made.applied():
        after, elsewhere = kl.evaluate(chat, [FACT], before, tokens=3), kl.evaluate(plain, [FACT], tokens=3)
    assert after["nll"][0] < before["nll"][0] - 0.3  # a random model learns little from one block
    assert after.summary()["chat"] == 1.0
    assert after["chat"].all()
    assert "chat" not in elsewhere
    assert "chat" not in elsewhere.summary()
    with pytest.raises(ValueError, match="one of the baseline and this report is asked in a chat template"):
        kl.evaluate(plain, [FACT], before)
    path = made.save(tmp_path / "edit.safetensors")
    for lab in (chat, plain):
        assert kl.Edit.load(path, lab).lab.chat == chat.chat
    assert kl.Edit.load(kl.edit(plain, [FACT], RECIPE).save(path), chat).lab.chat is None


def test_a_fine_tuned_edit_is_trained_in_the_chat():
    chat = lab_of(STYLES["chatml"].template, chat=True)
    made = kl.edit(chat, [FACT], "ft-m", layers=(1,), epochs=30, lr=0.02)
    with made.applied():
        assert kl.evaluate(chat, [FACT], kinds=["rewrite"])["exact"][0] == 1.0


def test_a_template_on_disk_is_loaded(tmp_path):
    """kl.load(chat=True), and a worker process's own copy of such a lab."""
    made = lab_of(STYLES["inst"].template, chat=True)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    lab = kl.load(tmp_path, local_only=True, chat=True)
    assert lab.chat == made.chat
    assert (Source.of(lab).chat, Source.of(lab.with_chat(False)).chat) == (True, False)


def test_a_sweep_in_a_chat_has_a_file_of_its_own(tmp_path):
    chat = lab_of(STYLES["inst"].template, chat=True)
    measure = lambda lab, size: {"chat": float(lab.chat is not None)}  # noqa: E731
    path = tmp_path / "rows.jsonl"
    assert list(kl.sweep(chat, {"size": [1]}, path, measure=measure)["chat"]) == [1.0]
    with pytest.raises(ValueError, match=r"holds another sweep \(chat differ\)"):
        kl.sweep(chat.with_chat(False), {"size": [1]}, path, measure=measure)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "has no chat template; ask without"),
        ("{{ messages[0]['content'] | upper }}", "changes or repeats"),
        ("{{ messages[0]['content'] | tojson }}", "changes or repeats"),
        ("{{ messages[0]['content'] + messages[0]['content'] }}", "changes or repeats"),
        ("{{ raise_exception('a system turn is needed') }}", "cannot pose a user's words .a system turn is needed"),
    ],
)
def test_templates_that_cannot_be_used(make, template, complaint):
    tokenizer = dressed(byte_level(), template)
    lab = kl.wrap(make("llama").model, tokenizer)
    with pytest.raises(ValueError, match=complaint):
        lab.with_chat()
    with pytest.raises(ValueError, match=complaint):
        kl.wrap(make("llama").model, tokenizer, chat=True)
    assert doctor(lab, rate=(1e9, 1e8))["chat template"].startswith("yes" if template else "no")


def test_a_saved_chat_edit_needs_the_template(tmp_path):
    chat = lab_of(STYLES["chatml"].template, chat=True)
    path = kl.edit(chat, [FACT], RECIPE).save(tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match="has no chat template"):
        kl.Edit.load(path, kl.wrap(chat.model, byte_level()))


def test_a_folder_of_the_other_form_is_refused(tmp_path):
    chat = lab_of(STYLES["chatml"].template, chat=True)
    kl.edit(chat, [FACT], RECIPE, folder=tmp_path)
    with pytest.raises(ValueError, match="chat"):
        kl.edit(chat.with_chat(False), [FACT], RECIPE, folder=tmp_path)


def test_a_bare_template_is_a_plain_prompt():
    tokenizer = dressed(byte_level(), "{{ messages[0]['content'] }}")
    assert Chat.of(tokenizer) == Chat("", "", " ")
    assert fact_row(tokenizer, FACT, chat=Chat.of(tokenizer)) == fact_row(tokenizer, FACT)


def test_doctor_says_how_prompts_are_asked():
    chat = lab_of(STYLES["inst"].template, sentence_piece, chat=True)
    plain, posed = (doctor(lab, rate=(1e9, 1e8)) for lab in (chat.with_chat(False), chat))
    assert plain["chat template"] == "yes: prompts are asked without it (chat=True asks in it)"
    assert posed["chat template"] == "yes: prompts are asked in it, as '<s>[INST] … [/INST]'"
    assert posed['the target " Greek"'][0] == "▁"
    assert posed["tokenizer self-test"] == "passed"


def test_plain_text_stays_plain(tmp_path):
    """Prefixes and second moments are of text, not of prompts."""
    chat = lab_of(STYLES["chatml"].template, chat=True)
    plain = chat.with_chat(False)
    assert chat.prefixes(2, 5) == plain.prefixes(2, 5)
    found = [kl.second_moment(lab, 1, TEXTS, cache=tmp_path / str(i)) for i, lab in enumerate((chat, plain))]
    assert torch.equal(*found)
