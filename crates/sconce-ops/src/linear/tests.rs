use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

const ACTIVATIONS: [Option<Activation>; 9] = [
    None,
    Some(Activation::Identity),
    Some(Activation::Gelu),
    Some(Activation::GeluTanh),
    Some(Activation::GeluQuick),
    Some(Activation::Relu),
    Some(Activation::Silu),
    Some(Activation::Tanh),
    Some(Activation::Sigmoid),
];

#[test]
fn a_small_case_by_hand() -> Result<()> {
    let cpu = &Device::Cpu;
    let x = Tensor::new(&[[1f32, 2.], [3., -4.]], cpu)?;
    let w = Tensor::new(&[[1f32, 1.], [2., 0.], [0., -1.]], cpu)?;
    let b = Tensor::new(&[0.5f32, 0., 1.], cpu)?;
    let y = linear(&x, &w, Some(&b), Some(Activation::Relu))?;
    assert_eq!(y.to_vec2::<f32>()?, [[3.5, 2., 0.], [0., 6., 5.]]);
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let x = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let w = x(&[3, 4])?;
    assert!(linear(&x(&[2, 5])?, &w, None, None).is_err());
    assert!(linear(&x(&[])?, &w, None, None).is_err());
    assert!(linear(&x(&[2, 4])?, &x(&[4])?, None, None).is_err());
    assert!(linear(&x(&[2, 4])?, &w, Some(&x(&[4])?), None).is_err());
    assert!(linear(&x(&[2, 4])?, &w.to_dtype(DType::F64)?, None, None).is_err());
    assert!(linear(&x(&[2, 4])?, &w, Some(&x(&[3])?.to_dtype(DType::F64)?), None).is_err());
    assert!(linear(&x(&[2, 4])?.to_dtype(DType::U8)?, &w.to_dtype(DType::U8)?, None, None).is_err());
    assert!(matmul(&x(&[2, 4])?, &x(&[3, 4])?).is_err());
    assert!(matmul(&x(&[4])?, &x(&[4, 3])?).is_err());
    assert!(matmul(&x(&[2, 3, 4])?, &x(&[3, 4, 5])?).is_err());
    assert!(matmul(&x(&[2, 4])?, &x(&[4, 3])?.to_dtype(DType::F64)?).is_err());
    Ok(())
}

#[test]
fn nothing_in_gives_nothing_or_the_bias() -> Result<()> {
    let x = |dims: &[usize]| Ok::<_, candle_core::Error>(Var::zeros(dims, DType::F32, &Device::Cpu)?.into_inner());
    let bias = Var::ones(3, DType::F32, &Device::Cpu)?;
    for (dims, inputs, sum) in [(&[0, 4][..], 4, 0.), (&[2, 0], 0, 6.), (&[2, 0, 4], 4, 0.)] {
        let y = linear(&x(dims)?, &x(&[3, inputs])?, Some(&bias), None)?;
        assert_eq!(y.dims().last(), Some(&3));
        assert_eq!(y.sum_all()?.to_scalar::<f32>()?, sum);
        y.sum_all()?.backward()?;
    }
    assert_eq!(linear(&x(&[2, 4])?, &x(&[0, 4])?, None, None)?.dims(), [2, 0]);
    assert_eq!(matmul(&x(&[0, 2, 4])?, &x(&[4, 3])?)?.dims(), [0, 2, 3]);
    assert_eq!(matmul(&x(&[5, 2, 0])?, &x(&[5, 0, 3])?)?.sum_all()?.to_scalar::<f32>()?, 0.);
    Ok(())
}

#[test]
fn gradients_agree_with_central_differences() -> Result<()> {
    let mut draw = Draw::new(1);
    let x = draw.normal(&[2, 3, 5], DType::F64)?;
    let w = draw.normal(&[4, 5], DType::F64)?;
    let b = draw.normal(&[4], DType::F64)?;
    for act in ACTIVATIONS {
        check_gradients(&[x.clone(), w.clone(), b.clone()], |i| linear(&i[0], &i[1], Some(&i[2]), act));
        check_gradients(&[x.clone(), w.clone()], |i| linear(&i[0], &i[1], None, act));
    }
    // Any of the three may be the only one to want a gradient.
    let fixed = |t: &Tensor, like: &[Tensor]| t.to_dtype(like[0].dtype());
    let act = Some(Activation::Silu);
    check_gradients(&[w.clone(), b.clone()], |i| linear(&fixed(&x, i)?, &i[0], Some(&i[1]), act));
    check_gradients(std::slice::from_ref(&x), |i| linear(&i[0], &fixed(&w, i)?, Some(&fixed(&b, i)?), act));
    check_gradients(&[b], |i| linear(&fixed(&x, i)?, &fixed(&w, i)?, Some(&i[0]), None));
    Ok(())
}

