"""Reading files of weights: every layout gives the same tensors, and nothing in a file is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_files import same_bits, small_clip
from safetensors.torch import save_file
from torch import Tensor, nn

from regionclip_core.models.checkpoint_files import BARE_TENSOR, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is old; so are OpenAI's files


def some_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "half": torch.randn(5).half(),
        "wide": torch.randn(5, 2).double(),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": lambda state, path: save_file(state, str(path)),
    "torch": lambda state, path: torch.save(state, path),
    "torch_legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "official": lambda state, path: torch.save({"model": state, "iteration": 5, "optimizer": {"lr": 0.1}}, path),
    "open_clip": lambda state, path: torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_layout_gives_the_same_tensors(tmp_path: Path, writer: str) -> None:
    state = some_state()
    path = tmp_path / "weights.bin"  # the name says nothing
    WRITERS[writer](state, path)
    found = read_checkpoint(path)
    assert same_bits(found.tensors, state)
    assert found.layout == ("safetensors" if writer == "safetensors" else "torch")
    assert found.others == {}
    assert found.beside == {"official": ("iteration", "optimizer"), "open_clip": ("epoch",)}.get(writer, ())
    assert same_bits(read_checkpoint(str(path)).tensors, state)


def test_views_of_one_storage_and_strides_survive(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"row": whole[1], "column": whole[:, 2], "turned": whole.T}
    torch.save(state, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt").tensors
    assert found["column"].tolist() == [2, 6, 10]
    assert same_bits(found, state)


def test_one_tensor_and_what_is_no_tensor(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2), tmp_path / "embeddings.pth")
    assert read_checkpoint(tmp_path / "embeddings.pth").tensors[BARE_TENSOR].shape == (3, 2)
    torch.save({"weight": torch.ones(2), "steps": 5, "name": "x"}, tmp_path / "mixed.pth")
    mixed = read_checkpoint(tmp_path / "mixed.pth")
    assert (list(mixed.tensors), mixed.others) == (["weight"], {"steps": 5, "name": "x"})
    # A prefix is a wrapper's only if all names have it.
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "names.pth")
    assert set(read_checkpoint(tmp_path / "names.pth").tensors) == {"module.a", "b"}


# ---------------------------------------------------------------- TorchScript


class Scripted(nn.Module):
    """Parts as OpenAI's archive has them: nested modules, numbers, lists of modules, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 64
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2, bias=False)])
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("resolution", torch.tensor(224))
        self.scale = nn.Parameter(torch.ones([]) * 4.6)
        self.again = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) * self.scale * self.size


@pytest.mark.parametrize("half", [False, True])
def test_a_scripted_module_gives_its_state_dict(tmp_path: Path, half: bool) -> None:
    module = torch.jit.script(Scripted().eval())
    module = module.half() if half else module
    module.save(str(tmp_path / "w.pt"))
    found = read_checkpoint(tmp_path / "w.pt")
    assert same_bits(found.tensors, torch.jit.load(str(tmp_path / "w.pt")).state_dict())
    assert found.layout == "torchscript"
    assert found.others["size"] == 64
    assert found.tensors["scale"].dtype == (torch.float16 if half else torch.float32)


