//! The convolution kernels as one differentiable operation of candle.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::{ConvShape, dense, dense_grad, depthwise};
use crate::lanes::Lanes;

/// A number that candle stores and our kernels compute with.
pub(crate) trait Native: Lanes + WithDType {}

impl Native for f32 {}
impl Native for f64 {}

/// `xs` `(B, C, D, H, W)`, `weight` `(O, C / g, kD, kH, kW)`, `bias` `(O)`, all on the CPU in `f32` or `f64`.
pub(crate) fn conv(shape: &ConvShape, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, Conv(*shape)),
        None => xs.apply_op2(&weight, Conv(*shape)),
    }
}

/// The elements of a contiguous tensor.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// The dimensions of the output, input and weight.
fn dims(shape: &ConvShape) -> [Shape; 3] {
    let [window, ..] = [&shape.window];
    let full = |b: usize, c: usize, [d, h, w]: [usize; 3]| Shape::from((b, c, d, h, w));
    [
        full(shape.batch, shape.filters, window.output),
        full(shape.batch, shape.channels, window.input),
        full(shape.filters, shape.channels / shape.groups, window.kernel),
    ]
}

struct Conv(ConvShape);

impl Conv {
    fn forward<T: Native>(&self, xs: &[T], weight: &[T], bias: Option<&[T]>) -> CpuStorage {
        T::to_cpu_storage_owned(match depthwise::is_depthwise(&self.0) {
            true => depthwise::forward(&self.0, xs, weight, bias),
            false => dense::forward(&self.0, xs, weight, bias),
        })
    }

    fn backward(&self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = match xs.track_op() {
            true => Some(grad.apply_op2_no_bwd(&weight.contiguous()?, &InputGrad(self.0))?),
            false => None,
        };
        let dw = match weight.track_op() {
            true => Some(xs.contiguous()?.apply_op2_no_bwd(grad, &WeightGrad(self.0))?),
            false => None,
        };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let [shape, ..] = dims(&self.0);
        let out = match s1 {
            CpuStorage::F64(_) => self.forward::<f64>(slice(s1, l1)?, slice(s2, l2)?, None),
            _ => self.forward::<f32>(slice(s1, l1)?, slice(s2, l2)?, None),
        };
        Ok((out, shape))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(xs, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [shape, ..] = dims(&self.0);
        let out = match s1 {
            CpuStorage::F64(_) => self.forward::<f64>(slice(s1, l1)?, slice(s2, l2)?, Some(slice(s3, l3)?)),
            _ => self.forward::<f32>(slice(s1, l1)?, slice(s2, l2)?, Some(slice(s3, l3)?)),
        };
        Ok((out, shape))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = self.backward(xs, weight, &grad)?;
        let db = match bias.track_op() {
            true => Some(grad.apply_op1_no_bwd(&BiasGrad(self.0))?),
            false => None,
        };
        Ok((dx, dw, db))
    }
}

/// Of the output's gradient and the weight.
struct InputGrad(ConvShape);

impl CustomOp2 for InputGrad {
    fn name(&self) -> &'static str {
        "conv-input-grad"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Native>(shape: &ConvShape, grad: &[T], weight: &[T]) -> CpuStorage {
            T::to_cpu_storage_owned(match depthwise::is_depthwise(shape) {
                true => depthwise::input(shape, grad, weight),
                false => dense_grad::input(shape, grad, weight),
            })
        }
        let [_, shape, _] = dims(&self.0);
        let out = match s1 {
            CpuStorage::F64(_) => run::<f64>(&self.0, slice(s1, l1)?, slice(s2, l2)?),
            _ => run::<f32>(&self.0, slice(s1, l1)?, slice(s2, l2)?),
        };
        Ok((out, shape))
    }
}

/// Of the input and the output's gradient.
struct WeightGrad(ConvShape);

impl CustomOp2 for WeightGrad {
    fn name(&self) -> &'static str {
        "conv-weight-grad"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Native>(shape: &ConvShape, xs: &[T], grad: &[T]) -> CpuStorage {
            T::to_cpu_storage_owned(match depthwise::is_depthwise(shape) {
                true => depthwise::weight(shape, xs, grad),
                false => dense_grad::weight(shape, xs, grad),
            })
        }
        let [_, _, shape] = dims(&self.0);
        let out = match s1 {
            CpuStorage::F64(_) => run::<f64>(&self.0, slice(s1, l1)?, slice(s2, l2)?),
            _ => run::<f32>(&self.0, slice(s1, l1)?, slice(s2, l2)?),
        };
        Ok((out, shape))
    }
}

/// Of the output's gradient.
struct BiasGrad(ConvShape);

impl candle_core::CustomOp1 for BiasGrad {
    fn name(&self) -> &'static str {
        "conv-bias-grad"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F64(_) => f64::to_cpu_storage_owned(dense_grad::bias::<f64>(&self.0, slice(storage, layout)?)),
            _ => f32::to_cpu_storage_owned(dense_grad::bias::<f32>(&self.0, slice(storage, layout)?)),
        };
        Ok((out, Shape::from(self.0.filters)))
    }
}
