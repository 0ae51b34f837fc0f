//! Dropout of elements and of residual paths.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    Error, Generator, GeneratorState, check,
    kernel::{Element, Real, Rows, Scratch, Uninit, cpu_slice, fill_rows},
    philox, with_float,
};

/// Dropout, Srivastava et al. 2014: each element is 0 with probability `p`, survivors are divided by `1 - p`. For training;
/// in evaluation it is not called. `p = 0` draws nothing.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When `p` is outside `[0, 1]` or the type is not floating-point.
pub fn dropout(xs: &Tensor, p: f64, generator: &Generator) -> Result<Tensor> {
    let op = "dropout";
    if !check_arguments(op, xs, p)? {
        return Ok(xs.clone());
    }
    let mask = Mask::draw(generator, xs.elem_count(), 1, p);
    apply(op, xs, mask)
}

/// Stochastic depth, Huang et al. 2016, also "drop path": each sample of the batch is 0 with probability `p`, survivors are
/// divided by `1 - p`. `p = 0` draws nothing.
///
/// # Shapes
/// - `xs`: `(B, *)`
/// - output: as `xs`
///
/// # Errors
/// When `p` is outside `[0, 1]`, the type is not floating-point, or there is no dimension.
pub fn drop_path(xs: &Tensor, p: f64, generator: &Generator) -> Result<Tensor> {
    let op = "drop_path";
    check::last_dim(op, xs)?;
    if !check_arguments(op, xs, p)? {
        return Ok(xs.clone());
    }
    let samples = xs.dim(0)?;
    let mask = Mask::draw(generator, samples, xs.elem_count() / samples, p);
    apply(op, xs, mask)
}

/// Whether there is anything to drop.
fn check_arguments(op: &'static str, xs: &Tensor, p: f64) -> Result<bool> {
    check::float(op, xs)?;
    match (0. ..=1.).contains(&p) {
        true => Ok(p > 0. && xs.elem_count() > 0),
        false => Err(Error::value(op, "p", "a probability", p).into()),
    }
}

fn apply(op: &'static str, xs: &Tensor, mask: Mask) -> Result<Tensor> {
    if xs.device().is_cpu() {
        return xs.apply_op1(Drop { op, mask });
    }
    let factors = mask.factors::<f32>(0..xs.elem_count());
    let factors = Tensor::from_vec(factors, xs.shape(), &Device::Cpu)?;
    // A product would let NaN through where it was dropped.
    let kept = factors.gt(0f64)?.to_device(xs.device())?;
    let scaled = (xs * mask.scale())?;
    kept.where_cond(&scaled, &scaled.zeros_like()?)
}

/// Which elements stay. Nothing is stored but where the draw began: forward and backward pass find the same bits.
struct Mask {
    state: GeneratorState,
    /// Elements that share a draw: the sample of drop path.
    run: usize,
    keep: f64,
}

impl Mask {
    fn draw(generator: &Generator, draws: usize, run: usize, p: f64) -> Self {
        // Two numbers of 64 bits for each block of the cipher, one more in case the counter stands inside a block.
        let blocks = draws.div_ceil(philox::TILE) * philox::WIDTH;
        let state = generator.reserve(2 * blocks as u64 + 1);
        Self { state, run, keep: 1. - p }
    }

    fn scale(&self) -> f64 {
        if self.keep > 0. { self.keep.recip() } else { 0. }
    }

    /// What the elements of this range are multiplied by.
    fn factors<A: Real>(&self, elements: Range<usize>) -> Vec<A> {
        let first = elements.start / self.run;
        let draws = elements.end.div_ceil(self.run) - first;
        let skip = first % philox::TILE;
        let threshold = (self.keep * 2f64.powi(32)) as u64;
        let start = self.state.counter.div_ceil(2).wrapping_add((first / philox::TILE * philox::WIDTH) as u64);
        let scale = A::from_f64(self.scale());
        let mut factors = vec![A::zero(); (skip + draws).next_multiple_of(philox::TILE)];
        A::dispatch(
            #[inline(always)]
            |_| {
                let tiles = factors.as_chunks_mut::<{ philox::TILE }>().0;
                for (tile, i) in tiles.iter_mut().zip(0u64..) {
                    let place = start.wrapping_add(i * philox::WIDTH as u64);
                    let words = philox::tile(place, self.state.stream, self.state.seed);
                    for (factor, &word) in tile.iter_mut().zip(words.as_flattened()) {
                        *factor = if u64::from(word) < threshold { scale } else { A::zero() };
                    }
                }
            },
        );
        let drawn = &factors[skip..];
        if self.run == 1 {
            return drawn[..draws].to_vec();
        }
        elements.map(|i| drawn[i / self.run - first]).collect()
    }
}

struct Drop {
    op: &'static str,
    mask: Mask,
}

