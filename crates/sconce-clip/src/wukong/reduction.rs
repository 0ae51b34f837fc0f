//! Fewer image tokens, each a learned weighting of the grid (Ryoo et al. 2021, arXiv:2106.11297, version 1.1, as Wukong uses it).

use candle_core::{D, Result, Tensor, bail};
use sconce_nn::{Dropout, Init, LayerNorm, Module, ModuleT, VarBuilder, init::param, layer_norm};
use sconce_ops::{ConvOptions, conv1d, matmul, softmax};
use serde::{Deserialize, Serialize};

/// Options of a [`TokenReduction`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReductionConfig {
    /// Tokens that are left.
    pub tokens: usize,
    /// Groups of the 1x1 convolutions.
    pub groups: usize,
    /// Probability of dropping a number of the result in training.
    pub dropout: f64,
    /// Of the layer norm.
    pub eps: f64,
}

impl Default for ReductionConfig {
    fn default() -> Self {
        Self { tokens: 12, groups: 8, dropout: 0.0, eps: 1e-7 }
    }
}

/// `softmax(Conv(Conv_g(LN(x)))) Conv_g(x)`, with 1x1 convolutions without bias, `Conv_g` grouped, the softmax over places.
#[derive(Clone, Debug)]
pub struct TokenReduction {
    /// Before the maps.
    pub norm: LayerNorm,
    /// `(C, C / groups, 1, 1)` and `(tokens, C, 1, 1)`.
    pub attention_maps: [Tensor; 2],
    /// `(C, C / groups, 1, 1)`.
    pub feat_conv: Tensor,
    /// On the result.
    pub dropout: Dropout,
    /// Groups of `C`.
    pub groups: usize,
}

impl TokenReduction {
    /// A layer on tokens of `width` channels, named `norm`, `attention_maps.0`, `attention_maps.1`, `feat_conv` below `vb`.
    ///
    /// # Errors
    /// When the width does not divide into the groups, for no tokens; what `vb` cannot provide.
    pub fn new(cfg: &ReductionConfig, width: usize, vb: VarBuilder) -> Result<Self> {
        if cfg.tokens == 0 || cfg.groups == 0 || !width.is_multiple_of(cfg.groups) {
            bail!("token reduction: {} tokens, {width} channels in {} groups", cfg.tokens, cfg.groups)
        }
        if !(0.0..1.0).contains(&cfg.dropout) {
            bail!("token reduction: dropout is {}, a probability below 1 is needed", cfg.dropout)
        }
        let conv = |outputs: usize, groups: usize, name: &str| {
            param(&vb.pp(name), (outputs, width / groups, 1, 1), "weight", Init::TorchLinear)
        };
        Ok(Self {
            norm: layer_norm(width, cfg.eps, vb.pp("norm"))?,
            attention_maps: [conv(width, cfg.groups, "attention_maps.0")?, conv(cfg.tokens, 1, "attention_maps.1")?],
            feat_conv: conv(width, cfg.groups, "feat_conv")?,
            dropout: Dropout::new(cfg.dropout),
            groups: cfg.groups,
        })
    }

    /// How much each place of the grid weighs in each new token.
    ///
    /// # Shapes
    /// `(B, N, C)` to `(B, tokens, N)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn attention(&self, xs: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.attention_maps;
        let maps = pointwise(&self.norm.forward(xs)?.transpose(1, 2)?, first, self.groups)?; // (B, C, N)
        softmax(&pointwise(&maps, second, 1)?, D::Minus1)
    }
}

/// A 1x1 convolution over a grid that is laid out as a row: `(B, C, N)` to `(B, out, N)`.
fn pointwise(xs: &Tensor, weight: &Tensor, groups: usize) -> Result<Tensor> {
    conv1d(xs, &weight.squeeze(3)?, None, &ConvOptions::<1>::default().groups(groups))
}

impl ModuleT for TokenReduction {
    /// `(B, N, C)` to `(B, tokens, C)`.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let values = pointwise(&xs.transpose(1, 2)?, &self.feat_conv, self.groups)?.transpose(1, 2)?; // (B, N, C)
        self.dropout.forward_t(&matmul(&self.attention(xs)?, &values)?, train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use sconce_nn::ParamStore;
    use sconce_ops::Generator;

    #[test]
    fn gradients_agree_with_central_differences() -> Result<()> {
        let store = ParamStore::new(2, DType::F64, &Device::Cpu);
        let cfg = ReductionConfig { tokens: 2, groups: 2, ..Default::default() };
        let layer = TokenReduction::new(&cfg, 4, store.vb())?;
        let normal = |shape: &[usize], seed| Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu);
        let (xs, weight) = (normal(&[2, 3, 4], 1)?, normal(&[2, 2, 4], 2)?);
        let loss = || (layer.forward_t(&xs, false)? * &weight)?.sum_all();
        let grads = loss()?.backward()?;
        let mut compared = 0;
        for param in store.parameters() {
            let start = param.var.flatten_all()?.to_vec1::<f64>()?;
            let grad = grads.get(param.var.as_tensor()).map(|g| g.flatten_all()?.to_vec1::<f64>()).transpose()?;
            for (i, grad) in grad.unwrap_or_default().iter().enumerate() {
                let at = |step: f64| {
                    let mut moved = start.clone();
                    moved[i] += step;
                    param.var.set(&Tensor::from_vec(moved, param.var.shape(), &Device::Cpu)?)?;
                    loss()?.to_scalar::<f64>()
                };
                let slope = (at(1e-6)? - at(-1e-6)?) / 2e-6;
                assert!((grad - slope).abs() < 1e-7, "{} {i}: {grad} {slope}", param.name);
                compared += 1;
            }
            param.var.set(&Tensor::from_vec(start, param.var.shape(), &Device::Cpu)?)?;
        }
        assert_eq!(compared, store.count());
        Ok(())
    }

    #[test]
    fn options_that_do_not_fit_are_errors() {
        let new = |cfg: ReductionConfig| {
            let store = ParamStore::new(2, DType::F32, &Device::Cpu);
            TokenReduction::new(&cfg, 12, store.vb()).is_ok()
        };
        let good = ReductionConfig { tokens: 3, groups: 4, ..Default::default() };
        assert!(new(good.clone()));
        assert!(!new(ReductionConfig { groups: 5, ..good.clone() }));
        assert!(!new(ReductionConfig { groups: 0, ..good.clone() }));
        assert!(!new(ReductionConfig { tokens: 0, ..good.clone() }));
        assert!(!new(ReductionConfig { dropout: 1.0, ..good }));
    }
}
