use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::options::Shape;
use super::*;
use crate::Generator;
use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

/// The reference with the same dropout mask as `attention` draws from an equal generator.
fn expected(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let plan = options.plan(&Shape::new(q, k, v)?, q)?;
    reference::attention(q, k, v, &plan)
}

fn keep(draw: &mut Draw, b: usize, n: usize) -> Result<Tensor> {
    let keep: Vec<u8> = (0..b * n).map(|_| u8::from(draw.int(0..=3) > 0)).collect();
    Tensor::from_vec(keep, (b, n), &Device::Cpu)
}

/// One of every kind of mask; additive ones broadcast over any dimensions and may hide keys.
fn mask(draw: &mut Draw, kind: usize, s: [usize; 4], dtype: DType) -> Result<Mask> {
    Ok(match kind {
        0 => Mask::None,
        1 => Mask::Causal,
        2 => Mask::Padding(keep(draw, s[0], s[3])?),
        3 => Mask::CausalPadding(keep(draw, s[0], s[3])?),
        _ => {
            let mut dims: Vec<usize> = s.iter().map(|&n| if draw.bool() { n } else { 1 }).collect();
            let rank = draw.int(1..=4);
            if s[0].is_multiple_of(2) && draw.bool() {
                dims[0] = s[0] / 2; // repeats
            }
            let bias = strided(draw, &dims[4 - rank..], dtype)?;
            let hide = bias.gt(1.0)?;
            let minus = Tensor::full(f64::NEG_INFINITY, bias.shape(), &Device::Cpu)?.to_dtype(dtype)?;
            Mask::Additive(if draw.bool() { hide.where_cond(&minus, &bias)? } else { bias })
        }
    })
}

#[test]
fn shape_and_mean_of_values() -> Result<()> {
    let q = Tensor::zeros((2, 3, 5, 4), DType::F32, &Device::Cpu)?;
    let v = Tensor::arange(0f32, 2. * 3. * 7. * 6., &Device::Cpu)?.reshape((2, 3, 7, 6))?;
    let k = Tensor::ones((2, 3, 7, 4), DType::F32, &Device::Cpu)?;
    let out = attention(&q, &k, &v, &AttentionOptions::default())?;
    assert_close(&out, &v.mean_keepdim(2)?.broadcast_as((2, 3, 5, 6))?, 1e-6);
    assert!(out.is_contiguous());
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let cpu = &Device::Cpu;
    let x = |dims: &[usize]| Tensor::zeros(dims, DType::F32, cpu);
    let plain = AttentionOptions::default();
    let q = x(&[2, 3, 5, 4])?;
    assert!(attention(&x(&[3, 5, 4])?, &q, &q, &plain).is_err());
    assert!(attention(&q, &x(&[2, 3, 5, 6])?, &q, &plain).is_err());
    assert!(attention(&q, &x(&[2, 1, 5, 4])?, &q, &plain).is_err());
    assert!(attention(&q, &q, &x(&[2, 3, 6, 4])?, &plain).is_err());
    assert!(attention(&q, &q.to_dtype(DType::F64)?, &q, &plain).is_err());
    assert!(attention(&q.to_dtype(DType::U32)?, &q.to_dtype(DType::U32)?, &q.to_dtype(DType::U32)?, &plain).is_err());
    for bad in [
        Mask::Padding(x(&[2, 5])?),
        Mask::Padding(Tensor::zeros((2, 4), DType::U8, cpu)?),
        Mask::CausalPadding(Tensor::zeros((1, 5), DType::U8, cpu)?),
        Mask::Additive(x(&[2, 5])?),
        Mask::Additive(x(&[1, 2, 3, 5, 5])?),
        Mask::Additive(x(&[4, 3, 5, 5])?),
        Mask::Additive(Tensor::zeros((5, 5), DType::U8, cpu)?),
    ] {
        assert!(attention(&q, &q, &q, &plain.clone().with_mask(bad)).is_err());
    }
    for p in [-0.1, 1.1, f64::NAN] {
        assert!(attention(&q, &q, &q, &plain.clone().with_dropout(p)).is_err());
    }
    for heads in [0, 5] {
        assert!(attention_packed(&x(&[2, 5, 36])?, heads, &plain).is_err());
    }
    assert!(attention_packed(&x(&[5, 36])?, 3, &plain).is_err());
    Ok(())
}

