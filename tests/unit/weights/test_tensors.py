"""Reading tensors: views of files and copies made by threads, whatever the precision and the arrangement."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from daifuku.errors import CheckpointError
from daifuku.weights import tensors
from daifuku.weights.files import DTYPE_NAMES
from daifuku.weights.names import Stored
from daifuku.weights.tensors import TensorFiles, Wanted

CPU = torch.device("cpu")
CONTENT = {
    "first": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),
    "second": torch.randn(6, 5, generator=torch.Generator().manual_seed(1)),
    "half": torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "one": torch.tensor(3.0),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(CONTENT, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def read(path: Path, *names: str, dtype: torch.dtype = torch.float32, swapped: bool = False) -> Tensor:
    wanted = Wanted(stored=Stored(names=names, swapped=swapped), dtype=dtype)
    return TensorFiles([path]).read({"ours": wanted}, CPU)["ours"]


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_tensor_comes_in_any_precision(path: Path, name: str, dtype: torch.dtype):
    found = read(path, name, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found, CONTENT[name].to(dtype))


@pytest.mark.parametrize("piece_bytes", [8, 24, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_stacked_and_their_halves_swapped_piece_by_piece(
    path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, dtype: torch.dtype
):
    monkeypatch.setattr(tensors, "PIECE_BYTES", piece_bytes)
    first, second = CONTENT["first"].to(dtype), CONTENT["second"].to(dtype)
    assert torch.equal(read(path, "second", "first", "second", dtype=dtype), torch.cat([second, first, second]))
    assert torch.equal(read(path, "first", swapped=True, dtype=dtype), torch.cat([first[3:], first[:3]]))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_stored_precision_is_read(tmp_path: Path, dtype: torch.dtype):
    stored = CONTENT["first"].to(dtype)
    save_file({"x": stored}, tmp_path / "x.safetensors")
    assert torch.equal(read(tmp_path / "x.safetensors", "x"), stored.float())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at the maps of the process")
def test_a_tensor_that_the_file_has_just_so_is_a_view_and_its_map_ends_with_it(path: Path):
    copy = read(path, "first", dtype=torch.bfloat16)
    assert maps_of(path) == 0
    view = read(path, "first")
    assert maps_of(path) == 1 and torch.equal(view.bfloat16(), copy)
    del view
    assert maps_of(path) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at the maps of the process")
def test_tensors_far_from_each_other_in_a_file_leave_memory_each_on_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = {
        name: Wanted(stored=Stored(names=(name,)), dtype=CONTENT[name].dtype) for name in ("first", "second", "half")
    }
    together = TensorFiles([path]).read(wanted, CPU)
    assert maps_of(path) == 1
    del together
    monkeypatch.setattr(tensors, "MAP_BYTES", 100)
    apart = TensorFiles([path]).read(wanted, CPU)
    assert maps_of(path) == 3 and all(torch.equal(apart[name], CONTENT[name]) for name in wanted)


def test_views_never_change_the_file(path: Path):
    before = path.read_bytes()
    read(path, "first").zero_()
    assert path.read_bytes() == before and torch.equal(read(path, "first"), CONTENT["first"])


def test_a_tensor_that_does_not_lie_on_its_own_width_is_copied(tmp_path: Path):
    path = tmp_path / "odd.safetensors"
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert len(header) % 4
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert read(path, "x").tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_shrinks_while_it_is_read_is_named(path: Path, dtype: torch.dtype):
    files = TensorFiles([path])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged or cut short"):
        files.read({"ours": Wanted(stored=Stored(names=("second",)), dtype=dtype)}, CPU)


def test_a_tensor_in_two_files_is_refused(path: Path, tmp_path: Path):
    save_file({"second": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="holds the tensor second again"):
        TensorFiles([path, tmp_path / "b.safetensors"])


@pytest.mark.parametrize(
    "header",
    [
        '{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}',
        '{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        '{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "y": {"dtype": "F32", "shape": [2], '
        '"data_offsets": [0, 8]}}',
        '{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "y": {"dtype": "F32", "shape": [1], '
        '"data_offsets": [4, 8]}}',
        '{"x": {"dtype": "F32", "shape": [2]}}',
        '{"x": [1, 2]}',
        "[]",
        "7",
        "{",
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: str):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        TensorFiles([path])
