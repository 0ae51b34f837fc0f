//! Dense and grouped convolution on the CPU: windows packed into panels, times the weight, bias added on the way out.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::ConvShape;
use super::panel::{Columns, blocks};
use crate::lanes::{Lanes, MAX_ROWS, SPARE, VECTORS, aligned, block_product, block_rows};
use crate::shared::Shared;

/// Rows of the matrix of windows in a panel: with three registers of columns a block's share fits the first-level cache.
pub(super) const DEPTH: usize = 256;

/// Registers of columns in a tile: with [`DEPTH`] rows a tile's panel fits the second-level cache.
const TILE: usize = 12;

/// From this many tiles on, each packs for itself; fewer share their panels and are cut along the output channels too.
const MANY: usize = 8;

/// `xs` `(B, C, D, H, W)` and `weight` `(O, C / g, kD, kH, kW)`, both contiguous; returns `(B, O, oD, oH, oW)`.
pub(crate) fn forward<T: Lanes>(shape: &ConvShape, xs: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let shape = flattened(shape);
    let mut out = vec![T::zero(); shape.batch * shape.filters * shape.window.positions()];
    if out.is_empty() {
        return out;
    }
    let shared = Shared::new(&mut out);
    Arch::new().dispatch(Forward { shape, xs, weight, bias, out: &shared });
    out
}

/// A 1x1 convolution with stride 1 sees an image as one long row.
pub(super) fn flattened(shape: &ConvShape) -> ConvShape {
    let mut shape = *shape;
    let window = &mut shape.window;
    // A stride without a second step is stored as 1: only equal extents tell that every pixel is seen.
    if window.kernel == [1; 3] && window.padding == [0; 3] && window.input == window.output {
        window.input = [1, 1, window.volume()];
        window.output = window.input;
    }
    shape
}

struct Forward<'a, T> {
    shape: ConvShape,
    xs: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    out: &'a Shared<'a, T>,
}

/// A tile: its columns as registers, cut into blocks.
struct Tile {
    blocks: Vec<(Columns, Vec<Span>)>,
    vectors: usize,
}

/// Neighbouring columns of a block that belong to one image.
struct Span {
    at: usize,
    len: usize,
    image: usize,
    pixel: usize,
}

impl<T: Lanes> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let shape = &self.shape;
        let lanes = T::count::<S>();
        let pixels = shape.batch * shape.window.positions();
        let vectors = pixels.div_ceil(lanes);
        let tiles = vectors.div_ceil(TILE);
        let units = tiles * shape.groups;
        let tile = |at: usize| Tile::new(shape, at * vectors / tiles..(at + 1) * vectors / tiles, lanes, pixels);
        let filters = shape.filters / shape.groups;
        let depth = self.rows();
        if units >= MANY {
            (0..units).into_par_iter().for_each_init(Vec::new, |panel, unit| {
                let (group, tile) = (unit % shape.groups, tile(unit / shape.groups));
                panel.resize(tile.vectors * lanes * DEPTH.min(depth) + SPARE, T::zero());
                let start = aligned(panel);
                let panel = &mut panel[start..];
                for from in (0..depth).step_by(DEPTH) {
                    let rows = from..(from + DEPTH).min(depth);
                    simd.vectorize(Pack { job: &self, tile: &tile, group, rows: rows.clone(), panel });
                    simd.vectorize(Multiply { job: &self, tile: &tile, group, rows, filters: 0..filters, panel });
                }
            });
            return;
        }
        let tiles: Vec<Tile> = (0..tiles).map(tile).collect();
        let panels: Vec<(usize, usize, Range<usize>)> = (0..units)
            .flat_map(|unit| (0..depth).step_by(DEPTH).map(move |from| (unit, from)))
            .map(|(unit, from)| (unit / shape.groups, unit % shape.groups, from..(from + DEPTH).min(depth)))
            .collect();
        let packed: Vec<Vec<T>> = panels
            .par_iter()
            .map(|(tile, group, rows)| {
                let tile = &tiles[*tile];
                let mut panel = vec![T::zero(); tile.vectors * lanes * rows.len() + SPARE];
                let start = aligned(&panel);
                let target = &mut panel[start..];
                simd.vectorize(Pack { job: &self, tile, group: *group, rows: rows.clone(), panel: target });
                panel
            })
            .collect();
        // Enough pieces of each tile for the threads of a usual machine; the cut depends on shapes alone.
        let step = filters.div_ceil(16).next_multiple_of(MAX_ROWS);
        let pieces: Vec<(usize, Range<usize>)> = (0..units)
            .flat_map(|unit| (0..filters).step_by(step).map(move |from| (unit, from..(from + step).min(filters))))
            .collect();
        let per_unit = depth.div_ceil(DEPTH);
        pieces.par_iter().for_each(|(unit, filters)| {
            for at in unit * per_unit..(unit + 1) * per_unit {
                let (tile, group, rows) = &panels[at];
                simd.vectorize(Multiply {
                    job: &self,
                    tile: &tiles[*tile],
                    group: *group,
                    rows: rows.clone(),
                    filters: filters.clone(),
                    panel: &packed[at][aligned(&packed[at])..],
                });
            }
        });
    }
}

