//! The operations of sconce-ops on the shapes that ViT-B/16, ResNet-50 and ConvMixer give them.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ops as candle;
use sconce_ops::{self as ops, Activation, AttentionOptions, ConvOptions, Generator};

use crate::measure::Case;

type Function = fn(&[Tensor]) -> Result<Tensor>;

/// Every case, forward and forward with backward.
pub(crate) fn cases() -> Result<Vec<Case>> {
    let mut all = Cases { generator: Generator::new(0), cases: Vec::new() };

    let norm = |x: &[Tensor]| ops::layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 1e-6);
    let shapes: &[&[usize]] = &[&[1576, 768], &[768], &[768]];
    all.forward("layer_norm", shapes, norm, |x| candle::layer_norm(&x[0], &x[1], &x[2], 1e-6))?;
    // Candle's fused norm and softmax pass no gradient, so their compositions train.
    all.backward("layer_norm", shapes, norm, |x| candle::layer_norm_slow(&x[0], &x[1], &x[2], 1e-6))?;

    let softmax = |x: &[Tensor]| ops::softmax(&x[0], 2);
    all.forward("softmax", &[&[96, 197, 197]], softmax, |x| candle::softmax_last_dim(&x[0]))?;
    all.backward("softmax", &[&[96, 197, 197]], softmax, |x| candle::softmax(&x[0], 2))?;

    all.both("gelu", &[&[1576, 3072]], |x| ops::gelu(&x[0]), |x| x[0].gelu_erf())?;
    all.both("gelu_tanh", &[&[1576, 3072]], |x| ops::gelu_tanh(&x[0]), |x| x[0].gelu())?;

    for [m, n, k] in [
        [1576, 768, 768],
        [1576, 3072, 768],
        [1576, 768, 3072],
        [197, 768, 768],
        [197, 2304, 768],
        [197, 3072, 768],
        [197, 768, 3072],
        [1, 1000, 768],
    ] {
        let shapes: &[&[usize]] = &[&[m, k], &[n, k], &[n]];
        let ours = |x: &[Tensor]| ops::linear(&x[0], &x[1], Some(&x[2]), None);
        all.both("linear", shapes, ours, |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]))?;
    }
    let shapes: &[&[usize]] = &[&[1576, 768], &[3072, 768], &[3072]];
    let ours = |x: &[Tensor]| ops::linear(&x[0], &x[1], Some(&x[2]), Some(Activation::Gelu));
    all.both("linear + gelu", shapes, ours, |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2])?.gelu_erf())?;

    for [b, h, n, d] in [[8, 12, 197, 64], [1, 12, 197, 64], [1, 12, 1024, 64], [64, 3, 49, 32]] {
        let shape = [b, h, n, d];
        let ours = |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], &AttentionOptions::default());
        all.forward("attention", &[&shape[..]; 3], ours, |x| attention(x, candle::softmax_last_dim))?;
        all.backward("attention", &[&shape[..]; 3], ours, |x| attention(x, |s| candle::softmax(s, 3)))?;
    }
    for [b, n, c] in [[8, 197, 768], [1, 197, 768]] {
        let ours = |x: &[Tensor]| ops::attention_packed(&x[0], 12, &AttentionOptions::default());
        all.forward("attention_packed", &[&[b, n, 3 * c]], ours, |x| packed(x, candle::softmax_last_dim))?;
        all.backward("attention_packed", &[&[b, n, 3 * c]], ours, |x| packed(x, |s| candle::softmax(s, 3)))?;
    }

    for [c, side] in [[64, 56], [128, 28], [256, 14], [512, 7]] {
        let same = |x: &[Tensor]| ops::conv2d(&x[0], &x[1], None, &ConvOptions::default().padding(1));
        all.both("conv 3x3", &[&[1, c, side, side], &[c, c, 3, 3]], same, |x| x[0].conv2d(&x[1], 1, 1, 1, 1))?;
    }
    let depthwise = |x: &[Tensor]| {
        let (channels, _, kernel, _) = x[1].dims4()?;
        ops::conv2d(&x[0], &x[1], None, &ConvOptions::default().padding(kernel / 2).groups(channels))
    };
    for [c, side, kernel] in [[768, 32, 9], [64, 56, 3], [320, 14, 5]] {
        all.both("depthwise", &[&[1, c, side, side], &[c, 1, kernel, kernel]], depthwise, |x| {
            let (channels, _, kernel, _) = x[1].dims4()?;
            x[0].conv2d(&x[1], kernel / 2, 1, 1, channels)
        })?;
    }

    let shapes: &[&[usize]] = &[&[8, 256, 28, 28], &[256], &[256]];
    let train = |x: &[Tensor]| Ok(ops::batch_norm_train(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)?.output);
    all.both("batch_norm_train", shapes, train, |x| {
        let mean = x[0].mean_keepdim((0, 2, 3))?;
        let centred = x[0].broadcast_sub(&mean)?;
        let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
        affine(&centred.broadcast_div(&(var + 1e-5)?.sqrt()?)?, &x[1], &x[2])
    })?;
    let shapes: &[&[usize]] = &[&[8, 256, 28, 28], &[256], &[256], &[256], &[256]];
    let eval = |x: &[Tensor]| ops::batch_norm(&x[0], Some(&x[1]), Some(&x[2]), &x[3], &x[4].sqr()?, 1e-5);
    all.forward("batch_norm", shapes, eval, |x| {
        let centred = x[0].broadcast_sub(&x[3].reshape((1, (), 1, 1))?)?;
        let deviation = (x[4].sqr()? + 1e-5)?.sqrt()?.reshape((1, (), 1, 1))?;
        affine(&centred.broadcast_div(&deviation)?, &x[1], &x[2])
    })?;
    Ok(all.cases)
}

