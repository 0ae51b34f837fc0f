use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

fn draw_options(draw: &mut Draw) -> ResizeOptions {
    let mode = draw.pick(&[ResizeMode::Nearest, ResizeMode::Bilinear, ResizeMode::Bicubic]);
    let mut options = match draw.bool() {
        true => ResizeOptions::size(draw.int(1..=24), draw.int(1..=40)),
        false => ResizeOptions::factor(draw.int(5..=30) as f64 * 0.1, draw.int(5..=30) as f64 * 0.1),
    };
    if mode != ResizeMode::Nearest {
        options = options.antialias(draw.bool()).align_corners(draw.int(0..=3) == 0);
    }
    if draw.int(0..=3) == 0 {
        options = options.scale(1.3, 0.7);
    }
    options.mode(mode)
}

/// The resize as two dense matrix products.
fn reference(xs: &Tensor, options: &ResizeOptions, single: bool) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    let Resolved { height: oh, width: ow, scale } = options.resolve(h, w)?;
    let rows = weights::band(options, h, oh, scale.map(|s| s.0), single);
    let columns = weights::band(options, w, ow, scale.map(|s| s.1), single);
    banded::reference(xs, &rows, &columns)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agrees_with_the_reference(seed: u64) {
        let draw = &mut Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
        let shape = [draw.int(1..=2), draw.int(1..=3), draw.int(2..=24), draw.int(2..=40)];
        let options = draw_options(draw);
        let xs = strided(draw, &shape, dtype).unwrap();
        let wide = xs.to_dtype(DType::F64).unwrap();
        let single = dtype != DType::F64;
        let got = resize(&xs, &options).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        assert_close(&got, &reference(&wide, &options, single).unwrap(), tolerance(dtype));
        if matches!(dtype, DType::F32 | DType::F64) {
            let cotangent = draw.normal(got.dims(), DType::F64).unwrap();
            let ours = gradients(&[xs], &cotangent, |t| resize(&t[0], &options)).unwrap();
            let want = gradients(&[wide], &cotangent, |t| reference(&t[0], &options, single)).unwrap();
            assert_close(&ours[0], &want[0], tolerance(dtype));
        }
    }

    /// A constant image stays constant: the weights of every pixel add up to one.
    #[test]
    fn keeps_constants(seed: u64) {
        let draw = &mut Draw::new(seed);
        let options = draw_options(draw);
        let xs = Tensor::ones((1, 1, draw.int(2..=24), draw.int(2..=24)), DType::F64, &Device::Cpu).unwrap();
        let ys = resize(&xs, &options).unwrap();
        assert_close(&ys, &ys.ones_like().unwrap(), 1e-12);
    }
}

#[test]
fn gradients_are_central_differences() -> Result<()> {
    let draw = &mut Draw::new(6);
    let xs = [draw.normal(&[1, 2, 4, 5], DType::F64)?];
    for mode in [ResizeMode::Nearest, ResizeMode::Bilinear, ResizeMode::Bicubic] {
        for (h, w) in [(7, 9), (2, 3), (4, 8)] {
            let options = ResizeOptions::size(h, w).mode(mode);
            check_gradients(&xs, |t| resize(&t[0], &options));
            if mode != ResizeMode::Nearest {
                check_gradients(&xs, |t| resize(&t[0], &options.antialias(true)));
                check_gradients(&xs, |t| resize(&t[0], &options.align_corners(true)));
            }
        }
    }
    Ok(())
}

