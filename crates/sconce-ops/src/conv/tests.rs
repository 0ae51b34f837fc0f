use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;

use super::*;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

/// A random convolution that fits its input.
struct Case<const R: usize> {
    batch: usize,
    channels: usize,
    filters: usize,
    input: [usize; R],
    kernel: [usize; R],
    options: ConvOptions<R>,
}

impl<const R: usize> Case<R> {
    fn draw(draw: &mut Draw, largest: usize) -> Self {
        let groups = draw.int(1..=3);
        // One channel in a group is a depthwise convolution.
        let channels = groups * draw.pick(&[1, 1, 2, 5]);
        let filters = groups * draw.pick(&[1, 1, 2, 9]);
        let mut options = ConvOptions { groups, ..Default::default() };
        let (mut input, mut kernel) = ([0; R], [0; R]);
        for axis in 0..R {
            kernel[axis] = draw.int(1..=4);
            options.stride[axis] = draw.pick(&[1, 1, 2, 3]);
            options.dilation[axis] = draw.pick(&[1, 1, 2]);
            options.padding[axis] = draw.int(0..=3);
            let span = (kernel[axis] - 1) * options.dilation[axis] + 1;
            let least = span.saturating_sub(2 * options.padding[axis]).max(1);
            input[axis] = draw.int(least..=largest.max(least));
        }
        Self { batch: draw.int(1..=3), channels, filters, input, kernel, options }
    }

    fn tensors(&self, draw: &mut Draw, dtype: DType) -> Result<[Tensor; 3]> {
        let x = [&[self.batch, self.channels], &self.input[..]].concat();
        let w = [&[self.filters, self.channels / self.options.groups], &self.kernel[..]].concat();
        Ok([strided(draw, &x, dtype)?, strided(draw, &w, dtype)?, strided(draw, &[self.filters], dtype)?])
    }

    fn ours(&self, inputs: &[Tensor]) -> Result<Tensor> {
        conv("conv", &inputs[0], &inputs[1], inputs.get(2), &self.options)
    }

    fn reference(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (xs, weight, bias) = (&inputs[0], &inputs[1], inputs.get(2));
        let shape = ConvShape::new("conv", xs, weight, bias, &self.options)?;
        from_5d(&reference::conv(&shape, &to_5d(xs)?, &to_5d(weight)?, bias)?, R + 2)
    }

    fn agrees(draw: &mut Draw, dtype: DType, largest: usize) -> Result<()> {
        let case = Self::draw(draw, largest);
        let inputs = case.tensors(draw, dtype)?;
        let inputs = if draw.bool() { &inputs[..] } else { &inputs[..2] };
        let wide: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
        let (got, want) = (case.ours(inputs)?, case.reference(&wide)?);
        assert_eq!(got.dtype(), dtype);
        assert_close(&got, &want, tolerance(dtype));
        if matches!(dtype, DType::F32 | DType::F64) {
            let cotangent = draw.normal(got.dims(), DType::F64)?;
            let got = gradients(inputs, &cotangent, |inputs| case.ours(inputs))?;
            let want = gradients(&wide, &cotangent, |inputs| case.reference(inputs))?;
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, tolerance(dtype));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agrees_with_the_reference(seed: u64) {
        let draw = &mut Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F32, DType::F64, DType::F64, DType::F16, DType::BF16]);
        Case::<1>::agrees(draw, dtype, 70).unwrap();
        Case::<2>::agrees(draw, dtype, 12).unwrap();
        Case::<3>::agrees(draw, dtype, 7).unwrap();
    }
}

