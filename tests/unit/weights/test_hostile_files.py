"""Weight files that lie: every one opens or is refused by name, before anything large is allocated."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from safetensors.torch import save_file

from daifuku.errors import CheckpointError, DaifukuError, ModelNotFound
from daifuku.weights import files, gguf_file
from daifuku.weights.place import ITEM_BYTES, MAX_HEADER_BYTES

NUM_MUTANTS = 2000
MAX_ALLOCATED_BYTES = 300 * 10**6
EXTREMES = (0, 1, 2**7, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def safetensors_file(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    content = {f"blocks.{i}.weight": torch.randn(4, 6, generator=generator) for i in range(4)}
    content |= {"half": torch.ones(3, 2).bfloat16(), "scalar": torch.tensor(1.0), "none": torch.zeros(0, 3)}
    save_file(content, folder / "a.safetensors", metadata={"format": "pt", "title": "a red ball"})
    return folder / "a.safetensors"


def gguf_example(folder: Path, alignment: int = 32) -> Path:
    """Written by the gguf package: every kind of value, plain and quantised tensors."""
    numbers = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    writer = GGUFWriter(folder / "a.gguf", "mochi")
    writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "a red ball")
    writer.add_array("general.tags", ["small", "red"])
    writer.add_array("mochi.counts", [1, 2, 3])
    writer.add_bool("mochi.bool", True)
    writer.add_float32("mochi.float", 0.5)
    writer.add_array("comfy.gguf.orig_shape.other", [3, 2, 32])
    for name in ("plain", "other"):
        writer.add_tensor(name, numbers)
    writer.add_tensor("half", numbers.astype(np.float16))
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        writer.add_tensor(kind.name, quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"


def header(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutants(path: Path, header_bytes: int, seed: int, count: int) -> Iterator[bytes]:
    """Copies of a file that are each wrong in another way, most of them in the header."""
    dice, sound = random.Random(seed), path.read_bytes()
    for i in range(count):
        data = bytearray(sound)
        position = dice.randrange(header_bytes)
        match i % 6:
            case 0:
                for _ in range(dice.randint(1, 8)):
                    data[dice.randrange(header_bytes)] ^= 1 << dice.randrange(8)
            case 1:
                del data[dice.randrange(len(data)) :]
            case 2:
                data[position : position + 8] = struct.pack("<Q", dice.choice(EXTREMES))
            case 3:
                data[position : position + 4] = struct.pack("<I", dice.choice(EXTREMES) % 2**32)
            case 4:
                start = dice.randrange(header_bytes)
                data[position:position] = data[start : start + dice.randint(1, 64)]
            case _:
                # A number of the text becomes another one; elsewhere some bytes are lost.
                digits = [j for j in range(8, header_bytes) if chr(data[j]).isdigit()]
                at = dice.choice(digits)
                data[at : at + dice.randint(1, 3)] = str(dice.choice((-1, *EXTREMES, "1e9", "[" * 5000))).encode()
        yield bytes(data)


def open_all(folder: Path, seed: int) -> None:
    """Opens mutants of both formats. Fails where one neither opens nor is refused by name."""
    safetensors, gguf = safetensors_file(folder), gguf_example(folder)
    headers = {safetensors: 8 + int.from_bytes(safetensors.read_bytes()[:8], "little"), gguf: 700}
    outcomes = {path: set() for path in headers}
    for path, header_bytes in headers.items():
        mutant = path.with_stem("mutant")
        for data in mutants(path, header_bytes, seed, NUM_MUTANTS // 2):
            mutant.write_bytes(data)
            for look in (files.places, files.metadata):
                try:
                    look(mutant)
                    outcomes[path].add("opened")
                except DaifukuError as error:
                    assert str(mutant) in str(error), error
                    assert len(str(error)) < 1000, error
                    outcomes[path].add("refused")
    assert all(found == {"opened", "refused"} for found in outcomes.values()), outcomes


LARGE = MAX_HEADER_BYTES // 4

LARGE_JSON = [
    b'{"a":' + b"[" * LARGE,
    b'{"a":' + b'{"a":' * LARGE,
    b'{"a":[' + b"0," * LARGE + b"0]}",
    b'{"a":[' + b"[]," * LARGE + b"0]}",
    b'{"a":[' + b"{}," * LARGE + b"0]}",
    b'{"a":[' + b"1e1," * 499_990 + b"0]}",
    b'{"a":[' + b"{}," * 249_990 + b"0]}",
    b"{" + b",".join(b'"%x":{}' % i for i in range(249_000)) + b"}",
    b'{"__metadata__":{"a":"' + b"x" * (MAX_HEADER_BYTES - 40) + '😀"}}'.encode(),
    b'{"__metadata__":{"a":"' + rb"\ud83d\ude00" * (MAX_HEADER_BYTES // 12 - 9) + b'"}}',
    b'{"a":' + b"9" * LARGE + b"}",
    b" " * (MAX_HEADER_BYTES - 9) + b"{}",
    b"{" + b" " * MAX_HEADER_BYTES + b"}",
]


def gguf_bytes(*parts: tuple[str, int | bytes], num_tensors: int = 0, num_values: int = 0, version: int = 3) -> bytes:
    packed = b"".join(
        struct.pack("<Q", len(value)) + value if isinstance(value, bytes) else struct.pack(f"<{kind}", value)
        for kind, value in parts
    )
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_values) + packed


LARGE_GGUF = [
    gguf_bytes(("s", b"a" * 65536), ("I", 8), ("s", b"x" * (MAX_HEADER_BYTES - 70000)), num_values=1),
    gguf_bytes(("s", b"a"), ("I", 9), ("I", 8), ("Q", 2**21 - 9), num_values=1) + bytes(MAX_HEADER_BYTES),
    gguf_bytes(("s", b"a"), ("I", 9), ("I", 0), ("Q", MAX_HEADER_BYTES - 99), num_values=1) + bytes(MAX_HEADER_BYTES),
    gguf_bytes(("s", b"a"), ("I", 9), ("I", 9), ("Q", 10**5), num_values=1) + bytes(MAX_HEADER_BYTES),
    gguf_bytes(num_values=10**6) + bytes(MAX_HEADER_BYTES),
    gguf_bytes(num_tensors=50_000) + bytes(MAX_HEADER_BYTES),
]


def open_large(folder: Path) -> None:
    for suffix, contents in ((".safetensors", map(header, LARGE_JSON)), (".gguf", LARGE_GGUF)):
        path = (folder / "large").with_suffix(suffix)
        for data in contents:
            path.write_bytes(data)
            for look in (files.places, files.metadata):
                try:
                    look(path)
                except CheckpointError as error:
                    assert str(path) in str(error) and len(str(error)) < 1000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs to know the memory of the process")
@pytest.mark.parametrize("check", ["open_all(folder, seed=0)", "open_large(folder)"])
def test_hostile_files_open_or_are_refused_by_name_and_allocate_little(tmp_path: Path, check: str):
    # In a process that gets no more memory than it has at the start and the limit, so nothing is overlooked.
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_hostile_files import open_all, open_large\n"
        "taken = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (taken + {MAX_ALLOCATED_BYTES},) * 2)\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"{check}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("write", [safetensors_file, gguf_example])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, write: Callable[[Path], Path]):
    path = write(tmp_path)
    whole = path.read_bytes()
    assert files.places(path)
    for size in range(0, len(whole) - 32, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            files.places(path)


def test_a_file_of_the_gguf_package_opens_with_its_tensors_where_the_package_sees_them(tmp_path: Path):
    for alignment in (32, 8, 256):
        path = gguf_example(tmp_path, alignment)
        found = files.places(path)
        seen = {tensor.name: (int(tensor.data_offset), int(tensor.n_bytes)) for tensor in GGUFReader(path).tensors}
        assert {name: (place.start, place.num_bytes) for name, place in found.items()} == seen
    assert {name: place.dtype for name, place in found.items()} == {
        "plain": "F32", "other": "F32", "half": "F16", "Q8_0": "GGUF_Q8_0", "Q4_0": "GGUF_Q4_0",
    }  # fmt: skip
    assert found["Q4_0"].shape == (3, 64) and found["other"].shape == (3, 2, 32)


def test_metadata_is_told_as_text(tmp_path: Path):
    assert files.metadata(safetensors_file(tmp_path)) == {"format": "pt", "title": "a red ball"}
    assert files.metadata(gguf_example(tmp_path)) == {
        "general.architecture": "mochi",
        "general.alignment": "32",
        "general.name": "a red ball",
        "general.tags": "2 texts",
        "mochi.counts": "3 numbers",
        "mochi.bool": "true",
        "mochi.float": "0.5",
        "comfy.gguf.orig_shape.other": "[3, 2, 32]",
    }


def test_the_tables_of_gguf_types_are_those_of_the_package():
    for kind, sizes in GGML_QUANT_SIZES.items():
        if kind.value in gguf_file.PLAIN_TYPES:
            assert sizes == (1, ITEM_BYTES[kind.name]) and gguf_file.PLAIN_TYPES[kind.value] == kind.name
        else:
            assert gguf_file.BLOCK_TYPES[kind.value] == (kind.name, *sizes)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_type_of_safetensors_opens(tmp_path: Path, dtype: str):
    size = 2 * ITEM_BYTES[dtype]
    path = tmp_path / "a.safetensors"
    path.write_bytes(header({"x": {"dtype": dtype, "shape": [1, 2], "data_offsets": [0, size]}}, bytes(size)))
    assert files.places(path)["x"].dtype == dtype


def test_a_type_of_the_future_opens_and_keeps_its_name(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x"))
    assert (files.places(path)["x"].dtype, files.places(path)["x"].num_bytes) == ("F4", 1)


X = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "text, problem",
    [
        ({"x": {**X, "shape": [2**64, 2**64, 0]}}, "is no shape"),
        ({"x": {**X, "shape": [1] * 33}}, "33 dimensions, more than 32"),
        ({"x": {**X, "shape": [True]}}, "lists of whole numbers"),
        ({"x": {**X, "shape": [1.0]}}, "lists of whole numbers"),
        ({"x": {**X, "data_offsets": [4, 0]}}, "data_offsets are 4 and 0"),
        ({"x": {**X, "data_offsets": [2**64 - 4, 2**64]}}, "data_offsets are"),
        ({"x": {**X, "dtype": 7}}, "dtype is no text"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "'data_offsets' is missing"),
        ({"x": X, "y": X}, "'y' should start at byte"),
        ({"x": {**X, "data_offsets": [4, 8]}}, "'x' should start at byte"),
        ({"x": X, "__metadata__": {"a": 1}}, "not made of texts"),
        (b'{"x": {}, "x": {}}', "'x' twice"),
        (b'{"x": }', "at byte 14"),
        (b'{"\xff": 1}', "at byte 10: its header is no UTF-8"),
        ({"x" * 5000: {}}, r"'x{80}\.\.\.'"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused_with_the_reason(tmp_path: Path, text: object, problem: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(text, bytes(4)))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is damaged or cut short \(.*{problem}"):
        files.places(path)


@pytest.mark.parametrize(
    "start, filling, times, problem",
    [
        (b'{"x":', b"[", 100_000, "its header is nested too deep"),
        (b"{", b" ", MAX_HEADER_BYTES, "a header of 16777217 bytes, more than 16777216"),
        (b'{"x":[', b"0,", 250_001 * 2, "a header of more than 500000 values"),
    ],
)
def test_a_safetensors_header_beyond_every_limit_is_refused(
    tmp_path: Path, start: bytes, filling: bytes, times: int, problem: str
):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(start + filling * times))
    with pytest.raises(CheckpointError, match=problem):
        files.places(path)


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> list[tuple[str, int | bytes]]:
    return [("s", name), ("I", len(shape)), *(("Q", size) for size in shape), ("I", kind), ("Q", offset)]


@pytest.mark.parametrize(
    "data, problem",
    [
        (gguf_bytes(version=1), "of version 1, and those of version 2 and 3 are read"),
        (gguf_bytes(version=3 << 24), "a big-endian GGUF file"),
        (gguf_bytes(num_tensors=2**63), "tensors, more than"),
        (gguf_bytes(num_values=2**63), "at byte 24: .* bytes should follow"),
        (gguf_bytes(("s", b"a"), ("I", 99), num_values=1), "the unknown type 99"),
        (gguf_bytes(*[("s", b"a"), ("I", 7), ("B", 1)] * 2, num_values=2), "'a' a second time"),
        (gguf_bytes(("s", b"general.alignment"), ("I", 4), ("I", 24), num_values=1), "24', which is no power of two"),
        (gguf_bytes(("s", b"general.alignment"), ("I", 10), ("Q", 32), num_values=1), "32', which is no power of two"),
        (gguf_bytes(("s", b"a"), *[("I", 9)] * 2, *[("Q", 1), ("I", 9)] * 9, num_values=1), "arrays more than 4 deep"),
        (gguf_bytes(*tensor(b"t", (4,), 5, 0), num_tensors=1), "'t' has the unknown type 5"),
        (gguf_bytes(*tensor(b"t", (4,) * 5, 0, 0), num_tensors=1), "5 dimensions, more than 4"),
        (gguf_bytes(*tensor(b"t", (48,), 8, 0), num_tensors=1), "no multiple of GGUF_Q8_0's 32"),
        (gguf_bytes(*tensor(b"t", (2**40, 2**40), 0, 0), num_tensors=1), "is no shape"),
        (gguf_bytes(*tensor(b"t", (4,), 0, 4), num_tensors=1), "lies at 4, no multiple of 32"),
        (gguf_bytes(*tensor(b"t", (4,), 0, 64), num_tensors=1), "'t' should start at byte"),
        (gguf_bytes(*tensor(b"t", (99,), 0, 0), num_tensors=1), "'t' ends at"),
        (gguf_bytes(*tensor(b"t", (4,), 0, 0) * 2, num_tensors=2), "'t' a second time"),
        (
            gguf_bytes(*tensor(b"t", (4,), 0, 0), *tensor(b"u", (4,), 0, 0), num_tensors=2),
            "'u' should start at byte",
        ),
    ],
)
def test_a_gguf_header_that_lies_is_refused_with_the_reason(tmp_path: Path, data: bytes, problem: str):
    path = tmp_path / "a.gguf"
    path.write_bytes(data + bytes(128))
    with pytest.raises(CheckpointError, match=rf"a\.gguf is .*{problem}"):
        files.places(path)


def test_gguf_version_2_opens(tmp_path: Path):
    path = gguf_example(tmp_path)
    found = files.places(path)
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    assert files.places(path) == found


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_is_refused_whatever_its_name_and_never_loaded(tmp_path: Path, name: str, new_format: bool):
    torch.save({"x": torch.zeros(3)}, tmp_path / name, _use_new_zipfile_serialization=new_format)
    for refuse in (files.places, files.metadata, files.refuse_pickle):
        with pytest.raises(CheckpointError, match=r"is a pickle, .* save its tensors with safetensors"):
            refuse(tmp_path / name)


def test_weights_open_whatever_their_name(tmp_path: Path):
    path = gguf_example(tmp_path)
    assert files.places(path.rename(tmp_path / "a.bin"))
    path = safetensors_file(tmp_path)
    assert files.places(path.rename(tmp_path / "b.ckpt"))


@pytest.mark.parametrize("num_bytes", [0x280, 0x380, 0x480])
def test_a_header_as_long_as_a_pickle_starts_is_no_pickle(tmp_path: Path, num_bytes: int):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(json.dumps({"x": X}).encode().ljust(num_bytes), bytes(4)))
    assert path.read_bytes().startswith(bytes([0x80, num_bytes >> 8])) and files.places(path)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="there is no file"):
        files.places(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "b/a.safetensors", "..", "", 7, ["a"]])
def test_a_shard_index_that_names_another_folder_is_refused(tmp_path: Path, name: object):
    with pytest.raises(CheckpointError, match="lists a file outside its folder"):
        files.check_shards(tmp_path / "a.index.json", ["a.safetensors", name])


def test_a_shard_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path):
    folder, other = tmp_path / "model", tmp_path / "model-secret"
    folder.mkdir()
    other.mkdir()
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (tmp_path / "linked").symlink_to(folder)
    files.check_shards(tmp_path / "linked" / "a.index.json", ["a.safetensors", "missing.safetensors"])
    for target in (other / "c", Path("../model-secret/c"), Path("d/../../model-secret/c"), tmp_path / "blobs" / "c"):
        (folder / "c.safetensors").unlink(missing_ok=True)
        (folder / "c.safetensors").symlink_to(target)
        with pytest.raises(CheckpointError, match=r"'c\.safetensors', a link that leads out of its folder"):
            files.check_shards(folder / "a.index.json", ["c.safetensors"])


def test_links_of_the_hub_cache_lead_to_blobs_of_the_same_repository(tmp_path: Path):
    folder = tmp_path / "models--a--b" / "snapshots" / "c0ffee" / "transformer"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").symlink_to("../../../blobs/0123")
    files.check_shards(folder / "a.index.json", ["a.safetensors"])
    (folder / "b.safetensors").symlink_to("../../../../models--other--b/blobs/0123")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        files.check_shards(folder / "a.index.json", ["b.safetensors"])
