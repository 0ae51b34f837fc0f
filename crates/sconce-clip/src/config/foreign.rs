//! Configuration files of other libraries: Hugging Face's `config.json` and open_clip's model configurations.

use super::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig};
use crate::{Error, Result};
use sconce_ops::Activation;
use serde::Deserialize;
use serde_json::Value;

impl Config {
    /// Reads a configuration in any of the dialects: our own, Hugging Face's (`vision_config`, `text_config`), open_clip's
    /// (`vision_cfg`, `text_cfg`, alone or under `model_cfg`).
    ///
    /// # Errors
    /// [`Error::Config`] for what is none of them, for options that this model does not have, and as [`Config::validate`].
    pub fn from_json(json: &Value) -> Result<Self> {
        let json = json.get("model_cfg").unwrap_or(json);
        let config = if json.get("vision_config").is_some() {
            hugging_face(parse(json, "Hugging Face")?)?
        } else if json.get("vision_cfg").is_some() {
            open_clip(json)?
        } else {
            parse(json.get("model").unwrap_or(json), "CLIP")?
        };
        config.validate()?;
        Ok(config)
    }
}

fn parse<T: for<'a> Deserialize<'a>>(json: &Value, dialect: &str) -> Result<T> {
    T::deserialize(json).map_err(|e| Error::Config(format!("not a {dialect} configuration: {e}")))
}

fn ratio(hidden: usize, width: usize) -> f64 {
    hidden as f64 / width.max(1) as f64
}

#[derive(Deserialize)]
struct HfConfig {
    vision_config: HfTower,
    #[serde(default)]
    text_config: HfTower,
    projection_dim: Option<usize>,
    logit_scale_init_value: Option<f64>,
}

/// Either tower; what a file leaves out has the library's default, which differs between the towers.
#[derive(Default, Deserialize)]
struct HfTower {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    vocab_size: Option<usize>,
    eos_token_id: Option<u32>,
}

impl HfTower {
    fn transformer(&self, width: usize, depth: usize, heads: usize) -> Result<TransformerConfig> {
        let default = width;
        let width = self.hidden_size.unwrap_or(default);
        let activation = match self.hidden_act.as_deref() {
            None | Some("quick_gelu") => Activation::GeluQuick,
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("silu" | "swish") => Activation::Silu,
            Some(other) => return Err(Error::Config(format!("the activation {other:?} is not known"))),
        };
        Ok(TransformerConfig {
            heads: Some(self.num_attention_heads.unwrap_or(heads)),
            mlp_ratio: ratio(self.intermediate_size.unwrap_or(4 * default), width),
            activation,
            eps: self.layer_norm_eps.unwrap_or(1e-5),
            ..TransformerConfig::new(width, self.num_hidden_layers.unwrap_or(depth))
        })
    }
}

