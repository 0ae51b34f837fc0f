//! Performer as a mixer.

use candle_core::{Result, Tensor};
use sconce_nn::VarBuilder;

use super::{OrthogonalScaling, PerformerOptions, RandomProjection, default_features, performer_attention};
use crate::linear::{LinearAttentionConfig, Projections};
use crate::{MixerSpec, Qkv, TokenMixer};

/// Sizes and options of a [`PerformerAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerformerConfig {
    /// The layers around it.
    pub layers: LinearAttentionConfig,
    /// Number of random features; [`default_features`] of a head's channels when `None`.
    pub features: Option<usize>,
    /// Length of the random projection's rows.
    pub scaling: OrthogonalScaling,
    /// Kernel, stabiliser, causality.
    pub options: PerformerOptions,
}

impl PerformerConfig {
    /// The softmax kernel with the usual number of features over [`LinearAttentionConfig::new`].
    pub fn new(dim: usize, heads: usize) -> Self {
        Self::with_layers(LinearAttentionConfig::new(dim, heads))
    }

    fn with_layers(layers: LinearAttentionConfig) -> Self {
        Self { layers, features: None, scaling: OrthogonalScaling::Norms, options: PerformerOptions::default() }
    }
}

impl From<&MixerSpec> for PerformerConfig {
    fn from(spec: &MixerSpec) -> Self {
        Self::with_layers(spec.into())
    }
}

/// [`performer_attention`] as a mixer, under the names of lucidrains' `SelfAttention`: `to_q`, `to_k`, `to_v`, `to_out` and
/// the buffer `fast_attention.projection_matrix`. Cost in `N` tokens: linear.
///
/// The projection stays as it is unless a [`Redrawer`](super::Redrawer) is told to draw it anew.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct PerformerAttention {
    /// `to_q`, `to_k`, `to_v`, `to_out`.
    pub projections: Projections,
    /// The random projection.
    pub fast_attention: RandomProjection,
    /// Kernel, stabiliser, causality.
    pub options: PerformerOptions,
}

impl PerformerAttention {
    /// A mixer of these options.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &PerformerConfig, vb: VarBuilder) -> Result<Self> {
        let d = cfg.layers.dim_head;
        let features = cfg.features.unwrap_or_else(|| default_features(d));
        Ok(Self {
            projections: Projections::new(&cfg.layers, vb.clone())?,
            fast_attention: RandomProjection::new(features, d, cfg.scaling, vb.pp("fast_attention"))?,
            options: cfg.options,
        })
    }
}

impl TokenMixer for PerformerAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Qkv { q, k, v } = self.projections.qkv(xs, xs)?;
        self.projections.out(&performer_attention(&q, &k, &v, &self.fast_attention.get(), &self.options)?, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::distance;

    #[test]
    fn names_are_the_official_ones_and_every_parameter_trains() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let layers = LinearAttentionConfig { dim_head: 8, qkv_bias: true, ..LinearAttentionConfig::new(12, 3) };
        let cfg = PerformerConfig { layers, ..PerformerConfig::new(12, 3) };
        let mixer = PerformerAttention::new(&cfg, store.vb()).unwrap();
        let xs = Generator::new(2).normal(0.0, 1.0, (2, 9, 12), DType::F64, &Device::Cpu).unwrap();
        let ys = mixer.forward_t(&xs, true).unwrap();
        assert_eq!(ys.dims(), [2, 9, 12]);
        let mut names = store.names();
        names.sort();
        let layers =
            ["to_k", "to_out", "to_q", "to_v"].iter().flat_map(|l| [format!("{l}.bias"), format!("{l}.weight")]);
        let wanted: Vec<String> = ["fast_attention.projection_matrix".to_owned()].into_iter().chain(layers).collect();
        assert_eq!(names, wanted);
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for param in store.parameters() {
            assert!(grads.get(&param.var).is_some(), "{}", param.name);
        }
        assert_eq!(store.get("fast_attention.projection_matrix").unwrap().dims(), [16, 8]);
    }

    #[test]
    fn a_new_draw_changes_what_the_mixer_gives() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let mixer = PerformerAttention::new(&PerformerConfig::new(16, 2), store.vb()).unwrap();
        let xs = Generator::new(2).normal(0.0, 2.0, (1, 9, 16), DType::F64, &Device::Cpu).unwrap();
        let before = mixer.forward_t(&xs, false).unwrap();
        mixer.fast_attention.redraw(&Generator::new(5)).unwrap();
        assert!(distance(&mixer.forward_t(&xs, false).unwrap(), &before) > 1e-4);
    }
}
