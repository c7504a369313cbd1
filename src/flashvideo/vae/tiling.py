"""Overlapping spatial tiles: how a frame is cut into them, and how their results become a frame again.

Shapes: B batch, C channels, F frames, H and W pixels, h and w latent height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A grid of overlapping spatial tiles, processed one after the other to save memory, as the reference does.

    Each tile's group norms see that tile alone, so tiles differ a little in brightness and detail, by about half a
    level of 255 in the mean. `thrift` of `encode_pixels` and `decode_latents` saves as much without a trace.

    The latent plane is divided evenly into ``rows x columns`` cores; each tile is its core grown by ``overlap`` on
    every side that has a neighbour, so neighbours share ``2 * overlap`` latent pixels.

    Attributes:
        rows: Tiles along the height.
        columns: Tiles along the width.
        overlap: Growth of each core, in latent pixels.
        blend: Cross-fade linearly over the middle half of the shared strip; otherwise cut hard in its middle, as the
            reference does.
    """

    rows: int = 1
    columns: int = 1
    overlap: int = 8
    blend: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rows < 1 or self.columns < 1 or self.overlap < 0:
            raise ValueError(
                f"tiling needs rows, columns >= 1 and overlap >= 0, got {self.rows}, {self.columns}, {self.overlap}"
            )

    @classmethod
    def to_fit(cls, height: int, width: int, *, max_side: int, overlap: int = 8) -> Tiling:
        """The fewest tiles whose sides do not exceed ``max_side`` latent pixels.

        Args:
            height: Latent rows h.
            width: Latent columns w.
            max_side: Longest side of a tile, overlap included.
            overlap: Growth of each core.

        Returns:
            The tiling; 1 x 1 if everything fits. Cores differ by one latent pixel at most, so no tile is a sliver.

        Raises:
            ValueError: If ``max_side`` leaves too little between the overlaps.
        """
        if max_side < max(1, 4 * overlap):
            raise ValueError(
                f"max_side must be at least four times the overlap ({max(1, 4 * overlap)}), got {max_side}"
            )
        return cls(
            rows=_fewest_tiles(height, max_side, overlap),
            columns=_fewest_tiles(width, max_side, overlap),
            overlap=overlap,
        )

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The tiles of a plane of ``height x width`` latent pixels, row by row.

        Raises:
            ValueError: If a core would be empty or smaller than the overlap.
        """
        rows = tile_spans(height, self.rows, self.overlap)
        columns = tile_spans(width, self.columns, self.overlap)
        return [Tile(row, column) for row in rows for column in columns]

    def largest_tile(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width of the largest tile of a plane of ``height x width``, overlap included.

        Raises:
            ValueError: If a core would be empty or smaller than the overlap.
        """
        rows = tile_spans(height, self.rows, self.overlap)
        columns = tile_spans(width, self.columns, self.overlap)
        return max(span.length for span in rows), max(span.length for span in columns)


REFERENCE_TILES = Tiling(columns=2, overlap=16, blend=False)
"""The released code's memory-saving decoder: two halves of the width, each 16 latent pixels wider, cut hard."""


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis, in latent pixels: it covers start..stop; its core is core_start..core_stop."""

    start: int
    stop: int
    core_start: int
    core_stop: int

    @property
    def length(self) -> int:
        """Latent pixels covered."""
        return self.stop - self.start

    def scaled(self, factor: int) -> slice:
        """The tile's extent in pixels ``factor`` times finer."""
        return slice(self.start * factor, self.stop * factor)


@dataclass(frozen=True)
class Tile:
    """One tile: a span of latent rows and one of latent columns."""

    rows: TileSpan
    columns: TileSpan

    def cut(self, source: torch.Tensor, factor: int) -> torch.Tensor:
        """The tile of (..., ``factor`` h, ``factor`` w), as a view."""
        return source[..., self.rows.scaled(factor), self.columns.scaled(factor)]


