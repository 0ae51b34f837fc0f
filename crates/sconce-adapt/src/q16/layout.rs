//! Free places on a canvas.

use sconce_ops::Generator;

/// A canvas whose taken pixels can be counted in any rectangle at once.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    taken: Vec<bool>,
    /// `(height + 1, width + 1)`: taken pixels above and to the left.
    sums: Vec<u32>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        let sums = vec![0; (width + 1) * (height + 1)];
        Self { width, height, taken: vec![false; width * height], sums }
    }

    /// A place for a rectangle, every free one equally likely; `None` when there is none.
    pub(super) fn place(&self, width: usize, height: usize, generator: &Generator) -> Option<(usize, usize)> {
        let free = self.free(width, height).count();
        // Nothing is drawn for a rectangle that does not fit.
        (free > 0).then(|| self.free(width, height).nth(generator.index(free))).flatten()
    }

    fn free(&self, width: usize, height: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let stride = self.width + 1;
        let rows = (self.height + 1).saturating_sub(height);
        let columns = (self.width + 1).saturating_sub(width);
        (0..rows).flat_map(move |y| {
            let (top, bottom) = (&self.sums[y * stride..], &self.sums[(y + height) * stride..]);
            (0..columns).filter(move |&x| bottom[x + width] + top[x] == bottom[x] + top[x + width]).map(move |x| (x, y))
        })
    }

    /// Marks a rectangle that [`place`](Self::place) gave.
    pub(super) fn take(&mut self, (x, y): (usize, usize), width: usize, height: usize) {
        let stride = self.width + 1;
        for row in y..(y + height).min(self.height) {
            let end = (x + width).min(self.width);
            self.taken[row * self.width..][x..end].fill(true);
        }
        for row in y..self.height {
            let mut run = 0;
            for column in 0..self.width {
                run += u32::from(self.taken[row * self.width + column]);
                self.sums[(row + 1) * stride + column + 1] = self.sums[row * stride + column + 1] + run;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_found_and_then_none() {
        let mut canvas = Canvas::new(5, 4);
        let generator = Generator::new(1);
        canvas.take((0, 0), 5, 2);
        canvas.take((0, 2), 2, 2);
        canvas.take((4, 2), 1, 1);
        // Columns 2 and 3 of rows 2 and 3.
        assert_eq!(canvas.place(2, 2, &generator), Some((2, 2)));
        assert_eq!(canvas.place(3, 1, &generator), Some((2, 3)));
        assert_eq!(canvas.place(3, 2, &generator), None);
        assert_eq!(canvas.place(6, 1, &generator), None);
        canvas.take((2, 2), 2, 2);
        assert_eq!(canvas.free(1, 1).collect::<Vec<_>>(), [(4, 3)]);
    }
}
