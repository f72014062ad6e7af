"""Read a pickle as data: nothing that it names is imported, looked up or called.

A pickle is a program for a small machine with a stack, and Python's own machine imports every name
in the program and calls what it is told to call. This machine knows the instructions that protocols
2 to 5 use for networks and refuses all others. On its stack are None, numbers, text, bytes (views
of the file), tuples, lists, dictionaries, sets, a `Name` for a class or function, and a `Record`
for an object. A call is made only of a name that has a function in the reader's own `Vocabulary`,
and what is called is that function.

Time and memory stay within a multiple of the file's size: an instruction makes at most one object,
none reads beyond the end, the instructions are counted, and nothing recurses.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, as text: `torch.nn.modules.linear.Linear`."""

    text: str


@dataclass(eq=False)
class Record:
    """An object of a pickle: the name of its class, and the state that it would have got."""

    kind: str
    state: Any = None


@dataclass(frozen=True)
class Vocabulary:
    """What a pickle may speak of.

    Attributes:
        recorded: Whether a class, or a function that is not called, may be named.
        calls: The functions that may be called: what is called in place of each, with arguments
            that can be anything a pickle holds.
        persistent: Turns a reference to something outside the pickle into what it stands for.
        most_instructions: How long it may be.
    """

    recorded: Callable[[str], Any]
    calls: Mapping[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None
    most_instructions: int


def quoted(text: Any) -> str:
    """Quote what a foreign file holds: short, and without characters that control a terminal."""
    text = str(text)
    return ascii(text if len(text) <= 100 else text[:97] + "...")


def expect(kind: type, value: Any) -> Any:
    """Return a value of just this type; raise a TypeError for any other."""
    if type(value) is not kind:
        raise TypeError
    return value


def read_pickle(data: memoryview, vocabulary: Vocabulary, start: int = 0) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: The file's bytes; the result refers to them.
        vocabulary: What the pickle may speak of.
        start: Where it begins.

    Returns:
        What it holds, and where it ends.

    Raises:
        UnpicklingError: If it is damaged or is more than data; the message begins with "it".
    """
    machine = _Machine(data, start, vocabulary)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise UnpicklingError(
            f"it is not a pickle, or a damaged one (at byte {machine.position - 1})"
        ) from error


def _text(raw: memoryview) -> str:
    return str(raw, "utf-8", "surrogatepass")


_MADE: dict[bytes, Callable[[], Any]] = {
    pickle.NONE: lambda: None,
    pickle.NEWTRUE: lambda: True,
    pickle.NEWFALSE: lambda: False,
    pickle.EMPTY_TUPLE: tuple,
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_SET: set,
}
_NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
_SHORT = {
    pickle.TUPLE1: (pickle.TUPLE, 1),
    pickle.TUPLE2: (pickle.TUPLE, 2),
    pickle.TUPLE3: (pickle.TUPLE, 3),
    pickle.APPEND: (pickle.APPENDS, 1),
    pickle.SETITEM: (pickle.SETITEMS, 2),
}  # instruction: (the one that does it with what follows a mark, how much follows)
_PUT = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_GET = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_IGNORED = {pickle.PROTO: "<B", pickle.FRAME: "<Q"}
_REFUSED = {each.code.encode("latin-1"): each.name for each in pickletools.opcodes}

_COUNTED: dict[bytes, tuple[str, Callable[[memoryview], Any]]] = {
    pickle.LONG1: ("<B", lambda raw: int.from_bytes(raw, "little", signed=True)),
    pickle.SHORT_BINUNICODE: ("<B", _text),
    pickle.BINUNICODE: ("<I", _text),
    pickle.BINUNICODE8: ("<Q", _text),
    pickle.SHORT_BINBYTES: ("<B", memoryview),
    pickle.BINBYTES: ("<I", memoryview),
    pickle.BINBYTES8: ("<Q", memoryview),
    pickle.BYTEARRAY8: ("<Q", memoryview),
}  # instruction: (the format of the count of bytes, what to make of the bytes)


class _Machine:
    """The stack, the marks in it, the memo, and the place in the file."""

    def __init__(self, data: memoryview, start: int, vocabulary: Vocabulary) -> None:
        self.data = data
        self.position = start
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow the instructions up to the end."""
        most = self.vocabulary.most_instructions
        for _ in range(most):
            code = bytes(self.take(1))
            if code == pickle.STOP:
                return self.stack.pop()
            self.step(code)
        raise UnpicklingError(f"it has more than {most:,} instructions, too many for a network")

    def step(self, code: bytes) -> None:
        """Follow one instruction."""
        stack = self.stack
        if code in _SHORT:
            code, count = _SHORT[code]
            self.marks.append(len(stack) - count)
        if code in _MADE:
            stack.append(_MADE[code]())
        elif code in _NUMBERS:
            stack.append(self.number(_NUMBERS[code]))
        elif code in _COUNTED:
            layout, make = _COUNTED[code]
            stack.append(make(self.take(self.number(layout))))
        elif code in _PUT:
            self.memo[self.number(_PUT[code])] = stack[-1]
        elif code == pickle.MEMOIZE:
            self.memo[len(self.memo)] = stack[-1]
        elif code in _GET:
            stack.append(self.memo[self.number(_GET[code])])
        elif code in _IGNORED:
            self.number(_IGNORED[code])
        elif code == pickle.MARK:
            self.marks.append(len(stack))
        elif code == pickle.TUPLE:
            stack.append(tuple(self.since_mark()))
        elif code == pickle.APPENDS:
            items = self.since_mark()  # first, since stack[-1] is what lies below
            expect(list, stack[-1]).extend(items)
        elif code == pickle.ADDITEMS:
            items = self.since_mark()
            expect(set, stack[-1]).update(_keys(items))
        elif code == pickle.SETITEMS:
            items = self.since_mark()
            pairs = zip(_keys(items[::2]), items[1::2], strict=True)
            expect(dict, stack[-1]).update(pairs)
        elif code == pickle.GLOBAL:
            stack.append(self.name(self.line(), self.line()))
        elif code == pickle.STACK_GLOBAL:
            name, module = expect(str, stack.pop()), expect(str, stack.pop())
            stack.append(self.name(module, name))
        elif code == pickle.REDUCE:
            arguments, function = expect(tuple, stack.pop()), expect(Name, stack.pop()).text
            if function not in self.vocabulary.calls:
                raise UnpicklingError(f"it calls {quoted(function)}, which makes no weights")
            stack.append(self.vocabulary.calls[function](*arguments))
        elif code == pickle.NEWOBJ:
            expect(tuple, stack.pop())
            stack.append(Record(expect(Name, stack.pop()).text))
        elif code == pickle.BUILD:
            state, target = stack.pop(), stack[-1]
            if type(target) is not dict:  # whose own attributes nobody needs
                expect(Record, target).state = state
        elif code == pickle.BINPERSID and self.vocabulary.persistent:
            stack.append(self.vocabulary.persistent(stack.pop()))
        else:
            raise UnpicklingError(f"it uses {_REFUSED[code]}, which no network needs")

    def take(self, count: int) -> memoryview:
        """Read bytes."""
        end = self.position + count
        if end > len(self.data):
            raise UnpicklingError(f"it is cut off, or damaged (at byte {self.position})")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, layout: str) -> Any:
        """Read a number of a fixed size."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Read to the end of the line, which is not long."""
        raw, _ = bytes(self.data[self.position : self.position + 1000]).split(b"\n", 1)
        self.position += len(raw) + 1
        return raw.decode()

    def since_mark(self) -> list[Any]:
        """Take what was put onto the stack since the last mark."""
        start = self.marks.pop()
        if not 0 <= start <= len(self.stack):
            raise IndexError
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def name(self, module: str, name: str) -> Name:
        """Record a name, if it may be named."""
        module = {"__builtin__": "builtins"}.get(module, module)  # as protocol 2 has it
        text = f"{module}.{name}"
        allowed = text in self.vocabulary.calls or self.vocabulary.recorded(text)
        if "." in name or not allowed:
            raise UnpicklingError(f"it holds {quoted(text)}, which is not part of a network")
        return Name(text)


def _keys(values: list[Any]) -> list[Any]:
    """Check that values are text or numbers: hashing a deeply nested tuple would recurse."""
    if not all(type(value) in (str, int) for value in values):
        raise TypeError
    return values