fn hugging_face(config: HfConfig) -> Result<Config> {
    let (vision, text) = (&config.vision_config, &config.text_config);
    let vit = VitConfig {
        image_size: vision.image_size.unwrap_or(224),
        patch_size: vision.patch_size.unwrap_or(32),
        transformer: vision.transformer(768, 12, 12)?,
    };
    // Files from before the rule was fixed say 2, and mean the largest id.
    let end_token = text.eos_token_id.filter(|id| *id != 2);
    let words = TextConfig {
        context_length: text.max_position_embeddings.unwrap_or(77),
        vocab_size: text.vocab_size.unwrap_or(49408),
        end_token,
        transformer: text.transformer(512, 12, 8)?,
    };
    let logit_scale_init = config.logit_scale_init_value.unwrap_or(2.6592);
    Ok(Config { logit_scale_init, ..Config::vit(config.projection_dim.unwrap_or(512), vit, words) })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    Vit(usize),
    ResNet([usize; 4]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenClip {
    embed_dim: usize,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
    #[serde(default)]
    quick_gelu: bool,
    init_logit_scale: Option<f64>,
    // `CustomTextCLIP` holds the same towers under other names, which loading understands.
    #[serde(default, rename = "custom_text")]
    _custom_text: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenClipVision {
    image_size: usize,
    layers: Layers,
    width: usize,
    patch_size: Option<usize>,
    #[serde(default = "head_width")]
    head_width: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
    // Drops patches in training; of no effect otherwise.
    #[serde(default, rename = "patch_dropout")]
    _patch_dropout: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenClipText {
    #[serde(default = "context_length")]
    context_length: usize,
    #[serde(default = "vocab_size")]
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
}

fn head_width() -> usize {
    64
}

fn mlp_ratio() -> f64 {
    4.0
}

fn context_length() -> usize {
    77
}

fn vocab_size() -> usize {
    49408
}

fn open_clip(json: &Value) -> Result<Config> {
    let config: OpenClip = parse(json, "supported open_clip")?;
    let (vision, text) = (config.vision_cfg, config.text_cfg);
    let activation = if config.quick_gelu { Activation::GeluQuick } else { Activation::Gelu };
    let words = TransformerConfig {
        heads: Some(text.heads),
        mlp_ratio: text.mlp_ratio,
        activation,
        ..TransformerConfig::new(text.width, text.layers)
    };
    let words = TextConfig {
        context_length: text.context_length,
        vocab_size: text.vocab_size,
        end_token: None,
        transformer: words,
    };
    let vision = match (vision.layers, vision.patch_size) {
        (Layers::Vit(depth), Some(patch_size)) => {
            // A head of width 0 gives no heads, which is refused.
            let heads = Some(vision.width.checked_div(vision.head_width).unwrap_or(0));
            let transformer = TransformerConfig {
                heads,
                mlp_ratio: vision.mlp_ratio,
                activation,
                ..TransformerConfig::new(vision.width, depth)
            };
            VisionConfig::Vit(VitConfig { image_size: vision.image_size, patch_size, transformer })
        }
        (Layers::ResNet(depths), None) => {
            let heads = Some(vision.width.saturating_mul(32).checked_div(vision.head_width).unwrap_or(0));
            VisionConfig::ResNet(ResNetConfig { image_size: vision.image_size, depths, width: vision.width, heads })
        }
        _ => return Err(Error::Config("a ViT has a number of layers and a patch size, a ResNet four and none".into())),
    };
    let logit_scale_init = config.init_logit_scale.unwrap_or_else(super::default_logit_scale);
    Ok(Config { embed_dim: config.embed_dim, vision, text: words, logit_scale_init })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dialects_of_the_same_model() -> Result<()> {
        let expected = Config::vit_b_32();
        let hf = json!({"projection_dim": 512, "vision_config": {"patch_size": 32},
            "text_config": {"eos_token_id": 2, "hidden_act": "quick_gelu"}, "model_type": "clip"});
        let open_clip = json!({"model_cfg": {"embed_dim": 512, "quick_gelu": true,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}}});
        let ours = serde_json::to_value(&expected).map_err(|e| Error::Config(e.to_string()))?;
        for json in [hf, open_clip, json!({"model": ours}), ours] {
            let mut config = Config::from_json(&json)?;
            config.logit_scale_init = expected.logit_scale_init;
            let VisionConfig::Vit(vit) = &mut config.vision else { return Err(Error::Config("no ViT".into())) };
            assert_eq!((vit.transformer.heads(), config.text.transformer.heads()), (12, 8));
            vit.transformer.heads = None;
            config.text.transformer.heads = None;
            assert_eq!(config, expected);
        }
        let rn = json!({"embed_dim": 1024, "quick_gelu": true,
            "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": null},
            "text_cfg": {"width": 512, "heads": 8, "layers": 12}});
        assert_eq!(Config::from_json(&rn)?.vision.image_size(), 224);
        Ok(())
    }

    #[test]
    fn hostile_configurations_are_refused() {
        let vision = |vision: Value| json!({"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"width": 64, "heads": 1, "layers": 1}});
        for json in [
            json!(null),
            json!([1, 2]),
            json!({}),
            json!({"vision_config": 3}),
            json!({"vision_config": {"hidden_size": 0}}),
            json!({"vision_config": {"patch_size": 0}}),
            json!({"vision_config": {"num_hidden_layers": 1e18}}),
            json!({"vision_config": {"hidden_size": 18446744073709551615u64}}),
            json!({"vision_config": {"hidden_act": "magic"}}),
            json!({"vision_config": {"num_attention_heads": 7}}),
            vision(json!({"image_size": 32, "layers": 1, "width": 64})),
            vision(json!({"image_size": 32, "layers": [1, 1, 1], "width": 64})),
            vision(json!({"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 0})),
            vision(json!({"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "attentional_pool": true})),
            vision(json!({"image_size": 33, "layers": [1, 1, 1, 1], "width": 64})),
            vision(json!({"image_size": 60000, "layers": 60000, "width": 64000, "patch_size": 60000})),
        ] {
            assert!(matches!(Config::from_json(&json), Err(Error::Config(_))), "{json}");
        }
    }
}
