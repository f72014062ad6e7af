"""The restricted pickle reader returns plain data and calls nothing."""

import copyreg
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any

import pytest

from sid_lsg.checkpoints.inert_pickle import Name, Record, Vocabulary, read_pickle

PROTOCOLS = [2, 3, 4, 5]
NESTED = 100_000
WORDS = Vocabulary(
    recorded=lambda name: name.startswith("allowed."),
    calls={"allowed.add": lambda *numbers: sum(numbers)},
    persistent=None,
    most_instructions=1_000_000,
)


def read(data: bytes, words: Vocabulary = WORDS) -> Any:
    return read_pickle(memoryview(data), words)[0]


def refusal(data: bytes, words: Vocabulary = WORDS) -> str:
    with pytest.raises(UnpicklingError) as refused:
        read(data, words)
    return str(refused.value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_are_read_as_by_python(protocol: int) -> None:
    shared = ["a", 1]
    data = {
        "numbers": [0, 255, 256, 65536, -1, 2**31, -(2**63), 2**2000, 1.5, float("inf")],
        "constants": (None, True, False),
        "text": ["", "é\ud800", "x" * 300, "y" * 70_000],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {"k": {1: [2]}}],
        "many": list(range(3000)),
        "shared": [shared, shared],
    }
    whole = pickle.dumps(data, protocol)
    found, end = read_pickle(memoryview(b"before" + whole + b"after"), WORDS, len(b"before"))
    assert found == data
    assert end == len(b"before" + whole)
    assert found["shared"][0] is found["shared"][1]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("length", [0, 10, 300, 70_000])
def test_bytes_are_views_of_the_file(protocol: int, length: int) -> None:
    data = [b"b" * length, *([bytearray(b"c" * length)] if protocol == 5 else [])]
    whole = memoryview(pickle.dumps(data, protocol))
    for value in read_pickle(whole, WORDS)[0]:
        assert type(value) is memoryview
        assert value.obj is whole.obj
        assert len(value) == length


def test_sets_and_cycles() -> None:
    cycle: list[Any] = [{"a", "b"}]
    cycle.append(cycle)
    found = read(pickle.dumps(cycle, 4))
    assert found[0] == {"a", "b"}
    assert found[1] is found


def test_objects_become_records_and_only_known_functions_are_called() -> None:
    made = read(b"\x80\x02callowed\nThing\n)\x81}" + text("k") + b"K\x01sb.")
    assert type(made) is Record
    assert (made.kind, made.state) == ("allowed.Thing", {"k": 1})
    assert read(b"\x80\x02callowed\nfunction\n.") == Name("allowed.function")
    assert read(b"\x80\x02callowed\nadd\nK\x01K\x02\x86R.") == 3
    assert "it calls 'allowed.sub'" in refusal(b"\x80\x02callowed\nsub\nK\x01K\x02\x86R.")


# Opcodes of Python's unpickler that no network needs.
FOREIGN = {
    "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER",
    "READONLY_BUFFER", "INT", "LONG", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING", "FLOAT",
    "UNICODE", "LIST", "DICT", "FROZENSET", "POP", "POP_MARK", "DUP", "GET", "PUT",
}  # fmt: skip


@pytest.fixture
def extension() -> Iterator[int]:
    """Register an extension code for a function that must not be called."""
    copyreg.add_extension("os", "system", 7)
    yield 7
    copyreg.remove_extension("os", "system", 7)


