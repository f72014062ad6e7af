"""Check that a tokenizer is complete and fits its text encoder."""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

_PROBE = ("", "a red cat", "a photo of " * 200, "\xe4 \u732b \U0001f600 <>&;")
_FORMER_END = 2  # eos_token_id in CLIP's configurations before 2023, whatever the tokenizer


def tokenizers_problem(parts: Mapping[str, Any]) -> str | None:
    """Describe the first tokenizer of a model that does not fit its text encoder.

    Args:
        parts: The model's parts by name; `tokenizer_2` is that of `text_encoder_2`.

    Returns:
        A sentence without a period, or None.
    """
    for name, tokenizer in parts.items():
        encoder = name.replace("tokenizer", "text_encoder")
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or parts.get(encoder) is None:
            continue
        clip = type(tokenizer).__name__.startswith("CLIPTokenizer")
        check = clip_tokenizer_problem if clip else tokenizer_problem
        if problem := check(tokenizer, parts[encoder].config, name, encoder):
            return problem
    return None


def tokenizer_problem(
    tokenizer: Any, encoder: Any, name: str = "tokenizer", encoder_name: str = "text_encoder"
) -> str | None:
    """Describe the first reason why a tokenizer does not fit a text encoder of any kind.

    Args:
        tokenizer: The tokenizer, of transformers.
        encoder: The text encoder's configuration.
        name: The tokenizer's name, for the message.
        encoder_name: The text encoder's name, for the message.

    Returns:
        A sentence without a period, or None.
    """
    encoder = encoder.get_text_config()
    vocabulary = tokenizer.get_vocab()
    size = encoder.vocab_size
    ids = sorted(set(vocabulary.values()))
    if not ids:
        return f"its {name} has no tokens: its files are missing or incomplete"
    if ids[-1] >= size:
        last = next(text for text, number in vocabulary.items() if number == ids[-1])
        return (
            f"its {name} has {len(ids)} tokens, among them {last!r} with the id {ids[-1]}, and its "
            f"{encoder_name} has {size}"
        )
    if len(ids) < ids[-1] + 1:
        hole = next(number for number, found in enumerate(ids) if number != found)
        return f"its {name} is incomplete: it has no token with the id {hole}"
    if tokenizer.pad_token is None or tokenizer.eos_token is None:
        missing = "pad_token" if tokenizer.pad_token is None else "eos_token"
        return f"its {name} has no {missing}"
    return _end_problem(tokenizer, encoder, name, encoder_name)


def clip_tokenizer_problem(
    tokenizer: Any, encoder: Any, name: str = "tokenizer", encoder_name: str = "text_encoder"
) -> str | None:
    """Describe the first reason why a tokenizer is not CLIP's, or does not fit a text encoder.

    The arguments and the result are those of `tokenizer_problem`.
    """
    if problem := tokenizer_problem(tokenizer, encoder, name, encoder_name):
        return problem
    if tokenizer.bos_token is None:
        return f"its {name} has no bos_token"
    positions = encoder.max_position_embeddings
    if not 2 < tokenizer.model_max_length <= positions:
        length = tokenizer.model_max_length
        found = f"model_max_length {length}" if length < 10**9 else "no model_max_length"
        return f"its {name} has {found}, and its {encoder_name} has {positions} positions"
    if problem := _merges_problem(tokenizer, name):
        return problem
    for text in _PROBE:
        found = tokenizer(text, padding="max_length", truncation=True).input_ids
        if (
            len(found) != tokenizer.model_max_length
            or found[0] != tokenizer.bos_token_id
            or tokenizer.eos_token_id not in found
        ):
            return f"its {name} does not put {text[:9]!r} between bos_token and eos_token"
    return None


def _end_problem(tokenizer: Any, encoder: Any, name: str, encoder_name: str) -> str | None:
    own, found = tokenizer.eos_token_id, getattr(encoder, "eos_token_id", None)
    known = found if isinstance(found, list) else [found]  # a language model ends at any of these
    if found in (None, _FORMER_END) or own in known:
        return None
    return f"its {name} has the eos_token_id {own}, and the config of its {encoder_name} {found}"


def _merges_problem(tokenizer: Any, name: str) -> str | None:
    """Check byte-pair encoding: 256 bytes, also at the end of a word, and a merge per token."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE" or model.get("end_of_word_suffix") != "</w>":
        return f"its {name} is not CLIP's"
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merged = {"".join(pair) for pair in pairs}
    added = set(tokenizer.get_added_vocab())
    single = {text for text in model["vocab"] if len(text.removesuffix("</w>")) == 1}
    if len(single) < 512:
        return f"its {name} is incomplete: it has {len(single)} of 512 tokens of single bytes"
    unmade = sorted(set(model["vocab"]) - merged - single - added)
    if unmade:
        return f"its {name} is incomplete: no merge makes {unmade[0]!r}, nor {len(unmade) - 1} more"
    return None
