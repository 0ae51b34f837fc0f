//! Windows of tokens, without shift and without mask.

use candle_core::{Result, Tensor};

/// Cuts a map of tokens into windows; zeros fill it up to whole windows at the right and at the bottom, and take part in
/// what happens inside.
///
/// # Shapes
/// - `xs` `(B, H * W, C)`, `size` `(H, W)`
/// - output `(B * windows, window * window, C)`
///
/// # Errors
/// When the tokens are not a map of this size or the window has none.
pub fn partition(xs: &Tensor, size: (usize, usize), window: usize) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    let ((h, w), (rows, columns)) = (size, counts(size, window)?);
    if n != h * w {
        candle_core::bail!("uniformer: {n} tokens are not a map of {h} x {w}")
    }
    let xs = xs.reshape((b, h, w, c))?; // (B, H, W, C)
    let xs = xs.pad_with_zeros(1, 0, rows * window - h)?.pad_with_zeros(2, 0, columns * window - w)?;
    let xs = xs.reshape((b, rows, window, columns, window * c))?.transpose(2, 3)?; // (B, rows, columns, window, window * C)
    xs.reshape((b * rows * columns, window * window, c))
}

/// The reverse of [`partition`].
///
/// # Shapes
/// - `xs` `(B * windows, window * window, C)`, `size` `(H, W)`
/// - output `(B, H * W, C)`
///
/// # Errors
/// When these are not the windows of maps of this size.
pub fn merge(xs: &Tensor, size: (usize, usize), window: usize) -> Result<Tensor> {
    let (count, _, c) = xs.dims3()?;
    let ((h, w), (rows, columns)) = (size, counts(size, window)?);
    let b = count / (rows * columns).max(1);
    let xs = xs.reshape((b, rows, columns, window, window * c))?.transpose(2, 3)?; // (B, rows, window, columns, window * C)
    let xs = xs.reshape((b, rows * window, columns * window, c))?;
    xs.narrow(1, 0, h)?.narrow(2, 0, w)?.flatten(1, 2) // (B, H * W, C)
}

/// Windows along each axis.
fn counts((h, w): (usize, usize), window: usize) -> Result<(usize, usize)> {
    if window == 0 {
        candle_core::bail!("uniformer: a window of no token")
    }
    Ok((h.div_ceil(window), w.div_ceil(window)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn windows_hold_neighbours_and_zeros_and_come_together_again() {
        let xs = Tensor::arange(1f32, 31., &Device::Cpu).unwrap().reshape((2, 15, 1)).unwrap(); // 3 x 5 tokens
        let windows = partition(&xs, (3, 5), 2).unwrap();
        assert_eq!(windows.dims(), [12, 4, 1]);
        let rows = windows.squeeze(2).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows[0], [1., 2., 6., 7.]);
        assert_eq!(rows[2], [5., 0., 10., 0.]);
        assert_eq!(rows[5], [15., 0., 0., 0.]);
        assert_eq!(rows[6], [16., 17., 21., 22.]);
        let back = merge(&windows, (3, 5), 2).unwrap();
        assert_eq!(back.to_vec3::<f32>().unwrap(), xs.to_vec3::<f32>().unwrap());
        assert!(partition(&xs, (4, 5), 2).is_err());
        assert!(partition(&xs, (3, 5), 0).is_err());
        assert!(merge(&Tensor::zeros((5, 4, 1), DType::F32, &Device::Cpu).unwrap(), (3, 5), 2).is_err());
    }
}
