//! Fixed position embeddings.

use candle_core::{Device, Result, Shape, Tensor};
use sconce_nn::init::{CustomInit, Init};

/// Sines and cosines of positions, Vaswani et al. 2017 (`arXiv:1706.03762`), section 3.5: channel `2i` of position `p` is
/// `sin(p / 10000^(2i / C))`, channel `2i + 1` the cosine of the same.
///
/// # Shapes
/// - output `(1, positions, C)`, f64 on the CPU
///
/// # Errors
/// Candle's.
pub fn sinusoid(positions: usize, channels: usize) -> Result<Tensor> {
    let value = |p: usize, c: usize| {
        let angle = p as f64 / 10000f64.powf((c / 2 * 2) as f64 / channels as f64);
        if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let values: Vec<f64> = (0..positions).flat_map(|p| (0..channels).map(move |c| value(p, c))).collect();
    Tensor::from_vec(values, (1, positions, channels), &Device::Cpu)
}

/// As an initialiser of `(1, positions, C)`.
pub(super) const SINUSOID: Init = Init::Custom(CustomInit {
    name: "sinusoid",
    draw: |shape: &Shape, _| {
        let (_, positions, channels) = shape.dims3()?;
        sinusoid(positions, channels)
    },
    nearest: candle_nn::Init::Const(0.0),
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_definition() {
        let found = sinusoid(3, 4).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(found[0], [0.0, 1.0, 0.0, 1.0]);
        let want = [2f64.sin(), 2f64.cos(), 0.02f64.sin(), 0.02f64.cos()];
        assert!(found[2].iter().zip(want).all(|(f, w)| (f - w).abs() < 1e-15), "{found:?}");
    }
}
