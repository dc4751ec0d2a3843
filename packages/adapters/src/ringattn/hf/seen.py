"""What a layer gets as its mask: a pattern, the mask that it becomes in a batch, and how far back new tokens see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ringattn.hf.decode import Decoding, Reach
from ringattn.hf.mask_patterns import Band, Both, Chunks, Pattern, blocks, without_blocks
from ringattn_core.errors import UnsupportedError
from ringattn_core.plan.mask import Mask
from ringattn_core.plan.masks import end_to_end
from ringattn_core.plan.tile import CAUSAL, Window

if TYPE_CHECKING:
    from ringattn.hf.batch import ShardedBatch


class Seen:
    """What the queries of a layer see, of every batch that it is computed for."""

    # No dataclass: with mixed precision FSDP2 takes those among a layer's arguments apart, and makes new ones.
    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._mask: tuple[ShardedBatch, Mask] | None = None

    @property
    def window(self) -> Window | None:
        """(left, right) as `ringattn.attention` takes it, or None where it takes a mask."""
        return self.pattern.window if isinstance(self.pattern, Band) else None

    def mask(self, batch: ShardedBatch) -> Mask | None:
        """The mask of all rows of a batch, laid end to end, or None where a window says it all.

        Made once for all layers. Raises UnsupportedError where blocks are not those of all tokens of the batch.
        """
        if self.window is not None:
            return None
        if self._mask is None or self._mask[0] is not batch:
            for each in blocks(self.pattern):
                if each.ids.shape not in ((batch.rows, batch.tokens), (1, batch.tokens)):
                    raise UnsupportedError(
                        "Blocks of tokens that see each other must be (rows, tokens) = "
                        f"({batch.rows}, {batch.tokens}), got {tuple(each.ids.shape)}: the model makes them of a "
                        "shard's tokens alone, and how is not known here."
                    )
            self._mask = batch, end_to_end(map(self.pattern.mask, batch.contents))
        return self._mask[1]

    def reach(self, name: str, step: Decoding | None = None) -> Reach:
        """How far back the tokens after a prompt see. Raises UnsupportedError where they see more than what is behind.

        step: a call with new tokens, which are in no block.
        """
        if step is not None and any(True for _ in blocks(self.pattern)):
            raise UnsupportedError(
                f"{name} reads on from a ShardedCache with tokens that see each other in both directions, such as "
                "those of an image: give all of these in the first call, with the prompt, and no token_type_ids later."
            )
        pattern = without_blocks(self.pattern)
        if isinstance(pattern, Band) and pattern.window[1] == 0:
            return Reach(None if pattern.window[0] < 0 else pattern.window[0] + 1)
        if isinstance(pattern, Both) and len(pattern.parts) == 2 and Band(CAUSAL) in pattern.parts:
            for part in pattern.parts:
                if isinstance(part, Chunks):
                    return Reach(part.size, chunked=True)
        raise UnsupportedError(f"{name} asks for attention to later tokens, with which no token can be generated.")

    def __getitem__(self, cut: object) -> Seen:
        """Gemma 4 cuts masks to the tokens whose logits are wanted: all of them here."""
        return self

    def __radd__(self, scores: object) -> NoReturn:
        """Raise UnsupportedError: an eager attention function adds its mask to the scores of this rank's tokens."""
        raise UnsupportedError(
            "A layer of a parallelized model has run without calling its registered attention function, so that every "
            "rank would attend to local tokens alone: its configuration is not that of the model."
        )
