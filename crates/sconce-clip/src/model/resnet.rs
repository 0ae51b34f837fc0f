//! The modified ResNet tower of CLIP (Radford et al. 2021, section 2.4): three-layer stem, average pooling in place of strides
//! (Zhang 2019; He et al. 2019), attention in place of the last pooling.

use super::transformer::Dense;
use crate::config::ResNetConfig;
use candle_core::{Result, Tensor};
use sconce_nn::{BatchNorm, Init, ModuleT, VarBuilder, batch_norm, init::param};
use sconce_ops::{AttentionOptions, ConvOptions, PoolOptions, attention, avg_pool2d, conv2d, relu};

/// Widening inside a bottleneck.
const EXPANSION: usize = 4;

/// A convolution without bias and its batch norm.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    /// `(out, in, k, k)`.
    pub conv: Tensor,
    /// Over `out` channels.
    pub norm: BatchNorm,
    stride: usize,
}

impl ConvNorm {
    fn new(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        conv: VarBuilder,
        norm: VarBuilder,
    ) -> Result<Self> {
        let conv = param(&conv, (outputs, inputs, kernel, kernel), "weight", Init::TorchLinear)?;
        Ok(Self { conv, norm: batch_norm(outputs, norm)?, stride })
    }

    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let options = ConvOptions::<2>::default().stride(self.stride).padding(self.conv.dim(2)? / 2);
        self.norm.forward_t(&conv2d(xs, &self.conv, None, &options)?, train)
    }
}

/// 1x1, 3x3, pooling, 1x1, with a shortcut that is pooled and projected where the shape changes.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// The three convolutions.
    pub convs: [ConvNorm; 3],
    /// The projection of the shortcut.
    pub downsample: Option<ConvNorm>,
    /// By how much both paths are pooled.
    pub stride: usize,
}

impl Bottleneck {
    fn new(inputs: usize, planes: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let outputs = planes * EXPANSION;
        let conv = |i: usize, inputs, outputs, kernel| {
            ConvNorm::new(inputs, outputs, kernel, 1, vb.pp(format!("conv{i}")), vb.pp(format!("bn{i}")))
        };
        // The last norm starts at zero, so that a new block passes its input on.
        param(&vb.pp("bn3"), outputs, "weight", Init::Zeros)?;
        let convs = [conv(1, inputs, planes, 1)?, conv(2, planes, planes, 3)?, conv(3, planes, outputs, 1)?];
        let projects = stride > 1 || inputs != outputs;
        let vb = vb.pp("downsample");
        let downsample = projects.then(|| ConvNorm::new(inputs, outputs, 1, 1, vb.pp("0"), vb.pp("1"))).transpose()?;
        Ok(Self { convs, downsample, stride })
    }

    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let pool = |xs: Tensor| if self.stride > 1 { avg_pool2d(&xs, &PoolOptions::new(self.stride)) } else { Ok(xs) };
        let ys = relu(&first.forward_t(xs, train)?)?;
        let ys = relu(&second.forward_t(&ys, train)?)?;
        let ys = third.forward_t(&pool(ys)?, train)?;
        let shortcut = match &self.downsample {
            Some(projection) => projection.forward_t(&pool(xs.clone())?, train)?,
            None => xs.clone(),
        };
        relu(&(ys + shortcut)?)
    }
}

/// Attention of the mean token over all positions and itself.
#[derive(Clone, Debug)]
pub struct AttentionPool {
    /// `(1 + grid^2, C)`, mean token first.
    pub positional_embedding: Tensor,
    /// Queries, `(C, C)`.
    pub q_proj: Dense,
    /// Keys, `(C, C)`.
    pub k_proj: Dense,
    /// Values, `(C, C)`.
    pub v_proj: Dense,
    /// Output, `(E, C)`.
    pub c_proj: Dense,
    /// Heads.
    pub heads: usize,
}

impl AttentionPool {
    fn new(grid: usize, width: usize, heads: usize, embed_dim: usize, vb: VarBuilder) -> Result<Self> {
        let start = Init::Normal { mean: 0.0, std: (width as f64).powf(-0.5) };
        let dense = |name: &str, outputs: usize| {
            let bias = Init::torch_bias(&(outputs, width).into());
            Dense::new(width, outputs, ["weight", "bias"], start, bias, &vb.pp(name))
        };
        Ok(Self {
            positional_embedding: param(&vb, (1 + grid * grid, width), "positional_embedding", start)?,
            q_proj: dense("q_proj", width)?,
            k_proj: dense("k_proj", width)?,
            v_proj: dense("v_proj", width)?,
            c_proj: dense("c_proj", embed_dim)?,
            heads,
        })
    }

