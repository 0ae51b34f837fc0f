//! Vision transformers in Hugging Face's files.

use candle_core::{Result, bail};
use sconce_nn::{KeyMap, Source};
use sconce_ops::Activation;
use serde::Deserialize;

use super::{Config, PosResample};

/// Where Hugging Face's ViT and DeiT files hold what [`VisionTransformer`](super::VisionTransformer) asks for.
///
/// Files keep the classic names (`encoder.layer.0.attention.attention.query`), also those that newer versions of the
/// library write. Queries, keys and values are put together on reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HuggingFaceKeys {
    /// What stands before `embeddings.cls_token`: `vit.`, `deit.`, or nothing in files of a bare `ViTModel`.
    pub prefix: String,
}

impl HuggingFaceKeys {
    /// Finds the prefix among the names of a file.
    ///
    /// # Errors
    /// When no name ends in `embeddings.cls_token`.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        match names.into_iter().find_map(|name| name.strip_suffix("embeddings.cls_token")) {
            Some(prefix) => Ok(Self { prefix: prefix.into() }),
            None => bail!("vit: no `embeddings.cls_token` in the file: not a vision transformer of Hugging Face"),
        }
    }

    fn block(&self, rest: &str) -> Option<Source> {
        let (index, rest) = rest.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let layer = format!("{}encoder.layer.{index}", self.prefix);
        let name = match module {
            "norm1" => "layernorm_before",
            "norm2" => "layernorm_after",
            "attn.proj" => "attention.output.dense",
            "mlp.fc1" => "intermediate.dense",
            "mlp.fc2" => "output.dense",
            "attn.qkv" => {
                let part = |which| format!("{layer}.attention.attention.{which}.{kind}");
                return Some(Source::Concat { names: ["query", "key", "value"].map(part).to_vec(), dim: 0 });
            }
            _ => return None,
        };
        Some(Source::Tensor(format!("{layer}.{name}.{kind}")))
    }
}

impl KeyMap for HuggingFaceKeys {
    fn source(&self, name: &str) -> Source {
        let Self { prefix } = self;
        if let Some(rest) = name.strip_prefix("blocks.") {
            return self.block(rest).unwrap_or(Source::Missing);
        }
        let distilled = prefix == "deit.";
        let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        Source::Tensor(match module {
            "cls_token" => format!("{prefix}embeddings.cls_token"),
            "dist_token" => format!("{prefix}embeddings.distillation_token"),
            "pos_embed" => format!("{prefix}embeddings.position_embeddings"),
            "patch_embed.proj" => format!("{prefix}embeddings.patch_embeddings.projection.{kind}"),
            "norm" => format!("{prefix}layernorm.{kind}"),
            "head" if distilled => format!("cls_classifier.{kind}"),
            "head" => format!("classifier.{kind}"),
            "head_dist" => format!("distillation_classifier.{kind}"),
            _ => return Source::Missing,
        })
    }
}

/// The part of Hugging Face's `config.json` that shapes a ViT or DeiT.
///
/// Their default `layer_norm_eps` of 1e-12 comes along: weights that change family must keep their epsilon.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct HuggingFaceConfig {
    /// `vit` or `deit`.
    pub model_type: String,
    /// Classes that decide whether there is a classifier.
    pub architectures: Vec<String>,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Hidden channels of the MLP.
    pub intermediate_size: usize,
    /// Activation of the MLP.
    pub hidden_act: String,
    /// Dropout probability of tokens.
    pub hidden_dropout_prob: f64,
    /// Dropout probability of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Side of the picture.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Channels of the picture.
    pub num_channels: usize,
    /// Bias of queries, keys and values.
    pub qkv_bias: bool,
    /// Names of the classes, by number.
    pub id2label: std::collections::BTreeMap<String, String>,
}

impl Default for HuggingFaceConfig {
    fn default() -> Self {
        Self {
            model_type: "vit".into(),
            architectures: vec![],
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            layer_norm_eps: 1e-12,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            qkv_bias: true,
            id2label: (0..2).map(|i| (i.to_string(), format!("LABEL_{i}"))).collect(),
        }
    }
}

impl TryFrom<&HuggingFaceConfig> for Config {
    type Error = candle_core::Error;

    fn try_from(hf: &HuggingFaceConfig) -> Result<Self> {
        let act = match hf.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "quick_gelu" => Activation::GeluQuick,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => bail!("vit: activation `{other}` of the configuration is not known"),
        };
        let distilled = match hf.model_type.as_str() {
            "vit" => false,
            "deit" => true,
            other => bail!("vit: model type `{other}` of the configuration is not a ViT or DeiT"),
        };
        if hf.architectures.iter().any(|a| a == "DeiTForImageClassification") {
            bail!(
                "vit: a distilled DeiT with one classifier is not supported; use DeiTForImageClassificationWithTeacher"
            )
        }
        let classifies = hf.architectures.iter().any(|a| a.contains("ImageClassification"));
        Ok(Self {
            img_size: [hf.image_size; 2],
            patch_size: hf.patch_size,
            in_chans: hf.num_channels,
            num_classes: if classifies { hf.id2label.len() } else { 0 },
            embed_dim: hf.hidden_size,
            depth: hf.num_hidden_layers,
            num_heads: hf.num_attention_heads,
            mlp_ratio: hf.intermediate_size as f64 / hf.hidden_size.max(1) as f64,
            qkv_bias: hf.qkv_bias,
            distilled,
            norm_eps: hf.layer_norm_eps,
            act,
            pos_drop_rate: hf.hidden_dropout_prob,
            proj_drop_rate: hf.hidden_dropout_prob,
            attn_drop_rate: hf.attention_probs_dropout_prob,
            pos_resample: PosResample::Fixed,
            ..Self::vit_base_patch16_224()
        })
    }
}
