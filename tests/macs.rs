//! Multiply-accumulates of a forward pass against the numbers that official code gives.

use candle_core::{DType, Device, Tensor};
use sconce::backbones::{ShapeRecorder, pretrained};
use sconce::ops::count_macs;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Millions for one input of the model's own size, by PyTorch's counter: products, attention and convolutions alone.
const OFFICIAL: &[(&str, f64)] = &[
    ("convmixer_1024_20_ks9_p14", 5950.0),
    ("convmixer_256_8_cifar10", 148.0),
    ("resnet18", 1814.1),
    ("vit_tiny_patch16_224", 1250.0),
];

#[test]
fn models_compute_as_much_as_the_official_ones() -> Outcome {
    for &(name, official) in OFFICIAL {
        let record = pretrained(name)?;
        let model = record.config.build(ShapeRecorder::default().vb())?;
        let shape = [vec![1], record.config.input_shape()].concat();
        let xs = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let (ys, macs) = count_macs(|| model.forward_t(&xs, false));
        ys?;
        let millions = macs as f64 / 1e6;
        println!("{name}: {millions:.2}");
        assert!((millions / official - 1.0).abs() < 0.005, "{name}: {millions:.2} instead of {official}");
    }
    Ok(())
}
