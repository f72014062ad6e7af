"""Read 1,000 damaged pickles under an audit hook: `python damaged_pickles.py FOLDER`.

Prints as JSON how many files were rejected and converted, every exception other than UsageError,
and every audit event of the interpreter while it read the files, except mapping them.
"""

import io
import json
import pickle
import pickletools
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

from sid_lsg.checkpoints.official import read_official
from sid_lsg.messages.errors import UsageError

FILES, SEED = 1000, 0
EVIL = ("posix system", "builtins eval", "builtins exec", "subprocess Popen", "torch load")


class Watch:
    """Count audit events of the interpreter while `on` is set."""

    def __init__(self) -> None:
        self.on = False
        self.events: Counter[str] = Counter()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event == "mmap.__new__":
            return
        if event == "open" and arguments[1] in ("r", "rb"):
            event = f"read {Path(arguments[0]).name}"
        self.events[event] += 1


def read_all(path: Path) -> bool:
    """Read a file as the command does, with every tensor; return False if it is rejected."""
    try:
        for tensor in read_official(str(path))[0].values():
            tensor.load()
    except UsageError:
        return False
    return True


def evil(canary: Path, protocol: int) -> bytes:
    """Return a pickle that creates the canary if Python's unpickler loads it."""

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(canary)!r}, 'w').close()",)

    return pickle.dumps({"ema": Evil()}, protocol)


def call_of(name: str, canary: Path) -> bytes:
    """Return pickle instructions that call a function with the canary's name."""
    module, function = name.split()
    text = f"touch {canary}".encode()
    argument = b"X" + len(text).to_bytes(4, "little") + text
    return f"c{module}\n{function}\n".encode() + argument + b"\x85R"


def mutate(whole: bytes, other: bytes, canary: Path, chance: random.Random) -> bytes:
    """Damage a file in random ways, once or several times."""
    data = bytearray(whole)
    starts = [position for *_, position in pickletools.genops(whole)]
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.choice((chance.randrange(len(data)), chance.choice(starts))) % len(data)
        length = chance.choice((1, 1, 2, 8, 64))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2 if len(data) > 100:
                del data[at : at + length]
            case 3:
                data[at:at] = chance.randbytes(length)
            case 4:
                begin = chance.randrange(len(other))
                data[at : at + chance.choice((0, length))] = other[begin : begin + length]
            case 5:
                data[at:at] = call_of(chance.choice(EVIL), canary)
    return bytes(data)


def main(folder: Path) -> None:
    """Read all files, then check that the audit hook and the canary detect an evil pickle."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.GroupNorm(1, 2), nn.Linear(2, 2)))
    network.register_module("buffered", nn.BatchNorm1d(2))
    wholes = [pickle.dumps({"ema": network}, protocol) for protocol in (2, 3, 4, 5)]
    canary, path = folder / "canary", folder / "mutated.pkl"
    chance, watch = random.Random(SEED), Watch()
    path.write_bytes(wholes[0])
    assert read_all(path)
    outcomes: Counter[str] = Counter()
    for index in range(FILES):
        path.write_bytes(mutate(wholes[index % 4], wholes[chance.randrange(4)], canary, chance))
        watch.on = True
        try:
            outcomes["converted" if read_all(path) else "refused"] += 1
        except BaseException as error:
            outcomes[f"{index}: {error!r}"] += 1
        watch.on = False
    found, touched = dict(watch.events), canary.exists()
    watch.on = True
    pickle.load(io.BytesIO(evil(canary, 4)))
    watch.on = False
    control = sorted(watch.events.keys() - found.keys())
    print(json.dumps([outcomes, found, touched, control, canary.exists()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
