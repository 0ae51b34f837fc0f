mod batch_norm;
mod conv;
mod dropout;
mod embedding;
mod layer_scale;
mod linear;
mod mlp;
mod norm;
mod patch_embed;

pub use batch_norm::{BatchNorm, batch_norm};
pub use conv::{
    Conv, Conv1d, Conv2d, Conv3d, Kernel, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, conv3d, conv3d_no_bias,
};
pub use dropout::{DropPath, Dropout, drop_path_rates};
pub use embedding::{Embedding, embedding};
pub use layer_scale::{LayerScale, layer_scale};
pub use linear::{Linear, linear, linear_no_bias};
pub use mlp::{Mlp, MlpOptions};
pub use norm::{GroupNorm, LayerNorm, RmsNorm, group_norm, layer_norm, rms_norm};
pub use patch_embed::{PatchEmbed, patch_embed};