/// Values of `torch.nn.functional.interpolate`, PyTorch 2.15 on the CPU, for `arange(12).reshape(3, 4)^2 / 10`.
#[test]
fn equals_pytorch() -> Result<()> {
    let xs = Tensor::arange(0f32, 12., &Device::Cpu)?.sqr()?.affine(0.1, 0.)?.reshape((1, 1, 3, 4))?;
    let bicubic = |options: ResizeOptions| options.mode(ResizeMode::Bicubic);
    let check = |options: ResizeOptions, size: [usize; 2], want: &[f32]| -> Result<()> {
        let ys = resize(&xs, &options)?;
        assert_eq!(ys.dims()[2..], size, "{options:?}");
        let got = ys.flatten_all()?.to_vec1::<f32>()?;
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 3e-6), "{options:?}: {got:?} instead of {want:?}");
        Ok(())
    };
    check(
        ResizeOptions::size(4, 7),
        [4, 7],
        &[
            0.0, 0.035714, 0.092857, 0.25, 0.435714, 0.721429, 0.9, 1.0, 1.214286, 1.557143, 2.0, 2.471429, 3.042857,
            3.4, 3.4, 3.828571, 4.514286, 5.3, 6.114286, 7.028572, 7.6, 6.4, 7.007143, 7.978571, 9.05, 10.150001,
            11.349999, 12.1,
        ],
    )?;
    check(
        bicubic(ResizeOptions::size(4, 7)),
        [4, 7],
        &[
            -0.119068, -0.115254, -0.085907, 0.011523, 0.20684, 0.477003, 0.656802, 0.444122, 0.630071, 0.956515,
            1.344336, 1.830043, 2.397303, 2.759237, 3.378853, 3.849534, 4.640436, 5.482227, 6.421905, 7.45362,
            8.100288, 6.570168, 7.222983, 8.310983, 9.443165, 10.673233, 12.002045, 12.83085,
        ],
    )?;
    check(
        bicubic(ResizeOptions::size(2, 3)).antialias(true),
        [2, 3],
        &[0.421878, 0.974924, 1.857275, 5.048961, 7.04876, 9.377867],
    )?;
    check(ResizeOptions::size(2, 3).antialias(true), [2, 3], &[0.72, 1.3, 2.16, 5.02, 6.8, 8.860001])?;
    check(
        bicubic(ResizeOptions::size(4, 5)).align_corners(true),
        [4, 5],
        &[
            0.0, 0.045703, 0.2125, 0.544922, 0.9, 0.562963, 0.915436, 1.464351, 2.178892, 2.84074, 3.288888, 4.09657,
            5.212499, 6.494052, 7.611108, 6.4, 7.514454, 9.012501, 10.676172, 12.1,
        ],
    )?;
    check(
        ResizeOptions::size(4, 5).align_corners(true),
        [4, 5],
        &[
            0.0, 0.075, 0.25, 0.525, 0.9, 1.066667, 1.541667, 2.116667, 2.791667, 3.566667, 3.2, 4.075, 5.05, 6.125,
            7.300001, 6.4, 7.675, 9.05, 10.525, 12.1,
        ],
    )?;
    let by_factor = [
        -0.124891, -0.123638, -0.069543, 0.040854, 0.312506, 0.575741, 0.407676, 0.612049, 1.005865, 1.373249,
        1.992367, 2.50838, 3.130114, 3.658966, 4.595479, 5.373391, 6.547574, 7.467393, 6.415546, 7.163587, 8.466692,
        9.521917, 11.071049, 12.263641,
    ];
    check(bicubic(ResizeOptions::factor(1.37, 1.6)), [4, 6], &by_factor)?;
    // The same by size and sampling scale, as DINO needs it.
    check(bicubic(ResizeOptions::size(4, 6)).scale(1.37, 1.6), [4, 6], &by_factor)?;
    check(
        ResizeOptions::factor(1.37, 1.6).mode(ResizeMode::Nearest),
        [4, 6],
        &[
            0.0, 0.0, 0.1, 0.1, 0.4, 0.9, 0.0, 0.0, 0.1, 0.1, 0.4, 0.9, 1.6, 1.6, 2.5, 2.5, 3.6, 4.9, 6.4, 6.4, 8.1,
            8.1, 10.0, 12.1,
        ],
    )?;
    check(
        ResizeOptions::size(2, 5).mode(ResizeMode::Nearest),
        [2, 5],
        &[0.0, 0.0, 0.1, 0.4, 0.9, 1.6, 1.6, 2.5, 3.6, 4.9],
    )
}

/// PyTorch leaves an axis of equal length alone when it is bilinear or antialiased, whatever the scale.
#[test]
fn equal_sizes() -> Result<()> {
    let xs = Draw::new(8).normal(&[1, 1, 5, 6], DType::F64)?;
    let bilinear = ResizeOptions::factor(1.1, 1.1);
    assert_close(&resize(&xs, &bilinear)?, &xs, 0.);
    assert_close(&resize(&xs, &bilinear.mode(ResizeMode::Bicubic).antialias(true))?, &xs, 0.);
    let bicubic = resize(&xs, &bilinear.mode(ResizeMode::Bicubic))?;
    assert!((bicubic - xs)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()? > 0.01);
    Ok(())
}

#[test]
fn misuse_is_an_error() -> Result<()> {
    let xs = Tensor::zeros((1, 2, 5, 5), DType::F32, &Device::Cpu)?;
    let good = ResizeOptions::size(3, 4);
    assert!(resize(&xs, &good).is_ok());
    assert!(resize(&xs.squeeze(0)?, &good).is_err());
    assert!(resize(&xs.to_dtype(DType::U8)?, &good).is_err());
    assert!(resize(&xs.narrow(2, 0, 0)?, &good).is_err());
    assert!(resize(&xs, &ResizeOptions::size(0, 3)).is_err());
    assert!(resize(&xs, &ResizeOptions::size(usize::MAX, 3)).is_err());
    assert!(resize(&xs, &ResizeOptions::size(1 << 40, 3)).is_err());
    assert!(resize(&xs, &good.mode(ResizeMode::Nearest).antialias(true)).is_err());
    assert!(resize(&xs, &good.mode(ResizeMode::Nearest).align_corners(true)).is_err());
    for factor in [0., -1., 0.1, f64::NAN, f64::INFINITY, 1e300, 1e-300] {
        assert!(resize(&xs, &ResizeOptions::factor(1., factor)).is_err(), "{factor}");
        if factor != 0.1 {
            assert!(resize(&xs, &good.scale(factor, 1.)).is_err(), "{factor}");
        }
    }
    for mode in [ResizeMode::Nearest, ResizeMode::Bilinear, ResizeMode::Bicubic] {
        for scale in [1e-30, 1e30] {
            // Senseless, but defined: samples far outside the image see its border.
            assert!(resize(&xs, &good.mode(mode).scale(scale, scale)).is_ok());
            if mode != ResizeMode::Nearest {
                assert!(resize(&xs, &good.mode(mode).antialias(true).scale(scale, scale)).is_ok());
            }
        }
    }
    Ok(())
}
