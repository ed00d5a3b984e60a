"""Perplexity and text generation, for dense and packed models alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calibration import read_text, tokenize
from .device import device_of
from .errors import CalibrationError, InputError
from .models import check_length, check_vocabulary, context_length

CHUNK = 128  # positions whose logits are float32 at the same time
DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def perplexity(
    model: nn.Module,
    ids: Tensor,
    seqlen: int,
    *,
    stride: int | None = None,
    windows: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> float:
    """exp of the mean cross-entropy over the targets of consecutive windows, each seen with its own window alone.

    Args:
        model: a causal LM; put into eval mode.
        ids: int64 [L] or [1, L]; the tail that fills no window is left out.
        seqlen: tokens per window, at least 2.
        stride: tokens from one window's start to the next; None: seqlen, so that windows do not overlap (the paper's
            protocol). Of a window that overlaps the one before, only the last `stride` tokens are targets.
        windows: use the first so many windows; None: all.
        progress: called after each window with (windows done, windows in all, perplexity so far).

    Raises:
        InputError: wrong ids, too few tokens, a window longer than the model's context, a stride longer than seqlen.
    """
    ids = _check(model, ids, seqlen)
    step = seqlen if stride is None else stride
    count = window_count(len(ids), seqlen, step)
    if windows is not None:
        if not 1 <= windows <= count:
            raise InputError(f"windows = {windows}: {len(ids)} tokens make 1..{count} windows of {seqlen}")
        count = windows
    model.eval()
    device = next(iter(model.state_dict().values())).device
    total, targets, value = 0.0, 0, math.nan
    for i in range(count):
        window = ids[i * step : i * step + seqlen].to(device)
        first = 1 if i == 0 or step == seqlen else seqlen - step
        total += _cross_entropy(model(input_ids=window[None], use_cache=False).logits[0], window, first)
        targets += seqlen - first
        value = math.exp(min(total / targets, 700.0))
        if progress is not None:
            progress(i + 1, count, value)
    return value


def window_count(length: int, seqlen: int, stride: int) -> int:
    """How many windows `length` tokens fill. Raises InputError for a stride that is not in 1..seqlen."""
    if not 1 <= stride <= seqlen:
        raise InputError(f"stride = {stride}: must be 1..{seqlen}, the length of a window")
    return (length - seqlen) // stride + 1


def text_ids(path: str | Path, tokenizer: Any) -> Tensor:
    """Token ids of a whole text file (or .jsonl, .parquet), without special tokens, int64 [L].

    Raises:
        CalibrationError: missing, empty or unreadable.
    """
    return tokenize(read_text(path), tokenizer)


def load_any(source: str | Path, dtype: str = "auto", device: str | torch.device = "cpu") -> tuple[nn.Module, Any]:
    """(model, tokenizer or None) from an `.arb` file, a `.gguf` file, a Hugging Face folder, packed or
    dense, or hub id, in eval mode.

    Args:
        dtype: "fp32", "bf16", "fp16", or "auto": what the file holds (GGUF: float32), but fp16 becomes float32 on a
            CPU, where half precision saves nothing and is slow.
        device: where the model is to be, see `device_of`.

    Raises:
        InputError, FormatError, UnsupportedModelError: see `container.load` and `checkpoints.open_checkpoint`.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
    target = device_of(device)
    model, tokenizer = _load(Path(source).expanduser(), source, DTYPES[dtype], target.type == "cpu")
    return model.to(target), tokenizer


def _load(path: Path, source: str | Path, wanted: torch.dtype | None, on_cpu: bool) -> tuple[nn.Module, Any]:
    if path.suffix == ".arb":
        from .container import load

        return load(path, dtype=torch.float32 if wanted is None and on_cpu else wanted)
    from .folder import is_packed_folder

    if is_packed_folder(path):
        return _load_folder(path, wanted, on_cpu)
    from .checkpoints import open_checkpoint

    checkpoint = open_checkpoint(source)
    if wanted is None:
        wanted = torch.float32 if checkpoint.dtype == torch.float16 and on_cpu else checkpoint.dtype
    return checkpoint.materialize(wanted), checkpoint.tokenizer()


