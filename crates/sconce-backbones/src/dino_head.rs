//! The projection head of DINO (Caron et al. 2021, `arXiv:2104.14294`).

use candle_core::{D, Result, Tensor, bail};
use sconce_nn::{BatchNorm, Init, Linear, Module, ModuleT, VarBuilder, init};
use sconce_ops::{gelu, l2_normalize, linear};
use serde::{Deserialize, Serialize};

/// Options of a [`DinoHead`], named as in the official code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoHeadConfig {
    /// Channels of the backbone.
    pub in_dim: usize,
    /// Prototypes.
    #[serde(default = "DinoHeadConfig::out_dim")]
    pub out_dim: usize,
    /// Batch norm after each hidden layer.
    #[serde(default)]
    pub use_bn: bool,
    /// Linear layers before the prototypes; 0 counts as 1.
    #[serde(default = "DinoHeadConfig::nlayers")]
    pub nlayers: usize,
    /// Channels of the hidden layers.
    #[serde(default = "DinoHeadConfig::hidden_dim")]
    pub hidden_dim: usize,
    /// Channels of the unit vectors that meet the prototypes.
    #[serde(default = "DinoHeadConfig::bottleneck_dim")]
    pub bottleneck_dim: usize,
}

impl DinoHeadConfig {
    /// The published size: 65,536 prototypes, three layers of 2,048 and 256 channels.
    pub fn new(in_dim: usize) -> Self {
        Self {
            in_dim,
            out_dim: Self::out_dim(),
            use_bn: false,
            nlayers: Self::nlayers(),
            hidden_dim: Self::hidden_dim(),
            bottleneck_dim: Self::bottleneck_dim(),
        }
    }

    fn out_dim() -> usize {
        65_536
    }

    fn nlayers() -> usize {
        3
    }

    fn hidden_dim() -> usize {
        2048
    }

    fn bottleneck_dim() -> usize {
        256
    }
}

/// Features to prototype scores: an MLP, unit length, and a linear layer whose rows are `g * v / |v|`.
///
/// Names are the official ones: `mlp.{0,2,4}` (`mlp.{0,1,3,4,6}` with batch norm, `mlp` with one layer) and
/// `last_layer.weight_{g,v}`. DINO keeps `weight_g` at 1 (`norm_last_layer`): freeze `last_layer.weight_g` for that.
///
/// # Shapes
/// - input `(*, in_dim)`, with batch norm `(B, in_dim)`
/// - output `(*, out_dim)`
#[derive(Debug, Clone)]
pub struct DinoHead {
    /// Linear layers with their norms; GELU between them.
    pub mlp: Vec<(Linear, Option<BatchNorm>)>,
    /// Length of each prototype, `(out_dim, 1)`.
    pub weight_g: Tensor,
    /// Direction of each prototype, `(out_dim, bottleneck_dim)`.
    pub weight_v: Tensor,
}

impl DinoHead {
    /// A head of these options.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &DinoHeadConfig, vb: VarBuilder) -> Result<Self> {
        if [cfg.in_dim, cfg.out_dim, cfg.hidden_dim, cfg.bottleneck_dim].contains(&0) {
            bail!("dino head: no size may be 0, got {cfg:?}")
        }
        let layers = cfg.nlayers.max(1);
        let mut mlp = vec![];
        let mut index = 0; // position in the official `Sequential`, where norms and GELUs count
        for layer in 0..layers {
            let from = if layer == 0 { cfg.in_dim } else { cfg.hidden_dim };
            let last = layer + 1 == layers;
            let to = if last { cfg.bottleneck_dim } else { cfg.hidden_dim };
            let at = |index: usize| if layers == 1 { vb.pp("mlp") } else { vb.pp("mlp").pp(index) };
            let linear = Linear::with_init(from, to, true, Init::TruncNormal { std: 0.02 }, at(index))?;
            let bn = if cfg.use_bn && !last { Some(sconce_nn::batch_norm(to, at(index + 1))?) } else { None };
            index += 2 + usize::from(bn.is_some());
            mlp.push((linear, bn));
        }
        let vb = vb.pp("last_layer");
        let weight_g = init::param(&vb, (cfg.out_dim, 1), "weight_g", Init::Ones)?;
        let weight_v = init::param(&vb, (cfg.out_dim, cfg.bottleneck_dim), "weight_v", Init::TorchLinear)?;
        Ok(Self { mlp, weight_g, weight_v })
    }
}

impl ModuleT for DinoHead {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, (linear, bn)) in self.mlp.iter().enumerate() {
            xs = linear.forward(&xs)?;
            if let Some(bn) = bn {
                xs = bn.forward_t(&xs, train)?;
            }
            if i + 1 < self.mlp.len() {
                xs = gelu(&xs)?;
            }
        }
        let xs = l2_normalize(&xs, D::Minus1, 1e-12)?;
        // Prototypes of length zero have no direction and stay zero.
        let weight = l2_normalize(&self.weight_v, D::Minus1, 1e-30)?.broadcast_mul(&self.weight_g)?;
        linear(&xs, &weight, None, None)
    }
}