@pytest.mark.parametrize("half", [False, True])
def test_a_traced_clip_gives_its_state_dict(tmp_path: Path, half: bool) -> None:
    model = small_clip().model
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), torch.zeros(1, 12, dtype=torch.int64)))
    (traced.half() if half else traced).save(str(tmp_path / "RN50.pt"))
    found = read_checkpoint(tmp_path / "RN50.pt").tensors
    assert found.pop("attn_mask").shape == (12, 12)  # a constant, which an archive stores like a weight
    expected = {k: v.half() if half and v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert same_bits(found, expected)


# ---------------------------------------------------------------- programs


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def rewrite(source: Path, target: Path, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip archive with some of its files changed; names are given without the root folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            short = name.split("/", 1)[1]
            new.writestr(name, changed.get(short, old.read(name)))


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Payload(harm)}, tmp_path / "zip.pth")
    torch.save({"w": Payload(harm)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": Payload(harm)}))
    for name in ("zip.pth", "legacy.pth", "plain.pkl"):
        with pytest.raises(ValueError) as refused:
            read_checkpoint(tmp_path / name)
        assert not harm.exists(), name
        assert str(refused.value).startswith(f"{tmp_path / name} is"), name
        if name != "plain.pkl":
            assert "mkdir: reading it would run code from the file" in str(refused.value)
    with torch.serialization.safe_globals([]):
        torch.load(tmp_path / "zip.pth", weights_only=False)
    assert harm.is_dir()  # the file would have done it


def test_a_torchscript_archive_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.jit.script(Scripted().eval()).save(str(tmp_path / "good.pt"))
    harm = tmp_path / "harm"
    payload = pickle.dumps({"w": Payload(harm)}, protocol=2)
    rewrite(tmp_path / "good.pt", tmp_path / "bad.pt", {"data.pkl": payload})
    with pytest.raises(ValueError, match=r"it names (posix|nt)\.mkdir, which is neither a tensor nor a module"):
        read_checkpoint(tmp_path / "bad.pt")
    assert not harm.exists()
    pickle.loads(payload)
    assert harm.is_dir()


@pytest.mark.parametrize(
    ("program", "match"),
    [
        # the constructor of a dictionary, with a state: an attempt to write to a function
        (b"\x80\x02ccollections\nOrderedDict\nq\x00}X\x01\x00\x00\x00aK\x01sb.", "tries to change a function"),
        # a function taken for a class
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "TorchScript archive"),
        # builtins are as far away as everything else
        (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", "it names builtins.eval"),
        (b"\x80\x02c__main__\nScripted\n)\x81.", "it names __main__.Scripted"),
        # a tensor without bytes behind it
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x02\x85K\x01\x85\x89}tR.", "without a storage"),
        (b"\x80\x02N.", "no module in it"),
    ],
)
def test_what_else_a_torchscript_pickle_may_try(tmp_path: Path, program: bytes, match: str) -> None:
    torch.jit.script(Scripted().eval()).save(str(tmp_path / "good.pt"))
    rewrite(tmp_path / "good.pt", tmp_path / "bad.pt", {"data.pkl": program})
    with pytest.raises(ValueError, match=match):
        read_checkpoint(tmp_path / "bad.pt")


def test_a_torchscript_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Scripted().eval()).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        storages = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist() if "/data/" in n}
    name = max(storages, key=lambda n: len(storages[n]))
    rewrite(tmp_path / "good.pt", tmp_path / "short.pt", {name: storages[name][:-4]})
    with pytest.raises(ValueError, match=r"storage \d+ has \d+ bytes where \d+ are expected"):
        read_checkpoint(tmp_path / "short.pt")
    rewrite(tmp_path / "good.pt", tmp_path / "bomb.pt", {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed, which torch never does"):
        read_checkpoint(tmp_path / "bomb.pt")


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("writer", ["safetensors", "torch", "torch_legacy"])
def test_a_file_that_broke_off_is_refused(tmp_path: Path, writer: str, share: float) -> None:
    state = {f"layer{n}.weight": torch.randn(40, 40) for n in range(6)}
    path = tmp_path / "w"
    WRITERS[writer](state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"(cut short|cut-short|damaged).*again"):
        read_checkpoint(path)


def test_bytes_that_were_changed_are_noticed(tmp_path: Path) -> None:
    torch.jit.script(Scripted().eval()).save(str(tmp_path / "w.pt"))
    content = bytearray((tmp_path / "w.pt").read_bytes())
    place = content.index(b"layers")  # inside of data.pkl
    content[place : place + 6] = b"LAYERS"
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged TorchScript archive"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n  <!DOCTYPE html><html><body>Sign in", "web page.*download it again"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b'{"model": 1}', "JSON"),
        (b"just some text, long enough", "no file of weights: it starts with"),
        (struct.pack("<Q", 1 << 40) + b"{}", "damaged or cut short"),
    ],
)
def test_what_is_no_file_of_weights_is_told(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_checkpoint(tmp_path / "w.pth")


def test_absent_files_folders_and_other_archives(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth is not there"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="is a folder"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("weights.pth", b"123")
    with pytest.raises(ValueError, match=r"zip archive without weights in it.*weights\.pth.*unpack"):
        read_checkpoint(tmp_path / "w.zip")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.zeros(2)], "no state dict .* but a list"),
        ({"a": 1}, "not one tensor"),
        ({"model": {}}, "not one tensor"),
    ],
)
def test_files_without_tensors_by_name_are_refused(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=match):
        read_checkpoint(tmp_path / "w.pth")


def test_reading_from_memory_is_not_tried(tmp_path: Path) -> None:
    """A checkpoint inside of a checkpoint stays bytes: it is never looked into."""
    inner = io.BytesIO()
    torch.save({"w": Payload(tmp_path / "harm")}, inner)
    torch.save({"model": {"w": torch.ones(1)}, "inner": inner.getvalue()}, tmp_path / "w.pth")
    assert set(read_checkpoint(tmp_path / "w.pth").tensors) == {"w"}
    assert not (tmp_path / "harm").exists()