#[test]
fn nothing_in_gives_nothing_or_zeros() -> Result<()> {
    let x = |dims: [usize; 4]| Ok::<_, candle_core::Error>(Var::zeros(&dims, DType::F32, &Device::Cpu)?.into_inner());
    let plain = AttentionOptions::default();
    for (q, k, v) in [
        ([0, 3, 5, 4], [0, 3, 6, 4], [0, 3, 6, 2]),
        ([2, 3, 0, 4], [2, 3, 6, 4], [2, 3, 6, 2]),
        ([2, 3, 5, 4], [2, 3, 0, 4], [2, 3, 0, 2]),
        ([2, 3, 5, 4], [2, 3, 6, 4], [2, 3, 6, 0]),
        ([2, 3, 5, 0], [2, 3, 6, 0], [2, 3, 6, 2]),
    ] {
        let out = attention(&x(q)?, &x(k)?, &x(v)?, &plain)?;
        assert_eq!(out.dims(), [q[0], q[1], q[2], v[3]]);
        assert_eq!(out.sum_all()?.to_scalar::<f32>()?, 0.);
        out.sum_all()?.backward()?;
    }
    let packed = attention_packed(&Tensor::zeros((2, 0, 36), DType::F32, &Device::Cpu)?, 3, &plain)?;
    assert_eq!(packed.dims(), [2, 0, 12]);
    Ok(())
}

#[test]
fn a_fully_masked_row_is_zero_and_passes_no_gradient() -> Result<()> {
    let mut draw = Draw::new(3);
    let inputs = (0..3).map(|_| draw.normal(&[2, 2, 4, 3], DType::F64)).collect::<Result<Vec<_>>>()?;
    let hidden = Tensor::from_vec(vec![0u8, 0, 0, 0, 1, 1, 0, 1], (2, 4), &Device::Cpu)?;
    let minus = Tensor::full(f64::NEG_INFINITY, (2, 1, 1, 4), &Device::Cpu)?;
    let additive = hidden.reshape((2, 1, 1, 4))?.where_cond(&minus.zeros_like()?, &minus)?;
    for mask in [Mask::Padding(hidden), Mask::Additive(additive)] {
        let options = AttentionOptions::default().with_mask(mask);
        let out = attention(&inputs[0], &inputs[1], &inputs[2], &options)?;
        assert_eq!(out.get(0)?.abs()?.sum_all()?.to_scalar::<f64>()?, 0.);
        let grads = gradients(&inputs, &out.ones_like()?, |x| attention(&x[0], &x[1], &x[2], &options))?;
        for g in grads {
            assert_eq!(g.get(0)?.abs()?.sum_all()?.to_scalar::<f64>()?, 0.);
            assert!(g.get(1)?.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite());
        }
    }
    Ok(())
}

/// Scores that are all the same huge number: each key has an equal share, in the backward pass too.
#[test]
fn a_huge_finite_mask_over_a_whole_row_shares_evenly() -> Result<()> {
    let mut draw = Draw::new(4);
    let [q, k, v, grad] = [0; 4].map(|_| draw.normal(&[1, 2, 4, 3], DType::F32));
    let inputs = [q?, k?, v?];
    let grad = grad?;
    for huge in [-1e30f32, -1e9, 1e30] {
        let mask = Tensor::full(huge, (1, 1, 1, 4), &Device::Cpu)?;
        let options = AttentionOptions::default().with_mask(Mask::Additive(mask)).with_scale(1e-3);
        let found = gradients(&inputs, &grad, |x| attention(&x[0], &x[1], &x[2], &options))?;
        let even = grad.mean_keepdim(2)?.broadcast_as(grad.shape())?.contiguous()?;
        assert_close(&found[2], &even, 1e-6);
    }
    Ok(())
}

#[test]
fn causal_is_an_additive_mask_of_minus_infinity() -> Result<()> {
    let mut draw = Draw::new(5);
    for (nq, nk) in [(70, 70), (70, 33), (33, 300)] {
        let (q, k) = (draw.normal(&[1, 2, nq, 8], DType::F32)?, draw.normal(&[1, 2, nk, 8], DType::F32)?);
        let mask: Vec<f32> = (0..nq * nk).map(|x| if x % nk > x / nk { f32::NEG_INFINITY } else { 0. }).collect();
        let mask = Mask::Additive(Tensor::from_vec(mask, (nq, nk), &Device::Cpu)?);
        let run = |mask| attention(&q, &k, &k, &AttentionOptions::default().with_mask(mask));
        assert_close(&run(Mask::Causal)?, &run(mask)?, 1e-6);
    }
    Ok(())
}

