//! Cutting a map of tokens into windows, and putting it together again.

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::TokenLayout;

/// Added to the score of two tokens that are neighbours only because the map was rolled. The official value: low enough
/// to leave next to nothing of the weight, and not minus infinity.
const HIDDEN: f32 = -100.0;

/// What becomes of a window on a map that is not larger than it. The official rules differ on maps that are not square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowFit {
    /// Microsoft's: where the shorter side of the map is not longer than the window, that side is the window's on both
    /// axes, and nothing is shifted.
    #[default]
    Square,
    /// timm's: each axis by itself.
    PerAxis,
}

impl WindowFit {
    /// Size and shift of the windows on a map; all numbers are `[rows, columns]`.
    ///
    /// ```
    /// use sconce_attention::WindowFit;
    ///
    /// assert_eq!(WindowFit::Square.apply([7, 7], [3, 3], [14, 7]), ([7, 7], [0, 0]));
    /// assert_eq!(WindowFit::PerAxis.apply([7, 7], [3, 3], [14, 7]), ([7, 7], [3, 0]));
    /// assert_eq!(WindowFit::PerAxis.apply([7, 7], [3, 3], [14, 4]), ([7, 4], [3, 0]));
    /// ```
    pub fn apply(self, size: [usize; 2], shift: [usize; 2], map: [usize; 2]) -> ([usize; 2], [usize; 2]) {
        let larger = [map[0] > size[0], map[1] > size[1]];
        match self {
            Self::Square if larger == [true; 2] => (size, shift),
            Self::Square => ([map[0].min(map[1]).min(size[0]).min(size[1]); 2], [0; 2]),
            Self::PerAxis => {
                let axis = |i: usize| if larger[i] { (size[i], shift[i]) } else { (map[i], 0) };
                let (rows, columns) = (axis(0), axis(1));
                ([rows.0, columns.0], [rows.1, columns.1])
            }
        }
    }
}

/// A map of tokens cut into windows, rolled before or not.
///
/// Convention: the map is rolled up and to the left by the shift, then filled up with zeros at the bottom and on the right
/// to a whole number of windows, as in timm. Windows and the tokens in a window follow each other row by row.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Where the tokens of the map stand.
    pub layout: TokenLayout,
    /// Rows and columns of a window.
    pub size: [usize; 2],
    /// Rows and columns that the map is rolled by.
    pub shift: [usize; 2],
    /// Rows and columns of windows.
    pub grid: [usize; 2],
    /// For each place in the windows its token in the map, the token after the last for padding; and the reverse. `None`
    /// when the map is one window: nothing moves.
    order: Option<(Tensor, Tensor)>,
}

