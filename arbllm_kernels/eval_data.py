"""The paper's evaluation texts by name (section 4.1), cut as the programs of GPTQ, BiLLM and ARB-LLM cut them.

Rows are joined into one text, tokenized at once with the tokenizer's own special tokens, and measured in windows that
do not overlap. Files of one's own are read by `evaluate.text_ids`, without special tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import CalibrationError


@dataclass(frozen=True, kw_only=True)
class HubText:
    """Where a text is on the hub, and how its rows become one.

    Attributes:
        arguments: of datasets.load_dataset.
        column: of the rows' text; joined by `joint`.
        rows, windows: how much of it is used; None is all.
    """

    arguments: dict[str, Any]
    column: str
    joint: str
    rows: int | None = None
    windows: int | None = None


C4_FILE = "en/c4-validation.00000-of-00008.json.gz"
TEXTS = {
    "wikitext2": HubText(
        arguments={"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"},
        column="text",
        joint="\n\n",
    ),
    "ptb": HubText(
        # the data set itself is a script, which datasets no longer runs
        arguments={
            "path": "ptb-text-only/ptb_text_only",
            "name": "penn_treebank",
            "split": "test",
            "revision": "refs/convert/parquet",
        },
        column="sentence",
        joint=" ",
    ),
    "c4": HubText(
        arguments={"path": "allenai/c4", "data_files": {"validation": C4_FILE}, "split": "validation"},
        column="text",
        joint=" ",
        rows=1100,
        windows=256,
    ),
}


def hub_ids(name: str, tokenizer: Any, seqlen: int) -> Tensor:
    """Token ids of one of TEXTS, int64 [L].

    Raises:
        CalibrationError: unknown name, `datasets` is not installed, or the hub cannot be reached.
    """
    if name not in TEXTS:
        raise CalibrationError(f"{name}: no such file, and no text of that name; names are {', '.join(TEXTS)}")
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(f"{name}: needs datasets: pip install 'arbllm_kernels[data]'") from error
    text = TEXTS[name]
    try:
        rows = datasets.load_dataset(**text.arguments)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CalibrationError(f"{name}: cannot be had from the hub: {reason}. Give a text file instead") from error
    joined = text.joint.join(rows[: text.rows][text.column])
    ids = torch.tensor(tokenizer(joined, verbose=False)["input_ids"], dtype=torch.int64)
    return ids if text.windows is None else ids[: text.windows * seqlen]
