"""Global memory, which knows where its tensors end, and shared memory, which knows what no barrier has ordered."""

from __future__ import annotations

import numpy as np
import torch

# Where the first tensor lies: high enough that an address cut to 32 bits hits nothing.
_BASE = 0x7F00_0000_0000
_GAP = 1024
_NOBODY, _EVERYBODY = -1, -2


class FaultError(Exception):
    """What a GPU, or its sanitizer, would have reported."""


def _words(data: np.ndarray, size: int) -> np.ndarray:
    return data.view(f"u{size}")


class GlobalMemory:
    """The storages of some tensors, apart from each other, at addresses as well aligned as their own."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self._places: dict[int, int] = {}
        end = _GAP
        for pointer, storage in storages.items():
            self._places[pointer] = end + pointer % 256
            end += -(-(storage.nbytes() + 256) // 256) * 256 + _GAP
        self._data = np.full(end, 0xFF, np.uint8)
        self._inside = np.zeros(end, np.bool_)
        self._writer = np.full(end, _NOBODY, np.int32)
        self._bytes = {pointer: torch.empty(0, dtype=torch.uint8).set_(storage) for pointer, storage in storages.items()}
        for pointer, content in self._bytes.items():
            place = slice(self._places[pointer], self._places[pointer] + len(content))
            self._data[place] = content.numpy()
            self._inside[place] = True

    def address(self, tensor: torch.Tensor) -> int:
        """Where the first element of a tensor lies."""
        storage = tensor.untyped_storage().data_ptr()
        return _BASE + self._places[storage] + tensor.data_ptr() - storage

    def store_back(self) -> None:
        """Copy what was written into the tensors."""
        for pointer, content in self._bytes.items():
            place = self._places[pointer]
            content.numpy()[:] = self._data[place : place + len(content)]

    def _places_of(self, addresses: np.ndarray, size: int, aligned: int) -> np.ndarray:
        places = addresses.astype(np.int64) - _BASE
        if (places % aligned).any():
            raise FaultError(f"misaligned access of {aligned} bytes")
        if places.size and (places.min() < 0 or places.max() + size > len(self._data)):
            raise FaultError("access far outside of every tensor")
        if not (self._inside[places].all() and self._inside[places + size - 1].all()):
            raise FaultError("access outside of every tensor")
        return places

    def load(self, addresses: np.ndarray, size: int, count: int, program: int) -> np.ndarray:
        """(threads, count) words of ``size`` bytes."""
        places = self._places_of(addresses, size * count, size * count)
        writers = self._writer[places]
        if ((writers != _NOBODY) & (writers != program)).any():
            raise FaultError("a program reads what another program of the same launch wrote")
        return _words(self._data, size)[places[:, None] // size + np.arange(count)]

    def store(self, addresses: np.ndarray, words: np.ndarray, program: int) -> None:
        """Store (threads, count) words."""
        size, count = words.dtype.itemsize, words.shape[1]
        places = self._places_of(addresses, size * count, size * count)
        spread = places[:, None] + np.arange(size * count)
        if ((self._writer[spread] != _NOBODY) & (self._writer[spread] != program)).any():
            raise FaultError("two programs of one launch write to the same place")
        self._writer[spread] = program
        _words(self._data, size)[places[:, None] // size + np.arange(count)] = words

    def load_bytes(self, addresses: np.ndarray, length: int, aligned: int) -> np.ndarray:
        """(threads, length) bytes from addresses that are multiples of ``aligned``."""
        places = self._places_of(addresses, length, aligned)
        return self._data[places[:, None] + np.arange(length)]

    def box(self, base: int, offsets: np.ndarray, size: int) -> np.ndarray:
        """Elements of ``size`` bytes at offsets, counted in elements; zero where an offset is negative."""
        addresses = base + np.maximum(offsets, 0).astype(np.int64) * size
        places = self._places_of(addresses.reshape(-1), size, size)
        words = _words(self._data, size)[places // size].reshape(offsets.shape)
        return np.where(offsets < 0, np.zeros_like(words), words)


class SharedMemory:
    """A program's shared memory: NaN at first, and with a record of who touched what since the last barrier.

    Accesses by two warps of which one is a store need a barrier between them, in either order. Generic stores that the tensor
    cores or the copy engine (the asynchronous proxy) read need a ``fence.proxy.async`` as well.
    """

    def __init__(self, size: int, *, find_races: bool) -> None:
        size = -(-size // 1024) * 1024
        self._data = np.full(size, 0xFF, np.uint8)
        self._find_races = find_races
        self._epoch = 1
        self._writer, self._write_epoch = np.full(size, _NOBODY, np.int16), np.zeros(size, np.int32)
        self._reader, self._read_epoch = np.full(size, _NOBODY, np.int16), np.zeros(size, np.int32)
        self._unfenced = np.zeros(size, np.bool_)
        self._arriving = np.zeros(size, np.bool_)  # copies that began and may write at any time
        self._products = np.zeros(size, np.int16)  # products that began and may read at any time

    def barrier(self) -> None:
        """All warps have met."""
        self._epoch += 1

    def fence(self) -> None:
        """fence.proxy.async, by all warps."""
        self._unfenced[:] = False

    def _check(self, places: np.ndarray, size: int) -> None:
        if (places % size).any():
            raise FaultError(f"misaligned access of {size} bytes of shared memory")
        if places.size and (places.min() < 0 or places.max() + size > len(self._data)):
            raise FaultError("access outside of shared memory")

    def load(self, places: np.ndarray, size: int, count: int, warps: np.ndarray, aligned: int | None = None) -> np.ndarray:
        """(threads, count) words of ``size`` bytes."""
        places = places.astype(np.int64)
        self._check(places, aligned or size * count)
        if self._find_races:
            self._note_read(places[:, None] + np.arange(size * count), warps)
        return _words(self._data, size)[places[:, None] // size + np.arange(count)]

    def store(self, places: np.ndarray, words: np.ndarray, warps: np.ndarray) -> None:
        """Store (threads, count) words, by a thread of each of ``warps``."""
        places = places.astype(np.int64)
        size, count = words.dtype.itemsize, words.shape[1]
        self._check(places, size * count)
        if self._find_races:
            spread = places[:, None] + np.arange(size * count)
            content = np.ascontiguousarray(words).view(np.uint8).reshape(spread.shape)
            self._note_write(spread, warps, content)
            self._unfenced[spread] = True
        _words(self._data, size)[places[:, None] // size + np.arange(count)] = words

    def _note_read(self, spread: np.ndarray, warps: np.ndarray) -> None:
        """Warps read bytes (threads, bytes)."""
        if self._arriving[spread].any():
            raise FaultError("shared memory is read where a copy may still arrive")
        for warp in np.unique(warps):
            touched = spread[warps == warp]
            recent = self._write_epoch[touched] == self._epoch
            if (recent & (self._writer[touched] != warp)).any():
                raise FaultError("a warp reads shared memory that another wrote, with no barrier between them")
            others = (self._read_epoch[touched] == self._epoch) & (self._reader[touched] != warp)
            self._reader[touched] = np.where(others, _EVERYBODY, warp)
            self._read_epoch[touched] = self._epoch

    def _note_write(self, spread: np.ndarray, warps: np.ndarray, content: np.ndarray | None) -> None:
        """Warps write bytes (threads, bytes). Two may write the same: layouts give some elements to several of them."""
        if self._products[spread].any():
            raise FaultError("shared memory is written where a matrix product may still read")
        for warp in np.unique(warps):
            touched = spread[warps == warp]
            read = (self._read_epoch[touched] == self._epoch) & (self._reader[touched] != warp)
            if read.any():
                raise FaultError("a warp writes shared memory that another read, with no barrier between them")
            written = (self._write_epoch[touched] == self._epoch) & (self._writer[touched] != warp)
            if content is not None:
                written &= self._data[touched] != content[warps == warp]
                self._data[touched] = content[warps == warp]
            if written.any():
                raise FaultError("a warp writes shared memory that another wrote, with no barrier between them")
            self._writer[touched] = warp
            self._write_epoch[touched] = self._epoch

    def begin_copy(self, spread: np.ndarray, warps: np.ndarray) -> None:
        """Warps begin to copy to bytes (threads, bytes), which may arrive from now on, and do when ``end_copy`` says so."""
        if self._find_races:
            self._note_write(spread, warps, None)
            self._arriving[spread] = True

    def end_copy(self, spread: np.ndarray, words: np.ndarray, *, by_threads: bool) -> None:
        """Bytes have arrived. Those of the copy engine need no barrier, but a wait; those of threads both, and a fence."""
        self._data[spread] = words
        self._arriving[spread] = False
        self._write_epoch[spread] = self._epoch if by_threads else 0
        self._unfenced[spread] = by_threads

    def begin_product(self, places: np.ndarray, size: int) -> None:
        """A matrix product is issued that reads words of ``size`` bytes."""
        if self._find_races:
            np.add.at(self._products, places.reshape(-1, 1) + np.arange(size), 1)

    def end_product(self, places: np.ndarray, size: int, warps: np.ndarray) -> np.ndarray:
        """Words of ``size`` bytes as the tensor cores read them for ``warps``, at the latest."""
        self._check(places, size)
        if self._find_races:
            spread = places.reshape(-1, 1) + np.arange(size)
            np.subtract.at(self._products, spread, 1)
            if self._unfenced[spread].any():
                raise FaultError("a matrix product reads what threads stored, with no fence.proxy.async between them")
            if self._arriving[spread].any():
                raise FaultError("a matrix product reads where a copy may still arrive")
            for warp in warps:
                self._note_read(spread, np.full(len(spread), warp))
        return _words(self._data, size)[places // size]