# ---------------------------------------------------------------- files made to do harm, and pickles of other programs


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def archive(path: Path, program: bytes, storage: bytes = b"") -> None:
    """A TorchScript archive around a tree of modules."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + program + b".")
        file.writestr("a/constants.pkl", b"\x80\x02).")
        file.writestr("a/data/0", storage)


MODULE = b"c__torch__\nM\n)\x81}("
LEAF = MODULE + text("w") + b"K\x01ub"


def shared_children(depth: int) -> bytes:
    """A module whose two children are one, and so on, `depth` levels deep: 2 ** depth names."""
    program = LEAF
    for level in range(depth):
        mark = struct.pack("<I", level)
        program = MODULE + text("a") + program + b"r" + mark + text("b") + b"j" + mark + b"ub"
    return program


HOSTILE = "damaged or hostile file.*(download it|get it) again,? from where it was published"


@pytest.mark.parametrize("program", [shared_children(60), (MODULE + text("a")) * 100_000 + LEAF + b"ub" * 100_000])
def test_modules_without_end_are_refused(tmp_path: Path, program: bytes) -> None:
    archive(tmp_path / "w.pt", program)
    with pytest.raises(ValueError, match=f"w.pt is a TorchScript archive.*{HOSTILE}"):
        read_checkpoint(tmp_path / "w.pt")


def test_a_shared_module_has_all_its_names(tmp_path: Path) -> None:
    module = Scripted()
    module.layers.append(module.layers[0])
    torch.jit.script(module.eval()).save(str(tmp_path / "w.pt"))
    expected = torch.jit.load(str(tmp_path / "w.pt")).state_dict()
    assert "layers.2.weight" in expected
    assert same_bits(read_checkpoint(tmp_path / "w.pt").tensors, expected)


def test_tensors_of_absurd_sizes_are_refused(tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(3 * 10**9, 1000)  # 12 TB out of 4 bytes
    torch.save(endless, tmp_path / "bare.pth")
    torch.save({"model": {"visual.conv1.weight": endless}}, tmp_path / "named.pth")
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
    rebuilt += text("cpu") + b"K\x01tQK\x00(\x8a\x06" + (3 * 10**12).to_bytes(6, "little") + b"t(K\x00t\x89}tR"
    archive(tmp_path / "script.pt", MODULE + text("w") + rebuilt + b"ub", bytes(4))
    for name, side in [("wide.safetensors", 2**40), ("widest.safetensors", 2**62)]:
        header = json.dumps({"e": {"dtype": "F32", "shape": [side, 0], "data_offsets": [0, 0]}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    torch.save(torch.zeros(2**22), tmp_path / "zeros.pth")
    rewrite(tmp_path / "zeros.pth", tmp_path / "bomb.pth", {}, zipfile.ZIP_DEFLATED)
    for name in ("bare.pth", "named.pth", "script.pt", "wide.safetensors", "widest.safetensors", "bomb.pth"):
        with pytest.raises(ValueError, match=f"{name} is a {HOSTILE}"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(3).to_sparse(), "sparse_coo"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.ones(3, dtype=torch.complex64), "complex64"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, tensor: Tensor, kind: str) -> None:
    torch.save({"visual.w": tensor}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: 'visual\.w' is no weight that can be read \(.*{kind}"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["n" * 501, "visual.\x1b[31m"])
def test_names_that_no_model_has_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"'(n{60}|visual\.\\x1b\[31m)' is no weight that can be read"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_says_what_it_is_and_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    weights = {"visual.a": np.ones((2, 2), np.float32)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "a"}, protocol))
    with pytest.raises(ValueError, match=r"x\.pkl is a pickle of numpy arrays, such as detectron2's model zoo") as said:
        read_checkpoint(tmp_path / "x.pkl")
    assert "weights_only" not in str(said.value)
    program = str(said.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert torch.equal(read_checkpoint(tmp_path / "x.pth").tensors["visual.a"], torch.ones(2, 2))


def test_other_pickles_get_no_advice_to_run_them(tmp_path: Path) -> None:
    for content, match in [
        ({"model": {"a": torch.ones(2)}}, "a pickle of tensors; expected .safetensors, or torch.save of a state_dict"),
        ({"model": Counter("ab")}, "the pickle in it can't be read as tensors by name"),
        ({"model": {"a": [1.0]}}, "the pickle in it can't be read as tensors by name"),
    ]:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, 4))
        with pytest.raises(ValueError, match=match) as said:
            read_checkpoint(tmp_path / "x.pkl")
        assert "weights_only" not in str(said.value)
