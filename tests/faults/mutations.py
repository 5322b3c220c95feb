"""Seeded damage to files: input number i of a format is always the same bytes."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile

import numpy as np

WORDS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
VALUES = [
    None,
    True,
    -1,
    0,
    2**31,
    10**30,
    1e308,
    float("nan"),
    "",
    "x" * 2000,
    "../../x",
    [],
    {},
    [[[]]],
    {"record": []},
]


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to four injuries; `other` is what pieces are taken from."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        _INJURIES[int(rng.integers(len(_INJURIES)))](changed, other, rng)
    return bytes(changed)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(len(data) + 1))


def _cut(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    del data[_place(data, rng) :]


def _flip(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for place in rng.integers(max(len(data), 1), size=int(rng.integers(1, 9))):
        if place < len(data):
            data[place] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    place, size = _place(data, rng), int(rng.integers(1, 9))
    data[place : place + size] = rng.bytes(size)


def _word(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    place, size = _place(data, rng), int(rng.choice([1, 2, 4, 8]))
    word = int(WORDS[rng.integers(len(WORDS))]) % 2 ** (8 * size)
    data[place : place + size] = word.to_bytes(size, "little")


def _length(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """A word that may be a length or an offset, because it is smaller than the file, becomes another one."""
    for _ in range(50):
        place = _place(data, rng)
        if place + 4 > len(data):
            continue
        (word,) = struct.unpack_from("<I", data, place)
        if 0 < word <= len(data):
            wrong = [word - 1, word + 1, word * 2, word * 65536, len(data), len(data) - place, int(rng.integers(2**32))]
            struct.pack_into("<I", data, place, int(rng.choice(wrong)) % 2**32)
            return


def _splice(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """A piece of the other file goes in: in place of as many bytes, of none, or of all that follow."""
    start, place = int(rng.integers(len(other) + 1)), _place(data, rng)
    piece = other[start : start + int(rng.integers(1, 200))]
    data[place : (place + len(piece), place, len(data))[int(rng.integers(3))]] = piece


def _remove(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 100))]


_INJURIES = (_cut, _flip, _overwrite, _word, _length, _splice, _remove)


def damaged_json(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bytes are damaged, or (mostly) a value, a key or the nesting is another one."""
    if rng.random() < 0.3:
        return damaged(data, other, rng)
    tree = [json.loads(data)]
    for _ in range(int(rng.integers(1, 4))):
        holder, key = _random_place(tree, rng)
        choice = rng.random()
        if choice < 0.5:
            holder[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        elif choice < 0.65:
            deep = int(rng.choice([10, 900, 20_000]))  # below, near and far above Python's limit of 1,000
            text = json.dumps(tree[0]).replace("1", "[" * deep + "]" * deep, 1)
            return text.encode()
        elif choice < 0.8 and isinstance(holder, dict):
            holder["x" * int(rng.integers(50))] = holder.pop(key)
        elif isinstance(holder, dict):
            del holder[key]
        else:
            donor, name = _random_place([json.loads(other)], rng)
            holder[key] = donor[name]
    return json.dumps(tree[0]).encode()


def _random_place(tree: list, rng: np.random.Generator) -> tuple:
    """A list or dictionary in the tree, at any depth, and a key or index of it."""
    holder, key = tree, 0
    while isinstance(holder[key], (list, dict)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[int(rng.integers(len(keys)))]
    return holder, key


def damaged_archive(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive of which a member is damaged, or (one in four) the archive itself."""
    if rng.random() < 0.25:
        return damaged(data, other, rng)
    content = members(data)
    name = list(content)[int(rng.integers(len(content)))]
    how = damaged_json if name.endswith(".json") else damaged
    like = [piece for piece in members(other).values() if piece[:1] == content[name][:1]] or [content[name]]
    content[name] = how(content[name], like[int(rng.integers(len(like)))], rng)
    if rng.random() < 0.1:
        content[str(rng.choice(["../x", "/x", "config.json/", "assets/../../x", name + "x"]))] = content.pop(name)
    return archived(content, int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


def members(data: bytes) -> dict[str, bytes]:
    """The content of a zip archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def archived(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The inverse of `members`, without the time of day: the same bytes in every run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, value in content.items():
            archive.writestr(zipfile.ZipInfo(member), value, compression)
    return buffer.getvalue()
