"""The README.md of a packed folder: what the hub shows, and what a reader must know before loading it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .header import Header
from .packed import PARTS

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{base_line}tags:
- arb
- binarized
- arbllm_kernels
---

# {name}

A language model{of_base} whose decoder weights are binarized ({label}) and stored packed.

**`import arbllm_kernels` first:** transformers alone does not know these weights and stops with an error about sizes.

```python
import arbllm_kernels  # pip install arbllm_kernels
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

| | |
|---|---|
| packed weights | {count:,} weights in {modules} matrices |
| true bits per packed weight | {bits:.3f}, everything counted (signs, bitmaps, scales, padding) |
| packed size | {packed:.1f} MB |
| embeddings and other dense tensors | {dense:.1f} MB |
{perplexity}"""


def model_card(
    name: str, tensors: Mapping[str, Tensor], header: Header, perplexity: Mapping[str, float], base_model: str | None
) -> str:
    """Markdown with the hub's front matter. All sizes are counted from `tensors`."""
    parts = {f"{module}.{part}" for module in header.layouts for part in PARTS}
    sizes = {key: t.numel() * t.element_size() for key, t in tensors.items()}
    packed = sum(size for key, size in sizes.items() if key in parts)
    count = sum(layout.rows * layout.cols for layout in header.layouts.values())
    methods = sorted({layout.method for layout in header.layouts.values()})
    rows = [f"| perplexity, {text} | {value:.2f} |\n" for text, value in perplexity.items()]
    return CARD.format(
        name=name,
        base_line="" if base_model is None else f"base_model: {base_model}\n",
        of_base="" if base_model is None else f" ({base_model})",
        label=header.quant_config.label if header.quant_config is not None else ", ".join(methods),
        count=count,
        modules=len(header.layouts),
        bits=8 * packed / count,
        packed=packed / 1e6,
        dense=(sum(sizes.values()) - packed) / 1e6,
        perplexity="".join(rows),
    )