impl<T> Forward<'_, T> {
    /// Rows of one group's matrix of windows.
    fn rows(&self) -> usize {
        self.shape.channels / self.shape.groups * self.shape.window.taps()
    }
}

impl Tile {
    fn new(shape: &ConvShape, vectors: Range<usize>, lanes: usize, pixels: usize) -> Self {
        let per_image = shape.window.positions();
        let first = vectors.start * lanes;
        let blocks = blocks(vectors.len())
            .map(|block| {
                let start = first + block.start * lanes;
                let range = start..(first + block.end * lanes).min(pixels);
                let mut spans = Vec::new();
                let mut pixel = range.start;
                while pixel < range.end {
                    let len = (per_image - pixel % per_image).min(range.end - pixel);
                    spans.push(Span { at: pixel - start, len, image: pixel / per_image, pixel: pixel % per_image });
                    pixel += len;
                }
                (Columns::new(shape, range, block.len() * lanes), spans)
            })
            .collect();
        Self { blocks, vectors: vectors.len() }
    }
}

struct Pack<'a, T> {
    job: &'a Forward<'a, T>,
    tile: &'a Tile,
    group: usize,
    rows: Range<usize>,
    panel: &'a mut [T],
}

impl<T: Lanes> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut rest = self.panel;
        for (columns, _) in &self.tile.blocks {
            let (panel, after) = rest.split_at_mut(columns.width * self.rows.len());
            columns.pack(&self.job.shape, self.job.xs, self.group, self.rows.clone(), panel);
            rest = after;
        }
    }
}

/// Output channels `filters` of one group and all columns of a tile, from one panel.
struct Multiply<'a, T> {
    job: &'a Forward<'a, T>,
    tile: &'a Tile,
    group: usize,
    rows: Range<usize>,
    filters: Range<usize>,
    panel: &'a [T],
}

impl<T: Lanes> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, group, rows, .. } = self;
        let lanes = T::count::<S>();
        let (step, depth, total) = (block_rows::<T, S>(), rows.len(), job.rows());
        let (filters, pixels) = (job.shape.filters, job.shape.window.positions());
        let zeros = [T::zero(); DEPTH];
        let mut tile = [T::zero(); MAX_ROWS * VECTORS * 16];
        for from in self.filters.clone().step_by(step) {
            let count = step.min(self.filters.end - from);
            let filter = group * (filters / job.shape.groups) + from;
            let mut weights: [&[T]; MAX_ROWS] = [&zeros; MAX_ROWS];
            for (n, weight) in weights[..count].iter_mut().enumerate() {
                *weight = &job.weight[(filter + n) * total..][rows.clone()];
            }
            let mut panel = self.panel;
            for (columns, spans) in &self.tile.blocks {
                let width = columns.width;
                block_product(simd, width / lanes, depth, panel, &weights, &mut tile);
                panel = &panel[width * depth..];
                for n in 0..count {
                    let bias = job.bias.map_or(T::zero(), |bias| bias[filter + n]);
                    for span in spans {
                        let source = &tile[n * width + span.at..][..span.len];
                        let at = (span.image * filters + filter + n) * pixels + span.pixel;
                        // Tiles are disjoint in pixels, and pieces of a tile in output channels.
                        #[expect(unsafe_code, reason = "a tile's parts of the result are not one chunk")]
                        // SAFETY: see the line above; each span is left before the next is taken.
                        let target = unsafe { job.out.slice(at..at + span.len) };
                        if rows.start == 0 {
                            target.iter_mut().zip(source).for_each(|(t, &s)| *t = s + bias);
                        } else {
                            target.iter_mut().zip(source).for_each(|(t, &s)| *t = *t + s);
                        }
                    }
                }
            }
        }
    }
}
