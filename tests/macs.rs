//! Multiply-accumulates of a forward pass against the numbers that official code gives.

use candle_core::{DType, Device, Tensor};
use sconce::backbones::{ShapeRecorder, pretrained};
use sconce::ops::count_macs;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Billions for one input of the model's own size, by PyTorch's counter, which looks at products, attention and
/// convolutions alone. Smaller models of each family, so that the test is quick.
const OFFICIAL: &[(&str, f64)] = &[
    ("boat_cswin_64_12211_tiny_224", 5.20),
    ("boat_swin_tiny_patch4_window7_224", 5.20),
    ("bvit_22m", 4.96),
    ("bvit_5m", 1.43),
    ("bvit_5m_stem", 0.30),
    ("cltv", 4.10),
    // Official code counts 1.77: it multiplies Nystrom's three factors from the left, this library from the right.
    ("cnv", 1.69),
    ("convmixer_1024_20_ks9_p14", 5.95),
    ("convmixer_256_8_cifar10", 0.148),
    ("cpv", 1.66),
    ("cswin_64_12211_tiny_224", 4.32),
    ("deit_tiny_distilled_patch16_224", 1.26),
    ("resnet18", 1.814),
    ("resnet50", 4.089),
    ("resnext50_32x4d", 4.23),
    ("swin_tiny_patch4_window7_224", 4.49),
    ("t2t_vit_7", 1.15),
    ("uniformer_small", 3.63),
    ("uniformer_small_plus", 4.20),
    ("vit_base_patch32_224", 4.41),
    ("vit_tiny_patch16_224", 1.25),
];

/// The larger models.
const OFFICIAL_LARGE: &[(&str, f64)] = &[
    ("boat_cswin_64_24322_small_224", 8.05),
    ("boat_cswin_96_24322_base_224", 17.59),
    ("boat_swin_base_patch4_window7_224", 17.96),
    ("boat_swin_small_patch4_window7_224", 10.22),
    ("bvit_22m_stem", 1.13),
    ("convmixer_1536_20", 51.10),
    ("convmixer_768_32", 20.68),
    ("cswin_144_24322_large_224", 33.13),
    ("cswin_64_24322_small_224", 6.80),
    ("cswin_96_24322_base_224", 14.96),
    ("deit_base_distilled_patch16_224", 17.66),
    ("deit_small_distilled_patch16_224", 4.62),
    ("dino_vitb16", 17.56),
    ("dino_vits16", 4.60),
    ("dino_vits8", 22.4),
    ("resnet101", 7.801),
    ("resnet152", 11.514),
    ("resnet34", 3.664),
    ("resnext101_32x8d", 16.414),
    ("swin_base_patch4_window7_224", 15.43),
    ("swin_large_patch4_window7_224", 34.48),
    ("swin_small_patch4_window7_224", 8.74),
    ("t2t_vit_10", 1.52),
    ("t2t_vit_12", 1.76),
    ("t2t_vit_14", 4.78),
    ("t2t_vit_19", 8.48),
    ("t2t_vit_24", 13.66),
    ("t2t_vit_t_14", 6.09),
    ("uniformer_base", 8.25),
    ("uniformer_base_k400_16x4", 96.55),
    ("uniformer_base_k400_8x8", 40.13),
    ("uniformer_base_ls", 8.25),
    ("uniformer_small_k400_16x4", 41.66),
    ("uniformer_small_k400_8x8", 17.57),
    ("vit_base_patch16_224", 17.56),
    ("vit_large_patch16_224", 61.56),
    ("vit_small_patch16_224", 4.60),
    ("wide_resnet101_2", 22.753),
    ("wide_resnet50_2", 11.398),
];

fn compare(official: &[(&str, f64)]) -> Outcome {
    let mut wrong = vec![];
    for &(name, official) in official {
        let record = pretrained(name)?;
        let model = record.config.build(ShapeRecorder::default().vb())?;
        let shape = [vec![1], record.config.input_shape()].concat();
        let xs = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let (ys, macs) = count_macs(|| model.forward_t(&xs, false));
        ys?;
        let billions = macs as f64 / 1e9;
        println!("{name:<34} {billions:>8.4} {official:>8}");
        if (billions / official - 1.0).abs() > 0.005 {
            wrong.push(format!("{name}: {billions:.4} instead of {official}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn models_compute_as_much_as_the_official_ones() -> Outcome {
    compare(OFFICIAL)
}

#[test]
#[ignore = "large models at their full size take a minute"]
fn large_models_compute_as_much_as_the_official_ones() -> Outcome {
    compare(OFFICIAL_LARGE)
}