fn affine(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (weight, bias) = (weight.reshape((1, (), 1, 1))?, bias.reshape((1, (), 1, 1))?);
    xs.broadcast_mul(&weight)?.broadcast_add(&bias)
}

fn attention(x: &[Tensor], softmax: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let scale = (x[0].dim(3)? as f64).powf(-0.5);
    let scores = (x[0].matmul(&x[1].t()?)? * scale)?;
    softmax(&scores)?.matmul(&x[2])
}

fn packed(x: &[Tensor], softmax: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (b, n, c3) = x[0].dims3()?;
    let qkv = x[0].reshape((b, n, 3, 12, c3 / 36))?.permute((2, 0, 3, 1, 4))?.contiguous()?; // (3, B, heads, N, D)
    let mixed = attention(&[qkv.get(0)?, qkv.get(1)?, qkv.get(2)?], softmax)?;
    mixed.transpose(1, 2)?.reshape((b, n, c3 / 3)) // (B, N, C)
}

struct Cases {
    generator: Generator,
    cases: Vec<Case>,
}

impl Cases {
    fn both(&mut self, op: &'static str, shapes: &[&[usize]], ours: Function, candle: Function) -> Result<()> {
        self.forward(op, shapes, ours, candle)?;
        self.backward(op, shapes, ours, candle)
    }

    fn forward(&mut self, op: &'static str, shapes: &[&[usize]], ours: Function, candle: Function) -> Result<()> {
        let inputs = self.inputs(shapes)?;
        let again = inputs.clone();
        self.push(op, shapes, "forward", Box::new(move || ours(&inputs)), Box::new(move || candle(&again)))
    }

    fn backward(&mut self, op: &'static str, shapes: &[&[usize]], ours: Function, candle: Function) -> Result<()> {
        let inputs = self.inputs(shapes)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<Tensor> = inputs.into_iter().map(Var::into_inner).collect();
        let step = |f: Function, inputs: Vec<Tensor>| {
            move || {
                let out = f(&inputs)?;
                let grads = out.backward()?;
                grads.get(&inputs[0]).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))
            }
        };
        let again = inputs.clone();
        self.push(op, shapes, "forward + backward", Box::new(step(ours, inputs)), Box::new(step(candle, again)))
    }

    fn inputs(&self, shapes: &[&[usize]]) -> Result<Vec<Tensor>> {
        let one = |(i, &shape): (usize, &&[usize])| {
            // Weights are scaled as trained ones are, so that activations get numbers of their usual size.
            let weight = i == 1 && shape.len() >= 2 && shape != shapes[0];
            let std = if weight { (shape[1..].iter().product::<usize>() as f64).powf(-0.5) } else { 1. };
            self.generator.normal(0., std, shape, DType::F32, &Device::Cpu)
        };
        shapes.iter().enumerate().map(one).collect()
    }

    fn push(
        &mut self,
        op: &'static str,
        shapes: &[&[usize]],
        pass: &'static str,
        ours: Box<dyn Fn() -> Result<Tensor>>,
        candle: Box<dyn Fn() -> Result<Tensor>>,
    ) -> Result<()> {
        // The parameters follow from the input, but for the first two, which a product needs.
        let shape = match (op, shapes) {
            ("linear" | "linear + gelu", [x, w, ..]) => format!("{}x{}x{}", x[0], w[0], x[1]),
            ("depthwise", [x, w]) => format!("{} {k}x{k}", join(x), k = w[2]),
            _ => join(shapes[0]),
        };
        self.cases.push(Case { op, shape, pass, ours, candle });
        Ok(())
    }
}

fn join(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}