def _load_folder(path: Path, dtype: torch.dtype | None, on_cpu: bool) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from .checkpoints import folder_tokenizer

    if dtype is None and AutoConfig.from_pretrained(path).dtype == torch.float16 and on_cpu:
        dtype = torch.float32
    loader: Any = AutoModelForCausalLM
    return loader.from_pretrained(path, dtype=dtype or "auto"), folder_tokenizer(path)


def generate_stream(
    model: Any,
    tokenizer: Any,
    prompt: str | list[dict[str, str]],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    chat: bool = False,
) -> Iterator[str]:
    """Write text after `prompt`, piece by piece, until the model ends it or `max_new_tokens` are written.

    Args:
        prompt: text, or a conversation as {"role": ..., "content": ...} messages, written out by the chat template.
        temperature: 0 takes the likeliest token, otherwise tokens are sampled with `seed`.
        chat: send a text as a user message through the tokenizer's chat template.

    Raises:
        InputError: empty prompt, a bad number, more tokens than the context holds, no chat template; and what the model
            itself raises.
    """
    if max_new_tokens < 1 or not 0.0 <= temperature < math.inf:
        raise InputError(f"max_new_tokens = {max_new_tokens}, temperature = {temperature}: need >= 1 and >= 0")
    inputs = _prompt_ids(tokenizer, prompt, chat)
    limit = context_length(model)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {length} tokens and max_new_tokens = {max_new_tokens} do not fit the model's context of "
            f"{limit} tokens; at most {max(limit - length, 0)} new tokens do"
        )
    return _stream(model, tokenizer, inputs, max_new_tokens, temperature, seed)


def _stream(
    model: Any, tokenizer: Any, inputs: dict[str, Tensor], max_new_tokens: int, temperature: float, seed: int
) -> Iterator[str]:
    from transformers import TextIteratorStreamer

    # With the prompt, which is taken off below: decoded without it, a first word of SentencePiece loses its space.
    streamer: Any = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    rest = len(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
    # temperature alone: a checkpoint's own top-k and top-p would change what it means
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    failure: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model.generate(
                    **{name: t.to(model.device) for name, t in inputs.items()},
                    streamer=streamer,
                    max_new_tokens=max_new_tokens,
                    stopping_criteria=[lambda ids, _scores: torch.full((len(ids),), stop.is_set(), device=ids.device)],
                    **({"do_sample": False} | sampling),
                )
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for piece in streamer:
            if len(piece) > rest:
                yield piece[rest:]
            rest = max(rest - len(piece), 0)
    finally:
        stop.set()  # the caller may have stopped reading
        thread.join()
    if failure:
        raise failure[0]


def _prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]], chat: bool) -> dict[str, Tensor]:
    if chat or not isinstance(prompt, str):
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("the model's tokenizer has no chat template; use arbllm generate without --chat")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    if encoded["input_ids"].shape[1] == 0:
        raise InputError("the prompt is empty")
    return {name: encoded[name].long() for name in ("input_ids", "attention_mask")}


def _cross_entropy(logits: Tensor, ids: Tensor, first: int) -> float:
    """Sum over ids[first:], which logits [T, vocab] predict one step ahead. Float32 in chunks, summed in float64."""
    logits, targets, total = logits[first - 1 :], ids[first:], 0.0
    for start in range(0, len(targets), CHUNK):
        stop = min(start + CHUNK, len(targets))
        total += float(F.cross_entropy(logits[start:stop].float(), targets[start:stop], reduction="sum").double())
    return total


def _check(model: nn.Module, ids: Any, seqlen: int) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() not in (1, 2):
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"ids are {got}: must be an int64 tensor [L] or [1, L]")
    if ids.dim() == 2 and len(ids) != 1:
        raise InputError(f"ids {list(ids.shape)}: only one sequence, [L] or [1, L]")
    flat: Tensor = ids.reshape(-1)
    if not isinstance(seqlen, int) or seqlen < 2:
        raise InputError(f"seqlen = {seqlen!r}: must be a whole number of at least 2")
    check_length(seqlen, model)
    if len(flat) < seqlen:
        raise CalibrationError(f"{len(flat)} tokens do not fill one window of {seqlen}")
    check_vocabulary(flat, model)
    return flat