#[test]
fn a_bias_of_part_of_the_batch_repeats() -> Result<()> {
    let mut draw = Draw::new(12);
    let q = draw.normal(&[6, 2, 5, 3], DType::F64)?;
    for dims in [[2, 2, 5, 5], [3, 1, 5, 5], [2, 2, 1, 5], [3, 2, 5, 1], [1, 2, 5, 5], [6, 1, 5, 5]] {
        let bias = Var::from_tensor(&draw.normal(&dims, DType::F64)?)?;
        let run = |mask: Tensor| -> Result<(Tensor, Tensor)> {
            let ys = attention(&q, &q, &q, &AttentionOptions::default().with_mask(Mask::Additive(mask)))?;
            let grads = (&ys * &ys)?.sum_all()?.backward()?;
            Ok((ys, grads.get(&bias).expect("a gradient").clone()))
        };
        let (found, grad) = run(bias.as_tensor().clone())?;
        let (expected, wanted) = run(bias.repeat((6 / dims[0], 1, 1, 1))?)?;
        assert_close(&found, &expected, 1e-12);
        assert_close(&grad, &wanted, 1e-12);
        check_gradients(&[q.clone(), bias.as_tensor().clone()], |x| {
            attention(&x[0], &x[0], &x[0], &AttentionOptions::default().with_mask(Mask::Additive(x[1].clone())))
        });
    }
    Ok(())
}

#[test]
fn gradients_agree_with_central_differences() -> Result<()> {
    let mut draw = Draw::new(11);
    let s = [2, 2, 5, 4];
    let q = draw.normal(&[2, 2, 5, 3], DType::F64)?;
    let k = draw.normal(&[2, 2, 4, 3], DType::F64)?;
    let v = draw.normal(&[2, 2, 4, 2], DType::F64)?;
    for kind in 0..4 {
        let options = AttentionOptions::default().with_mask(mask(&mut draw, kind, s, DType::F64)?).with_scale(0.7);
        check_gradients(&[q.clone(), k.clone(), v.clone()], |x| attention(&x[0], &x[1], &x[2], &options));
    }
    for dims in [&[2, 2, 5, 4][..], &[2, 1, 5], &[5, 4], &[1, 1, 1, 4], &[2, 1, 1, 1, 1][..1]] {
        let bias = match dims {
            [2] => draw.normal(&[2, 1, 1, 1], DType::F64)?,
            [2, 1, 5] => draw.normal(&[2, 1, 5, 1], DType::F64)?,
            dims => draw.normal(dims, DType::F64)?,
        };
        check_gradients(&[q.clone(), k.clone(), v.clone(), bias], |x| {
            attention(&x[0], &x[1], &x[2], &AttentionOptions::default().with_mask(Mask::Additive(x[3].clone())))
        });
    }
    let generator = Generator::new(1);
    let state = generator.state();
    check_gradients(&[q, k, v], |x| {
        generator.restore(&state);
        let options = AttentionOptions::default().with_dropout(0.4).with_generator(generator.clone());
        attention(&x[0], &x[1], &x[2], &options)
    });
    Ok(())
}

#[test]
fn packed_gradients_agree_with_central_differences() -> Result<()> {
    let mut draw = Draw::new(12);
    let qkv = draw.normal(&[2, 3, 12], DType::F64)?;
    let bias = draw.normal(&[2, 3, 3], DType::F64)?;
    check_gradients(std::slice::from_ref(&qkv), |x| attention_packed(&x[0], 2, &AttentionOptions::default()));
    check_gradients(&[qkv, bias], |x| {
        attention_packed(&x[0], 2, &AttentionOptions::default().with_mask(Mask::Additive(x[1].clone())))
    });
    Ok(())
}

#[test]
fn a_bias_alone_may_want_a_gradient() -> Result<()> {
    let mut draw = Draw::new(13);
    let q = draw.normal(&[1, 2, 3, 4], DType::F64)?;
    let bias = draw.normal(&[3, 3], DType::F64)?;
    check_gradients(&[bias], |x| {
        let q = q.to_dtype(x[0].dtype())?;
        attention(&q, &q, &q, &AttentionOptions::default().with_mask(Mask::Additive(x[0].clone())))
    });
    Ok(())
}

#[test]
fn one_tensor_in_every_role() -> Result<()> {
    let x = Draw::new(14).normal(&[1, 2, 3, 3], DType::F64)?;
    check_gradients(&[x], |x| {
        attention(&x[0], &x[0], &x[0], &AttentionOptions::default().with_mask(Mask::Additive(x[0].clone())))
    });
    Ok(())
}