impl Drop {
    fn run<T: Element>(&self, data: &[T], layout: &Layout) -> Vec<T> {
        let rows = Rows::last(data, layout);
        let n = rows.len();
        fill_rows(rows.count(), n, |range, out| {
            let mut scratch = Scratch::default();
            let factors = self.mask.factors(range.start * n..range.end * n);
            let xs = rows.wide(range, &mut scratch);
            T::produce(out, |out| block(xs, &factors, out))
        })
    }
}

fn block<'a, A: Real>(xs: &[A], factors: &[A], out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |_| {
            out.map2(
                xs,
                factors,
                #[inline(always)]
                |x, factor| if factor > A::zero() { x * factor } else { A::zero() },
            )
        },
    )
}

impl CustomOp1 for Drop {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.op, T => {
            Ok(T::to_cpu_storage_owned(self.run(T::cpu_storage_as_slice(storage)?, layout)))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !xs.track_op() {
            return Ok(None);
        }
        let (storage, layout) = grad.storage_and_layout();
        with_float!(grad.dtype(), self.op, T => {
            Tensor::from_vec(self.run::<T>(cpu_slice(&storage)?, layout), grad.shape(), grad.device()).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{Draw, assert_close, gradients, strided};

    #[test]
    fn survivors_are_scaled_and_as_many_as_expected() -> Result<()> {
        let xs = Tensor::ones((100, 1000), DType::F32, &Device::Cpu)?;
        let ys = dropout(&xs, 0.3, &Generator::new(1))?.flatten_all()?.to_vec1::<f32>()?;
        assert!(ys.iter().all(|&y| y == 0. || (y - 1. / 0.7).abs() < 1e-6));
        let kept = ys.iter().filter(|&&y| y > 0.).count() as f64 / ys.len() as f64;
        assert!((kept - 0.7).abs() < 0.01, "{kept}");
        Ok(())
    }

    #[test]
    fn paths_are_dropped_whole() -> Result<()> {
        let xs = Tensor::ones((400, 3, 5), DType::F32, &Device::Cpu)?;
        let ys = drop_path(&xs, 0.5, &Generator::new(1))?.reshape((400, 15))?.to_vec2::<f32>()?;
        assert!(ys.iter().all(|y| y.iter().all(|v| *v == y[0]) && (y[0] == 0. || y[0] == 2.)));
        let kept = ys.iter().filter(|y| y[0] > 0.).count();
        assert!((150..250).contains(&kept), "{kept}");
        assert_eq!(drop_path(&Tensor::ones(7, DType::F32, &Device::Cpu)?, 0.5, &Generator::new(1))?.dims(), [7]);
        Ok(())
    }

    #[test]
    fn the_gradient_has_the_mask_of_the_output_for_any_strides_and_type() -> Result<()> {
        let mut draw = Draw::new(3);
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for path in [false, true] {
                let xs = strided(&mut draw, &[5, 6, 7], dtype)?;
                let dy = strided(&mut draw, &[5, 6, 7], dtype)?;
                // A fresh generator for each run gives each the same mask.
                let f = |x: &Tensor| match path {
                    true => drop_path(x, 0.4, &Generator::new(9)),
                    false => dropout(x, 0.4, &Generator::new(9)),
                };
                let grads = gradients(std::slice::from_ref(&xs), &dy, |t| f(&t[0]))?;
                assert_close(&grads[0], &f(&dy)?, 0.);
                assert_close(&f(&xs)?, &f(&xs.contiguous()?)?, 0.);
            }
        }
        Ok(())
    }

    #[test]
    fn the_mask_does_not_depend_on_threads_and_successive_masks_differ() -> Result<()> {
        let xs = Tensor::ones((300, 301), DType::F32, &Device::Cpu)?;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let generator = Generator::new(4);
            pool.install(|| [0, 1].map(|_| dropout(&xs, 0.5, &generator).unwrap().to_vec2::<f32>().unwrap()))
        };
        let [first, second] = run(1);
        assert_ne!(first, second);
        assert_eq!(run(3), [first, second]);
        Ok(())
    }

    #[test]
    fn limits_of_the_probability() -> Result<()> {
        let (xs, g) = (Tensor::new(&[1f32, f32::NAN], &Device::Cpu)?, Generator::new(1));
        assert_eq!(dropout(&xs, 1., &g)?.to_vec1::<f32>()?, [0., 0.]);
        let before = g.state();
        assert_eq!(dropout(&xs, 0., &g)?.to_vec1::<f32>()?[0], 1.);
        assert_eq!(g.state(), before);
        for p in [-0.1, 1.1, f64::NAN] {
            assert!(dropout(&xs, p, &g).is_err() && drop_path(&xs, p, &g).is_err());
        }
        assert!(drop_path(&Tensor::new(1f32, &Device::Cpu)?, 0.5, &g).is_err());
        assert!(dropout(&Tensor::new(&[1u8], &Device::Cpu)?, 0.5, &g).is_err());
        assert_eq!(drop_path(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?, 0.5, &g)?.dims(), [0, 3]);
        Ok(())
    }
}
