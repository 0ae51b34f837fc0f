use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agrees_with_the_reference(seed: u64) {
        let draw = &mut Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
        let pair = |draw: &mut Draw, range: std::ops::RangeInclusive<usize>| [draw.int(range.clone()), draw.int(range)];
        let (kernel, stride) = (pair(draw, 1..=3), pair(draw, 1..=3));
        let (padding, dilation) = (pair(draw, 0..=2), pair(draw, 1..=2));
        let size = [draw.int(5..=9), draw.int(5..=9)];
        let shape = [draw.int(1..=2), draw.int(1..=3), size[0], size[1]];
        let xs = strided(draw, &shape, dtype).unwrap();
        let window = Window::new("unfold", &WindowSpec { input: size, kernel, stride, padding, dilation, ceil: false }).unwrap();
        let wide = xs.to_dtype(DType::F64).unwrap();

        let columns = unfold(&xs, kernel, stride, padding, dilation).unwrap();
        let want = unfold_reference(&window, &wide).unwrap();
        prop_assert_eq!(columns.dtype(), dtype);
        assert_close(&columns, &want, 0.);

        let columns = strided(draw, columns.dims(), dtype).unwrap();
        let image = fold(&columns, size, kernel, stride, padding, dilation).unwrap();
        let want = fold_reference(&window, &columns.to_dtype(DType::F64).unwrap(), xs.dims()[1]).unwrap();
        assert_close(&image, &want, tolerance(dtype));
    }
}

#[test]
fn each_is_the_gradient_of_the_other() -> Result<()> {
    let draw = &mut Draw::new(2);
    let (kernel, stride, padding, dilation) = ([3, 2], [2, 1], [1, 1], [1, 2]);
    let xs = draw.normal(&[2, 2, 5, 4], DType::F64)?;
    check_gradients(std::slice::from_ref(&xs), |t| unfold(&t[0], kernel, stride, padding, dilation));
    let columns = unfold(&xs, kernel, stride, padding, dilation)?;
    check_gradients(std::slice::from_ref(&columns), |t| fold(&t[0], [5, 4], kernel, stride, padding, dilation));
    let [grad] = &gradients(&[xs], &columns, |t| unfold(&t[0], kernel, stride, padding, dilation))?[..] else {
        candle_core::bail!("one input has one gradient");
    };
    assert_close(grad, &fold(&columns, [5, 4], kernel, stride, padding, dilation)?, 1e-12);
    Ok(())
}

#[test]
fn rows_run_over_channel_then_kernel() -> Result<()> {
    let xs = Tensor::arange(0f32, 8., &Device::Cpu)?.reshape((1, 2, 2, 2))?;
    let columns = unfold(&xs, [1, 2], [1, 1], [0, 0], [1, 1])?;
    assert_eq!(columns.squeeze(0)?.to_vec2::<f32>()?, [[0., 2.], [1., 3.], [4., 6.], [5., 7.]]);
    let ones = Tensor::ones((1, 4, 4), DType::F32, &Device::Cpu)?;
    let counts = fold(&ones, [3, 3], [2, 2], [1, 1], [0, 0], [1, 1])?;
    assert_eq!(counts.flatten_all()?.to_vec1::<f32>()?, [1., 2., 1., 2., 4., 2., 1., 2., 1.]);
    Ok(())
}

#[test]
fn misuse_is_an_error() -> Result<()> {
    let xs = Tensor::zeros((1, 2, 4, 4), DType::F32, &Device::Cpu)?;
    assert!(unfold(&xs.squeeze(0)?, [2; 2], [1; 2], [0; 2], [1; 2]).is_err());
    assert!(unfold(&xs.to_dtype(DType::U8)?, [2; 2], [1; 2], [0; 2], [1; 2]).is_err());
    assert!(unfold(&xs.narrow(2, 0, 0)?, [2; 2], [1; 2], [1; 2], [1; 2]).is_err());
    let columns = unfold(&xs, [2; 2], [1; 2], [0; 2], [1; 2])?;
    assert!(fold(&columns, [4, 5], [2; 2], [1; 2], [0; 2], [1; 2]).is_err());
    assert!(fold(&columns, [4, 4], [3, 1], [1; 2], [0; 2], [1; 2]).is_err());
    assert!(fold(&columns, [usize::MAX, 4], [2; 2], [1; 2], [0; 2], [1; 2]).is_err());
    for bad in [0, 5, usize::MAX] {
        assert!(unfold(&xs, [bad; 2], [1; 2], [0; 2], [1; 2]).is_err());
        assert!(unfold(&xs, [2; 2], [1; 2], [0; 2], [if bad == 5 { 4 } else { bad }; 2]).is_err());
        assert!(fold(&columns, [4, 4], [bad; 2], [1; 2], [0; 2], [1; 2]).is_err());
    }
    assert!(unfold(&xs, [2; 2], [0; 2], [0; 2], [1; 2]).is_err());
    assert!(unfold(&xs, [2; 2], [1; 2], [usize::MAX; 2], [1; 2]).is_err());
    assert!(unfold(&xs, [2; 2], [1; 2], [1 << 40; 2], [1; 2]).is_err());
    Ok(())
}