    /// `(B, C, H, W)` to `(B, E)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let tokens = xs.flatten_from(2)?.transpose(1, 2)?; // (B, H W, C)
        let tokens = Tensor::cat(&[tokens.mean_keepdim(1)?, tokens], 1)?; // (B, 1 + H W, C)
        let tokens = tokens.broadcast_add(&self.positional_embedding)?;
        let (batch, count, width) = tokens.dims3()?;
        let split = |xs: Tensor, n: usize| xs.reshape((batch, n, self.heads, width / self.heads))?.transpose(1, 2);
        let query = split(self.q_proj.forward(&tokens.narrow(1, 0, 1)?, None)?, 1)?; // (B, heads, 1, D)
        let keys = split(self.k_proj.forward(&tokens, None)?, count)?; // (B, heads, 1 + H W, D)
        let values = split(self.v_proj.forward(&tokens, None)?, count)?;
        let pooled = attention(&query, &keys, &values, &AttentionOptions::default())?; // (B, heads, 1, D)
        self.c_proj.forward(&pooled.reshape((batch, width))?, None)
    }
}

/// Stem, four stages of bottlenecks, attention pooling.
#[derive(Clone, Debug)]
pub struct ModifiedResNet {
    /// The three convolutions of the stem.
    pub stem: [ConvNorm; 3],
    /// `layer1` to `layer4`.
    pub stages: [Vec<Bottleneck>; 4],
    /// The head.
    pub attnpool: AttentionPool,
    /// Sizes.
    pub config: ResNetConfig,
}

impl ModifiedResNet {
    /// A tower whose names start at `vb`: `conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`, ...
    ///
    /// # Errors
    /// What `vb` cannot provide.
    pub fn new(config: &ResNetConfig, embed_dim: usize, vb: VarBuilder) -> Result<Self> {
        let width = config.width;
        let stem = |i: usize, inputs, outputs, stride| {
            ConvNorm::new(inputs, outputs, 3, stride, vb.pp(format!("conv{i}")), vb.pp(format!("bn{i}")))
        };
        let stage = |i: usize| -> Result<Vec<Bottleneck>> {
            let planes = width << i;
            let entry = if i == 0 { width } else { planes / 2 * EXPANSION };
            let block = |j: usize| {
                let (inputs, stride) =
                    if j == 0 { (entry, if i == 0 { 1 } else { 2 }) } else { (planes * EXPANSION, 1) };
                Bottleneck::new(inputs, planes, stride, vb.pp(format!("layer{}.{j}", i + 1)))
            };
            (0..config.depths[i]).map(block).collect()
        };
        Ok(Self {
            stem: [stem(1, 3, width / 2, 2)?, stem(2, width / 2, width / 2, 1)?, stem(3, width / 2, width, 1)?],
            stages: [stage(0)?, stage(1)?, stage(2)?, stage(3)?],
            attnpool: AttentionPool::new(config.grid(), width * 32, config.heads(), embed_dim, vb.pp("attnpool"))?,
            config: config.clone(),
        })
    }

    /// The stem: `(B, 3, S, S)` to `(B, width, S / 4, S / 4)`.
    ///
    /// # Errors
    /// For other shapes.
    pub fn forward_stem(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = images.clone();
        for layer in &self.stem {
            xs = relu(&layer.forward_t(&xs, train)?)?;
        }
        avg_pool2d(&xs, &PoolOptions::new(2))
    }

    /// The outputs of the stem and of each stage, at strides 4, 4, 8, 16 and 32.
    ///
    /// # Errors
    /// For other shapes than `(B, 3, S, S)`.
    pub fn forward_intermediates(&self, images: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let mut xs = self.forward_stem(images, train)?;
        let mut outputs = vec![xs.clone()];
        for stage in &self.stages {
            for block in stage {
                xs = block.forward_t(&xs, train)?;
            }
            outputs.push(xs.clone());
        }
        Ok(outputs)
    }

    /// The last feature map: `(B, 3, S, S)` to `(B, 32 width, S / 32, S / 32)`.
    ///
    /// # Errors
    /// For other shapes.
    pub fn forward_features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.forward_stem(images, train)?;
        for block in self.stages.iter().flatten() {
            xs = block.forward_t(&xs, train)?;
        }
        Ok(xs)
    }

    /// Attention pooling: `(B, 32 width, S / 32, S / 32)` to `(B, E)`.
    ///
    /// # Errors
    /// When `S` is not the configured size.
    pub fn forward_head(&self, features: &Tensor) -> Result<Tensor> {
        self.attnpool.forward(features)
    }
}
