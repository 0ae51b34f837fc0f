use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;
use crate::banded;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

fn draw_options(draw: &mut Draw) -> PoolOptions {
    let mut options = PoolOptions::new(1).ceil_mode(draw.bool()).count_include_pad(draw.bool());
    for axis in 0..2 {
        options.kernel[axis] = draw.int(1..=4);
        options.stride[axis] = draw.int(1..=4);
        options.padding[axis] = draw.int(0..=options.kernel[axis] / 2);
    }
    options
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agree_with_the_references(seed: u64) {
        let draw = &mut Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F64, DType::F64, DType::F16, DType::BF16]);
        let shape = [draw.int(1..=2), draw.int(1..=3), draw.int(4..=20), draw.int(4..=40)];
        let options = draw_options(draw);
        let xs = strided(draw, &shape, dtype).unwrap();
        let wide = xs.to_dtype(DType::F64).unwrap();
        let window = options.window("pool", &xs).unwrap();

        let got = max_pool2d(&xs, &options).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        assert_close(&got, &max::reference(&window, &wide).unwrap(), 0.);

        let [rows, columns] = [1, 2].map(|axis| average::window_band(&window, axis, options.count_include_pad));
        let average = avg_pool2d(&xs, &options).unwrap();
        assert_close(&average, &banded::reference(&wide, &rows, &columns).unwrap(), tolerance(dtype));

        // The average from its definition: a sum over windows divided by a count.
        let sum = Tensor::stack(&window.tap_views(&crate::window::to_5d(&wide).unwrap(), 0.).unwrap(), 0).unwrap().sum(0).unwrap();
        let inside = wide.ones_like().unwrap();
        if !options.count_include_pad {
            let count = Tensor::stack(&window.tap_views(&crate::window::to_5d(&inside).unwrap(), 0.).unwrap(), 0).unwrap().sum(0).unwrap();
            assert_close(&average, &(sum / count).unwrap().squeeze(2).unwrap(), tolerance(dtype));
        }

        if dtype == DType::F64 {
            let cotangent = draw.normal(got.dims(), DType::F64).unwrap();
            let inputs = [xs];
            let ours = gradients(&inputs, &cotangent, |t| max_pool2d(&t[0], &options)).unwrap();
            let want = gradients(&inputs, &cotangent, |t| max::reference(&window, &t[0])).unwrap();
            assert_close(&ours[0], &want[0], 1e-12);
            let ours = gradients(&inputs, &cotangent, |t| avg_pool2d(&t[0], &options)).unwrap();
            let want = gradients(&inputs, &cotangent, |t| banded::reference(&t[0], &rows, &columns)).unwrap();
            assert_close(&ours[0], &want[0], 1e-12);
        }
    }
}

#[test]
fn gradients_are_central_differences() -> Result<()> {
    let draw = &mut Draw::new(4);
    let xs = [draw.normal(&[1, 2, 6, 7], DType::F64)?];
    for options in
        [PoolOptions::new(3).stride(2).padding(1), PoolOptions::new(2), PoolOptions::new(3).stride(2).ceil_mode(true)]
    {
        check_gradients(&xs, |t| max_pool2d(&t[0], &options));
        check_gradients(&xs, |t| avg_pool2d(&t[0], &options));
        check_gradients(&xs, |t| avg_pool2d(&t[0], &options.count_include_pad(false)));
    }
    check_gradients(&xs, |t| adaptive_avg_pool2d(&t[0], (4, 9)));
    check_gradients(&xs, |t| global_avg_pool(&t[0]));
    check_gradients(&[xs[0].flatten(2, 3)?], |t| adaptive_avg_pool1d(&t[0], 5));
    Ok(())
}

/// As PyTorch: bins may overlap, and there may be more bins than elements.
#[test]
fn adaptive_bins() -> Result<()> {
    let xs = Tensor::new(&[[[1f32, 2., 3., 4., 5.]]], &Device::Cpu)?;
    let pool = |size| adaptive_avg_pool1d(&xs, size)?.flatten_all()?.to_vec1::<f32>();
    assert_eq!(pool(1)?, [3.]);
    assert_eq!(pool(2)?, [2., 4.]);
    assert_eq!(pool(3)?, [1.5, 3., 4.5]);
    assert_eq!(pool(5)?, [1., 2., 3., 4., 5.]);
    assert_eq!(pool(7)?, [1., 1.5, 2.5, 3., 3.5, 4.5, 5.]);
    Ok(())
}