@pytest.mark.usefixtures("extension")
def test_other_instructions_are_rejected_by_name() -> None:
    refused = set()
    for each in pickletools.opcodes:
        code = each.code.encode("latin-1")
        try:
            read(b"\x80\x04]" + code + b"\x07\0\0\0\0\0\0\0\nx\n)R.")
        except UnpicklingError as error:
            if f"it uses {each.name}, which" in str(error):
                refused.add(each.name)
    assert refused == FOREIGN


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("allowed", "Thing.__init__"),
        ("allowed.Thing", "a.b"),
        ("allowedos", "system"),
        ("", "allowed.x"),
        ("posix\x1b[31m", "system" * 100),
    ],
)
def test_names_that_are_not_part_of_a_network_are_rejected(module: str, name: str) -> None:
    on_stack = refusal(b"\x80\x04" + text(module) + text(name) + b"\x93.")
    assert "not part of a network" in on_stack
    assert on_stack == refusal(f"\x80\x02c{module}\n{name}\n.".encode("latin-1"))
    assert on_stack.isprintable()
    assert len(on_stack) < 200


@pytest.mark.parametrize(
    "body",
    [
        b"callowed\nThing\n}b",  # sets the state of a name
        b"]}b",  # sets the state of a list
        b"(" + text("os") + text("system") + b"t}b",
        b"]" + text("__setstate__") + b"K\x01s",  # sets an entry of a list
        b"}K\x01a",  # appends to a dictionary
        b"}(K\x01u",  # a key without a value
        b"})K\x01s",  # a tuple as a key
        b"}]K\x01s",
        b"\x8f(]\x90",
        b"callowed\nadd\nK\x01R",  # the arguments are not a tuple
        b"K\x01)R",
        text("allowed.add") + b")R",
        b"K\x01)\x81",
        b"callowed\nThing\nK\x01\x81",
        b"K\x01K\x02\x93",
        b"callowed\nThing",  # no end of line
        b"c" + b"a" * 2000 + b"\nb\n",
        b"X\x01\0\0\0\xff",  # not UTF-8
        b"callowed\nadd\n" + text("x") + b"\x85R",  # the function rejects its arguments
        b"h\x05",
        b"(",
        b"t",
        b"\x86",
        b"\x94",
        b"",
        b"\xff",
    ],
)
def test_malformed_instructions_are_rejected(body: bytes) -> None:
    assert "damaged" in refusal(b"\x80\x04" + body + b".")


@pytest.mark.parametrize(
    ("code", "width"),
    [("B", 4), ("X", 4), ("C", 1), ("\x8a", 1), ("\x8c", 1), ("\x8d", 8), ("\x8e", 8), ("\x96", 8)],
)
def test_lengths_beyond_the_end_are_rejected(code: str, width: int) -> None:
    for length in (4, 2 ** (8 * width - 1), 2 ** (8 * width) - 1):
        data = b"\x80\x04" + code.encode("latin-1") + length.to_bytes(width, "little") + b"abc"
        for end in range(3, len(data) + 1):
            assert "truncated" in refusal(data[:end])


@pytest.mark.parametrize("body", [b"]" * NESTED + b"a" * (NESTED - 1), b")" + b"\x85" * NESTED])
@pytest.mark.parametrize("use", [b".", b"}" + text("k") + b"h\0s.", b"}h\0K\x01s.", b"h\0b."])
@pytest.mark.slow
def test_deep_nesting_does_not_recurse(body: bytes, use: bytes) -> None:
    data = b"\x80\x04" + body + b"q\0" + use
    if use in (b".", b"}" + text("k") + b"h\0s."):
        read(data)
    else:
        assert "damaged" in refusal(data)


def test_a_large_memo_index_allocates_no_memory() -> None:
    """Python's own unpickler allocates an array of that length."""
    tracemalloc.start()
    assert read(b"\x80\x02Nr" + b"\xff" * 4 + b".") is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_the_number_of_instructions_is_limited() -> None:
    words = Vocabulary(WORDS.recorded, {}, None, most_instructions=5)
    assert read(b"NNNN.", words) is None
    assert "more than 5 instructions" in refusal(b"NNNNN.", words)


def test_a_file_truncated_anywhere_is_rejected() -> None:
    for protocol in PROTOCOLS:
        whole = pickle.dumps(
            {"a": [1, 2.0, "text", None, (True, 300)], "b": {"c": 2**70}}, protocol
        )
        for end in range(len(whole)):
            assert "truncated" in refusal(whole[:end])
