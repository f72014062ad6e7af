"""Read the weights of pickled modules: bitwise what `state_dict` returns, or an error."""

import collections
import functools
import json
import operator
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
from torch import nn

from sid_lsg.checkpoints.inert_pickle import Record
from sid_lsg.checkpoints.module_pickle import StoredTensor, config, read_modules, weights
from tests.helpers.paths import REPOSITORY

PROTOCOLS = [2, 3, 4, 5]


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.pkl"


@pytest.fixture
def unet(tiny_sd: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet", low_cpu_mem_usage=False)


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UnpicklingError) as refused:
        weights(read_modules(path))
    return str(refused.value)


def check(path: Path, network: nn.Module, protocol: int = 4) -> dict[str, StoredTensor]:
    """Compare the weights that were read with the module's own state."""
    path.write_bytes(pickle.dumps(network, protocol))
    found, own = weights(read_modules(path)), network.state_dict()
    assert list(found) == list(own)
    for name, tensor in own.items():
        loaded = found[name].load()
        assert loaded.dtype == found[name].dtype == tensor.dtype
        assert loaded.stride() == tensor.stride()
        assert loaded.shape == tensor.shape
        assert (
            loaded.contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(tensor.contiguous().flatten().view(torch.uint8))
        )
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.slow
def test_a_unet(path: Path, unet: UNet2DConditionModel, protocol: int, dtype: torch.dtype) -> None:
    check(path, unet.eval().requires_grad_(False).to(dtype), protocol)
    recorded, own = config(read_modules(path)), dict(unet.config)
    assert {name: own[name] for name in recorded} == recorded
    assert recorded.keys() > {"block_out_channels", "attention_head_dim", "act_fn"}


def test_a_unet_in_channels_last(path: Path, unet: UNet2DConditionModel) -> None:
    found = check(path, unet.to(memory_format=torch.channels_last))
    assert found["conv_in.weight"].stride[1] == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tied_sliced_unsaved_and_missing_tensors(path: Path, protocol: int) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm2d(2))
    network[1].weight = network[0].weight
    network[1].bias = None
    network.register_module("again", network[2])
    network.register_module("none", None)
    network.register_buffer("view", torch.arange(40).view(5, 8)[1:4, ::3])
    network.register_buffer("transposed", torch.randn(3, 4).T)
    network.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
    network.register_buffer("unsaved", torch.ones(2), persistent=False)
    network.register_parameter("own", nn.Parameter(torch.tensor([float("nan"), -0.0])))
    network.own.remark = "parameters may have attributes"  # type: ignore[attr-defined]
    found = check(path, network, protocol)
    assert "unsaved" not in found
    assert len(found["view"].raw) == 8 * (2 * 8 + 2 * 3 + 1)  # no more than the view shows


def test_a_network_of_an_older_diffusers(path: Path) -> None:
    """With classes that no longer exist, and plain values as attributes of modules."""
    network = nn.Conv2d(1, 1, 1)
    network.options = torch.float16, torch.Size([1, 2]), torch.device("cpu")  # type: ignore[assignment]
    network.act, network.kind = nn.functional.silu, nn.Linear  # type: ignore[assignment]
    path.write_bytes(
        pickle.dumps(network, 2).replace(
            b"torch.nn.modules.conv\nConv2d", b"diffusers.models.lora\nLoRACompatibleConv"
        )
    )
    module = read_modules(path)
    assert module.kind == "diffusers.models.lora.LoRACompatibleConv"
    assert weights(module)["weight"].load().equal(network.weight)


def test_the_weights_are_mapped_from_the_file(path: Path) -> None:
    path.write_bytes(pickle.dumps(nn.Linear(1000, 1000)))
    raw = weights(read_modules(path))["weight"].raw
    assert type(raw.obj).__name__ == "mmap"
    assert raw.readonly