#[test]
fn ceil_mode_and_divisors() -> Result<()> {
    let xs = Tensor::arange(0f32, 5., &Device::Cpu)?.reshape((1, 1, 1, 5))?;
    let options = PoolOptions { kernel: [1, 2], stride: [1, 2], ..PoolOptions::new(1) };
    let flat = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
    assert_eq!(flat(avg_pool2d(&xs, &options)?)?, [0.5, 2.5]);
    assert_eq!(flat(avg_pool2d(&xs, &options.ceil_mode(true))?)?, [0.5, 2.5, 4.]);
    assert_eq!(flat(max_pool2d(&xs, &options.ceil_mode(true))?)?, [1., 3., 4.]);
    let padded = PoolOptions { padding: [0, 1], ..options };
    assert_eq!(flat(avg_pool2d(&xs, &padded)?)?, [0., 1.5, 3.5]);
    assert_eq!(flat(avg_pool2d(&xs, &padded.count_include_pad(false))?)?, [0., 1.5, 3.5]);
    // A last window that would begin in the padding to the right does not count.
    assert_eq!(flat(max_pool2d(&xs.narrow(3, 0, 4)?, &padded.ceil_mode(true))?)?, [0., 2., 3.]);
    Ok(())
}

#[test]
fn the_first_maximum_takes_the_gradient() -> Result<()> {
    let xs = Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu)?;
    let options = PoolOptions::new(2);
    let grads =
        gradients(&[xs], &Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?, |t| max_pool2d(&t[0], &options))?;
    let want = [[1f32, 0., 1., 0.], [0.; 4], [1., 0., 1., 0.], [0.; 4]];
    assert_eq!(grads[0].squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?, want);
    Ok(())
}

/// Candle's own gradient is a quarter of this one.
#[test]
fn candle_max_pool_gradient() -> Result<()> {
    let xs = Tensor::new(&[[[[1f64, 2.], [4., 3.]]]], &Device::Cpu)?;
    let cotangent = Tensor::ones((1, 1, 1, 1), DType::F64, &Device::Cpu)?;
    let grads = gradients(&[xs], &cotangent, |t| max_pool2d(&t[0], &PoolOptions::new(2)))?;
    assert_eq!(grads[0].flatten_all()?.to_vec1::<f64>()?, [0., 0., 1., 0.]);
    Ok(())
}

#[test]
fn not_a_number_and_infinities() -> Result<()> {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let xs = Tensor::new(&[[[[1f32, nan, -inf, -inf], [2., 3., -inf, -inf]]]], &Device::Cpu)?;
    let ys = max_pool2d(&xs, &PoolOptions::new(2))?.flatten_all()?.to_vec1::<f32>()?;
    assert!(ys[0].is_nan() && ys[1] == -inf, "{ys:?}");
    Ok(())
}

#[test]
fn misuse_is_an_error() -> Result<()> {
    let xs = Tensor::zeros((1, 2, 5, 5), DType::F32, &Device::Cpu)?;
    let good = PoolOptions::new(3);
    let bad = |xs: &Tensor, options: PoolOptions| {
        assert!(max_pool2d(xs, &options).is_err() && avg_pool2d(xs, &options).is_err(), "{options:?}");
    };
    bad(&xs.squeeze(0)?, good);
    bad(&xs.to_dtype(DType::U8)?, good);
    bad(&xs.narrow(3, 0, 0)?, good.padding(1));
    bad(&xs, good.stride(0));
    bad(&xs, good.padding(2));
    bad(&xs, good.padding(usize::MAX));
    for kernel in [0, 6, usize::MAX] {
        bad(&xs, PoolOptions::new(kernel));
    }
    assert!(max_pool2d(&xs, &good.stride(usize::MAX).ceil_mode(true)).is_ok());
    assert!(adaptive_avg_pool2d(&xs, (0, 1)).is_err());
    assert!(adaptive_avg_pool2d(&xs, (usize::MAX, 2)).is_err());
    assert!(adaptive_avg_pool1d(&xs, 2).is_err());
    assert!(adaptive_avg_pool1d(&xs.squeeze(0)?.narrow(2, 0, 0)?, 2).is_err());
    assert!(global_avg_pool(&xs.narrow(2, 0, 0)?).is_err());
    assert!(global_avg_pool(&xs.flatten_from(1)?).is_err());
    Ok(())
}
