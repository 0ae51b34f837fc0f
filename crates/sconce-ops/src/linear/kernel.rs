//! `linear` and `matmul` as custom operations on the CPU.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::epilogue;
use crate::{
    Activation,
    kernel::{contiguous, cpu_slice, dispatch, fill, parallel::rows_per_partial},
    product::{Epilogue, Float, Matrix, parallel},
};

/// `act(x W^T + b)` for `xs` `(rows, in)`, `weight` `(out, in)`, `bias` `(out)`, all f32 or all f64.
pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, act: Activation) -> Result<Tensor> {
    let tracked = xs.track_op() || weight.track_op() || bias.is_some_and(Tensor::track_op);
    let op = Linear { act, keep: tracked && act != Activation::Identity, kept: OnceLock::new() };
    match bias {
        Some(bias) => xs.apply_op3(weight, bias, op),
        None => xs.apply_op2(weight, op),
    }
}

struct Linear {
    act: Activation,
    /// Whether the argument of the activation will be wanted.
    keep: bool,
    kept: OnceLock<Tensor>,
}

impl Linear {
    fn forward(
        &self,
        (xs, xs_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        match xs.dtype() {
            DType::F32 => self.typed::<f32>((xs, xs_layout), (weight, weight_layout), bias),
            DType::F64 => self.typed::<f64>((xs, xs_layout), (weight, weight_layout), bias),
            other => bail!("linear: no kernel for {other:?}"),
        }
    }

    fn typed<T: Float>(
        &self,
        (xs, xs_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, k) = xs_layout.shape().dims2()?;
        let (n, _) = weight_layout.shape().dims2()?;
        let x = Matrix::new(T::cpu_storage_as_slice(xs)?, xs_layout)?;
        let w = Matrix::new(T::cpu_storage_as_slice(weight)?, weight_layout)?;
        let bias = bias.map(|(bias, layout)| contiguous::<T>(bias, layout)).transpose()?;
        let end = Epilogue { bias: bias.as_deref(), act: self.act, keep: self.keep };
        let (out, kept) = parallel((m, n, k), x, w.t(), end);
        if let Some(kept) = kept {
            let kept = Tensor::from_vec(kept, (m, n), &candle_core::Device::Cpu)?;
            // The op runs once; were it to run again, the arguments would be the same.
            let _ = self.kept.set(kept);
        }
        Ok((T::to_cpu_storage_owned(out), Shape::from((m, n))))
    }

    /// The gradients that someone needs.
    fn backward(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad, dbias) = match (xs.dtype(), bias.is_some_and(Tensor::track_op)) {
            (DType::F32, db) => self.through_activation::<f32>(grad, db)?,
            (_, db) => self.through_activation::<f64>(grad, db)?,
        };
        let dx = xs.track_op().then(|| matmul(&grad, weight)).transpose()?;
        let dw = weight.track_op().then(|| matmul(&grad.t()?, xs)).transpose()?;
        Ok((dx, dw, dbias))
    }

