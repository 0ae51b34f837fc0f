//! Geometry of sliding windows, shared by convolution, pooling and unfold.
//!
//! Everything is written for three spatial axes (depth, height, width); one- and two-dimensional
//! operations carry leading axes of length 1.

use candle_core::{Result, Tensor};

use crate::Error;

/// A checked sliding window: every product and sum below is known not to overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Extent of the input (D, H, W).
    pub(crate) input: [usize; 3],
    pub(crate) kernel: [usize; 3],
    pub(crate) stride: [usize; 3],
    /// Padding before and, without ceiling, after each axis.
    pub(crate) padding: [usize; 3],
    pub(crate) dilation: [usize; 3],
    /// Extent of the output (D, H, W).
    pub(crate) output: [usize; 3],
}

/// What a window is made of before it is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowSpec<const R: usize> {
    pub(crate) input: [usize; R],
    pub(crate) kernel: [usize; R],
    pub(crate) stride: [usize; R],
    pub(crate) padding: [usize; R],
    pub(crate) dilation: [usize; R],
    /// Count a last, partial window too (PyTorch's `ceil_mode`).
    pub(crate) ceil: bool,
}

/// Buffers larger than this many elements are refused before anything is allocated.
const MAX_ELEMENTS: usize = isize::MAX as usize / 16;

/// Buffers larger than this many elements are asked for before anything is computed.
const PROBED: usize = 1 << 28;

/// Product of `factors`, refused when it could not be allocated.
pub(crate) fn element_count(op: &'static str, factors: &[usize]) -> Result<usize> {
    // Zeros are looked at last, so that `0 * huge` is refused like `huge` and no partial product wraps.
    let mut count = 1usize;
    for &factor in factors.iter().filter(|&&f| f != 0) {
        count = match count.checked_mul(factor) {
            Some(count) if count <= MAX_ELEMENTS => count,
            _ => {
                return Err(Error::value(op, "size", "a buffer that can be allocated", format!("{factors:?}")).into());
            }
        };
    }
    // Asked for and given back at once: an allocation that fails later would end the process.
    if count > PROBED && Vec::<f32>::new().try_reserve_exact(count).is_err() {
        return Err(Error::value(op, "size", "a buffer that fits the memory", format!("{factors:?}")).into());
    }
    Ok(if factors.contains(&0) { 0 } else { count })
}

impl Window {
    pub(crate) fn new<const R: usize>(op: &'static str, spec: &WindowSpec<R>) -> Result<Self> {
        let mut window =
            Self { input: [1; 3], kernel: [1; 3], stride: [1; 3], padding: [0; 3], dilation: [1; 3], output: [1; 3] };
        let lead = 3 - R;
        for axis in 0..R {
            let (input, kernel) = (spec.input[axis], spec.kernel[axis]);
            let (stride, padding) = (spec.stride[axis], spec.padding[axis]);
            let dilation = spec.dilation[axis];
            let numbers = [("input", input), ("kernel", kernel), ("stride", stride), ("dilation", dilation)];
            if let Some((arg, _)) = numbers.into_iter().find(|&(_, number)| number == 0) {
                return Err(Error::value(op, arg, "at least 1 along each spatial axis", 0).into());
            }
            let span = (kernel - 1).checked_mul(dilation).and_then(|s| s.checked_add(1));
            let padded = padding.checked_mul(2).and_then(|p| p.checked_add(input));
            let (Some(span), Some(padded)) = (span, padded) else {
                let value = format!("{kernel}, dilation {dilation}, padding {padding}");
                return Err(Error::value(op, "kernel", "a window that can be addressed", value).into());
            };
            if padded < span {
                let expected = format!("a window within {padded}, axis {axis} of {input} with its padding");
                return Err(Error::value(op, "kernel", expected, format!("{kernel} over {span}")).into());
            }
            let steps = padded - span;
            let mut output = steps / stride + 1;
            // A partial window counts only when it starts inside the input or its left padding.
            if spec.ceil
                && !steps.is_multiple_of(stride)
                && steps.div_ceil(stride).saturating_mul(stride) < input + padding
            {
                output += 1;
            }
            // One window takes no step: any stride is as good, and kernels are fastest with 1.
            let stride = if output == 1 { 1 } else { stride };
            let at = lead + axis;
            window.input[at] = input;
            window.kernel[at] = kernel;
            window.stride[at] = stride;
            window.padding[at] = padding;
            window.dilation[at] = dilation;
            window.output[at] = output;
        }
        Ok(window)
    }

    /// Number of window positions.
    pub(crate) fn positions(&self) -> usize {
        self.output.iter().product()
    }

    /// Number of elements of one window.
    pub(crate) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Number of elements of one input channel.
    pub(crate) fn volume(&self) -> usize {
        self.input.iter().product()
    }

    /// Positions `lo..hi` of the output along `axis` whose tap `tap` falls inside the input.
    pub(crate) fn valid(&self, axis: usize, tap: usize) -> (usize, usize) {
        let (stride, padding) = (self.stride[axis], self.padding[axis]);
        let offset = tap * self.dilation[axis];
        let lo = padding.saturating_sub(offset).div_ceil(stride);
        let end = self.input[axis] + padding; // first padded index after the input
        let hi = if end > offset { (end - offset - 1) / stride + 1 } else { 0 };
        let hi = hi.min(self.output[axis]);
        (lo.min(hi), hi)
    }