#[test]
fn dropout_keeps_the_expectation_and_the_seed() -> Result<()> {
    let mut draw = Draw::new(21);
    let q = draw.normal(&[1, 2, 3, 4], DType::F32)?;
    let k = draw.normal(&[1, 2, 40, 4], DType::F32)?;
    let v = draw.normal(&[1, 2, 40, 5], DType::F32)?;
    let with = |generator: &Generator| AttentionOptions::default().with_dropout(0.3).with_generator(generator.clone());
    let once = attention(&q, &k, &v, &with(&Generator::new(4)))?;
    let again = attention(&q, &k, &v, &with(&Generator::new(4)))?;
    assert_eq!(once.flatten_all()?.to_vec1::<f32>()?, again.flatten_all()?.to_vec1::<f32>()?);
    let generator = Generator::new(5);
    let mut mean = once.zeros_like()?;
    let rounds = 2000;
    for _ in 0..rounds {
        mean = (mean + attention(&q, &k, &v, &with(&generator))? / f64::from(rounds))?;
    }
    assert_close(&mean, &attention(&q, &k, &v, &AttentionOptions::default())?, 0.03);
    let all = attention(&q, &k, &v, &AttentionOptions::default().with_dropout(1.0))?;
    assert_eq!(all.abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
    Ok(())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let mut draw = Draw::new(31);
    let qkv = draw.normal(&[3, 150, 3 * 4 * 16], DType::F32)?;
    let bias = draw.normal(&[4, 150, 150], DType::F32)?;
    let run = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| {
            let inputs = [qkv.clone(), bias.clone()];
            let forward = |x: &[Tensor]| {
                attention_packed(&x[0], 4, &AttentionOptions::default().with_mask(Mask::Additive(x[1].clone())))
            };
            let mut all = vec![forward(&inputs)?];
            all.extend(gradients(&inputs, &all[0].ones_like()?, forward)?);
            all.iter().map(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())).collect()
        })
    };
    assert_eq!(run(1)?, run(3)?);
    Ok(())
}

#[test]
fn weights_are_rows_of_a_distribution() -> Result<()> {
    let mut draw = Draw::new(41);
    let q = draw.normal(&[1, 2, 6, 4], DType::F32)?;
    let w = attention_weights(&q, &q, &AttentionOptions::default().with_mask(Mask::Causal))?;
    assert_close(&w.sum(3)?, &Tensor::ones((1, 2, 6), DType::F32, &Device::Cpu)?, 1e-6);
    let out = attention(&q, &q, &q, &AttentionOptions::default().with_mask(Mask::Causal))?;
    assert_close(&w.matmul(&q)?, &out, 1e-6);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn agrees_with_the_reference(seed: u64, kind in 0..6usize) {
        let mut draw = Draw::new(seed);
        let dtype = draw.pick(&[DType::F32, DType::F32, DType::F64, DType::BF16, DType::F16]);
        let (b, h) = (draw.int(1..=3), draw.int(1..=3));
        let (nq, nk) = (draw.pick(&[1, 3, 17, 64, 90]), draw.pick(&[1, 5, 33, 130, 300]));
        let (d, dv) = (draw.int(1..=20), draw.int(1..=20));
        let q = strided(&mut draw, &[b, h, nq, d], dtype).unwrap();
        let k = strided(&mut draw, &[b, h, nk, d], dtype).unwrap();
        let v = strided(&mut draw, &[b, h, nk, dv], dtype).unwrap();
        let mask = mask(&mut draw, kind, [b, h, nq, nk], dtype).unwrap();
        let p = draw.pick(&[0., 0., 0.5]);
        let options = || AttentionOptions::default().with_mask(mask.clone()).with_dropout(p).with_generator(Generator::new(seed));
        let got = attention(&q, &k, &v, &options()).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        assert_close(&got, &expected(&q, &k, &v, &options()).unwrap(), tolerance(dtype));

        if matches!(dtype, DType::F32 | DType::F64) {
            let inputs = [q, k, v];
            let cotangent = draw.normal(&[b, h, nq, dv], dtype).unwrap();
            let got = gradients(&inputs, &cotangent, |x| attention(&x[0], &x[1], &x[2], &options())).unwrap();
            let want = gradients(&inputs, &cotangent, |x| expected(&x[0], &x[1], &x[2], &options())).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, tolerance(dtype));
            }
        }
    }

    #[test]
    fn packed_agrees_with_separate(seed: u64) {
        let mut draw = Draw::new(seed);
        let (b, n, h, d) = (draw.int(1..=2), draw.pick(&[1, 7, 70]), draw.int(1..=3), draw.int(1..=9));
        let qkv = strided(&mut draw, &[b, n, 3 * h * d], DType::F32).unwrap();
        let got = attention_packed(&qkv, h, &AttentionOptions::default()).unwrap();
        prop_assert!(got.is_contiguous());
        let part = |i| qkv.narrow(2, i * h * d, h * d).unwrap().reshape((b, n, h, d)).unwrap().transpose(1, 2).unwrap();
        let want = expected(&part(0), &part(1), &part(2), &AttentionOptions::default()).unwrap();
        let want = want.transpose(1, 2).unwrap().reshape((b, n, h * d)).unwrap();
        assert_close(&got, &want, 1e-5);
    }
}