#[test]
fn matmul_gradients_agree_with_central_differences() -> Result<()> {
    let mut draw = Draw::new(2);
    let a = draw.normal(&[2, 3, 4], DType::F64)?;
    let b = draw.normal(&[2, 4, 2], DType::F64)?;
    check_gradients(&[a.clone(), b.clone()], |i| matmul(&i[0], &i[1]));
    check_gradients(&[a.clone(), b.get(0)?.contiguous()?], |i| matmul(&i[0], &i[1]));
    check_gradients(&[a.get(0)?.contiguous()?, b.get(1)?.contiguous()?], |i| matmul(&i[0], &i[1]));
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let mut draw = Draw::new(3);
    let inputs =
        [draw.normal(&[700, 70], DType::F32)?, draw.normal(&[300, 70], DType::F32)?, draw.normal(&[300], DType::F32)?];
    let run = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| {
            let forward = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]), Some(Activation::Gelu));
            let mut all = vec![forward(&inputs)?];
            all.extend(gradients(&inputs, &all[0], forward)?);
            all.iter().map(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())).collect()
        })
    };
    assert_eq!(run(1)?, run(3)?);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn linear_agrees_with_the_reference(seed: u64) {
        let mut draw = Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F32, DType::F64, DType::BF16, DType::F16]);
        let (inputs, outputs) = (draw.pick(&[1, 7, 40, 130]), draw.pick(&[1, 5, 33, 150]));
        let mut dims = draw.shape(0..=2, 1..=12);
        dims.push(inputs);
        let act = draw.pick(&ACTIVATIONS);
        let x = strided(&mut draw, &dims, dtype).unwrap();
        let w = strided(&mut draw, &[outputs, inputs], dtype).unwrap();
        let b = draw.bool().then(|| strided(&mut draw, &[outputs], dtype).unwrap());
        let got = linear(&x, &w, b.as_ref(), act).unwrap();
        let want = reference::linear(&x, &w, b.as_ref(), act).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        prop_assert!(got.is_contiguous());
        // Sums of up to 130 products round more than one operation does.
        assert_close(&got, &want, 2. * tolerance(dtype));
        if matches!(dtype, DType::F32 | DType::F64) {
            let inputs: Vec<Tensor> = [x, w].into_iter().chain(b).collect();
            let got = gradients(&inputs, &want, |i| linear(&i[0], &i[1], i.get(2), act)).unwrap();
            let want = gradients(&inputs, &want, |i| reference::linear(&i[0], &i[1], i.get(2), act)).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, 2. * tolerance(dtype));
            }
        }
    }

    #[test]
    fn matmul_agrees_with_the_reference(seed: u64) {
        let mut draw = Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F64, DType::BF16, DType::F16]);
        let (m, k, n) = (draw.pick(&[1, 3, 40]), draw.pick(&[1, 9, 40]), draw.pick(&[1, 17, 50]));
        let lead = draw.shape(0..=2, 1..=5);
        let shape = |tail: [usize; 2]| [&lead[..], &tail].concat();
        let a = strided(&mut draw, &shape([m, k]), dtype).unwrap();
        let b = if draw.bool() { shape([k, n]) } else { vec![k, n] };
        let b = strided(&mut draw, &b, dtype).unwrap();
        let got = matmul(&a, &b).unwrap();
        let want = reference::matmul(&a, &b).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        assert_close(&got, &want, 2. * tolerance(dtype));
        if dtype == DType::F64 {
            let got = gradients(&[a.clone(), b.clone()], &want, |i| matmul(&i[0], &i[1])).unwrap();
            let want = gradients(&[a, b], &want, |i| reference::matmul(&i[0], &i[1])).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, 2. * tolerance(dtype));
            }
        }
    }
}
