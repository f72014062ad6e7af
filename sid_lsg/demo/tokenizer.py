"""A CLIP tokenizer with a small vocabulary, trained on captions."""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(texts: list[str], max_length: int = 16) -> CLIPTokenizer:
    """Train byte-pair merges so that every word of the texts is one token.

    The vocabulary has CLIP's order: 256 bytes, 256 bytes at the end of a word, the merges, start
    and end. Other words are split into several tokens.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix=WORD_END, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + WORD_END for a in alphabet), *map("".join, merges), START, END]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        lines = ["#version: 0.2", *map(" ".join, merges), ""]
        merges_file.write_text("\n".join(lines))
        files = {"vocab_file": str(vocab_file), "merges_file": str(merges_file)}
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_length, **files)
