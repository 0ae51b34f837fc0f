//! The options of any backbone.

use candle_core::Result;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::{Backbone, Pretrained};

/// What a family's options can do; [`BackboneConfig`] hands its own methods on to these.
pub(crate) trait ModelConfig {
    fn build(&self, vb: VarBuilder) -> Result<Box<dyn Backbone>>;

    /// Without the batch axis: `[C, H, W]`, of video models `[C, T, H, W]`.
    fn input_shape(&self) -> Vec<usize>;

    fn num_classes(&self) -> usize;

    fn set_num_classes(&mut self, num_classes: usize);

    /// Makes a file of the family's other flavours answer to the library's names.
    fn open(&self, file: Checkpoint) -> crate::Result<Checkpoint> {
        Ok(file)
    }

    /// What official files hold beyond the model, and what follows the model's size on loading.
    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        options
    }
}

macro_rules! families {
    ($($(#[$doc:meta])* $variant:ident($module:ident),)*) => {
        /// The options of any backbone.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "family", rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum BackboneConfig {
            $($(#[$doc])* $variant(crate::$module::Config),)*
        }

        impl BackboneConfig {
            fn options(&self) -> &dyn ModelConfig {
                match self {
                    $(Self::$variant(cfg) => cfg,)*
                }
            }

            fn options_mut(&mut self) -> &mut dyn ModelConfig {
                match self {
                    $(Self::$variant(cfg) => cfg,)*
                }
            }
        }

        $(impl From<crate::$module::Config> for BackboneConfig {
            fn from(cfg: crate::$module::Config) -> Self {
                Self::$variant(cfg)
            }
        })*

        /// The records of all families.
        pub(crate) fn models() -> Vec<Pretrained> {
            let families: &[fn() -> Vec<Pretrained>] = &[$(crate::$module::models,)*];
            families.iter().flat_map(|models| models()).collect()
        }
    };
}

families! {
    /// BOAT-Swin, BOAT-CSWin.
    Boat(boat),
    /// BViT.
    Bvit(bvit),
    /// ConvMixer.
    Convmixer(convmixer),
    /// CSWin.
    Cswin(cswin),
    /// CLTV, CNV, CPV.
    Cxv(cxv),
    /// EfficientNet-Lite.
    EfficientnetLite(efficientnet_lite),
    /// ResNet, ResNeXt, Wide ResNet.
    Resnet(resnet),
    /// Swin.
    Swin(swin),
    /// T2T-ViT.
    T2t(t2t),
    /// UniFormer: pictures, clips, dense prediction.
    Uniformer(uniformer),
    /// ViT, DeiT, DINO.
    Vit(vit),
}

impl BackboneConfig {
    /// The model of these options.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
        self.options().build(vb)
    }

    /// Shape of the input that the options are made for, without the batch axis: `[C, H, W]`, of video models
    /// `[C, T, H, W]`. Convolutional nets take any size.
    pub fn input_shape(&self) -> Vec<usize> {
        self.options().input_shape()
    }

    /// Height and width of the pictures that the options are made for.
    pub fn input_size(&self) -> (usize, usize) {
        match self.input_shape()[..] {
            [.., height, width] => (height, width),
            _ => (0, 0),
        }
    }

    /// Classes; 0 when there is no classifier.
    pub fn num_classes(&self) -> usize {
        self.options().num_classes()
    }

    /// The same options for another number of classes.
    pub fn with_num_classes(mut self, num_classes: usize) -> Self {
        self.options_mut().set_num_classes(num_classes);
        self
    }

    pub(crate) fn open(&self, file: Checkpoint) -> crate::Result<Checkpoint> {
        self.options().open(file)
    }

    pub(crate) fn load_options(&self) -> LoadOptions {
        self.options().load_options(LoadOptions::default())
    }
}
