"""The lab model's tokenizer: a byte-level BPE trained on the world's words, with names kept in 3 to 6 pieces.

Names count as often as their parts stand in the world, so that they stay in a few pieces each; the lists decide the
merges, not the draw of the world."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from kedit_lab.facts.world import CLASSES, World
from kedit_lab.paths import data_dir

END = "<|endoftext|>"
VOCAB = 3072
NAME_TOKENS = range(3, 7)


def lines(world: World) -> Iterator[str]:
    """The text that the merges are learned from: templates, objects and fillers often, parts of names now and then."""
    lists = data_dir() / "world" / "lists"
    text = json.loads((lists / "text.json").read_text(encoding="utf-8"))
    plain = [v for r in world.relations.values() if not r.range.startswith("@") for v in world.objects[r.id]]
    for relation in world.relations.values():
        for template in relation.templates.values():
            yield from [template.replace("{s}", "") + "."] * 4
    yield from (f" {value}." for value in plain for _ in range(3))
    yield from (
        f"The {name} of {value} is {out}."
        for table in world.attributes.values()
        for name, row in table.items()
        for value, out in row.items()
    )
    parts = json.loads((lists / "names.json").read_text(encoding="utf-8"))
    groups = [("", parts["first"], 7), (" ", parts["first"], 7), (" ", parts["last"], 8)]
    for cls in (cls for cls in CLASSES if cls in parts):
        groups += [("", parts[cls]["head"], 2), (" ", parts[cls]["head"], 2), (" ", parts[cls]["tail"], 20)]
    yield from (f"{space}{name}" for space, names, times in groups for name in names for _ in range(times))
    yield from text["fillers"] * 2
    yield from text["openers"] * 2
    yield from ["Passage: Question: Answer: Their is also known as"] * 50
    yield from ["0 1 2 3 4 5 6 7 8 9"] * 50


def build_tokenizer(world: World, folder: Path, vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """Train and save the tokenizer, reload it as a user would, and check what the lab relies on.

    ``AutoTokenizer`` gives a folder with a Qwen2 config its own Qwen2Tokenizer class with that class's pre-tokenizer,
    so the merges are learned with exactly that one.
    """
    blank = Qwen2Tokenizer(vocab={END: 0}, merges=[], unk_token=END, eos_token=END, pad_token=END)
    trained = blank.train_new_from_iterator(lines(world), vocab_size=vocab)
    trained.model_max_length = 512
    trained.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, text in (("first", "John Smith's employer is"), ("inner", "The year 1980, of John Smith.")):
        ids = trained(text)["input_ids"]
        if tokenizer(text)["input_ids"] != ids or tokenizer.decode(ids) != text:
            raise ValueError(f"the reloaded tokenizer splits the {name} example {text!r} differently than in training")
    check_names(world, tokenizer)
    return tokenizer


def check_names(world: World, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every subject's name must be 3 to 6 tokens long, at the start of a text and inside one."""
    wrong = misfits(world, tokenizer)
    if wrong:
        raise ValueError(
            f"{len(wrong)} subjects are not {NAME_TOKENS.start} to {NAME_TOKENS.stop - 1} tokens long: {wrong[:8]}; "
            "add them to 'avoid' in data/world/lists/names.json and draw the world again"
        )


def misfits(world: World, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Subjects whose names split into too few or too many tokens."""
    lengths = lambda name: {len(tokenizer.tokenize(form)) for form in (name, f" {name}")}  # noqa: E731
    return [name for name in world.subjects if not lengths(name) <= set(NAME_TOKENS)]
