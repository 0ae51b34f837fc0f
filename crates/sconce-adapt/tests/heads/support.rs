//! A small dual encoder of random weights that no gradient reaches.

use candle_core::{DType, Device, Tensor};
use sconce_adapt::{ClipAdapterConfig, PromptConfig, Result};
use sconce_clip::{Clip, ClipTokenizer, Config, TextConfig, TokenizerConfig, TransformerConfig, VitConfig};
use sconce_nn::ParamStore;
use sconce_ops::Generator;

pub(crate) const CPU: &Device = &Device::Cpu;
/// Width of the shared space.
pub(crate) const E: usize = 32;
/// Width of a token.
pub(crate) const C: usize = 16;
/// Tokens that the text tower takes.
pub(crate) const LENGTH: usize = 16;
pub(crate) const CLASSES: [&str; 3] = ["cat", "golden_retriever", "face"];

pub(crate) struct Tiny {
    pub(crate) model: Clip,
    pub(crate) tokenizer: ClipTokenizer,
    /// Every tensor of both towers.
    pub(crate) towers: ParamStore,
}

pub(crate) fn tiny(dtype: DType) -> Result<Tiny> {
    let transformer = TransformerConfig { heads: Some(2), ..TransformerConfig::new(C, 1) };
    let tokens = TokenizerConfig { merges: 3000, context_length: LENGTH, ..TokenizerConfig::default() };
    let text = TextConfig {
        context_length: LENGTH,
        vocab_size: tokens.vocab_size(),
        end_token: None,
        transformer: transformer.clone(),
    };
    let config = Config::vit(E, VitConfig { image_size: 16, patch_size: 8, transformer }, text);
    let towers = ParamStore::new(7, dtype, CPU);
    let model = Clip::new(&config, towers.vb_fixed())?;
    Ok(Tiny { model, tokenizer: ClipTokenizer::new(&tokens)?, towers })
}

impl Tiny {
    /// Features of random pictures, `(n, E)`.
    pub(crate) fn features(&self, n: usize, seed: u64) -> Result<Tensor> {
        let dtype = self.towers.dtype();
        let pictures = Generator::new(seed).normal(0.0, 1.0, (n, 3, 16, 16), dtype, CPU)?;
        Ok(self.model.encode_image(&pictures)?)
    }
}

pub(crate) fn two_tokens() -> PromptConfig {
    PromptConfig { n_ctx: 2, ..PromptConfig::default() }
}

pub(crate) fn both_adapters() -> ClipAdapterConfig {
    ClipAdapterConfig { dim: E, reduction: 4, visual_ratio: Some(0.2), text_ratio: Some(0.6) }
}

/// Bytes of every tensor by name.
pub(crate) fn bytes(store: &ParamStore) -> Result<Vec<(String, Vec<u8>)>> {
    let bytes = |param: sconce_nn::Param| {
        let values = param.var.as_tensor().flatten_all()?;
        let bytes = match values.dtype() {
            DType::F64 => values.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect(),
            DType::F32 => values.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
            DType::F16 => values.to_vec1::<half::f16>()?.into_iter().flat_map(half::f16::to_le_bytes).collect(),
            _ => values.to_vec1::<half::bf16>()?.into_iter().flat_map(half::bf16::to_le_bytes).collect(),
        };
        Ok((param.name.to_string(), bytes))
    };
    store.iter().map(bytes).collect()
}
