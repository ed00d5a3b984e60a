"""Hostile `.arb` files, by the hundred: the process never crashes, and each file is refused by `load` or caught by
`verify`, with a FormatError that names the file. What `load` accepts is run, so that native code sees it, too."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import llama, pack_linears, tokenizer

from arbllm_kernels import archive
from arbllm_kernels.container import inspect, load, read_header, save, verify
from arbllm_kernels.errors import FormatError, InputError

IDS = torch.arange(8)[None]
PLANES = ("sign", "group", "second", "salient")
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """A sound file without tokenizer."""
    path = tmp_path_factory.mktemp("sound") / "m.arb"
    save(pack_linears(llama(tied=True, bias=True)), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def sound_with_tokenizer(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "m.arb"
    save(pack_linears(llama()), path, tokenizer())
    return path.read_bytes()


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def refused(path: Path, content: bytes, message: str = ".") -> None:
    """Every door refuses the file at once, by the same words."""
    path.write_bytes(content)
    for door in (load, verify, inspect, read_header):
        with pytest.raises(FormatError, match=message) as caught:
            door(path)
        assert str(caught.value).startswith(f"{path}: ")


def outcome(path: Path, content: bytes) -> str:
    """Load and run, then verify: "refused", "detected" (by verify) or "accepted"; anything else fails the test."""
    path.write_bytes(content)
    try:
        model, _ = load(path)
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")
        return "refused"
    with torch.no_grad():
        model(IDS)
    try:
        verify(path)
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")
        return "detected"
    return "accepted"


def forge(content: bytes, change: Callable[[dict, dict, dict, bytearray], None]) -> bytes:
    """Change table rows, metadata, the `arb` object or data, then make every checksum right again."""
    end = header_end(content)
    rows = json.loads(content[8:end])
    metadata = rows.pop("__metadata__")
    inner = json.loads(metadata["arb"])
    body = bytearray(content[end:])
    change(rows, metadata, inner, body)
    for name, row in rows.items():
        if name in inner.get("checksums", {}) and isinstance(row, dict):
            span = row.get("data_offsets")
            if isinstance(span, list) and len(span) == 2 and all(isinstance(x, int) for x in span):
                inner["checksums"][name] = hashlib.sha256(body[span[0] : span[1]]).hexdigest()
    if metadata.get("arb") is not None:
        metadata["arb"] = canonical(inner)
    return assemble(rows, metadata, bytes(body))


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def assemble(rows: dict, metadata: dict, body: bytes) -> bytes:
    """A file with a right header checksum."""
    text = f"{metadata.get('arb')}\n{canonical(rows)}"
    metadata["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return with_header(canonical({"__metadata__": metadata, **rows}).encode(), body)


def with_header(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def test_the_forger_itself_changes_nothing(sound, tmp_path):
    assert forge(sound, lambda rows, metadata, inner, body: None) == sound
    assert outcome(tmp_path / "m.arb", sound) == "accepted"


# Damage


def test_truncated_anywhere(sound, tmp_path):
    end, size = header_end(sound), len(sound)
    lengths = {*range(0, 40), *range(40, end, 997), *range(end - 4, end + 5), *range(end, size, 1511), size - 1}
    assert len(lengths) > 100
    for length in sorted(lengths):
        refused(tmp_path / "m.arb", sound[:length])


def test_bytes_appended_or_inserted(sound, tmp_path):
    end = header_end(sound)
    refused(tmp_path / "m.arb", sound + b"\0", "followed by bytes that belong to no tensor")
    refused(tmp_path / "m.arb", sound[:end] + b"\0" * 8 + sound[end:], "followed by bytes")
    refused(tmp_path / "m.arb", sound + sound, "followed by bytes")


def test_single_bit_flips_in_the_header_are_refused_at_open(sound, tmp_path):
    """All but flips in the padding, which still must be JSON."""
    rng = random.Random(1)
    positions = [*range(16), *(rng.randrange(8, len(sound[: header_end(sound)].rstrip(b" "))) for _ in range(200))]
    for position in positions:
        flipped = bytearray(sound)
        flipped[position] ^= 1 << rng.randrange(8)
        refused(tmp_path / "m.arb", bytes(flipped))


def test_single_bit_flips_in_the_data_are_detected_and_crash_nothing(sound, tmp_path):
    rng = random.Random(2)
    path = tmp_path / "m.arb"
    path.write_bytes(sound)
    table = archive.read(path).table
    chosen = [name for name in table if table[name].nbytes and name.startswith((UP, "model.layers.1.self_attn.q"))]
    spots = [rng.randrange(table[n].begin, table[n].end) for n in chosen for _ in range(3)]
    spots += [rng.randrange(header_end(sound), len(sound)) for _ in range(20)]
    assert len(spots) > 60
    seen = set()
    for position in spots:
        flipped = bytearray(sound)
        flipped[position] ^= 1 << rng.randrange(8)
        seen.add(outcome(path, bytes(flipped)))
    assert seen == {"refused", "detected"}  # refused: a column bitmap that no longer counts right


def test_verify_names_tensor_and_bytes(sound, tmp_path):
    path = tmp_path / "m.arb"
    path.write_bytes(sound)
    for name, entry in archive.read(path).table.items():
        if entry.nbytes:
            flipped = bytearray(sound)
            flipped[entry.end - 1] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(FormatError, match=f"tensor {name}, bytes {entry.begin}..{entry.end}: checksum"):
                verify(path)


# Not a file, not this format


def test_things_that_are_no_arb_file(tmp_path):
    path = tmp_path / "m.arb"
    for content in (b"", b"\0" * 7, b"\0" * 8, b"\0" * 4096, b"\xff" * 4096, b"GGUF" * 1000, os.urandom(9000)):
        refused(path, content, "not an .arb file|does not begin with")
    refused(path, struct.pack("<Q", 1 << 62) + b"{}", "cut short")
    refused(path, struct.pack("<Q", 100_000_001) + b"{}", "cut short")
    refused(path, with_header(b"{}", b""), "no format = arb")
    refused(path, with_header(b'{"__metadata__":{"format":"pt"}}', b""), "no format = arb")
    refused(path, with_header(b'{"__metadata__":[]}', b""), "no format = arb")
    refused(path, with_header(b"[1]", b""), "does not begin with")
    refused(path, with_header(b'{"a":1', b""), "not readable as JSON")
    refused(path, with_header(b'{"\xff":1}', b""), "not readable as JSON")
    refused(path, with_header(b'{"\\ud800":1}', b""), "not readable as JSON")
    refused(path, with_header(b'{"a":' + b"9" * 5000 + b"}", b""), "not readable as JSON")
    refused(path, with_header(b'{"a":' * 100_000, b""), "not readable as JSON")
    refused(path, with_header(b'{"a":' * 40 + b"1" + b"}" * 40, b""), "at most 32 deep")


def test_a_folder_or_nothing_instead_of_a_file(tmp_path):
    with pytest.raises(FormatError, match="not a regular file"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"none\.arb: cannot be read"):
        load(tmp_path / "none.arb")
    with pytest.raises(InputError, match="cannot be read"):
        load("m\0.arb")
    os.mkfifo(tmp_path / "pipe.arb")
    with pytest.raises(FormatError, match="not a regular file"):
        load(tmp_path / "pipe.arb")


# Forged headers, every checksum right


def set_row(name: str, **fields: Any) -> Callable:
    return lambda rows, metadata, inner, body: rows[name].update(fields)


def set_meta(**fields: Any) -> Callable:
    return lambda rows, metadata, inner, body: metadata.update(fields)


def set_inner(**fields: Any) -> Callable:
    return lambda rows, metadata, inner, body: inner.update(fields)


def set_config(**fields: Any) -> Callable:
    return lambda rows, metadata, inner, body: inner["config"].update(fields)


def set_layout(module: str = UP, **fields: Any) -> Callable:
    return lambda rows, metadata, inner, body: inner["layouts"][module].update(fields)


def swap_offsets(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
    a, b = rows[f"{UP}.sign"], rows[f"{UP}.row_scale"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


def overlap(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
    rows[f"{UP}.sign"]["data_offsets"] = [x - 8 for x in rows[f"{UP}.sign"]["data_offsets"]]


def nest(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


AT_OPEN = {
    "newer version": (set_meta(version="3"), "version '3', but .* reads versions 1 and 2; upgrade arbllm_kernels"),
    "version above its content": (set_meta(version="2"), "format version 2, but its content is of version 1"),
    "odd version": (set_meta(version="1.0"), "upgrade"),
    "version a number": (set_meta(version=1), "upgrade"),
    "no version": (lambda r, m, i, b: m.pop("version"), "version None"),
    "other format": (set_meta(format="gguf"), "no format = arb"),
    "more metadata": (set_meta(note="x"), "exactly the strings"),
    "unknown dtype": (set_row(f"{UP}.sign", dtype="F8_E4M3"), "dtype 'F8_E4M3' is not one of"),
    "dtype a number": (set_row(f"{UP}.sign", dtype=7), "dtype 7 is not one of"),
    "dtype of other width": (set_row(f"{UP}.sign", dtype="F64"), "does not fill its bytes"),
    "shape of other size": (set_row(f"{UP}.sign", shape=[1, 1]), "does not fill its bytes"),
    "negative shape": (set_row(f"{UP}.sign", shape=[-96, -2]), "lists of sizes"),
    "huge shape": (set_row(f"{UP}.sign", shape=[1 << 60]), "lists of sizes"),
    "overflowing shape": (set_row(f"{UP}.sign", shape=[1 << 47] * 8), "does not fill its bytes"),
    "shape of floats": (set_row(f"{UP}.sign", shape=[96.0, 2.0]), "lists of sizes"),
    "shape of bools": (set_row(f"{UP}.sign", shape=[True]), "lists of sizes"),
    "shape a text": (set_row(f"{UP}.sign", shape="96"), "lists of sizes"),
    "nine dimensions": (set_row(f"{UP}.sign", shape=[1] * 9), "lists of sizes"),
    "swapped offsets": (swap_offsets, "does not fill its bytes"),
    "overlap": (overlap, "overlaps the one before it"),
    "backward offsets": (set_row(f"{UP}.sign", data_offsets=[800, 32]), "does not fill its bytes"),
    "offsets past the end": (set_row(f"{UP}.sign", data_offsets=[1 << 40, (1 << 40) + 96 * 8]), "gap before it"),
    "three offsets": (set_row(f"{UP}.sign", data_offsets=[0, 1, 2]), "lists of sizes"),
    "one offset": (set_row(f"{UP}.sign", data_offsets=[0]), "does not fill its bytes"),
    "no offsets": (lambda r, m, i, b: r[f"{UP}.sign"].pop("data_offsets"), "exactly dtype, shape and data_offsets"),
    "more fields": (set_row(f"{UP}.sign", stride=[1]), "exactly dtype, shape and data_offsets"),
    "row a list": (lambda r, m, i, b: r.update({"x": []}), "tensor x: its table row"),
    "name with a space": (lambda r, m, i, b: r.update({"a b": r.pop("model.norm.weight")}), "'a b' is not allowed"),
    "empty name": (lambda r, m, i, b: r.update({"": r.pop("model.norm.weight")}), "'' is not allowed"),
    "missing tensor": (lambda r, m, i, b: r.pop(f"{UP}.sign"), "leaves a gap before it"),
    "data of a tensor removed": (lambda r, m, i, b: b.__delitem__(slice(0, 64)), "cut short"),
    "checksum missing": (lambda r, m, i, b: i["checksums"].pop(f"{UP}.sign"), "one checksum per tensor"),
    "checksums a list": (set_inner(checksums=[]), "one checksum per tensor"),
    "field missing": (lambda r, m, i, b: i.pop("ties"), "exactly"),
    "field too many": (set_inner(more=1), "exactly"),
    "config a list": (set_inner(config=[]), "config must be a JSON dict"),
    "layouts null": (set_inner(layouts=None), "layouts must be a JSON dict"),
    "ties a list": (set_inner(ties=[]), "ties must be a JSON dict"),
    "ties of numbers": (set_inner(ties={"a": 1}), "must hold names"),
    "tie to nothing": (set_inner(ties={"lm_head.weight": "nothing"}), "names tensor 'nothing'"),
    "tie from a strange name": (set_inner(ties={"a b": "model.norm.weight"}), "'a b' is not a name"),
    "embeddings of nothing": (set_inner(embeddings=["nothing"]), "names tensor 'nothing'"),
    "embeddings of lists": (set_inner(embeddings=[[]]), "must hold names"),
    "generation config a list": (set_inner(generation_config=[]), "must be a JSON object or null"),
    "quant config unknown field": (set_inner(quant_config={"colour": 2}), "quant_config: unknown QuantConfig fields"),
    "quant config out of range": (set_inner(quant_config={"groups": 3}), "quant_config: QuantConfig.groups"),
    "quant config of wrong type": (set_inner(quant_config={"damp": "x"}), "quant_config: "),
    "layout missing a field": (set_inner(layouts={UP: {}}), "exactly the fields"),
    "layout a number": (set_inner(layouts={UP: 3}), "exactly the fields"),
    "layout of a strange name": (set_inner(layouts={"\n": {}}), "is not a name"),
    "layout huge": (set_layout(rows=1 << 40), r"layout\.rows = "),
    "layout negative": (set_layout(cols=-64), r"layout\.cols = "),
    "layout of five groups": (set_layout(groups=5), r"layout\.groups = "),
    "layout of no block": (set_layout(block_size=0), r"layout\.block_size = "),
    "layout of huge exponent": (set_layout(exponent=4000), r"layout\.exponent = "),
    "deep config": (set_inner(config=nest(40)), "at most 32 deep"),
}


@pytest.mark.parametrize("case", AT_OPEN)
def test_forged_headers_are_refused_at_open(sound, tmp_path, case):
    change, message = AT_OPEN[case]
    refused(tmp_path / "m.arb", forge(sound, change), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"use_cache\\":true', b'"use_cache\\":NaN', "NaN is not a JSON number"),
        (b'"rms_norm_eps\\":1e-06', b'"rms_norm_eps\\":-Infinity', "-Infinity is not a JSON number"),
        (b'"rms_norm_eps\\":1e-06', b'"rms_norm_eps\\":1e9999', "1e9999 is not a JSON number"),
        (b'"use_cache\\":true', b'"vocab_size\\":1', "a key appears twice"),
        (b'"format":"arb"', b'"format":"arb","format":"arb"', "a key appears twice"),
    ],
)
def test_bad_json_text_under_right_checksums(sound, tmp_path, old, new, message):
    end = header_end(sound)
    text = sound[8:end].rstrip(b" ")
    assert old in text
    changed = text.replace(old, new, 1)
    rows = json.loads(changed)
    metadata = rows.pop("__metadata__")
    digest = hashlib.sha256(f"{metadata['arb']}\n{canonical(rows)}".encode()).hexdigest()
    changed = changed.replace(metadata["sha256"].encode(), digest.encode())
    refused(tmp_path / "m.arb", with_header(changed, sound[end:]), message)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b/c", ".hidden", "a\\b", "x/", "", "additional_chat_templates/../x", "c:x"]
)
def test_tokenizer_files_cannot_leave_their_folder(sound_with_tokenizer, tmp_path, name):
    def change(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        for table in (rows, inner["checksums"]):
            table[f"tokenizer/{name}"] = table.pop("tokenizer/tokenizer.json")

    refused(tmp_path / "m.arb", forge(sound_with_tokenizer, change), "is not allowed")


# Forged content of sound form: refused when the model is built


IN_LOAD = {
    "unknown model": (set_config(model_type="nope"), "model type `nope`"),
    "model type a list": (set_config(model_type=["llama"]), "not usable"),
    "no model type": (lambda r, m, i, b: i["config"].pop("model_type"), "not usable"),
    "no causal model": (set_config(model_type="t5"), "no model can be built|not usable"),
    "absurd hidden size": (set_config(hidden_size=1 << 50), "no model can be built|packed weight|needs"),
    "overflowing hidden size": (set_config(hidden_size=10**30), "not usable|no model can be built"),
    "negative hidden size": (set_config(hidden_size=-64), "not usable|no model can be built"),
    "absurd vocabulary": (set_config(vocab_size=10**12), "the model needs"),
    "absurd feed-forward": (
        set_config(intermediate_size=10**12),
        r"packed weight \S+ is \d+ x \d+, the model has \[.*1000000000000",
    ),
    "endless layers": (set_config(num_hidden_layers=10**12), "more than the file's .* tensors could fill"),
    "too many layers": (set_config(num_hidden_layers=1000), "larger than the file could fill"),
    "endless labels": (set_config(num_labels=10**12), "more than the file's"),
    "no heads": (set_config(num_attention_heads=0), "not usable|no model can be built"),
    "absurd heads": (set_config(head_dim=1 << 40), "no model can be built|packed weight|buffers"),
    "unknown activation": (set_config(hidden_act="foo"), "no model can be built|not usable"),
    "odd rope": (set_config(rope_parameters=3), "not usable|no model can be built"),
    "code from elsewhere": (set_config(auto_map={"AutoModelForCausalLM": "x/y--z.W"}), "trust_remote_code"),
    "a kernel from elsewhere": (set_config(attn_implementation="x/y"), "trust_remote_code"),
    "a hidden kernel": (set_config(_attn_implementation="x/y"), "leading underscore"),
    "a nested kernel": (set_config(text_config={"attn_implementation": "x/y"}), "trust_remote_code"),
    "one layer more": (set_config(num_hidden_layers=3), r"tensor model\.layers\.2\.\S+ is missing"),
    "one layer less": (set_config(num_hidden_layers=1), r"packed weight model\.layers\.1"),
    "bias missing": (set_config(mlp_bias=True), r"tensor \S*mlp\.\w+_proj\.bias is missing"),
    "bias not wanted": (set_config(attention_bias=False), r"proj\.bias, bytes .*: the model has no place for it"),
    "untied": (lambda r, m, i, b: (i["config"].update(tie_word_embeddings=False), i.update(ties={})), "is missing"),
    "layout of nothing": (lambda r, m, i, b: i["layouts"].update({"x": i["layouts"].pop(UP)}), "packed weight x is"),
    "layout of a norm": (
        lambda r, m, i, b: i["layouts"].update({"model.norm": i["layouts"].pop(UP)}),
        r"packed weight model\.norm is",
    ),
    "layout dropped": (lambda r, m, i, b: i["layouts"].pop(UP), r"up_proj\.weight is missing"),
    "layout of other rows": (set_layout(rows=95), "packed weight .* is 95 x 64"),
    "layout of other blocks": (set_layout(block_size=16), r"up_proj\.row_scale: .* must be"),
    "layout of other groups": (set_layout(groups=4, salient_groups=4), r"up_proj\.group: .* must be"),
    "layout of order 1": (set_layout(salient_order=1), r"up_proj\.\w+: .* must be"),
    "tie without place": (set_inner(ties={"x": "model.norm.weight"}), "tensor x, shared with"),
    "tie of other shape": (set_inner(ties={"lm_head.weight": "model.norm.weight"}), "the model needs"),
    "planes as floats": (set_row(f"{UP}.sign", dtype="F32"), r"up_proj\.sign: torch\.float32"),
    "scales as bfloat": (set_row(f"{UP}.row_scale", dtype="BF16"), r"up_proj\.row_scale: dtype torch\.bfloat16"),
    "norm as integers": (set_row("model.norm.weight", dtype="I32"), "the model needs torch.float32"),
    "transposed norm": (set_row("model.norm.weight", shape=[1, 64]), r"the model needs torch\.float32 \[64\]"),
    "generation config": (set_inner(generation_config={"watermarking_config": 3}), "generation config is not usable"),
}


@pytest.mark.parametrize("case", IN_LOAD)
def test_forged_content_is_refused_by_load(sound, tmp_path, case):
    change, message = IN_LOAD[case]
    path = tmp_path / "m.arb"
    path.write_bytes(forge(sound, change))
    with pytest.raises(FormatError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("part", ["sign", "group", "second", "salient", "row_scale"])
def test_a_missing_part_is_named(sound, tmp_path, part):
    def rename(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        for table in (rows, inner["checksums"]):
            table["elsewhere"] = table.pop(f"{UP}.{part}")

    path = tmp_path / "m.arb"
    path.write_bytes(forge(sound, rename))
    for door in (load, verify):
        with pytest.raises(FormatError, match=r"elsewhere|is missing"):
            door(path)


@pytest.mark.parametrize("part", ["col_scale", "col_scale2"])
def test_column_scales_that_do_not_come_together(sound, tmp_path, part):
    def rename(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        for table in (rows, inner["checksums"]):
            table[f"{UP}.mean"] = table.pop(f"{UP}.{part}")

    path = tmp_path / "m.arb"
    path.write_bytes(forge(sound, rename))
    for door in (load, verify):
        with pytest.raises(FormatError, match=r"up_proj\.(mean|col_scale2): "):
            door(path)


def test_planes_off_their_alignment(sound, tmp_path):
    """A file whose first tensor takes four bytes, as safetensors itself might lay it out."""

    def shift(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        for row in rows.values():
            row["data_offsets"] = [x + 4 for x in row["data_offsets"]]
        rows["first"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        inner["checksums"]["first"] = ""
        body[:0] = bytes(4)

    refused(tmp_path / "m.arb", forge(sound, shift), "not a multiple of 8")


def patch(name: str, offset: int, value: bytes) -> Callable:
    def change(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        start = rows[name]["data_offsets"][0] + offset
        body[start : start + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("name", "offset", "value", "message"),
    [
        ("model.norm.weight", 4, struct.pack("<f", float("nan")), "holds NaN or Inf"),
        ("model.embed_tokens.weight", 0, struct.pack("<f", float("inf")), "holds NaN or Inf"),
        (f"{UP}.row_scale", 0, b"\x00\x7e", "holds NaN or Inf"),
        (f"{UP}.col_scale", 2, b"\x00\xfc", "holds NaN or Inf"),
        ("model.layers.0.mlp.down_proj.sign", 15, b"\x80", "padding bits after column 96"),
        ("model.layers.0.mlp.down_proj.group", 15, b"\x80", "padding bits after column 96"),
    ],
)
def test_bad_content_under_right_checksums_is_detected_by_verify(sound, tmp_path, name, offset, value, message):
    path = tmp_path / "m.arb"
    path.write_bytes(forge(sound, patch(name, offset, value)))
    begin = archive.read(path).table[name].begin
    with pytest.raises(FormatError, match=rf"{name}.*{message}|{message}.*{name}") as caught:
        verify(path)
    assert f"bytes {begin}.." in str(caught.value)
    assert outcome(path, path.read_bytes()) == "detected"


def test_random_planes_and_scales_run_without_a_crash(sound, tmp_path):
    """Whatever bits the planes and scales hold: load only looks at the column bitmap, and the kernels survive it."""
    rng = random.Random(3)

    def scramble(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        for name, row in rows.items():
            begin, end = row["data_offsets"]
            if name.rpartition(".")[0] in inner["layouts"] and not name.endswith((".salient", ".bias")):
                body[begin:end] = rng.randbytes(end - begin)

    assert {outcome(tmp_path / "m.arb", forge(sound, scramble)) for _ in range(10)} == {"detected"}


def test_random_column_bitmaps_are_refused_or_run(sound, tmp_path):
    rng = random.Random(4)

    def shuffle(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        """Other columns, but as many: every shape still fits."""
        for name, row in rows.items():
            if name.endswith(".salient"):
                begin = row["data_offsets"][0]
                cols = inner["layouts"][name[: -len(".salient")]]["cols"]
                bits = [body[begin + j // 8] >> j % 8 & 1 for j in range(cols)]
                rng.shuffle(bits)
                for j, bit in enumerate(bits):
                    body[begin + j // 8] = body[begin + j // 8] & ~(1 << j % 8) | bit << j % 8

    assert {outcome(tmp_path / "m.arb", forge(sound, shuffle)) for _ in range(5)} == {"accepted"}
    everything = patch(f"{UP}.salient", 0, b"\xff" * 8)
    assert outcome(tmp_path / "m.arb", forge(sound, everything)) == "refused"
    assert outcome(tmp_path / "m.arb", forge(sound, patch(f"{UP}.salient", 0, b"\0" * 8))) == "refused"


@pytest.mark.parametrize("seed", range(12))
def test_broken_tokenizers_are_refused(sound_with_tokenizer, tmp_path, seed):
    rng = random.Random(seed)
    name = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")[seed % 2]

    def damage(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
        begin, end = rows[name]["data_offsets"]
        body[rng.randrange(begin, end)] = 0xFF

    path = tmp_path / "m.arb"
    path.write_bytes(forge(sound_with_tokenizer, damage))
    with pytest.raises(FormatError, match="its tokenizer is not usable"):
        load(path)


JUNK = (None, True, -1, 0, 7, 1 << 62, 10**30, 0.5, -1e300, "", "x" * 3000, "../..", [], [1], {}, {"a": 1}, "\u0000")


@pytest.mark.parametrize("seed", range(10))
def test_junk_in_any_field_is_refused_or_harmless(sound, tmp_path, seed):
    """Every checksum is right and one value of the metadata is junk; nothing but a FormatError may come out."""
    rng = random.Random(seed)
    results = []
    for _ in range(10):

        def junk(rows: dict, metadata: dict, inner: dict, body: bytearray) -> None:
            inner["layouts"] = dict(rng.sample(sorted(inner["layouts"].items()), len(inner["layouts"])))
            where: Any = inner[rng.choice(["config", "config", "layouts", "generation_config", "ties"])]
            while True:
                key = rng.choice(list(where))
                if not isinstance(where[key], dict) or not where[key]:
                    break
                where = where[key]
            where[key] = copy.deepcopy(rng.choice(JUNK))

        path = tmp_path / "m.arb"
        path.write_bytes(forge(sound, junk))
        try:
            load(path)
            results.append("accepted")
        except FormatError as error:
            assert str(error).startswith(f"{path}: ")
            results.append("refused")
    assert "refused" in results
