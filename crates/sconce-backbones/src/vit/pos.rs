//! Position embeddings for another size.

use candle_core::{Result, Tensor, bail};
use sconce_nn::pos_embed::{resample_deit, resample_dino, resample_timm};

use super::{Config, PosResample};

impl PosResample {
    /// Resamples an embedding made for a square grid to `to` rows and columns. Differentiable.
    ///
    /// # Shapes
    /// - `pos` `(1, prefix + S * S, C)`, output `(1, prefix + to.0 * to.1, C)`
    ///
    /// # Errors
    /// When the shape is not as above; always under [`PosResample::Fixed`].
    pub fn apply(self, pos: &Tensor, prefix: usize, to: (usize, usize)) -> Result<Tensor> {
        match self {
            Self::Fixed => bail!("no rule to resample position embeddings to {to:?} patches; see `vit::PosResample`"),
            Self::Timm => resample_timm(pos, prefix, to),
            Self::Deit => resample_deit(pos, prefix, to),
            Self::Dino => resample_dino(pos, prefix, to),
        }
    }
}

impl Config {
    /// A hook for [`LoadOptions::resize`](sconce_nn::LoadOptions::resize) that brings `pos_embed` of a checkpoint for
    /// square pictures of another size to this configuration's, by `rule`.
    ///
    /// ```
    /// use sconce_backbones::vit::{Config, PosResample};
    /// use sconce_nn::LoadOptions;
    ///
    /// let cfg = Config { img_size: [384, 384], ..Config::vit_base_patch16_224() };
    /// let options = LoadOptions::default().resize(cfg.pos_embed_hook(PosResample::Timm));
    /// ```
    pub fn pos_embed_hook(
        &self,
        rule: PosResample,
    ) -> impl Fn(&str, &Tensor, &[usize]) -> Result<Option<Tensor>> + Send + Sync + 'static {
        let (prefix, to) = (self.num_prefix_tokens(), self.grid());
        move |name, found, wanted| {
            let &[1, tokens, channels] = found.dims() else { return Ok(None) };
            let side = tokens.saturating_sub(prefix).isqrt();
            if name != "pos_embed" || tokens != prefix + side * side || side == 0 || wanted.last() != Some(&channels) {
                return Ok(None);
            }
            rule.apply(found, prefix, to).map(Some)
        }
    }
}