/// The kernels' cuts: several tiles, panels and blocks of channels, images that share a register.
#[test]
fn agrees_with_the_reference_on_larger_shapes() -> Result<()> {
    let draw = &mut Draw::new(5);
    let dense = |channels, filters, input, kernel, stride, padding, batch, groups| Case::<2> {
        batch,
        channels,
        filters,
        input: [input; 2],
        kernel: [kernel; 2],
        options: ConvOptions::default().stride(stride).padding(padding).groups(groups),
    };
    let cases = [
        dense(40, 24, 30, 3, 1, 1, 2, 1),
        dense(70, 130, 7, 3, 1, 1, 3, 1),
        dense(3, 17, 41, 7, 2, 3, 2, 1),
        dense(300, 33, 9, 1, 1, 0, 3, 1),
        dense(64, 70, 14, 1, 2, 0, 2, 1),
        dense(3, 20, 32, 8, 8, 0, 3, 1),
        dense(24, 24, 19, 3, 1, 1, 2, 4),
        dense(24, 24, 33, 9, 1, 4, 2, 24),
        dense(12, 24, 21, 5, 2, 2, 2, 12),
    ];
    for case in &cases {
        let inputs = case.tensors(draw, DType::F64)?;
        let (got, want) = (case.ours(&inputs)?, case.reference(&inputs)?);
        assert_close(&got, &want, 1e-11);
        let cotangent = draw.normal(got.dims(), DType::F64)?;
        let got = gradients(&inputs, &cotangent, |inputs| case.ours(inputs))?;
        let want = gradients(&inputs, &cotangent, |inputs| case.reference(inputs))?;
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 1e-11);
        }
        // In f32 the registers are twice as wide, and so the cuts lie elsewhere.
        let single: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<_>>()?;
        for (got, want) in gradients(&single, &cotangent, |inputs| case.ours(inputs))?.iter().zip(&want) {
            assert_close(got, want, 1e-5);
        }
    }
    Ok(())
}

#[test]
fn gradients_are_central_differences() -> Result<()> {
    let draw = &mut Draw::new(3);
    let normal = |draw: &mut Draw, shape: &[usize]| draw.normal(shape, DType::F64);
    let xs = normal(draw, &[2, 4, 5, 4])?;
    for (groups, stride) in [(1, 1), (2, 2), (4, 1), (4, 2)] {
        let inputs = [xs.clone(), normal(draw, &[4, 4 / groups, 3, 2])?, normal(draw, &[4])?];
        let options = ConvOptions::default().groups(groups).stride(stride).padding(1);
        check_gradients(&inputs, |t| conv2d(&t[0], &t[1], Some(&t[2]), &options));
    }
    let inputs = [normal(draw, &[1, 2, 4, 3, 3])?, normal(draw, &[2, 1, 3, 2, 2])?];
    let options = ConvOptions { stride: [2, 1, 1], padding: [1, 1, 0], groups: 2, ..Default::default() };
    check_gradients(&inputs, |t| conv3d(&t[0], &t[1], None, &options));
    let inputs = [normal(draw, &[2, 2, 7])?, normal(draw, &[3, 2, 3])?, normal(draw, &[3])?];
    let options = ConvOptions::default().padding(2).dilation(2);
    check_gradients(&inputs, |t| conv1d(&t[0], &t[1], Some(&t[2]), &options));
    Ok(())
}

#[test]
fn known_values() -> Result<()> {
    let xs = Tensor::arange(1f32, 10., &Device::Cpu)?.reshape((1, 1, 3, 3))?;
    let weight = Tensor::new(&[[[[1f32, 0.], [0., -1.]]]], &Device::Cpu)?;
    let bias = Tensor::new(&[0.5f32], &Device::Cpu)?;
    let ys = conv2d(&xs, &weight, Some(&bias), &ConvOptions::default())?;
    assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [-3.5; 4]);
    Ok(())
}

/// A stride that never takes a second step was once taken for a stride of 1, and the input for one long row.
#[test]
fn one_pixel_of_a_strided_1x1_convolution() -> Result<()> {
    let draw = &mut Draw::new(1);
    for input in [[2, 2], [1, 2]] {
        let options = ConvOptions::default().stride(2);
        let case = Case::<2> { batch: 3, channels: 4, filters: 6, input, kernel: [1, 1], options };
        let inputs = case.tensors(draw, DType::F64)?;
        let cotangent = draw.normal(&[3, 6, 1, 1], DType::F64)?;
        assert_close(&case.ours(&inputs)?, &case.reference(&inputs)?, tolerance(DType::F64));
        let got = gradients(&inputs, &cotangent, |inputs| case.ours(inputs))?;
        let want = gradients(&inputs, &cotangent, |inputs| case.reference(inputs))?;
        got.iter().zip(&want).for_each(|(got, want)| assert_close(got, want, tolerance(DType::F64)));
    }
    Ok(())
}

