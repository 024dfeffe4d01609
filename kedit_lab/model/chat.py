"""Prompts posed in a chat: the tokenizer's own template around a prompt, one text for every part of the lab."""

from dataclasses import dataclass
from typing import Any

PROBES = ("The employer of John Smith is", 'He said "no" & wrote: Zoë\'s {0} <b>1/2</b> is')
ANSWER = "Greek"


@dataclass(frozen=True)
class Chat:
    """What a chat template puts around a prompt: the model reads ``before`` + prompt + ``after``.

    The user's turn holds the prompt as it is, an unfinished sentence too, and the answer begins the assistant's turn,
    behind ``space`` (" " or nothing, as the template writes an assistant's words). Sampled prefixes stand in front of
    the prompt inside the user's turn. The text has the special tokens that the template writes and no others.
    """

    before: str
    after: str
    space: str

    def pose(self, prompt: str) -> str:
        """The text that the model reads for a prompt."""
        return self.before + prompt + self.after

    @classmethod
    def of(cls, tokenizer: Any) -> "Chat":
        """The chat of a tokenizer's template. Raises ValueError if it has none, or one that alters what it is given."""
        kind = type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"this {kind} has no chat template; ask without (chat=False), load an instruct model's tokenizer, "
                "or set tokenizer.chat_template"
            )
        parts = rendered(tokenizer, PROBES[0]).split(PROBES[0])
        if len(parts) != 2 or rendered(tokenizer, PROBES[1]) != PROBES[1].join(parts):
            raise ValueError(
                f"the chat template of this {kind} does not just stand around the user's words, it changes or repeats "
                "them; ask without it (chat=False), or set a plainer tokenizer.chat_template"
            )
        before, after = parts
        whole = after + opening(tokenizer, before + PROBES[0] + after)
        after = whole.rstrip(" ")  # a space in front of the answer is read with the answer, as in a plain prompt
        return cls(before, after, whole[len(after) :] if after else " ")


def opening(tokenizer: Any, asked: str) -> str:
    """What the template writes between its generation prompt and an assistant's words (a space, an empty thought)."""
    answered = rendered(tokenizer, PROBES[0], ANSWER)
    rest = answered.removeprefix(asked)
    return rest.split(ANSWER)[0] if rest != answered and ANSWER in rest else ""


def rendered(tokenizer: Any, prompt: str, answer: str | None = None) -> str:
    """A user's turn in the template and the start of the assistant's, or the assistant's whole turn with an answer."""
    turns = [{"role": "user", "content": prompt}]
    turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    except Exception as error:
        raise ValueError(
            f"the chat template of this {type(tokenizer).__name__} cannot pose a user's words ({error}); "
            "ask without it (chat=False), or set another tokenizer.chat_template"
        ) from error
