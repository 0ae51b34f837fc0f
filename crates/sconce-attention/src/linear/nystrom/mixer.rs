//! Nystromformer's attention as a mixer.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Conv2d, Dropout, Init, Linear, Module, ModuleT, VarBuilder};
use sconce_ops::ConvOptions;

use super::{NystromMatrices, NystromOptions, nystrom_attention, nystrom_matrices};
use crate::linear::projections::{checked, linear, merge_heads, split_heads};
use crate::{MixerSpec, Qkv, TokenMixer};

/// Sizes and options of a [`NystromAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NystromConfig {
    /// Channels of a token.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Channels of a head; `heads * dim_head` need not be `dim`.
    pub dim_head: usize,
    /// Taps of the depthwise convolution over tokens that is added to the result, an odd number; none without.
    pub residual_conv_kernel: Option<usize>,
    /// Dropout probability of the output.
    pub dropout: f64,
    /// Landmarks and pseudo-inverse.
    pub options: NystromOptions,
    /// How the weights start. Biases start at 0, and as in PyTorch where the weights do.
    pub init: Init,
}

impl NystromConfig {
    /// `dim / heads` channels a head, 64 landmarks, 33 taps, no dropout, started as in PyTorch. (lucidrains' own defaults are
    /// 8 heads of 64 channels and 256 landmarks.)
    pub fn new(dim: usize, heads: usize) -> Self {
        Self {
            dim,
            heads,
            dim_head: dim.checked_div(heads).unwrap_or(0),
            residual_conv_kernel: Some(33),
            dropout: 0.0,
            options: NystromOptions::default(),
            init: Init::TorchLinear,
        }
    }
}

impl From<&MixerSpec> for NystromConfig {
    /// The projection to queries, keys and values has no bias whatever the model's options say, and no attention weights are
    /// dropped: there are none.
    fn from(spec: &MixerSpec) -> Self {
        let init = Init::TruncNormal { std: 0.02 };
        Self { dropout: spec.proj_drop, init, ..Self::new(spec.dim, spec.heads) }
    }
}

/// [`nystrom_attention`] as a mixer, under the names of lucidrains' `NystromAttention`: `to_qkv`, `to_out.0`, `res_conv`.
/// A depthwise convolution of the values over the tokens is added. Cost in `N` tokens: linear.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct NystromAttention {
    /// To queries, keys and values, laid out `which | head | d`.
    pub to_qkv: Linear,
    /// From the merged heads to the output.
    pub to_out: Linear,
    /// Over `(B, heads, N, D)`: one filter a head, along the tokens.
    pub res_conv: Option<Conv2d>,
    /// Number of heads.
    pub heads: usize,
    /// Landmarks and pseudo-inverse.
    pub options: NystromOptions,
    /// Dropout of the output.
    pub dropout: Dropout,
}

impl NystromAttention {
    /// A mixer of these options.
    ///
    /// # Errors
    /// When a size is 0, the convolution's taps are an even number, or `vb` lacks a tensor.
    pub fn new(cfg: &NystromConfig, vb: VarBuilder) -> Result<Self> {
        let NystromConfig { dim, heads, dim_head, residual_conv_kernel, dropout, options, init } = *cfg;
        let inner = checked(dim, heads, dim_head)?;
        let Some(packed) = inner.checked_mul(3).filter(|_| options.landmarks > 0) else {
            bail!("nystrom attention: no {} landmarks of {inner} channels", options.landmarks)
        };
        let res_conv = match residual_conv_kernel {
            Some(taps) if taps.is_multiple_of(2) => {
                bail!("nystrom attention: a convolution of {taps} taps has no middle")
            }
            Some(taps) => {
                let around = ConvOptions { padding: [taps / 2, 0], groups: heads, ..Default::default() };
                let conv = sconce_nn::conv2d_no_bias(heads, heads, [taps, 1], around, vb.pp("res_conv"))?;
                Some(conv)
            }
            None => None,
        };
        Ok(Self {
            to_qkv: linear(dim, packed, false, init, vb.pp("to_qkv"))?,
            to_out: linear(inner, dim, true, init, vb.pp("to_out").pp(0))?,
            res_conv,
            heads,
            options,
            dropout: Dropout::new(dropout),
        })
    }

    /// Queries, keys and values, each `(B, heads, N, D)`.
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn project(&self, xs: &Tensor) -> Result<Qkv> {
        let qkv = self.to_qkv.forward(xs)?; // (B, N, 3 heads D)
        let inner = qkv.dim(2)? / 3;
        let part = |i: usize| split_heads(&qkv.narrow(2, i * inner, inner)?, self.heads);
        Ok(Qkv { q: part(0)?, k: part(1)?, v: part(2)? })
    }

