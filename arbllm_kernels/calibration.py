"""Calibration text -> token ids [samples, seqlen].

Whole text files are tokenized, without special tokens, and windows are cut at starts drawn one after the other with
`random.Random(seed).randint(0, len(ids) - seqlen - 1)`. `self` lets the model write the text: no data is needed at all.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CalibrationError
from .models import context_length, vocab_size

SELF = "self"
HUB = "hub:"
BATCH = 32  # sequences the model writes together
SAMPLES, SEQLEN = 32, 512  # calibration windows and tokens per window; the paper takes 128 and 2048
PIECE = 1 << 18  # characters after which a text is cut where it can be, to be tokenized in pieces
NEAR = 251  # characters on either side of a cut for which tokens are compared; prime, lest a fixed length divide it
GAP = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")  # a space between two letters, where tokenizers begin a word
KINDS = "a .txt, .raw, .jsonl or .parquet file, hub:NAME[[:config]:split], or self"


def is_self(spec: str | Path) -> bool:
    """Whether the model is to write its own calibration text."""
    return str(spec) == SELF


def calibration_ids(
    spec: str | Path,
    tokenizer: Any,
    samples: int,
    seqlen: int,
    seed: int,
    model: nn.Module | None = None,
    *,
    text_field: str = "text",
    advance: Callable[[float], None] = lambda tokens: None,
) -> Tensor:
    """Token ids for calibration, int64 [samples, seqlen].

    Args:
        spec: path of a .txt, .jsonl or .parquet file (rows are joined by blank lines), `hub:NAME[[:config]:split]`
            (needs `datasets` and the network) or `self`.
        tokenizer: a transformers tokenizer; `self` reads only its BOS token and may go without.
        seed: for the choice of windows, or for sampling.
        model: the causal LM; `self` needs it.
        text_field: column of .jsonl, .parquet and hub rows that holds the text.
        advance: called with the number of tokens written so far since the last call (`self` only).

    Raises:
        CalibrationError: unknown kind, missing file, no such field, or too little text; the message says how much.
    """
    if samples < 1 or seqlen < 2:
        raise CalibrationError(f"{samples} samples of {seqlen} tokens: at least 1 sample of 2 tokens is needed")
    if is_self(spec):
        if model is None:
            raise CalibrationError("calibration 'self' needs the model that is to write the text")
        return self_written(model, getattr(tokenizer, "bos_token_id", None), samples, seqlen, seed, advance)
    if tokenizer is None:
        raise CalibrationError(f"{spec}: text cannot be tokenized without a tokenizer; use calibration 'self'")
    return windows(tokenize(read_text(spec, text_field), tokenizer), samples, seqlen, seed, str(spec))


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """The whole text as token ids without special tokens, int64 [L]."""
    if _is_plain(tokenizer):  # what it does itself, but for the tokens' places in the text: a quarter less time
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens

        def encode(texts: list[str]) -> list[list[int]]:
            return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

        ids = list(itertools.chain(*encode(_pieces(text, encode) if backend.pre_tokenizer is not None else [text])))
    else:
        # `verbose=False`: a text longer than the model's context is the normal case here
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _pieces(text: str, encode: Callable[[list[str]], list[list[int]]]) -> list[str]:
    """`text`, cut between words, so that all cores tokenize it.

    Near every cut the pieces must have the tokens of the whole, or nothing is cut: there a tokenizer shows if it treats
    the start of a text in a way of its own, or has a token that spans words.
    """
    wanted = range(PIECE, len(text) - NEAR, PIECE)
    gaps = [gap for at in wanted if (gap := GAP.search(text, at, min(at + PIECE, len(text) - NEAR)))]
    cuts = [gap.start() for gap in gaps]
    near = [(text[cut - NEAR : cut], text[cut : cut + NEAR]) for cut in cuts]
    tokens = encode([piece for left, right in near for piece in (left + right, left, right)])
    if any(tokens[i] != tokens[i + 1] + tokens[i + 2] for i in range(0, len(tokens), 3)):
        return [text]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]


def _is_plain(tokenizer: Any) -> bool:
    """Whether it is one of the tokenizers library, with no way of its own to encode, such as infilling."""
    from transformers import PreTrainedTokenizerFast as Plain

    own = type(tokenizer)
    return isinstance(tokenizer, Plain) and all(
        getattr(own, name) is getattr(Plain, name) for name in ("__call__", "_encode_plus")
    )


def windows(ids: Tensor, samples: int, seqlen: int, seed: int, source: str) -> Tensor:
    """[samples, seqlen] cut from ids [L]. Raises CalibrationError when L <= seqlen."""
    last = len(ids) - seqlen - 1
    if last < 0:
        raise CalibrationError(f"{source}: holds {len(ids)} tokens, windows of {seqlen} need at least {seqlen + 1}")
    draw = random.Random(seed)
    starts = [draw.randint(0, last) for _ in range(samples)]
    return torch.stack([ids[start : start + seqlen] for start in starts])


def check_source(spec: str | Path) -> None:
    """Raises CalibrationError when `spec` is no known kind of source or names no file; reads nothing yet."""
    if is_self(spec) or str(spec).startswith(HUB):
        return
    path = Path(spec).expanduser()
    if path.suffix not in READERS:
        raise CalibrationError(f"{spec}: unknown kind of text; give {KINDS}")
    if not path.is_file():
        raise CalibrationError(f"{spec}: no such file")


def read_text(spec: str | Path, text_field: str = "text") -> str:
    """The text of a file or a hub data set. Raises CalibrationError."""
    check_source(spec)
    if str(spec).startswith(HUB):
        text = "\n\n".join(_hub_rows(str(spec), text_field))
    else:
        path = Path(spec).expanduser()
        text = READERS[path.suffix](path, text_field)
    if not text.strip():
        raise CalibrationError(f"{spec}: holds no text")
    return text


@torch.no_grad()
def self_written(
    model: nn.Module,
    bos: int | None,
    samples: int,
    seqlen: int,
    seed: int,
    advance: Callable[[float], None] = lambda tokens: None,
) -> Tensor:
    """Text sampled from the model at temperature 1, int64 [samples, seqlen].

    Every sequence starts with BOS (where there is one) and one token drawn uniformly from the vocabulary, so that
    sequences differ from their first word on. An end-of-text token stops nothing: what follows is a new text.
    """
    limit, vocab = context_length(model), vocab_size(model)
    if limit is not None and seqlen > limit:
        raise CalibrationError(f"seqlen {seqlen} is longer than the model's context of {limit} tokens")
    if vocab is None:
        raise CalibrationError(f"{type(model).__name__} has no input embedding to draw first tokens from")
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    parts = []
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        first = torch.randint(vocab, (count, 1), generator=generator)
        ids = first if bos is None else torch.cat([torch.full_like(first, bos), first], 1)
        ids, cache, new = ids[:, :seqlen], None, ids[:, :seqlen]
        while ids.shape[1] < seqlen:
            out = model(input_ids=new.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            probabilities = out.logits[:, -1].float().softmax(-1).cpu()
            new = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, new], 1)
            advance(count)
        parts.append(ids)
    return torch.cat(parts)


def _read_plain(path: Path, _field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: is not UTF-8 text ({error})") from error


def _read_jsonl(path: Path, field: str) -> str:
    texts = []
    for number, line in enumerate(_read_plain(path, field).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise CalibrationError(f"{path}: line {number} has no text field {field!r}; name it with --text-field")
        texts.append(row[field])
    return "\n\n".join(texts)


def _read_parquet(path: Path, field: str) -> str:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CalibrationError(f"{path}: reading parquet needs pyarrow: pip install 'arbllm_kernels[data]'") from error
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise CalibrationError(f"{path}: has no column {field!r} but {names}; name it with --text-field")
        column = file.read([field]).column(field).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CalibrationError(f"{path}: not a readable parquet file ({error})") from error
    return "\n\n".join(str(text) for text in column if text is not None)


def _hub_rows(spec: str, field: str) -> Iterator[str]:
    """Rows of a hub data set: hub:NAME, hub:NAME:split or hub:NAME:config:split; the split is "train" by default."""
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(f"{spec}: needs datasets: pip install 'arbllm_kernels[data]'") from error
    name, *rest = spec.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise CalibrationError(f"{spec}: write hub:NAME, hub:NAME:split or hub:NAME:config:split")
    split = rest.pop() if rest else "train"
    try:
        rows = datasets.load_dataset(name, rest[0] if rest else None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{spec}: {error}") from error
    if field not in rows.column_names:
        names = ", ".join(rows.column_names)
        raise CalibrationError(f"{spec}: has no column {field!r} but {names}; name it with --text-field")
    for text in rows[field]:
        if text:
            yield str(text)


READERS = {".txt": _read_plain, ".raw": _read_plain, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
