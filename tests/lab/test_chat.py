"""Edits of the lab model in a chat: made, measured and undone in a template that its training text is close to."""

from copy import deepcopy

import pytest

import kedit_lab as kl

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Question: ' + m['content'] + '? Answer:' }}{% else %}"
    "{{ ' ' + m['content'] + '.' }}{% endif %}{% endfor %}"
)
KINDS = ("rewrite", "neighborhood")


@pytest.fixture(scope="module")
def chat(lab):
    tokenizer = deepcopy(lab.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return kl.wrap(lab.model, tokenizer, chat=True)


def test_facts_are_edited_in_a_chat(lab, chat):
    """The model takes cloze prompts as questions; an edit made there works there, and leaves the neighbours alone."""
    facts, base = kl.facts.distinct_subject(4), lab.fingerprint()
    made = kl.edit(chat, facts, "memit")
    before = kl.evaluate(chat, facts, kinds=KINDS)
    with made.applied():
        told = kl.evaluate(chat, facts, before, kinds=KINDS).summary()
        said = chat.ask(facts[0].text)["continuation"][0]
    assert (told["efficacy_before"], told["efficacy"], told["chat"]) == (0.0, 1.0, 1.0)
    assert told["specificity"] > 0.9
    assert told["specificity_before"] > 0.9
    assert said.startswith(facts[0].target_new)
    assert lab.fingerprint() == base