class Typed(Calls):
    """A storage that is pickled as the given bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(torch.storage._load_from_bytes, content)


FLOATS = torch.arange(12.0)


def tensor_of(content: bytes, offset: Any, size: Any, stride: Any, *more: Any) -> bytes:
    hooks: dict = collections.OrderedDict()
    rebuilt = Calls(
        torch._utils._rebuild_tensor_v2, Typed(content), offset, size, stride, False, hooks, *more
    )
    return pickle.dumps(rebuilt)


def old_format(values: torch.Tensor) -> bytes:
    return torch.storage.TypedStorage(  # as tensors pickle their storage
        wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True
    ).__reduce__()[1][0]


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ((0, (13,), (1,)), "does not fit"),
        ((1, (12,), (1,)), "does not fit"),
        ((0, (2, 2), (1, 11)), "does not fit"),
        ((0, (10**9,), (0,)), "does not fit"),  # four bytes would become four gigabytes
        ((0, (10**5, 10**5), (0, 0)), "does not fit"),
        ((0, (4, 4), (2, 1)), "does not fit"),
        ((0, (2**70,), (2**70,)), "does not fit"),
        ((0, (1,), (2**70,)), "does not fit"),
        ((0, (0, 2**70), (1, 1)), "does not fit"),
        ((0, (0,), (1,)), "does not fit"),
        ((-1, (2,), (1,)), "does not fit"),
        ((2**64, (2,), (1,)), "does not fit"),
        ((3, (2,), (-1,)), "does not fit"),
        ((0, (-2, -2), (1, 1)), "does not fit"),
        ((0, (2, 2), (1,)), "unknown layout"),
        ((0, (1,) * 100, (1,) * 100), "unknown layout"),
        ((0, (2,), (1,), {"conj": True}), "unknown layout"),
        ((0, [2], (1,)), "damaged"),
        ((0, (2.0,), (1,)), "damaged"),
        ((0, ("2",), (1,)), "damaged"),
        ((None, (2,), (1,)), "damaged"),
        ((0, (True,), (1,)), "damaged"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_rejected(
    path: Path, layout: Any, reason: str
) -> None:
    assert reason in refusal(path, tensor_of(old_format(FLOATS), *layout))


def test_a_tensor_that_fits_is_read(path: Path) -> None:
    path.write_bytes(tensor_of(old_format(FLOATS), 2, (2, 3), (5, 2)))
    assert read_modules(path).load().tolist() == [[2, 4, 6], [7, 9, 11]]
    path.write_bytes(tensor_of(old_format(FLOATS), 11, (), ()))
    assert read_modules(path).load().item() == 11


WHOLE = old_format(FLOATS)
LENGTH = WHOLE.rindex(struct.pack("<q", 12))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE[:-1], "whose length differs"),
        (WHOLE + b"\0", "whose length differs"),
        (WHOLE[:LENGTH] + struct.pack("<q", 2**62) + WHOLE[LENGTH + 8 :], "whose length differs"),
        (WHOLE[:LENGTH] + struct.pack("<q", -12) + WHOLE[LENGTH + 8 :], "whose length differs"),
        (WHOLE[: LENGTH + 4], "damaged"),
        (WHOLE.replace(b"K\x0cN", b"K\x0bN"), "whose length differs"),
        (WHOLE.replace(b"K\x0cN", b"K\x0cK\x01"), "damaged"),  # a view of another storage
        (WHOLE.replace(b"q\x01a.", b"q\x01aNa."), "whose length differs"),  # a second storage
        (WHOLE.replace(b"FloatStorage", b"DoubleStorage"), "whose length differs"),
        (WHOLE.replace(b"FloatStorage", b"BoolStorage"), "'torch.BoolStorage'"),
        (WHOLE.replace(b"ctorch\nFloatStorage", b"cposix\nsystem"), "'posix.system'"),
        (WHOLE.replace(b"little_endian", b"middle_endian"), "byte order"),
        (WHOLE.replace(b"\xe9\x03", b"\xe8\x03"), "unknown format"),
        (WHOLE[:40], "truncated"),
        (b"", "truncated"),
        (pickle.dumps(1) * 5, "unknown format"),
        (b"N" * 10**6 + b".", "more than 100 instructions"),
        (b"(" * 10**6, "more than 100 instructions"),
        (pickle.dumps(Calls(os.system, "true")), "'posix.system'"),
        (pickle.dumps(Typed(WHOLE)), "'torch.storage._load_from_bytes'"),
        (b"PK\x03\x04", "PERSID"),
        (b"\x1f\x8b" + WHOLE, "damaged"),
    ],
)
def test_malformed_storages_are_rejected(path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(path, tensor_of(content, 0, (2,), (1,)))


EVIL = {
    "posix.system": Calls(os.system, "touch canary"),
    "builtins.eval": Calls(eval, "open('canary', 'w')"),
    "builtins.exec": Calls(exec, "open('canary', 'w')"),
    "builtins.getattr": Calls(getattr, "a", "upper"),
    "subprocess.Popen": Calls(subprocess.Popen, ["touch", "canary"]),
    "shutil.rmtree": Calls(shutil.rmtree, "canary"),
    "torch.serialization.load": Calls(torch.load, "network.pkl"),
    "torch._tensor._rebuild_from_type_v2": Calls(
        torch._tensor._rebuild_from_type_v2, torch.sum, torch.Tensor, (), {}
    ),
    "torch.nn.functional.silu": Calls(nn.functional.silu, 1),
    "diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module": Calls(
        get_class_from_dynamic_module, "folder", "file.py"
    ),
    "functools.partial": functools.partial(os.system, "touch canary"),
    "operator.methodcaller": operator.methodcaller("system", "touch canary"),
    "zlib.decompress": Calls(zlib.decompress, zlib.compress(b"touch canary")),
    "numpy": np.float64(1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", EVIL)
def test_calls_are_rejected_by_name(
    path: Path, name: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    network = nn.Linear(2, 2)
    network.hidden = {"deep": [EVIL[name]]}  # type: ignore[assignment]
    for root in (EVIL[name], {"ema": EVIL[name]}, network):
        # Protocol 2 writes Python 2's names of some modules.
        named = "commands.Popen" if (name, protocol) == ("subprocess.Popen", 2) else name
        assert f"'{named}" in refusal(path, pickle.dumps(root, protocol))
    assert os.listdir() == [path.name]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"cos\nsystem\n(S'touch canary'\ntR.", "'os.system'"),  # protocol 0
        (b"(S'touch canary'\nios\nsystem\n.", "STRING"),
        (b"(cos\nsystem\nX\x0c\0\0\0touch canaryo.", "'os.system'"),
        (
            b"\x80\x02ctorch.nn\nModule\n)\x81}X\x0c\0\0\0__setstate__cos\nsystem\nsb.",
            "'os.system'",
        ),
        (b"\x80\x02ctorch.nn\nModule\n}X\x08\0\0\0__init__ctorch.nn\nModule\nsb.", "damaged"),
        (b"\x80\x04\x8c\x08torch.nn\x8c\x0fModule.__init__\x93.", "'torch.nn.Module.__init__'"),
        (b"\x80\x04\x8c\x08torch.nn\x8c\x14functional.os.system\x93.", "functional.os.system'"),
        (b"\x80\x04\x8c\x08torch.nn\x8c\x08__init__\x93.", "'torch.nn.__init__'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n(K\x01K\x02tR.", "damaged"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (pickle.dumps(set(map(str, range(101))), 2), "a set that is too large"),
        (pickle.dumps({1, 2}, 2), "damaged"),
    ],
)
def test_attacks_are_rejected(path: Path, body: bytes, reason: str) -> None:
    assert reason in refusal(path, body)


def entered(**parts: Any) -> Record:
    """Return a module record with the given parts."""
    empty: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    return Record("torch.nn.Module", empty | {"_non_persistent_buffers_set": set()} | parts)


def test_malformed_modules_are_rejected() -> None:
    inside = entered()
    for _ in range(64):  # 2 ** 64 modules without a limit
        inside = entered(_modules={"a": inside, "b": inside})
    inside_itself = entered()
    inside_itself.state["_modules"] = {"x": inside_itself}
    for module, reason in (
        (inside, "too many"),
        (inside_itself, "nested too deeply"),
        (entered(_parameters={"w": 1}), "'w' is not a tensor"),
        (entered(_modules={"a": {}}), "'a.' is not a module"),
        (entered(_modules={"a" * 101: entered()}), "is not a module"),
        (entered(_buffers={1: None}), "is not a module"),
        (entered(_buffers=[]), "is not a module"),
        (entered(_non_persistent_buffers_set=[]), "is not a module"),
        (Record("torch.nn.Module"), "is not a module"),
        ({}, "is not a module"),
    ):
        with pytest.raises(UnpicklingError, match=reason):
            weights(module)
        assert config(module) == {}


def test_only_plain_config_values_are_read() -> None:
    options = {"a": 1, "b": [1, "x", None], "c": (1.5,), "d": {"e": 1}, "f": [[1]], 5: 1}
    module = entered(_internal_dict=options | {"g": Record("torch.device"), "h": memoryview(b"")})
    assert config(module) == {"a": 1, "b": [1, "x", None], "c": (1.5,)}


def test_repeated_bytes_are_decoded_once(path: Path) -> None:
    """Protocol 2 writes bytes as text; a small file could decode the same text many times."""
    text = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5
    path.write_bytes(
        b"\x80\x02" + text + b"q\0X\6\0\0\0latin1q\1c_codecs\nencode\nq\2]"
        + b"(" + b"h\2h\0h\1\x86R" * 1000 + b"e."
    )  # fmt: skip
    made = read_modules(path)
    assert len({id(value) for value in made}) == 1


@pytest.mark.slow
def test_mutated_files_run_nothing(tmp_path: Path) -> None:
    """A separate process reads the files and reports the interpreter's audit events."""
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "tests/helpers/damaged_pickles.py"),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    outcomes, events, touched, control, touched_by_python = json.loads(done.stdout)
    assert sum(outcomes.values()) == 1000
    assert outcomes.keys() == {"converted", "refused"}
    assert outcomes["refused"] > 500
    assert outcomes["converted"] > 10
    assert events == {"read mutated.pkl": 2000}
    assert not touched
    # The same audit hook sees what Python's own unpickler runs.
    assert {"exec", "pickle.find_class", "open"} <= set(control)
    assert touched_by_python
