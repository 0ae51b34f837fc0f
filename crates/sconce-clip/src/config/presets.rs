//! The published models, by OpenAI's and by open_clip's names.

use super::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig, default_logit_scale};
use sconce_ops::Activation;

/// A published model: OpenAI's name for it and what makes its configuration.
pub type Preset = (&'static str, fn() -> Config);

/// The published models.
pub const PRESETS: &[Preset] = &[
    ("RN50", Config::rn50),
    ("RN101", Config::rn101),
    ("RN50x4", Config::rn50x4),
    ("RN50x16", Config::rn50x16),
    ("RN50x64", Config::rn50x64),
    ("ViT-B/32", Config::vit_b_32),
    ("ViT-B/16", Config::vit_b_16),
    ("ViT-L/14", Config::vit_l_14),
    ("ViT-L/14@336px", Config::vit_l_14_336),
];

impl Config {
    /// A published model by its name: OpenAI's (`ViT-B/32`, `ViT-L/14@336px`), or open_clip's (`ViT-B-32-quickgelu`; without
    /// the suffix, `ViT-B-32`, the same sizes with exact GELU).
    pub fn named(name: &str) -> Option<Self> {
        if let Some((_, make)) = PRESETS.iter().find(|(known, _)| *known == name) {
            return Some(make());
        }
        let (base, quick) = name.strip_suffix("-quickgelu").map_or((name, false), |base| (base, true));
        let open_clip = |known: &str| known.replace('/', "-").replace("@336px", "-336");
        let (_, make) = PRESETS.iter().find(|(known, _)| open_clip(known) == base)?;
        Some(if quick { make() } else { make().with_activation(Activation::Gelu) })
    }

    /// The same sizes with another activation in all MLPs.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.text.transformer.activation = activation;
        if let VisionConfig::Vit(vit) = &mut self.vision {
            vit.transformer.activation = activation;
        }
        self
    }

    /// The same model for square images of another size; a checkpoint's position embeddings are resampled when it is loaded.
    pub fn with_image_size(mut self, size: usize) -> Self {
        match &mut self.vision {
            VisionConfig::Vit(vit) => vit.image_size = size,
            VisionConfig::ResNet(resnet) => resnet.image_size = size,
        }
        self
    }

    /// A ViT tower and a text tower of any size, otherwise as OpenAI's.
    pub fn vit(embed_dim: usize, vit: VitConfig, text: TextConfig) -> Self {
        Self { embed_dim, vision: VisionConfig::Vit(vit), text, logit_scale_init: default_logit_scale() }
    }

    /// A modified ResNet tower and a text tower of any size, otherwise as OpenAI's.
    pub fn resnet(embed_dim: usize, resnet: ResNetConfig, text: TextConfig) -> Self {
        Self { embed_dim, vision: VisionConfig::ResNet(resnet), text, logit_scale_init: default_logit_scale() }
    }

    /// RN50: 102 M parameters, ImageNet zero-shot 59.8.
    pub fn rn50() -> Self {
        published_resnet(1024, 224, [3, 4, 6, 3], 64, 512)
    }

    /// RN101.
    pub fn rn101() -> Self {
        published_resnet(512, 224, [3, 4, 23, 3], 64, 512)
    }

    /// RN50x4.
    pub fn rn50x4() -> Self {
        published_resnet(640, 288, [4, 6, 10, 6], 80, 640)
    }

    /// RN50x16.
    pub fn rn50x16() -> Self {
        published_resnet(768, 384, [6, 8, 18, 8], 96, 768)
    }

    /// RN50x64.
    pub fn rn50x64() -> Self {
        published_resnet(1024, 448, [3, 15, 36, 10], 128, 1024)
    }

    /// ViT-B/32: ImageNet zero-shot 63.2 with 80 templates.
    pub fn vit_b_32() -> Self {
        published_vit(512, 224, 32, 768, 12, 512)
    }

    /// ViT-B/16: ImageNet zero-shot 68.3 with 80 templates.
    pub fn vit_b_16() -> Self {
        published_vit(512, 224, 16, 768, 12, 512)
    }

    /// ViT-L/14: ImageNet zero-shot 75.3 with 80 templates.
    pub fn vit_l_14() -> Self {
        published_vit(768, 224, 14, 1024, 24, 768)
    }

    /// ViT-L/14 at 336 pixels: ImageNet zero-shot 76.2 with 80 templates.
    pub fn vit_l_14_336() -> Self {
        Self::vit_l_14().with_image_size(336)
    }
}

fn text(width: usize) -> TextConfig {
    let transformer = TransformerConfig::new(width, 12);
    TextConfig { context_length: 77, vocab_size: 49408, end_token: None, transformer }
}

fn published_vit(
    embed_dim: usize,
    image_size: usize,
    patch_size: usize,
    width: usize,
    depth: usize,
    words: usize,
) -> Config {
    let transformer = TransformerConfig::new(width, depth);
    Config::vit(embed_dim, VitConfig { image_size, patch_size, transformer }, text(words))
}

fn published_resnet(embed_dim: usize, image_size: usize, depths: [usize; 4], width: usize, words: usize) -> Config {
    Config::resnet(embed_dim, ResNetConfig { image_size, depths, width, heads: None }, text(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clip;
    use candle_core::{DType, Device, Result, Shape, Tensor};
    use candle_nn::{VarBuilder, var_builder::SimpleBackend};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn presets_are_valid_and_named() {
        for (name, make) in PRESETS {
            let config = make();
            assert!(config.validate().is_ok(), "{name}");
            assert_eq!(Config::named(name), Some(config));
        }
        let [b32, quick] = ["ViT-B-32", "ViT-B-32-quickgelu"].map(Config::named);
        assert_eq!(quick, Some(Config::vit_b_32()));
        assert_eq!(b32.map(|c| c.text.transformer.activation), Some(Activation::Gelu));
        assert!(Config::named("ViT-Z-1").is_none());
    }

    /// Counts what is asked for and takes no memory: every tensor is one zero, repeated.
    struct Counter(Arc<AtomicUsize>);

    impl SimpleBackend for Counter {
        fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
            if !name.contains("running_") {
                self.0.fetch_add(shape.elem_count(), Ordering::Relaxed);
            }
            Tensor::zeros((), dtype, device)?.broadcast_as(shape)
        }

        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
            candle_core::bail!("{name} is asked for without a shape")
        }

        fn contains_tensor(&self, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn presets_have_the_published_number_of_parameters() -> Result<()> {
        let millions = [102.01, 119.69, 178.3, 290.98, 623.26, 151.28, 149.62, 427.62, 427.94];
        for ((name, make), expected) in PRESETS.iter().zip(millions) {
            let count = Arc::new(AtomicUsize::new(0));
            let backend = Box::new(Counter(count.clone()));
            Clip::new(&make(), VarBuilder::from_backend(backend, DType::F32, Device::Cpu))?;
            // The zero start of each bottleneck's last norm asks for its weight twice.
            let twice: usize = match make().vision {
                VisionConfig::Vit(_) => 0,
                VisionConfig::ResNet(r) => (0..4).map(|i| r.depths[i] * (r.width << i) * 4).sum(),
            };
            let found = (count.load(Ordering::Relaxed) - twice) as f64 / 1e6;
            assert!((found - expected).abs() < 0.0051, "{name}: {found} million");
        }
        Ok(())
    }
}