    /// As [`TokenMixer::forward_t`] with a mask that keeps (1) or hides (0) tokens.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`, `mask` `(B, N)`
    ///
    /// # Errors
    /// When the input or the mask does not fit.
    pub fn forward_masked(&self, xs: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let (mixed, _) = self.mix(xs, mask)?;
        self.dropout.forward_t(&self.to_out.forward(&mixed)?, train)
    }

    /// What the last layer sees, `(B, N, heads D)`, and the values that the convolution sees, `(B, heads, N, D)`.
    ///
    /// # Errors
    /// When the input or the mask does not fit.
    pub fn mix(&self, xs: &Tensor, mask: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let Qkv { q, k, v } = self.project(xs)?;
        let mut mixed = nystrom_attention(&q, &k, &v, mask, &self.options)?;
        let v = match mask {
            Some(mask) => v.broadcast_mul(&mask.to_dtype(v.dtype())?.unsqueeze(1)?.unsqueeze(3)?)?,
            None => v,
        };
        if let Some(conv) = &self.res_conv {
            mixed = (mixed + conv.forward(&v)?)?;
        }
        Ok((merge_heads(&mixed)?, v))
    }

    /// The factors that stand for the matrix of attention weights.
    ///
    /// # Errors
    /// When the input or the mask does not fit.
    pub fn matrices(&self, xs: &Tensor, mask: Option<&Tensor>) -> Result<NystromMatrices> {
        let Qkv { q, k, .. } = self.project(xs)?;
        nystrom_matrices(&q, &k, mask, &self.options)
    }
}

impl TokenMixer for NystromAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_masked(xs, None, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::{assert_close, distance};

    fn small() -> NystromConfig {
        let options = NystromOptions { landmarks: 4, ..Default::default() };
        NystromConfig { dim_head: 5, options, dropout: 0.5, ..NystromConfig::new(12, 3) }
    }

    fn tokens(seed: u64) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, (2, 11, 12), DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn names_are_the_official_ones_and_every_parameter_trains() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let mixer = NystromAttention::new(&small(), store.vb()).unwrap();
        let ys = mixer.forward_t(&tokens(2), true).unwrap();
        let mut names = store.names();
        names.sort();
        assert_eq!(names, ["res_conv.weight", "to_out.0.bias", "to_out.0.weight", "to_qkv.weight"]);
        assert_eq!(store.get("res_conv.weight").unwrap().dims(), [3, 1, 33, 1]);
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for param in store.parameters() {
            assert!(grads.get(&param.var).is_some(), "{}", param.name);
        }
        let run = |seed, train| Generator::new(seed).scope(|| mixer.forward_t(&tokens(2), train).unwrap());
        assert_eq!(distance(&run(1, false), &run(2, false)), 0.0);
        assert!(distance(&run(1, true), &run(2, true)) > 1e-3);
    }

    #[test]
    fn a_mask_of_ones_changes_nothing_much_and_hidden_tokens_are_not_seen() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let mixer = NystromAttention::new(&small(), store.vb()).unwrap();
        let run = |xs: &Tensor, mask: &[u8]| {
            let mask = Tensor::from_slice(&[mask, mask].concat(), (2, 11), &Device::Cpu).unwrap();
            mixer.forward_masked(xs, Some(&mask), false).unwrap().narrow(1, 0, 8).unwrap()
        };
        // 11 tokens on 12 places: the padding counts without a mask and does not with one.
        let even = tokens(2).narrow(1, 0, 8).unwrap();
        let ones = Tensor::ones((2, 8), DType::U8, &Device::Cpu).unwrap();
        let plain = mixer.forward_t(&even, false).unwrap();
        assert_close(&mixer.forward_masked(&even, Some(&ones), false).unwrap(), &plain, 1e-6);
        let hidden = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0];
        let changed =
            Tensor::cat(&[tokens(2).narrow(1, 0, 8).unwrap(), tokens(3).narrow(1, 8, 3).unwrap()], 1).unwrap();
        assert!(distance(&run(&tokens(2), &hidden), &run(&changed, &hidden)) < 1e-12);
        assert!(distance(&run(&tokens(2), &[1; 11]), &run(&changed, &[1; 11])) > 1e-3);
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).vb();
        for bad in [
            NystromConfig { heads: 0, ..small() },
            NystromConfig { dim_head: 0, ..small() },
            NystromConfig { residual_conv_kernel: Some(4), ..small() },
            NystromConfig { options: NystromOptions { landmarks: 0, ..Default::default() }, ..small() },
        ] {
            assert!(NystromAttention::new(&bad, vb()).is_err(), "{bad:?}");
        }
        let without = NystromConfig { residual_conv_kernel: None, ..small() };
        assert!(NystromAttention::new(&without, vb()).unwrap().res_conv.is_none());
    }
}