    /// Views of the input under each tap, in order of the taps: plain candle and differentiable.
    ///
    /// `xs` is `(B, C, D, H, W)`; each view is `(B, C, oD, oH, oW)`. What lies outside the input has the value `outside`.
    pub(crate) fn tap_views(&self, xs: &Tensor, outside: f64) -> Result<Vec<Tensor>> {
        let mut xs = xs.clone();
        for axis in 0..3 {
            // Enough to the right for the last window and for a whole stride after its first element.
            let reach = (self.kernel[axis] - 1) * self.dilation[axis] + self.output[axis] * self.stride[axis];
            let before = self.padding[axis];
            let after = reach.saturating_sub(before + self.input[axis]);
            xs = pad(&xs, axis + 2, before, after, outside)?;
        }
        let mut views = Vec::with_capacity(self.taps());
        for i in 0..self.kernel[0] {
            for j in 0..self.kernel[1] {
                for k in 0..self.kernel[2] {
                    let mut view = xs.clone();
                    for (axis, tap) in [i, j, k].into_iter().enumerate() {
                        view = self.step(&view, axis, tap)?;
                    }
                    views.push(view);
                }
            }
        }
        Ok(views)
    }

    /// Every `stride`-th element of one axis, from tap `tap` on.
    fn step(&self, xs: &Tensor, axis: usize, tap: usize) -> Result<Tensor> {
        let (dim, stride, output) = (axis + 2, self.stride[axis], self.output[axis]);
        let xs = xs.narrow(dim, tap * self.dilation[axis], output * stride)?;
        if stride == 1 {
            return Ok(xs);
        }
        let mut dims = xs.dims().to_vec();
        dims[dim] = output;
        dims.insert(dim + 1, stride);
        xs.reshape(dims)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1) // (.., output, stride) -> (.., output)
    }
}

/// Pads one axis with a constant; differentiable.
fn pad(xs: &Tensor, dim: usize, before: usize, after: usize, value: f64) -> Result<Tensor> {
    let constant = |len: usize| -> Result<Tensor> {
        let mut dims = xs.dims().to_vec();
        dims[dim] = len;
        Tensor::full(value as f32, dims, xs.device())?.to_dtype(xs.dtype())
    };
    let mut parts = Vec::with_capacity(3);
    if before > 0 {
        parts.push(constant(before)?);
    }
    parts.push(xs.clone());
    if after > 0 {
        parts.push(constant(after)?);
    }
    if parts.len() == 1 { Ok(xs.clone()) } else { Tensor::cat(&parts, dim) }
}

/// Inserts axes of length 1 before the spatial axes until there are three: `(B, C, ..)` to `(B, C, D, H, W)`.
pub(crate) fn to_5d(xs: &Tensor) -> Result<Tensor> {
    let mut xs = xs.clone();
    while xs.rank() < 5 {
        xs = xs.unsqueeze(2)?;
    }
    Ok(xs)
}

/// Removes the axes that [`to_5d`] inserted, down to `rank`.
pub(crate) fn from_5d(xs: &Tensor, rank: usize) -> Result<Tensor> {
    let mut xs = xs.clone();
    while xs.rank() > rank {
        xs = xs.squeeze(2)?;
    }
    Ok(xs)
}

impl Window {
    /// Transpose of [`Window::tap_views`]: adds up, at each input position, what each tap view holds for it.
    ///
    /// Each view is `(B, C, oD, oH, oW)`, the result `(B, C, D, H, W)`.
    pub(crate) fn place_views(&self, views: &[Tensor]) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        let [_, kh, kw] = self.kernel;
        for (at, view) in views.iter().enumerate() {
            let tap = [at / (kh * kw), at / kw % kh, at % kw];
            let mut placed = view.clone();
            for (axis, tap) in tap.into_iter().enumerate() {
                placed = self.spread(&placed, axis, tap)?;
            }
            total = Some(match total {
                Some(total) => (total + placed)?,
                None => placed,
            });
        }
        let mut total = total.ok_or_else(|| Error::value("window", "kernel", "at least one element", 0))?;
        for axis in 0..3 {
            total = total.narrow(axis + 2, self.padding[axis], self.input[axis])?;
        }
        Ok(total)
    }

    /// Puts the elements of one axis `stride` apart, from tap `tap` on, into an axis of zeros as long as the padded input.
    fn spread(&self, xs: &Tensor, axis: usize, tap: usize) -> Result<Tensor> {
        let (dim, stride, output) = (axis + 2, self.stride[axis], self.output[axis]);
        let mut xs = xs.clone();
        if stride > 1 {
            let mut dims = xs.dims().to_vec();
            dims[dim] = output * stride;
            xs = pad(&xs.unsqueeze(dim + 1)?, dim + 1, 0, stride - 1, 0.0)?.reshape(dims)?; // (.., output) -> (.., output * stride)
        }
        let before = tap * self.dilation[axis];
        let reach = (self.kernel[axis] - 1) * self.dilation[axis] + output * stride;
        let length = reach.max(2 * self.padding[axis] + self.input[axis]);
        pad(&xs, dim, before, length - before - output * stride, 0.0)
    }
}