#[test]
fn an_untracked_input_gets_no_gradient() -> Result<()> {
    let draw = &mut Draw::new(1);
    let xs = draw.normal(&[1, 2, 4, 4], DType::F32)?;
    let weight = candle_core::Var::from_tensor(&draw.normal(&[2, 2, 3, 3], DType::F32)?)?;
    let grads = conv2d(&xs, &weight, None, &ConvOptions::default())?.sum_all()?.backward()?;
    assert!(grads.get(&xs).is_none() && grads.get(&weight).is_some());
    Ok(())
}

#[test]
fn an_empty_batch_stays_empty() -> Result<()> {
    let xs = Tensor::zeros((0, 2, 4, 4), DType::F32, &Device::Cpu)?;
    for groups in [1, 2] {
        let weight = Tensor::ones((2, 2 / groups, 3, 3), DType::F32, &Device::Cpu)?;
        let ys = conv2d(&xs, &weight, None, &ConvOptions::default().groups(groups))?;
        assert_eq!(ys.dims(), [0, 2, 2, 2]);
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let draw = &mut Draw::new(9);
    for (channels, groups) in [(40, 1), (40, 40), (40, 8)] {
        let inputs = [
            draw.normal(&[2, channels, 20, 20], DType::F32)?,
            draw.normal(&[channels, channels / groups, 3, 3], DType::F32)?,
            draw.normal(&[channels], DType::F32)?,
        ];
        let run = |threads| -> Result<Vec<Vec<f32>>> {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
            pool.install(|| {
                let options = ConvOptions::default().padding(1).groups(groups);
                let f = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), &options);
                let ys = f(&inputs)?;
                let mut all = gradients(&inputs, &ys.ones_like()?, f)?;
                all.push(ys);
                all.iter().map(|t| t.flatten_all()?.to_vec1()).collect()
            })
        };
        assert_eq!(run(1)?, run(3)?);
    }
    Ok(())
}

#[test]
fn misuse_is_an_error() -> Result<()> {
    let cpu = &Device::Cpu;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, cpu);
    let (xs, weight) = (zeros(&[1, 4, 5, 5])?, zeros(&[6, 4, 3, 3])?);
    let good = ConvOptions::<2>::default();
    assert!(conv2d(&xs, &weight, None, &good).is_ok());
    let bad = |xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: ConvOptions<2>| {
        let error = conv2d(xs, weight, bias, &options).expect_err("must be refused").to_string();
        assert!(error.contains("conv2d"), "{error}");
    };
    bad(&zeros(&[4, 5, 5])?, &weight, None, good);
    bad(&xs, &zeros(&[6, 4, 3])?, None, good);
    bad(&xs, &zeros(&[6, 3, 3, 3])?, None, good);
    bad(&xs, &weight, Some(&zeros(&[5])?), good);
    bad(&xs, &weight.to_dtype(DType::F64)?, None, good);
    bad(&xs.to_dtype(DType::U32)?, &weight.to_dtype(DType::U32)?, None, good);
    bad(&xs, &weight, None, good.groups(0));
    bad(&xs, &weight, None, good.groups(3));
    bad(&xs, &weight, None, good.stride(0));
    bad(&xs, &weight, None, good.dilation(0));
    bad(&xs, &weight, None, good.dilation(3));
    bad(&xs, &zeros(&[6, 4, 6, 3])?, None, good);
    bad(&xs, &zeros(&[6, 4, 0, 3])?, None, good);
    bad(&zeros(&[1, 4, 0, 5])?, &weight, None, good.padding(3));
    bad(&zeros(&[1, 0, 5, 5])?, &zeros(&[6, 0, 3, 3])?, None, good);
    for huge in [usize::MAX, usize::MAX / 2, 1 << 40] {
        bad(&xs, &weight, None, good.padding(huge));
        bad(&xs, &weight, None, good.dilation(huge));
        bad(&xs, &weight, None, good.stride(huge).padding(huge));
        bad(&xs, &weight, None, good.groups(huge));
        assert_eq!(conv2d(&xs, &weight, None, &good.stride(huge))?.dims(), [1, 6, 1, 1]);
    }
    Ok(())
}
