"""Read a pickle as data, without importing or calling what it names.

A pickle is a program for a stack machine. Python's unpickler imports every name in the program and
calls the functions that the program calls. This machine supports the instructions that protocols 2
to 5 use for networks and rejects all others. Its stack holds None, numbers, text, bytes (views of
the file), tuples, lists, dictionaries, sets, a `Name` for a class or function, and a `Record` for
an object. Instead of the functions that the pickle names, it calls replacements from a
`Vocabulary`. `pickletools` of the standard library decodes the instructions' arguments.

Time and memory are limited to a multiple of the file's size: an instruction creates at most one
object, no instruction reads beyond the end, the instructions are counted, and nothing recurses.

A subclass of `pickle.Unpickler` with a `find_class` that returns inert stubs would not be enough,
because two small files harm it before it calls any method of the subclass (Python 3.11).
A file of 9 bytes that stores None in the memo at index 2**28 (LONG_BINPUT) takes 4 GiB, since the
memo is an array; index 2**31 takes 32 GiB. A file of 1 MB that uses a tuple nested a million times
as a key of a dictionary (SETITEM) ends the process with a segmentation fault, since hashing a tuple
recurses. `pickle.Unpickler` also copies every weight into memory; here they stay in the file.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, Any, cast


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, as text: `torch.nn.modules.linear.Linear`."""

    text: str


@dataclass(eq=False)
class Record:
    """An object of a pickle: the name of its class, and its state."""

    kind: str
    state: Any = None


@dataclass(frozen=True)
class Vocabulary:
    """The names and instructions that a pickle may contain.

    Attributes:
        recorded: Returns a true value for the name of a class, or of a function that is not called,
            that the pickle may contain.
        calls: The functions that the pickle may call, by name, and their replacements. Arguments of
            a call can be anything that a pickle may contain.
        persistent: Resolves a reference to something outside the pickle; None to reject references.
        most_instructions: Maximal number of instructions.
    """

    recorded: Callable[[str], Any]
    calls: Mapping[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None
    most_instructions: int


def quoted(text: Any) -> str:
    """Quote text of an untrusted file: shorten it, and escape control characters."""
    text = str(text)
    return ascii(text if len(text) <= 100 else text[:97] + "...")


def expect(kind: type, value: Any) -> Any:
    """Return the value if its type is exactly `kind`; raise a TypeError otherwise."""
    if type(value) is not kind:
        raise TypeError
    return value


def read_pickle(data: memoryview, vocabulary: Vocabulary, start: int = 0) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: The file's bytes; the result contains views of them.
        vocabulary: The names that the pickle may contain.
        start: Offset of the pickle.

    Returns:
        The content, and the offset after the pickle.

    Raises:
        UnpicklingError: If the pickle is damaged or not only data; the message starts with "it".
    """
    machine = _Machine(data, start, vocabulary)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise UnpicklingError(
            f"it is not a pickle, or is damaged or truncated (at byte {machine.position - 1})"
        ) from error


_OPCODES = {each.code.encode("latin-1"): each for each in pickletools.opcodes}
_VALUES = {
    "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # instructions that push their own argument  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_SHORT = {
    "TUPLE1": ("TUPLE", 1),
    "TUPLE2": ("TUPLE", 2),
    "TUPLE3": ("TUPLE", 3),
    "APPEND": ("APPENDS", 1),
    "SETITEM": ("SETITEMS", 2),
}  # short instruction: (the equivalent that takes the items above a mark, number of items)
_LONGEST_LINE = 1000


class _Machine:
    """The stack, its marks, the memo, and the position in the file.

    It is also the file object from which `pickletools` reads the arguments of instructions.
    """

    def __init__(self, data: memoryview, start: int, vocabulary: Vocabulary) -> None:
        self.data = data
        self.position = start
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the instructions up to STOP, and return the result."""
        most = self.vocabulary.most_instructions
        for _ in range(most):
            opcode = _OPCODES[bytes(self.read(1))]
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode)
        raise UnpicklingError(f"it has more than {most:,} instructions, too many for a network")

    def step(self, opcode: pickletools.OpcodeInfo) -> None:
        """Execute one instruction."""
        stack = self.stack
        name, count = _SHORT.get(opcode.name, (opcode.name, None))
        if count is not None:
            self.marks.append(len(stack) - count)
        match name:
            case _ if name in _VALUES:
                stack.append(self.argument(opcode))
            case _ if name in _MADE:
                stack.append(_MADE[name]())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[self.argument(opcode)] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[self.argument(opcode)])
            case "PROTO" | "FRAME":
                self.argument(opcode)
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "APPENDS":
                items = self.since_mark()  # before stack[-1], which is below the items
                expect(list, stack[-1]).extend(items)
            case "ADDITEMS":
                items = self.since_mark()
                expect(set, stack[-1]).update(_keys(items))
            case "SETITEMS":
                items = self.since_mark()
                pairs = zip(_keys(items[::2]), items[1::2], strict=True)
                expect(dict, stack[-1]).update(pairs)
            case "GLOBAL":
                stack.append(self.name(*self.argument(opcode).split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = expect(str, stack.pop()), expect(str, stack.pop())
                stack.append(self.name(module, attribute))
            case "REDUCE":
                arguments, function = expect(tuple, stack.pop()), expect(Name, stack.pop()).text
                if function not in self.vocabulary.calls:
                    raise UnpicklingError(f"it calls {quoted(function)}, which no network needs")
                stack.append(self.vocabulary.calls[function](*arguments))
            case "NEWOBJ":
                expect(tuple, stack.pop())
                stack.append(Record(expect(Name, stack.pop()).text))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if type(target) is not dict:  # attributes of a dict subclass are not needed
                    expect(Record, target).state = state
            case "BINPERSID" if self.vocabulary.persistent:
                stack.append(self.vocabulary.persistent(stack.pop()))
            case _:
                raise UnpicklingError(f"it uses {name}, which no network needs")

    def argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        """Read the argument of an instruction; bytes are views of the file."""
        # The reader of bytearrays would copy the data.
        kind = pickletools.bytes8 if opcode.name == "BYTEARRAY8" else opcode.arg
        assert kind
        return kind.reader(cast(IO[bytes], self))

    def read(self, count: int) -> memoryview:
        """Read exactly `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise ValueError
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def readline(self) -> bytes:
        """Read a line of limited length."""
        raw, _ = bytes(self.data[self.position :][:_LONGEST_LINE]).split(b"\n", 1)
        self.position += len(raw) + 1
        return raw + b"\n"

    def since_mark(self) -> list[Any]:
        """Remove and return the items above the last mark."""
        start = self.marks.pop()
        if not 0 <= start <= len(self.stack):
            raise IndexError
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def name(self, module: str, name: str) -> Name:
        """Return a name that the vocabulary allows."""
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in protocol 2
        text = f"{module}.{name}"
        allowed = text in self.vocabulary.calls or self.vocabulary.recorded(text)
        if "." in name or not allowed:
            raise UnpicklingError(f"it holds {quoted(text)}, which is not part of a network")
        return Name(text)


def _keys(values: list[Any]) -> list[Any]:
    """Reject keys other than text and numbers, since hashing a nested tuple would recurse."""
    if not all(type(value) in (str, int) for value in values):
        raise TypeError
    return values