    /// The gradient before the activation, and its sum over the rows, in one pass.
    fn through_activation<T: Float>(&self, grad: &Tensor, sum: bool) -> Result<(Tensor, Option<Tensor>)> {
        let kept = match (self.act, self.kept.get()) {
            (Activation::Identity, _) => None,
            (_, Some(kept)) => Some(kept),
            _ => bail!("linear: the forward pass kept nothing for the gradient"),
        };
        if kept.is_none() && !sum {
            return Ok((grad.clone(), None));
        }
        let (m, n) = grad.dims2()?;
        let grad = grad.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        let grads = &cpu_slice::<T>(&storage)?[layout.start_offset()..][..m * n];
        // Blocks that depend on the size alone, so that the sums have the same bits for any number of threads.
        let rows = rows_per_partial(m, n);
        let add = |total: &mut [T], line: &[T]| {
            for (t, &x) in total.iter_mut().zip(line) {
                *t += x;
            }
        };
        let (pre, sums) = match kept {
            Some(kept) => {
                let (storage, layout) = kept.storage_and_layout();
                let kept = &cpu_slice::<T>(&storage)?[layout.start_offset()..][..m * n];
                let (out, sums) = fill(m, n, rows, |rows, out| {
                    let (g, x) = (&grads[rows.start * n..rows.end * n], &kept[rows.start * n..rows.end * n]);
                    dispatch(
                        #[inline(always)]
                        |math| {
                            let out = epilogue::backward(math, self.act, g, x, out);
                            let mut total = vec![T::zero(); if sum { n } else { 0 }];
                            if sum {
                                out.chunks_exact(n.max(1)).for_each(|line| add(&mut total, line));
                            }
                            (out, total)
                        },
                    )
                });
                (Tensor::from_vec(out, (m, n), grad.device())?, sums)
            }
            None => {
                let (_, sums) = fill::<T, _, _>(m, 0, rows, |rows, out| {
                    let mut total = vec![T::zero(); n];
                    grads[rows.start * n..rows.end * n].chunks_exact(n.max(1)).for_each(|line| add(&mut total, line));
                    (out.fill(T::zero()), total)
                });
                (grad.clone(), sums)
            }
        };
        let mut total = vec![T::zero(); n];
        sums.iter().filter(|_| sum).for_each(|part| add(&mut total, part));
        let total = sum.then(|| Tensor::from_vec(total, n, pre.device())).transpose()?;
        Ok((pre, total))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(xs, weight, Some(bias), grad)
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (weight, weight_layout), None)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.backward(xs, weight, None, grad)?;
        Ok((dx, dw))
    }
}

/// `a b` for `a` `(M, K)`, `b` `(K, N)`, both f32 or both f64, without a gradient.
fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &Product)
}

/// `a b` for `a` `(batch, M, K)`, `b` `(batch, K, N)`, or both without `batch`; f32 or f64.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2(b, Product)
}

struct Product;

impl Product {
    fn typed<T: Float>(a: &CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<CpuStorage> {
        let (a, b) = (T::cpu_storage_as_slice(a)?, T::cpu_storage_as_slice(b)?);
        if let [m, k] = *a_layout.dims() {
            let n = b_layout.dims()[1];
            let (out, _) = parallel((m, n, k), Matrix::new(a, a_layout)?, Matrix::new(b, b_layout)?, Epilogue::NONE);
            return Ok(T::to_cpu_storage_owned(out));
        }
        let (batch, m, k) = a_layout.shape().dims3()?;
        let n = b_layout.dims()[2];
        let slice = |data, layout: &Layout, i: usize| Matrix {
            data,
            start: layout.start_offset() + i * layout.stride()[0],
            rows: layout.stride()[1],
            cols: layout.stride()[2],
        };
        // Few large products are cut one by one, many small ones are dealt out whole.
        const WHOLE: usize = 1 << 22;
        if m * n * k >= WHOLE && batch < 16 {
            let mut out = Vec::with_capacity(batch * m * n);
            for i in 0..batch {
                let (a, b) = (slice(a, a_layout, i), slice(b, b_layout, i));
                out.extend_from_slice(&parallel((m, n, k), a, b, Epilogue::NONE).0);
            }
            return Ok(T::to_cpu_storage_owned(out));
        }
        let block = ((1usize << 18) / (m * n * k).max(1)).max(1);
        let (out, _) = fill(batch, m * n, block, |range, out| {
            let out = out.fill(T::zero());
            for (i, c) in range.zip(out.chunks_exact_mut((m * n).max(1))) {
                crate::product::product((m, n, k), c, n, false, slice(a, a_layout, i), slice(b, b_layout, i));
            }
            (out, ())
        });
        Ok(T::to_cpu_storage_owned(out))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = match a.dtype() {
            DType::F32 => Self::typed::<f32>(a, a_layout, b, b_layout)?,
            DType::F64 => Self::typed::<f64>(a, a_layout, b, b_layout)?,
            other => bail!("matmul: no kernel for {other:?}"),
        };
        let mut dims = a_layout.dims().to_vec();
        if let (Some(last), Some(&n)) = (dims.last_mut(), b_layout.dims().last()) {
            *last = n;
        }
        Ok((storage, Shape::from(dims)))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let da = a.track_op().then(|| grad.apply_op2_no_bwd(&b.t()?, self)).transpose()?;
        let db = b.track_op().then(|| a.t()?.apply_op2_no_bwd(grad, self)).transpose()?;
        Ok((da, db))
    }
}
