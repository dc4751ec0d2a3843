"""The sequences of a packed batch, one to a row, for layers whose state must be empty at the start of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class Texts:
    """Rows of one sequence each, in groups of similar lengths, so that at most half of a group is padding.

    A layer that carries a state from token to token starts with an empty state in every row, with any kernel.
    """

    def __init__(self, borders: list[tuple[int, int]], rows: int, tokens: int) -> None:
        self._rows, self._tokens = rows, tokens
        groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start, stop in borders:
            groups[(stop - start - 1).bit_length()].append((start, stop))
        self._index = []  # for each group, (texts, longest): the indices of its tokens in the concatenated rows
        self._inverse = torch.empty(rows * tokens, dtype=torch.int64)  # the index of each token in all groups
        offset = 0
        for group in groups.values():
            ends = torch.tensor(group)
            first, end = ends[:, :1], ends[:, 1:]
            index = first + torch.arange(int((end - first).max()))
            real = index < end
            self._inverse[index[real]] = offset + real.flatten().nonzero().flatten()
            # The padding repeats the last token of a text, after all tokens of the text, so that none of them sees it.
            self._index.append(torch.minimum(index, end - 1))
            offset += index.numel()

    @staticmethod
    def of(borders: Iterable[int], rows: int, length: int, tokens: int, mask: Tensor | None) -> Texts | None:
        """The sequences between borders of concatenated rows, or None if no row has two sequences with tokens.

        length: of a row, in the borders; tokens: of a row, without the padding to `length`. mask: (rows, tokens), 0 at
        padding, which is not a sequence in a row of one text.
        """
        places = [divmod(border, length) for border in sorted({int(border) for border in borders})]
        starts = [(row, start) for row, start in places if row < rows and start < tokens]
        texts = [row * tokens + start for row, start in starts]
        real = [True] * len(texts) if mask is None else mask.flatten()[texts].bool().tolist()
        used = [row for (row, _), is_real in zip(starts, real, strict=True) if is_real]
        if len(used) == len(set(used)):
            return None
        return Texts(list(zip(texts, [*texts[1:], rows * tokens], strict=True)), rows, tokens)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self._index)

    def split(self, x: Tensor) -> list[Tensor]:
        """(rows, tokens, ...) as groups (texts, longest, ...); a first dimension of 1 stands for every row."""
        stream = x.expand(self._rows, *x.shape[1:]).flatten(0, 1)
        return [stream[index.to(x.device)] for index in self._index]

    def join(self, groups: list[Tensor]) -> Tensor:
        """Undo `split`: (rows, tokens, ...) from groups of (texts, longest, ...)."""
        stream = torch.cat([group.flatten(0, 1) for group in groups])
        return stream[self._inverse.to(stream.device)].view(self._rows, self._tokens, *stream.shape[1:])