def tile_spans(length: int, num_tiles: int, overlap: int) -> list[TileSpan]:
    """Cut one axis into tiles.

    Args:
        length: Latent pixels along the axis.
        num_tiles: Tiles wanted.
        overlap: Growth of each core towards its neighbours.

    Returns:
        The tiles in order; cores partition the axis.

    Raises:
        ValueError: If a core would be empty or smaller than the overlap.
    """
    edges = [length * i // num_tiles for i in range(num_tiles + 1)]
    shortest = length // num_tiles
    if num_tiles > 1 and shortest < max(1, overlap):
        most = max(1, length // max(1, overlap))
        raise ValueError(
            f"{num_tiles} tiles with overlap {overlap} do not fit {length} latent pixels; at most {most} do"
        )
    return [
        TileSpan(max(0, low - overlap), min(length, high + overlap), low, high)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


class Canvas:
    """A video that is put together from tiles and chunks of time, on a device of its own.

    Args:
        shape: (B, C, F, H, W) of the whole.
        tiling: How the plane is cut; None for chunks of whole frames.
        factor: Pixels of the result per latent pixel.
        device: Where the result lives; what is added is moved there.
    """

    def __init__(
        self, shape: tuple[int, int, int, int, int], tiling: Tiling | None, factor: int, device: torch.device
    ) -> None:
        self.video = torch.zeros(shape, device=device)
        self._factor = factor
        self._weights: dict[Tile, torch.Tensor] = {}
        if tiling is not None:
            height, width = shape[3] // factor, shape[4] // factor
            rows = tile_spans(height, tiling.rows, tiling.overlap)
            columns = tile_spans(width, tiling.columns, tiling.overlap)
            row_weights = tile_weights(rows, height, factor, blend=tiling.blend)
            column_weights = tile_weights(columns, width, factor, blend=tiling.blend)
            for row, row_weight in zip(rows, row_weights, strict=True):
                for column, column_weight in zip(columns, column_weights, strict=True):
                    self._weights[Tile(row, column)] = (row_weight[:, None] * column_weight).to(device)

    def add(self, piece: torch.Tensor, start: int, tile: Tile | None = None) -> None:
        """Adds (B, C, n, rows, columns), frames ``start`` to ``start + n`` of one tile, or of whole frames.

        Frames beyond the end of the video are dropped.
        """
        target = self.video[:, :, start : start + piece.shape[2]]
        piece = piece[:, :, : target.shape[2]].to(target.device)
        if tile is None:
            target.copy_(piece)
        else:
            tile.cut(target, self._factor).add_(piece * self._weights[tile])


def tile_weights(spans: list[TileSpan], length: int, factor: int, *, blend: bool) -> list[torch.Tensor]:
    """Weights of every tile along one axis, in output pixels; over all tiles they sum to one everywhere.

    Args:
        spans: The tiles of the axis.
        length: Latent pixels of the axis.
        factor: Output pixels per latent pixel.
        blend: Fade linearly over what neighbours share, rather than cut where cores meet.

    Returns:
        For each tile a vector over the output pixels that it covers.
    """
    centres = (torch.arange(length * factor, dtype=torch.float32) + 0.5) / factor  # in latent pixels
    weights = []
    for index, span in enumerate(spans):
        if not blend:
            weight = ((centres > span.core_start) & (centres < span.core_stop)).float()
        else:
            weight = ((centres > span.start) & (centres < span.stop)).float()
            if index > 0 and (strip := spans[index - 1].stop - span.start):  # shared with the tile before
                weight = weight * _fade((centres - span.start) / strip)
            if index < len(spans) - 1 and (strip := span.stop - spans[index + 1].start):
                weight = weight * _fade((span.stop - centres) / strip)
        weights.append(weight)
    total = torch.stack(weights).sum(dim=0)  # not one where three tiles meet
    return [(weight / total)[span.scaled(factor)] for weight, span in zip(weights, spans, strict=True)]


def _fade(position: torch.Tensor) -> torch.Tensor:
    """From 0 to 1 over the middle half of 0..1; a tile is least true at its border, which should not be seen at all."""
    return (2 * position - 0.5).clamp(0, 1)


def _fewest_tiles(length: int, max_side: int, overlap: int) -> int:
    """The fewest tiles of an axis that are no longer than ``max_side``."""
    num_tiles = 1
    while max(span.length for span in tile_spans(length, num_tiles, overlap)) > max_side:
        num_tiles += 1
    return num_tiles