impl Windows {
    /// Cuts a map into windows of `[rows, columns]`; `device` is where the tokens are.
    ///
    /// # Errors
    /// When there are tokens without a place on the map, or none, or when the shift is not less than the window.
    pub fn new(layout: TokenLayout, size: [usize; 2], shift: [usize; 2], device: &Device) -> Result<Self> {
        let TokenLayout { prefix, height, width } = layout;
        if prefix != 0 {
            bail!("windows: {prefix} tokens have no place on the map")
        }
        if layout.is_empty() || shift[0] >= size[0] || shift[1] >= size[1] {
            bail!("windows: no windows of {size:?}, shifted by {shift:?}, on a map of {height} x {width}")
        }
        let grid = [height.div_ceil(size[0]), width.div_ceil(size[1])];
        let mut windows = Self { layout, size, shift, grid, order: None };
        if size == [height, width] && shift == [0; 2] {
            return Ok(windows);
        }
        let tokens = (height * width) as u32;
        let mut places = Vec::with_capacity(windows.len() * windows.area());
        let mut inverse = vec![0u32; height * width];
        windows.for_each_place(|rolled| {
            let source = |axis: usize, n: usize| (rolled[axis] < n).then(|| (rolled[axis] + shift[axis]) % n);
            let token = match (source(0, height), source(1, width)) {
                (Some(y), Some(x)) => {
                    inverse[y * width + x] = places.len() as u32;
                    (y * width + x) as u32
                }
                _ => tokens,
            };
            places.push(token);
        });
        windows.order = Some((Tensor::new(places, device)?, Tensor::new(inverse, device)?));
        Ok(windows)
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// True when there is no window; there always is one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of a window.
    pub fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Row and column in the rolled and padded map, for each place in the windows in order.
    fn for_each_place(&self, mut visit: impl FnMut([usize; 2])) {
        let [[rows, columns], [height, width]] = [self.grid, self.size];
        for window in 0..rows * columns {
            let (top, left) = (window / columns * height, window % columns * width);
            for place in 0..height * width {
                visit([top + place / width, left + place % width]);
            }
        }
    }

    /// The tokens of each window.
    ///
    /// # Shapes
    /// - `xs` `(B, H W, C)`
    /// - output `(B windows, area, C)`
    ///
    /// # Errors
    /// When the tokens are not those of the layout.
    pub fn partition(&self, xs: &Tensor) -> Result<Tensor> {
        self.partition_padded(xs, None)
    }

    /// As [`partition`](Self::partition) with tokens `fill` `(C)` instead of zeros around the map.
    pub(crate) fn partition_padded(&self, xs: &Tensor, fill: Option<&Tensor>) -> Result<Tensor> {
        let (b, n, c) = xs.dims3()?;
        if n != self.layout.len() {
            bail!("windows: {n} tokens on a map of {} x {}", self.layout.height, self.layout.width)
        }
        let Some((places, _)) = &self.order else { return Ok(xs.clone()) };
        let xs = if places.dim(0)? > n {
            let fill = match fill {
                Some(fill) => fill.broadcast_as((b, 1, c))?,
                None => Tensor::zeros((b, 1, c), xs.dtype(), xs.device())?,
            };
            Tensor::cat(&[xs, &fill], 1)? // (B, N + 1, C)
        } else {
            xs.clone()
        };
        xs.contiguous()?.index_select(places, 1)?.reshape((b * self.len(), self.area(), c)) // (B windows, area, C)
    }

    /// The map of the tokens of all windows, without padding.
    ///
    /// # Shapes
    /// - `xs` `(B windows, area, C)`
    /// - output `(B, H W, C)`
    ///
    /// # Errors
    /// When the tokens are not those of whole maps.
    pub fn merge(&self, xs: &Tensor) -> Result<Tensor> {
        let (count, area, c) = xs.dims3()?;
        if area != self.area() || !count.is_multiple_of(self.len()) {
            bail!("windows: {count} windows of {area} tokens are no maps of {:?} windows of {:?}", self.grid, self.size)
        }
        let Some((_, inverse)) = &self.order else { return Ok(xs.clone()) };
        let b = count / self.len();
        let tokens = xs.reshape((b, self.len() * area, c))?.contiguous()?.index_select(inverse, 1)?; // (B, H W, C)
        // Looks idle; on the way back it makes the gradient contiguous, which that of `index_select` has to be.
        tokens.reshape((b, self.layout.len(), c))
    }

    /// What keeps tokens apart that only the roll has brought together: -100 for them and 0 for all others, `(windows,
    /// area, area)`. `None` without shift.
    ///
    /// # Errors
    /// When the mask does not fit the memory of the device.
    pub fn mask(&self, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        if self.shift == [0; 2] {
            return Ok(None);
        }
        let mut regions = Vec::with_capacity(self.len() * self.area());
        self.for_each_place(|place| {
            let band = |axis: usize| {
                let (size, shift) = (self.size[axis], self.shift[axis]);
                let end = self.grid[axis] * size;
                match place[axis] {
                    _ if shift == 0 => 0,
                    at if at < end - size => 0,
                    at if at < end - shift => 1,
                    _ => 2,
                }
            };
            regions.push(3 * band(0) + band(1));
        });
        let area = self.area();
        let mut mask = Vec::with_capacity(regions.len() * area);
        for window in regions.chunks_exact(area) {
            for query in window {
                mask.extend(window.iter().map(|key| if key == query { 0.0 } else { HIDDEN }));
            }
        }
        Tensor::from_vec(mask, (self.len(), area, area), device)?.to_dtype(dtype).map(Some)
    }
}
